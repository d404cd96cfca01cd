"""The first page: four doors, one working slider, the path of twelve stops, a search over all papers and classics, and every claim, failures first.

Also the page of the course.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ...core import registry
from .. import atlas
from .. import course as weekly
from . import render

ORDER = ("red", "not reproduced", "undecided", "needs hardware", "holds", "green")


def index(state: Mapping[str, Mapping], folder: Path) -> str:
    """The page as HTML from what the other pages say (`state`) and the slider of the first stop of the path that slides."""
    entries = registry.catalogue()
    by_id = {entry.arxiv: entry for entry in entries}
    stops = registry.start_path()
    pages = {page.removeprefix("papers/").removesuffix(".html"): said for page, said in state.items()
             if page.startswith("papers/") and (folder / page).exists()}
    verdicts = sorted(({"measured": None, "interval": None, "margin": None, "figure": "", **verdict, "id": name, "paper": by_id[name].name or name, "family": by_id[name].family}
                       for name, said in pages.items() for verdict in said.get("verdicts", ())), key=lambda v: ORDER.index(v["status"]))
    ledger = [v for v in verdicts if v["what"] == "claim" or v["status"] == "red"]
    shown = {entry.arxiv: _payload(folder, entry) for entry, _ in stops if "verdicts" in pages.get(entry.arxiv, ())}
    sliding = [name for name, text in shown.items() if any(len(knob["grid"]) >= 9 for knob in json.loads(text)["knobs"])]
    featured = by_id[(sliding or [*shown])[0]] if shown else None
    return render.page(
        "index.html", root="", entries=entries, pages=pages, stops=stops, ledger=ledger, families=registry.families(), featured=featured,
        payload=shown[featured.arxiv] if featured else "", counts=Counter(v["status"] for v in verdicts), tally=Counter(v["status"] for v in ledger), red=any(v["status"] == "red" for v in ledger), map=atlas.contract_map(), sizes=Counter(e.family for e in entries if e.kind == "paper"),
        done=Counter(e.family for e in entries if e.implemented and e.kind == "paper"),
        notebooks={page: said for page, said in state.items() if "/" not in page and (folder / page).exists()})


def course(folder: Path) -> str:
    """The course as a page; it links to those notebooks and papers that have a page in the folder."""
    weeks = weekly.weeks()
    table = weekly.table("{}.html", "papers/{}.html", lambda address: (folder / address).exists())
    return render.page("course.html", root="", table=table, weeks=len(weeks), here=sum(week.here for week in weeks))


def _payload(folder: Path, entry: registry.Entry) -> str:
    """The slider data of a paper, taken from its page."""
    text = (folder / "papers" / f"{entry.arxiv}.html").read_text(encoding="utf8")
    return re.search(r'<script type="application/json" id="study">(.*?)</script>', text, re.DOTALL).group(1)
