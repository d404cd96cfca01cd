"""A course of fourteen weeks through the families (``course.csv``): per week its notebook, papers, one headline experiment and what to bring."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from html import escape

from ..core import registry
from ..core.registry import Entry


@dataclass(frozen=True)
class Week:
    """``notebooks``: family → the stem of its notebook ("" where it has none yet)."""

    number: int
    title: str
    notebooks: dict[str, str]
    papers: tuple[Entry, ...]
    experiment: str
    bring: str

    @property
    def here(self) -> bool:
        """Whether a family of this week has a notebook."""
        return any(self.notebooks.values())


@lru_cache(maxsize=1)
def weeks() -> tuple[Week, ...]:
    found = []
    with open(registry.ROOT / "course.csv", encoding="utf8", newline="") as handle:
        for row in csv.DictReader(handle):
            notebooks = {family: path.stem if (path := registry.notebook(family)) else "" for family in row["families"].split(";")}
            papers = tuple(registry.find(name) for name in row["papers"].split(";"))
            found.append(Week(int(row["week"]), row["title"], notebooks, papers, row["experiment"], row["bring"]))
    return tuple(found)


def table(link_notebook: str, link_paper: str, exists=lambda address: True) -> str:
    """The weeks as an HTML table. Links are patterns (``{}.html``, ``papers/{}.html``); those for which ``exists`` is false are left out."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("week", "title", "notebook", "papers", "headline experiment", "bring"))
    return f"<table><caption>Fourteen weeks, one family or two each; grey: not here yet</caption><thead><tr>{head}</tr></thead><tbody>" + "".join(
        _row(week, link_notebook, link_paper, exists) for week in weeks()) + "</tbody></table>"


def _row(week: Week, link_notebook: str, link_paper: str, exists) -> str:
    def link(pattern: str, name: str, text: str) -> str:
        address = pattern.format(name)
        return f'<a href="{address}">{escape(text)}</a>' if exists(address) else escape(text)

    books = ", ".join(link(link_notebook, stem, family) if stem else f"{escape(family)} (not yet)" for family, stem in week.notebooks.items())
    papers = ", ".join(link(link_paper, entry.arxiv, entry.name) if entry.implemented else _elsewhere(entry) for entry in week.papers)
    cells = (f'<th scope="row">{week.number}</th>', *(f"<td>{text}</td>" for text in (
        escape(week.title), books, papers, escape(week.experiment), escape(week.bring))))
    return f"<tr{'' if week.here else ' class=grey'}>{''.join(cells)}</tr>"


def _elsewhere(entry: Entry) -> str:
    """A paper that is not live here: the head of its title and a link to arXiv."""
    head = entry.title.partition(":")[0]
    return f'{escape(head if len(head) < 50 else head[:46].rsplit(" ", 1)[0] + " …")} (<a href="https://arxiv.org/abs/{entry.arxiv}">{entry.arxiv}</a>)'
