"""Finds papers: the catalogue of 165, and those of them (and classics) that are implemented here.

A paper module is any module in ``workbench/papers/<family>/`` whose text has a line ``STUDY = Study(``; its id stands in the line ``paper="…"``. It is
found by reading, not by importing, so that listing 165 papers imports none. Where that id is ``board …``, the module is a board: a track on which
papers and classics of its family race, by the name of the track.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .study import Study, StudyError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue. ``module`` is empty where the paper is not implemented; ``kind`` is ``paper``, ``classic`` or ``board``; of a
    classic, ``symbol`` names what it is in its family's modules."""

    arxiv: str
    title: str
    family: str
    date: str = ""
    code: str = ""
    name: str = ""
    module: str = ""
    kind: str = "paper"
    symbol: str = ""

    @property
    def implemented(self) -> bool:
        return bool(self.module)

    def study(self) -> Study:
        """The paper's study (imports its module)."""
        if self.kind == "classic":
            raise StudyError(f"{self.name} is a classic: it races in the studies of {self.family} and has none of its own")
        if not self.module:
            raise StudyError(f"{self.arxiv} ({self.title}) is not implemented yet; implemented: {', '.join(e.name for e in implemented())}")
        return importlib.import_module(self.module).STUDY


@lru_cache(maxsize=1)
def catalogue() -> tuple[Entry, ...]:
    """All 165 papers in catalogue order, then the classics."""
    found = _implemented()
    with open(ROOT / "catalog.csv", encoding="utf8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    papers = [Entry(row["arxiv"], row["title"], row["family"], row["date"], row["code"], *found.get(row["arxiv"], ("", ""))) for row in rows]
    return (*papers, *_classics())


@lru_cache(maxsize=1)
def _implemented() -> dict[str, tuple[str, str]]:
    found = {}
    for path in sorted((ROOT / "papers").glob("*/*.py")):
        text = path.read_text(encoding="utf8")
        if re.search(r"^STUDY = Study\(", text, re.MULTILINE):
            block = text[text.index("\nSTUDY = Study("):]
            paper, name = (re.search(rf'^    {word}="([^"]+)",$', block, re.MULTILINE) for word in ("paper", "name"))
            if not paper or not name:
                raise StudyError(f'{path}: its STUDY needs the lines `    paper="…",` and `    name="…",`, by which it is found without being imported')
            if paper.group(1) in found:
                raise StudyError(f"{paper.group(1)} has two studies: {found[paper.group(1)][1]} and {path}")
            found[paper.group(1)] = (name.group(1), f"workbench.papers.{path.parent.name}.{path.stem}")
    return found


def _classics() -> list[Entry]:
    """Classics are the rows ``# classic: key | title | year | module.Name`` in a family's ``classics.py``."""
    entries = []
    for path in sorted((ROOT / "papers").glob("*/classics.py")):
        for row in re.findall(r"^# classic: ([\w-]+) \| (.+?) \| (\d{4}) \| (\w+)\.(\w+)$", path.read_text(encoding="utf8"), re.MULTILINE):
            key, title, year, module, symbol = row
            entries.append(Entry(key, title, path.parent.name, year, "", key, f"workbench.papers.{path.parent.name}.{module}", "classic", symbol))
    return entries


def boards() -> list[Entry]:
    """The tracks with a board: ``name`` is the track's (``vgg-small/macs``)."""
    return [Entry(paper, name, module.split(".")[2], name=name, module=module, kind="board")
            for paper, (name, module) in _implemented().items() if paper.startswith("board ")]


def start_path() -> list[tuple[Entry, str]]:
    """The twelve stops for newcomers, each with what is asked there (``start.csv``)."""
    with open(ROOT / "start.csv", encoding="utf8", newline="") as handle:
        return [(find(row["arxiv"]), row["question"]) for row in csv.DictReader(handle)]


def implemented() -> list[Entry]:
    """The implemented papers (not classics), in catalogue order."""
    return [entry for entry in catalogue() if entry.implemented and entry.kind == "paper"]


def families() -> dict[str, str]:
    """Family name → the first paragraph of its page (the docstring of its package), or its name where it has none yet."""
    glosses = {}
    for name in dict.fromkeys(entry.family for entry in catalogue()):
        path = ROOT / "papers" / name / "__init__.py"
        match = re.match(r'\s*"""(.+?)(?:\n\n|""")', path.read_text(encoding="utf8"), re.DOTALL) if path.exists() else None
        glosses[name] = " ".join(match.group(1).split()) if match else ""
    return glosses


def notebook(family: str) -> Path | None:
    """The family's notebook (``notebooks/NN_family.ipynb``); None where it has none yet."""
    return next(iter(sorted((ROOT.parent / "notebooks").glob(f"[0-9][0-9]_{family}.ipynb"))), None)


def find(name: str) -> Entry:
    """The entry with this arXiv id, short name or track's name; a wrong one is answered with the three nearest."""
    entries = {key: entry for entry in (*boards(), *catalogue()) for key in (entry.arxiv.lower(), entry.name.lower()) if key}
    key = str(name).strip().lower().removeprefix("arxiv:")
    if key in entries:
        return entries[key]
    raise StudyError(f"no paper {name!r}; the nearest are {', '.join(_nearest(key, list(entries)))} (`workbench papers` lists all)")


def _nearest(key: str, names: list[str]) -> list[str]:
    """The three names or ids most like ``key``; a longer key is taken for (a part of) a title."""
    words = {name: name for name in names} if len(key) < 15 else {entry.title.lower(): entry.name or entry.arxiv for entry in catalogue()}
    inside = [word for word in words if key and key in word]
    return [words[word] for word in dict.fromkeys([*inside, *difflib.get_close_matches(key, words, 3, 0.0)])][:3]


def select(name: str) -> list[Entry]:
    """The implemented papers meant by an id, a short name, a family or ``all``."""
    if name == "all":
        return implemented()
    if name in {entry.family for entry in catalogue()}:
        chosen = [entry for entry in implemented() if entry.family == name]
        if not chosen:
            raise StudyError(f"no paper of the family {name} is implemented yet; implemented families: "
                             f"{', '.join(sorted({e.family for e in implemented()}))}")
        return chosen
    try:
        entry = find(name)
    except StudyError:
        family = difflib.get_close_matches(name, {entry.family for entry in catalogue()}, 1, 0.8)
        if family:
            raise StudyError(f"no paper or family {name!r}; did you mean the family {family[0]}?") from None
        raise
    entry.study()
    return [entry]
