"""The atlas: all papers and classics, to be searched and filtered; those not implemented here are grey."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..core import registry
from ..core.registry import Entry
from .readout import STYLE, static

HEAD = "<table><tr><th scope='col'>id</th><th scope='col'>title</th><th scope='col'>family</th><th scope='col'>year</th><th scope='col'>here</th></tr>"


def find(text: str = "", family: str = "") -> list[Entry]:
    """The entries whose id, short name, title or family hold every word of ``text``; those implemented come first."""
    words = text.lower().split()
    found = [e for e in registry.catalogue() if family in ("", e.family)
             and all(word in f"{e.arxiv} {e.name} {e.title} {e.family} {e.kind}".lower() for word in words)]
    return sorted(found, key=lambda e: not e.implemented)


def table(entries: Iterable[Entry]) -> str:
    """Entries as an HTML table: a paper's id links to arXiv, its state is said in words and by shade."""
    return HEAD + "".join(_row(entry) for entry in entries) + "</table>"


def _row(entry: Entry) -> str:
    state = "classic" if entry.kind == "classic" else f'<code>explore("{entry.name}")</code>' if entry.implemented else "not yet"
    link = entry.arxiv if entry.kind == "classic" else f'<a href="https://arxiv.org/abs/{entry.arxiv}">{entry.arxiv}</a>'
    shade = "" if entry.implemented else ' style="opacity:.55"'
    return f"<tr{shade}><td>{link}</td><td>{escape(entry.title)}</td><td>{entry.family}</td><td>{entry.date[:4]}</td><td>{state}</td></tr>"


def search(text: str = "", family: str = "", most: int = 20) -> None:
    """Shows a search box over all papers and classics with a family filter; without a kernel, what they find for ``text`` and ``family``."""
    from IPython.display import HTML, display

    def result(text: str, family: str) -> str:
        found = find(text, family)
        more = f"<p>{len(found)} found" + (f", the first {most} shown" if len(found) > most else "") + "</p>"
        return f"{STYLE}<div class='wb'>{more}{table(found[:most])}</div>"

    if static():
        display(HTML(result(text, family)))
        return
    import ipywidgets as widgets

    box = widgets.Text(value=text, description="search", placeholder="a word of the title, an id, a classic", continuous_update=True)
    choice = widgets.Dropdown(options=[("all families", ""), *((f, f) for f in registry.families())], value=family, description="family")
    shown = widgets.HTML(result(text, family))
    for control in (box, choice):
        control.observe(lambda _: setattr(shown, "value", result(box.value, choice.value)), "value")
    display(widgets.VBox([widgets.HBox([box, choice]), shown]))


def families() -> None:
    """Shows every family with its one-line gloss and how many of its papers are live."""
    from IPython.display import HTML, display

    rows = ""
    for name, gloss in registry.families().items():
        entries = [e for e in registry.catalogue() if e.family == name and e.kind == "paper"]
        live = sum(e.implemented for e in entries)
        rows += f"<tr><td><b>{name}</b></td><td>{escape(gloss)}</td><td>{live} of {len(entries)}</td></tr>"
    head = "<tr><th scope='col'>family</th><th scope='col'>in one line</th><th scope='col'>live</th></tr>"
    display(HTML(f"{STYLE}<div class='wb'><table>{head}{rows}</table></div>"))


def path() -> None:
    """Shows the path of twelve stops through the papers; those that are not implemented are grey."""
    from IPython.display import HTML, display

    items = ""
    for entry, why in registry.start_path():
        here = f' <code>explore("{entry.name}")</code>' if entry.implemented else " (not yet)"
        items += f"<li{'' if entry.implemented else ' style=opacity:.55'}><b>{escape(entry.title)}</b>{here}<br>{escape(why)}</li>"
    display(HTML(f"<ol>{items}</ol>"))


def everything() -> None:
    """Shows the long table: every paper and classic."""
    from IPython.display import HTML, display

    display(HTML(f"{STYLE}<div class='wb'>{table(registry.catalogue())}</div>"))
