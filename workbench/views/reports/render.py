"""Markdown, maths, code and executed notebooks as HTML that needs no network: MathML for formulas, pygments for code, plotly mime bundles as data.

Nothing here runs a kernel. What refers to another host is left out: images and scripts from the network become plain links or vanish.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import mistune
from latex2mathml.converter import convert
from mistune.plugins.math import math, math_in_list, math_in_quote
from mistune.plugins.table import table
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

PLOTLY = "application/vnd.plotly.v1+json"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
REMOTE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
FOREIGN = re.compile(r"<(script|iframe|object|embed)\b.*?(</\1\s*>|/>)|<link\b[^>]*>", re.IGNORECASE | re.DOTALL)
TAG = re.compile(r"<style\b.*?</style\s*>|<[a-z][^>]*>", re.IGNORECASE | re.DOTALL)
LOADS = re.compile(r"""@import[^;]*;|url\([^)]*//[^)]*\)|\b(src|srcset|poster)\s*=\s*(['"]?)\s*(https?:)?//[^'"\s>]*\2""", re.IGNORECASE)


def maths(tex: str, display: bool = False) -> str:
    """LaTeX as MathML; a formula that cannot be converted is shown as its source."""
    try:
        return convert(tex.strip(), display="block" if display else "inline")
    except Exception as error:  # the converter raises its own kinds, and IndexError or KeyError on damaged input
        return f'<code class="bad-maths" title="{html.escape(type(error).__name__, True)}">{html.escape(tex)}</code>'


def code(text: str, language: str = "python", anchor: str = "") -> str:
    """Highlighted source; with ``anchor``, line n can be linked to as ``#<anchor>-n``."""
    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False)
    options = {"linespans": anchor} if anchor else {}
    return highlight(text.strip("\n"), lexer, HtmlFormatter(cssclass="code", **options)).replace("<pre>", '<pre tabindex="0">', 1)


class _Html(mistune.HTMLRenderer):
    """Markdown with MathML, highlighted code, headings that can be linked to, and no images from elsewhere."""

    def __init__(self, shift: int):
        super().__init__(escape=False)
        self.shift = shift

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        level = min(level + self.shift, 6)
        return f'<h{level} id="{slug(text)}">{text}</h{level}>\n'

    def block_code(self, code_text: str, info: str | None = None) -> str:
        return code(code_text, (info or "text").split()[0])

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, url if REMOTE.match(url) else re.sub(r"\.ipynb(?=$|#)", ".html", url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text or url, url, title) if REMOTE.match(url) else super().image(text, url, title)

    def block_math(self, text: str) -> str:
        return f'<div class="formula" tabindex="0">{maths(text, True)}</div>\n'

    def inline_math(self, text: str) -> str:
        return maths(text)

    def table(self, text: str) -> str:
        return f'<div class="scroll" tabindex="0"><table>{text}</table></div>\n'


@lru_cache(maxsize=4)
def _markdown(shift: int) -> mistune.Markdown:
    return mistune.create_markdown(renderer=_Html(shift), plugins=[math, math_in_list, math_in_quote, table, "strikethrough"])


def markdown(text: str, shift: int = 0) -> str:
    """Markdown as HTML; ``shift`` lowers its headings by so many levels, so that a lesson fits under the page's own title."""
    return local(_markdown(shift)(text))


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"<[^>]+>", "", text).lower()).strip("-") or "section"


def local(text: str) -> str:
    """HTML without scripts, frames, links to style sheets, and attributes and styles that would load something from another host."""
    return TAG.sub(lambda tag: _image(LOADS.sub("", tag.group())), FOREIGN.sub("", text))


def _image(tag: str) -> str:
    """An image's tag with an alternative text; one that has lost its source is left out. Any other tag as it is."""
    if not re.match(r"<img\b", tag, re.IGNORECASE):
        return tag
    return "" if not re.search(r"\bsrc\s*=", tag) else tag if re.search(r"\balt\s*=", tag) else f'{tag[:4]} alt="image"{tag[4:]}'


def embed(data: Any) -> str:
    """JSON that may stand inside a script element; what is not finite becomes null."""
    finite = json.loads(json.dumps(data), parse_constant=lambda name: None)
    return json.dumps(finite, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\!--")


def figure(bundle: Mapping) -> str:
    """A plotly figure as data; the page's script draws it, describes it and fills the table behind it."""
    layout = {name: value for name, value in bundle.get("layout", {}).items() if name != "template"}
    data = embed({"data": bundle.get("data", []), "layout": layout})
    return (f'<figure class="plot"><div class="plotly" role="img" aria-label="chart"></div><script type="application/json">{data}</script>'
            '<details class="numbers"><summary>Numbers behind this chart</summary><div tabindex="0"></div></details></figure>')


@dataclass(frozen=True)
class Page:
    """An executed notebook as HTML: its ``title``, its ``body``, the headings for a table of contents, and the first error's traceback ("" if none)."""

    title: str
    body: str
    contents: list[tuple[int, str, str]]
    error: str


def notebook(nb: Mapping, fallback_title: str) -> Page:
    """Renders the cells in order. ``nb`` is a notebook as nbformat reads it (a mapping)."""
    parts, error = [], ""
    for cell in nb["cells"]:
        tags = cell.get("metadata", {}).get("tags", [])
        if "hide" in tags:
            continue
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            parts.append(f'<div class="text">{markdown(source)}</div>')
        elif cell["cell_type"] == "code":
            outputs = [_output(output) for output in cell.get("outputs", [])]
            failed = [o for o in cell.get("outputs", []) if o["output_type"] == "error"]
            if failed and not error:
                error = traceback_of(failed[0])
            shown = code(source) if source.strip() else ""
            if "hide-input" in tags or cell.get("metadata", {}).get("jupyter", {}).get("source_hidden"):
                shown = f'<details class="input"><summary>Code of this cell</summary>{shown}</details>'
            parts.append(f'<div class="cell{" failed" if failed else ""}">{shown}<div class="outputs">{"".join(outputs)}</div></div>')
    body = "\n".join(parts)
    headings = [(int(level), anchor, re.sub(r"<[^>]+>", "", text)) for level, anchor, text in
                re.findall(r'<h([1-3]) id="([^"]*)">(.*?)</h\1>', body, re.DOTALL)]
    title = next((html.unescape(text) for level, _, text in headings if level == 1), fallback_title)
    return Page(title, body, [h for h in headings if h[0] > 1], error)


def traceback_of(output: Mapping) -> str:
    return ANSI.sub("", "\n".join(output.get("traceback") or [f"{output['ename']}: {output['evalue']}"]))


def _output(output: Mapping) -> str:
    """One output of a cell: the richest of its forms that needs no kernel."""
    kind = output["output_type"]
    if kind == "stream":
        return f'<pre class="{output["name"]}" tabindex="0">{html.escape(ANSI.sub("", output["text"]))}</pre>'
    if kind == "error":
        return f'<pre class="traceback" role="alert" tabindex="0">{html.escape(traceback_of(output))}</pre>'
    data = output.get("data", {})
    if PLOTLY in data:
        return figure(data[PLOTLY])
    if "text/html" in data:
        return f'<div class="html scroll" tabindex="0">{local(data["text/html"])}</div>'
    if "text/markdown" in data:
        return f'<div class="text">{markdown(data["text/markdown"], 1)}</div>'
    if "text/latex" in data:
        return f'<div class="formula" tabindex="0">{maths(data["text/latex"].strip("$ "), True)}</div>'
    if "image/svg+xml" in data:
        return f'<div class="image">{local(data["image/svg+xml"])}</div>'
    for mime in ("image/png", "image/jpeg"):
        if mime in data:
            alt = html.escape(data.get("text/plain", "image"), True)
            return f'<div class="image"><img alt="{alt}" src="data:{mime};base64,{"".join(data[mime].split())}"></div>'
    return f'<pre tabindex="0">{html.escape(ANSI.sub("", data["text/plain"]))}</pre>' if data.get("text/plain") else ""


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"markdown": markdown, "code": code, "number": number, "slug": slug}
    return environment


def page(template: str, **values: Any) -> str:
    """A whole page from one of the templates; a value that the template needs and does not get is an error."""
    return _templates().get_template(template).render(values)


def number(value: Any, digits: int = 4) -> str:
    """A measured value for people: four significant digits, integers whole, text as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    return (f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.{digits}g}").replace("-", "−")
