"""The atlas: all papers and classics, to be searched and filtered; the families and what they compress; the path and the course. Those not implemented here are grey.

In a notebook the search is a widget. In a published page (``WORKBENCH_STATIC=1``) it is a table with a filter that the page's script brings to life, and papers link to
their pages.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from html import escape
from typing import NamedTuple

from ..core import registry
from ..core.registry import Entry
from .readout import STYLE, static

GREY = "<style>.wb .grey,.wb .grey td,.wb .grey th{font-style:italic;color:var(--soft,var(--jp-ui-font-color2,#666))}</style>"  # the page's, JupyterLab's
COLUMNS = ("id", "title", "family", "year", "here")


class Contract(NamedTuple):
    """One kind of thing that is compressed: what a method takes, what it gives, which families are at home there."""

    name: str
    takes: str
    gives: str
    families: tuple[str, ...]


@lru_cache(maxsize=1)
def contracts() -> tuple[Contract, ...]:
    with open(registry.ROOT / "contracts.csv", encoding="utf8", newline="") as handle:
        return tuple(Contract(row["contract"], row["takes"], row["gives"], tuple(row["families"].split(";"))) for row in csv.DictReader(handle))


@lru_cache(maxsize=1)
def crossings() -> Counter:
    """(family, contract) → how many live papers of the family stand on that contract, read from their imports."""
    counts: Counter = Counter()
    for entry in registry.implemented():
        text = registry.ROOT.parent.joinpath(*entry.module.split(".")).with_suffix(".py").read_text(encoding="utf8")
        counts.update({(entry.family, c.name) for c in contracts() if re.search(rf"\bcontracts\.{c.name}\b|\bcontracts import .*\b{c.name}\b", text)})
    return counts


def find(text: str = "", family: str = "") -> list[Entry]:
    """The entries whose id, short name, title or family hold every word of ``text``; those implemented come first."""
    words = text.lower().split()
    found = [e for e in registry.catalogue() if family in ("", e.family)
             and all(word in f"{e.arxiv} {e.name} {e.title} {e.family} {e.kind}".lower() for word in words)]
    return sorted(found, key=lambda e: not e.implemented)


def table(entries: Iterable[Entry], name: str = "") -> str:
    """Entries as an HTML table: a paper's id links to arXiv, its state is said in words and by shade."""
    head = "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
    return f"<table{f' id={name}' if name else ''}><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, entries))}</tbody></table>"


def _row(entry: Entry) -> str:
    state = "classic" if entry.kind == "classic" else f'<code>explore("{entry.name}")</code>' if entry.implemented else "not yet"
    link = entry.arxiv if entry.kind == "classic" else f'<a href="https://arxiv.org/abs/{entry.arxiv}">{entry.arxiv}</a>'
    grey = "" if entry.implemented else " class=grey"
    return (f"<tr{grey} data-key='{entry.family}'><td>{link}</td><td>{_title(entry)}</td><td>{entry.family}</td><td>{entry.date[:4]}</td>"
            f"<td>{state}</td></tr>")


def _title(entry: Entry) -> str:
    """In a published page a live paper's title leads to its page."""
    live = static() and entry.implemented and entry.kind == "paper"
    return f'<a href="papers/{entry.arxiv}.html">{escape(entry.title)}</a>' if live else escape(entry.title)


def _display(content: str) -> None:
    from IPython.display import HTML, display

    display(HTML(f"{STYLE}{GREY}<div class='wb'>{content}</div>"))


def search(text: str = "", family: str = "", most: int = 20) -> None:
    """Shows a search box over all papers and classics with a family filter; both work by keyboard, in a published page too."""
    if static():
        options = "".join(f"<option>{name}</option>" for name in registry.families())
        _display(f"""<form class="filter" data-filter="atlas-rows" role="search" hidden><label for="atlas-search">Search</label>
            <input id="atlas-search" type="search" value="{escape(text, True)}" autocomplete="off"> <label for="atlas-family">Family</label>
            <select id="atlas-family"><option value="">all families</option>{options}</select> <output for="atlas-search atlas-family"></output></form>
            {table(find(text, family), "atlas-rows")}""")
        return
    import ipywidgets as widgets
    from IPython.display import display

    def result(text: str, family: str) -> str:
        found = find(text, family)
        more = f"<p role='status'>{len(found)} found" + (f", the first {most} shown" if len(found) > most else "") + "</p>"
        return f"{STYLE}{GREY}<div class='wb'>{more}{table(found[:most])}</div>"

    box = widgets.Text(value=text, description="search", placeholder="a word of the title, an id, a classic", continuous_update=True)
    choice = widgets.Dropdown(options=[("all families", ""), *((f, f) for f in registry.families())], value=family, description="family")
    shown = widgets.HTML(result(text, family))
    for control in (box, choice):
        control.observe(lambda _: setattr(shown, "value", result(box.value, choice.value)), "value")
    display(widgets.VBox([widgets.HBox([box, choice]), shown]))


def slider_of(paper: str) -> None:
    """Where no kernel answers, a link to the paper's page, whose slider needs none; beside a kernel nothing."""
    if static():
        entry = registry.find(paper)
        _display(f'<p>This page has no kernel. <a href="papers/{entry.arxiv}.html#explore">Slide {escape(entry.name)} on its own page</a>, which needs none.</p>')


def families() -> None:
    """Shows every family with its one-line gloss and how many of its papers are live."""
    rows = ""
    for name, gloss in registry.families().items():
        live, of = _live(name)
        rows += f"<tr{'' if live else ' class=grey'}><th scope='row'>{name}</th><td>{escape(gloss)}</td><td>{live} of {of}</td></tr>"
    head = "<tr><th scope='col'>family</th><th scope='col'>in one line</th><th scope='col'>live</th></tr>"
    _display(f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>")


def _live(family: str) -> tuple[int, int]:
    entries = [e for e in registry.catalogue() if e.family == family and e.kind == "paper"]
    return sum(e.implemented for e in entries), len(entries)


def contract_map() -> str:
    """Families × contracts as HTML: a family's home says how many of its papers are live, other cells how many of them also stand on that contract."""
    head = "".join(f'<th scope="col">{c.name}</th>' for c in contracts())
    rows = ""
    for c in contracts():
        for family in c.families:
            live, of = _live(family)
            cells = "".join(f"<td><b>{live} of {of}</b></td>" if other is c else f"<td>{crossings()[family, other.name] or ''}</td>" for other in contracts())
            rows += f"<tr{'' if live else ' class=grey'}><th scope='row'>{family}</th>{cells}<td>{escape(registry.families()[family])}</td></tr>"
    glosses = "".join(f"<li><b>{c.name}</b>: {escape(c.takes)} → {escape(c.gives)}</li>" for c in contracts())
    return (f"<table><caption>Families by the kind of thing that they compress; bold: papers live at the family's home</caption><thead><tr><th scope='col'>family</th>{head}"
            f"<th scope='col'>in one line</th></tr></thead><tbody>{rows}</tbody></table><ul>{glosses}</ul>")


def chart() -> None:
    """Shows the map of families and contracts."""
    _display(contract_map())


def path() -> None:
    """Shows the path of twelve stops through the papers; those that are not implemented are grey."""
    items = ""
    for entry, why in registry.start_path():
        here = f' <code>explore("{entry.name}")</code>' if entry.implemented else " (not yet)"
        items += f"<li{'' if entry.implemented else ' class=grey'}><b>{_title(entry)}</b>{here}<br>{escape(why)}</li>"
    _display(f"<ol>{items}</ol>")


def course() -> None:
    """Shows the course of fourteen weeks: notebook, papers, headline experiment, what to bring; weeks without a notebook are grey."""
    from .course import table as weeks

    if static():
        _display(weeks("{}.html", "papers/{}.html"))
    else:
        _display(weeks("{}.ipynb", "https://arxiv.org/abs/{}"))


def everything() -> None:
    """Shows the long table: every paper and classic (a published page has it under its search already)."""
    count = len(registry.catalogue())
    _display(f"<p>All {count} stand in the table of the search above.</p>" if static() else table(registry.catalogue()))
