"""The published pages: one per paper, one per executed notebook, an index; made again only where something they show has changed.

    papers ──► evidence ──► page, CSV ─┐
    notebooks ──► papermill ──► page ──┼─► .state.json (what each page was made of, and what it says) ──► index.html
    templates, style, scripts ─────────┘

Every file is written whole or not at all, and the state after each page, so that a report that is stopped loses nothing that was there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from pathlib import Path

from ...core import golden, registry
from ...core.keys import code_key
from ...core.measurements import write_whole
from ...core.registry import ROOT, Entry
from ...core.study import StudyError

PROJECT = ROOT.parent
NOTEBOOKS, CHECKPOINTS, PROBES = PROJECT / "notebooks", PROJECT / "data" / "checkpoints", PROJECT / "data" / "probes"
SHOWN = (ROOT / "core", ROOT / "views", ROOT / "api.py", ROOT / "lessons.py", PROJECT / "data" / "public", PROJECT / "data" / "peers")  # behind every page
PAGE_SECONDS = 600


class CannotWrite(StudyError):
    """A page could not be written; the message names the file and the reason."""


def report(what: str = "all", fresh: bool = False, out: str | Path = "reports", jobs: int | None = None) -> int:
    """Writes the pages of ``what`` (an id, a short name, a family or ``all``, which includes the notebooks) into the folder ``out``.

    Papers show their golden results; the cheapest of them, those without a golden file and, with ``fresh``, all of ``what`` are measured now and compared.
    Returns 1 if a check is red, a verdict turned from holding to not reproduced or back, a notebook raised, or a page could not be made; else 0.
    """
    try:
        return _Report(Path(out).resolve(), fresh, jobs or os.cpu_count() or 1).make(registry.select(what), what == "all")
    except CannotWrite as error:
        print(f"report: {error}; pages written before are kept", file=sys.stderr)
        return 1


@dataclass
class _Report:
    folder: Path
    fresh: bool
    jobs: int
    state: dict[str, dict] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def make(self, entries: list[Entry], with_notebooks: bool) -> int:
        self._open()
        cheapest = min(entries, key=_golden_seconds, default=None)
        keys = {entry: _paper_key(entry, self.fresh or entry == cheapest or not _golden_path(entry).exists()) for entry in entries}
        todo = [entry for entry in entries if self._changed(_page(entry), keys[entry])]
        notebooks = {path: _notebook_key(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))} if with_notebooks else {}
        with ThreadPoolExecutor(1) as runner:
            running = [runner.submit(self._keep, f"{path.stem}.html", path.stem, partial(self._notebook, path, key))
                       for path, key in notebooks.items() if self._changed(f"{path.stem}.html", key)]
            try:
                self._papers(todo, keys)
                for future in running:
                    future.result()
            except BaseException:
                runner.shutdown(wait=False, cancel_futures=True)
                raise
        from .index import course, index

        write(self.folder / "course.html", course(self.folder))
        write(self.folder / "index.html", index(self.state, self.folder))
        wanted = {*map(_page, entries), *(f"{path.stem}.html" for path in notebooks)}
        bad = {page: said["failed"] for page, said in self.state.items() if page in wanted and said["failed"]}
        for page, reasons in bad.items():
            print(f"{page}: {'; '.join(reasons)}", file=sys.stderr)
        print(f"{self.folder / 'index.html'}: {len(wanted)} pages, {len(todo) + len(running)} made now, {len(bad)} with failures")
        return int(bool(bad))

    def _open(self) -> None:
        """Makes the folder, removes half-written files of a report that was killed, puts the shared style, scripts and plotly beside the pages."""
        import plotly

        for part in self.folder.rglob(".*.part") if self.folder.is_dir() else ():
            part.unlink(missing_ok=True)
        for source in [*(Path(__file__).parent / "assets").iterdir(), Path(plotly.__file__).parent / "package_data" / "plotly.min.js"]:
            target = self.folder / "assets" / source.name
            if not target.is_file() or target.read_bytes() != source.read_bytes():
                write(target, source.read_bytes())
        try:
            self.state = json.loads((self.folder / ".state.json").read_text(encoding="utf8"))
        except (OSError, ValueError):  # none yet, or damaged: everything is made
            self.state = {}
        write(self.folder / ".state.json", json.dumps(self.state, indent=1))

    def _changed(self, page: str, key: str) -> bool:
        path, known = self.folder / page, self.state.get(page, {})
        return self.fresh or known.get("key") != key or not path.exists() or _hash(path.read_bytes()) != known["written"]

    def _papers(self, todo: list[Entry], keys: dict[Entry, str]) -> None:
        """Measures what is to be measured now (on all cores), then makes the pages side by side, with one core left to the notebooks."""
        from ...core.sweep import pool, sweep

        live: dict[Entry, tuple] = {}
        for entry in todo:
            if keys[entry].startswith("live"):
                result = sweep(entry.study(), "quick", self.jobs, fresh=True)
                live[entry] = result.measurements.points, [str(failure) for failure in result.failures]
        if todo:
            with pool(min(max(1, self.jobs - 1), len(todo))) as workers:
                futures = {workers.schedule(_paper, args=(entry, live.get(entry), self.folder, keys[entry]), timeout=PAGE_SECONDS): entry for entry in todo}
                for future in as_completed(futures):
                    self._keep(_page(futures[future]), futures[future].title, future.result)

    def _notebook(self, path: Path, key: str) -> dict:
        import nbformat

        from . import notebooks, render

        executed = notebooks.execute(path)
        write(self.folder / "notebooks" / path.name, nbformat.writes(executed.nb))
        page = render.notebook(executed.nb, path.stem)
        text = render.page("notebook.html", page=page, error=executed.error, made=made(), source=f"notebooks/{path.name}", root="")
        return {**_written(self.folder / f"{path.stem}.html", text, key), "title": page.title, "failed": [executed.error] if executed.error else []}

    def _keep(self, page: str, title: str, make: Callable[[], dict]) -> None:
        """Keeps what a page says. A page that could not be made gets one that says why, and the others go on; a disk that is full ends the report."""
        from . import render

        try:
            said = make()
        except CannotWrite:
            raise
        except Exception as error:
            reason = f"not finished after {PAGE_SECONDS} s" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error))
            text = render.page("failed.html", title=title, reason=reason, trace=trace, made=made(), root="../" * page.count("/"))
            said = {**_written(self.folder / page, text, ""), "title": title, "failed": [reason]}
        with self.lock:
            self.state[page] = said
            write(self.folder / ".state.json", json.dumps(self.state, indent=1))


def _paper(entry: Entry, live: tuple | None, folder: Path, key: str) -> dict:
    """Makes one paper's page and CSV (in a worker) and returns what the index says of it. ``live``: points measured now, and failures."""
    import torch

    from ...core import claims, probe
    from . import paper, render

    torch.set_num_threads(1)
    study = entry.study()
    shown = paper.evidence(study, *(live or (None,)))
    verdicts = claims.ledger(study, shown.measurements, entry.family)
    failed = [f"check {v.name} is red" for v in verdicts if v.status == "red"] + paper.flips(study, verdicts)
    failed += [f"{len(live[1])} points could not be measured"] if live and live[1] else []
    write(folder / "papers" / f"{entry.arxiv}.csv", shown.measurements.frame.to_csv(index=False))
    stored = _git("log", "-1", "--format=%h of %cs", "--", str(golden.path_of(study)))
    text = render.page("paper.html", **paper.context(entry, shown, verdicts), probe=probe.load(entry.arxiv), failed=failed, made=made(), stored=stored, root="../")
    return {**_written(folder / _page(entry), text, key), "title": entry.title, "state": shown.state, "failed": failed,
            "verdicts": [{field: _plain(getattr(v, field)) for field in ("what", "name", "text", "status", "evidence", "measured", "interval", "margin")}
                         | {"figure": next((claim.paper for claim in study.claims if claim.name == v.name), "")} for v in verdicts]}


def _plain(value):
    """A value that JSON has: numpy's numbers as Python's."""
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value.item() if hasattr(value, "item") else value


def _page(entry: Entry) -> str:
    return f"papers/{entry.arxiv}.html"


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; raises CannotWrite."""
    try:
        write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error} (--out chooses another folder)") from None


def _written(path: Path, text: str, key: str) -> dict:
    write(path, text)
    return {"key": key, "written": _hash(text.encode())}


def _hash(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:20]


@cache
def _sources(*places: Path) -> bytes:
    """The hash of these files and of all files below these folders (byte code left out)."""
    paths = sorted(path for place in places for path in (place, *place.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return _hash(*(part for path in paths for part in (str(path.relative_to(PROJECT)).encode(), path.read_bytes()))).encode()


def _golden_path(entry: Entry) -> Path:
    return golden.FOLDER / f"{entry.arxiv}.json"


def _golden_seconds(entry: Entry) -> float:
    path = _golden_path(entry)
    return sum(point["seconds"] for point in json.loads(path.read_text())["points"]) if path.exists() else float("inf")


def _paper_key(entry: Entry, live: bool) -> str:
    """What a paper's page is made of: its text, the code behind its numbers, its stored results, the checkpoints, core and the versions."""
    source = PROJECT.joinpath(*entry.module.split(".")).with_suffix(".py")
    files = [path.read_bytes() for path in (source, _golden_path(entry), PROBES / f"{entry.arxiv}.json") if path.exists()]
    return ("live" if live else "stored") + _hash(*files, code_key(entry.module).encode(), _sources(*SHOWN, CHECKPOINTS),
                                                   json.dumps(golden.environment()).encode())


def _notebook_key(path: Path) -> str:
    """A family's notebook depends on its own family (and on what all share), any other notebook on everything."""
    family = path.stem.partition("_")[2]
    papers = ROOT / "papers" / family if family and (ROOT / "papers" / family).is_dir() else ROOT / "papers"
    return _hash(path.read_bytes(), _sources(*SHOWN, ROOT / "contracts", ROOT / "benches", papers, CHECKPOINTS, golden.FOLDER))


@cache
def made() -> dict[str, str]:
    """Commit ("" outside a checkout), what differs from it, and the time."""
    return {"commit": _git("rev-parse", "--short=10", "HEAD"), "dirty": _git("status", "--porcelain", "-uno"),
            "date": datetime.now().astimezone().isoformat(" ", "minutes")}


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
