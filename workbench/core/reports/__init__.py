"""The published pages: one per paper, one per executed notebook, an index; made again only where something they show has changed.

    papers ──► evidence ──► page, CSV ─┐
    notebooks ──► papermill ──► page ──┼─► .state.json (what each page was made of, and what it says) ──► index.html
                                       │
    templates, style, scripts ─────────┘

Every file is written whole or not at all and the state after each page, so that a report that is stopped loses nothing that was there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import traceback
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from .. import golden, registry
from ..keys import code_key
from ..measurements import Stored, write_whole
from ..registry import ROOT, Entry
from ..study import StudyError

HERE, PROJECT = Path(__file__).parent, ROOT.parent
NOTEBOOKS, PROBES, CHECKPOINTS = PROJECT / "notebooks", PROJECT / "data" / "probes", PROJECT / "data" / "checkpoints"
PAPER_SECONDS = 300


def report(what: str = "all", fresh: bool = False, out: str | Path = "reports", jobs: int | None = None) -> int:
    """Writes the pages of ``what`` (an id, a short name, a family or ``all``, which includes the notebooks) into the folder ``out``.

    Papers show their golden results; the cheapest of them, those without a golden file and, with ``fresh``, all of ``what`` are measured now and compared.
    Returns 1 if a check is red, a verdict turned from holding to not reproduced or back, a notebook raised, or a page could not be made; else 0.
    """
    try:
        return _Report(Path(out).resolve(), fresh, jobs or os.cpu_count() or 1).make(registry.select(what), what)
    except (OSError, StudyError) as error:
        print(f"report: {_plain(error)}", file=sys.stderr)
        return 1


def _plain(error: Exception) -> str:
    """An error of the file system with the file it is about and what remains."""
    if not isinstance(error, OSError):
        return str(error)
    return f"cannot write {error.filename or 'the pages'}: {error.strerror or error}; pages written before are kept (choose another folder with --out)"


@dataclass
class _Report:
    folder: Path
    fresh: bool
    jobs: int

    def make(self, entries: list[Entry], what: str) -> int:
        self._open()
        cheapest = min(entries, key=_golden_seconds, default=None)
        keys = {entry.arxiv: _paper_key(entry, self.fresh or entry == cheapest or not _golden_path(entry).exists()) for entry in entries}
        todo = [entry for entry in entries if self._changed(f"papers/{entry.arxiv}.html", keys[entry.arxiv])]
        notebooks = {path: _notebook_key(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))} if what == "all" else {}
        with ThreadPoolExecutor(1) as runner:
            running = {runner.submit(self._notebook, path, key): path for path, key in notebooks.items() if self._changed(f"{path.stem}.html", key)}
            try:
                self._papers(todo, keys)
                for future in as_completed(running):
                    self._done(f"{running[future].stem}.html", future, running[future].stem)
            except BaseException:
                runner.shutdown(wait=False, cancel_futures=True)
                raise
        from .index import index
        write_whole(self.folder / "index.html", index(self.state, self.folder).encode())
        wanted = {f"papers/{entry.arxiv}.html" for entry in entries} | {f"{path.stem}.html" for path in notebooks}
        bad = {page: entry["failed"] for page, entry in self.state.items() if page in wanted and entry["failed"]}
        for page, reasons in bad.items():
            print(f"{page}: " + "; ".join(reasons), file=sys.stderr)
        print(f"{self.folder / 'index.html'}: {len(wanted)} pages, {len(todo) + len(running)} made now, {len(bad)} with failures")
        return int(bool(bad))

    def _open(self) -> None:
        """Makes the folder, removes half-written files of a report that was killed, and puts the shared style, script and plotly beside the pages."""
        import plotly

        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.rglob(".*.part"):
            part.unlink(missing_ok=True)
        assets = [*(HERE / "assets").iterdir(), Path(plotly.__file__).parent / "package_data" / "plotly.min.js"]
        for source in assets:
            target = self.folder / "assets" / source.name
            if not target.exists() or target.read_bytes() != source.read_bytes():
                write_whole(target, source.read_bytes())
        try:
            self.state = json.loads((self.folder / ".state.json").read_text(encoding="utf8"))
        except (OSError, ValueError):
            self.state = {}
        write_whole(self.folder / ".state.json", json.dumps(self.state).encode())

    def _changed(self, page: str, key: str) -> bool:
        path, known = self.folder / page, self.state.get(page, {})
        return self.fresh or known.get("key") != key or not path.exists() or _hash(path.read_bytes()) != known.get("written")

    def _papers(self, todo: list[Entry], keys: dict[str, str]) -> None:
        """Measures what is to be measured now (on all cores), then makes the pages side by side: one core less while notebooks run."""
        from ..sweep import pool, sweep

        live: dict[str, tuple[list[Stored], list[str]]] = {}
        for entry in todo:
            if keys[entry.arxiv].startswith("live"):
                result = sweep(entry.study(), "quick", self.jobs, fresh=True)
                live[entry.arxiv] = list(result.measurements.points), [str(failure) for failure in result.failures]
        if not todo:
            return
        commit = _commit()
        with pool(min(max(1, self.jobs - 1), len(todo))) as workers:
            futures = {workers.schedule(_paper, args=(entry.arxiv, live.get(entry.arxiv), self.folder, commit, keys[entry.arxiv]), timeout=PAPER_SECONDS):
                       entry for entry in todo}
            for future in as_completed(futures):
                self._done(f"papers/{futures[future].arxiv}.html", future, futures[future].title)

    def _notebook(self, path: Path, key: str) -> dict:
        from .notebooks import execute

        import nbformat

        executed = execute(path)
        write_whole(self.folder / "notebooks" / path.name, nbformat.writes(executed.nb).encode())
        from . import render
        page = render.notebook(executed.nb, path.stem)
        text = render.page("notebook.html", page=page, error=executed.error, made=_commit(), source=f"notebooks/{path.name}", root="")
        return {**_written(self.folder / f"{path.stem}.html", text, key), "title": page.title, "failed": [executed.error] if executed.error else []}

    def _done(self, page: str, future: Future, title: str) -> None:
        """Keeps what a page says; a page that could not be made gets one that says why, and the others go on. A full disk ends the report."""
        from . import render
        try:
            self.state[page] = future.result()
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise
            reason = f"not finished after {PAPER_SECONDS} s" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error))
            text = render.page("failed.html", title=title, reason=reason, trace=trace, made=_commit(), root="../" * page.count("/"))
            self.state[page] = {**_written(self.folder / page, text, ""), "title": title, "failed": [reason]}
        write_whole(self.folder / ".state.json", json.dumps(self.state, indent=1).encode())


def _paper(arxiv: str, live: tuple | None, folder: Path, commit: dict, key: str) -> dict:
    """Makes one paper's page and CSV (in a worker) and returns what the index says of it."""
    from .. import claims
    from . import paper, render

    entry = registry.find(arxiv)
    study = entry.study()
    shown = paper.evidence(study, *(live or (None,)))
    verdicts = claims.ledger(study, shown.measurements, entry.family)
    failed = [f"check {v.name} is red" for v in verdicts if v.status == "red"] + paper.flips(study, verdicts)
    probe_path = PROBES / f"{arxiv}.json"
    probe = json.loads(probe_path.read_text(encoding="utf8")) if probe_path.exists() else None
    facts = paper.context(entry, shown, verdicts, probe)
    write_whole(folder / "papers" / f"{arxiv}.csv", shown.measurements.frame.to_csv(index=False).encode())
    text = render.page("paper.html", **facts, failed=failed, made=commit, stored=_golden_commit(study), root="../")
    return {**_written(folder / "papers" / f"{arxiv}.html", text, key), "title": entry.title, "family": entry.family, "state": shown.state,
            "failed": failed + ([f"{len(live[1])} points could not be measured"] if live and live[1] else []),
            "verdicts": [{k: getattr(v, k) for k in ("what", "name", "text", "status", "evidence")} for v in verdicts]}


def _written(path: Path, text: str, key: str) -> dict:
    write_whole(path, text.encode())
    return {"key": key, "written": _hash(text.encode()), "bytes": len(text.encode())}


def _hash(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:20]


@lru_cache(maxsize=None)
def _sources(*folders: Path) -> str:
    """The hash of all files below the folders (byte code left out)."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return _hash(*(part for path in paths for part in (str(path.relative_to(PROJECT)).encode(), path.read_bytes())))


def _golden_path(entry: Entry) -> Path:
    return golden.FOLDER / f"{entry.arxiv}.json"


def _golden_seconds(entry: Entry) -> float:
    path = _golden_path(entry)
    return sum(point["seconds"] for point in json.loads(path.read_text())["points"]) if path.exists() else float("inf")


def _paper_key(entry: Entry, live: bool) -> str:
    """What a paper's page is made of: its text, the code behind its numbers, its stored results, the checkpoints, core and the versions."""
    path = PROJECT.joinpath(*entry.module.split(".")).with_suffix(".py")
    files = [file.read_bytes() for file in (path, _golden_path(entry), PROBES / f"{entry.arxiv}.json") if file.exists()]
    common = [code_key(entry.module), _sources(ROOT / "core"), _sources(CHECKPOINTS), json.dumps(golden.environment())]
    return ("live" if live else "stored") + _hash(*files, *(text.encode() for text in common))


def _notebook_key(path: Path) -> str:
    """A family's notebook depends on its own family (and on what all share), any other notebook on everything."""
    family = path.stem.partition("_")[2]
    own = family if (ROOT / "papers" / family).is_dir() and family else ""
    shared = _sources(ROOT / "core", ROOT / "contracts", ROOT / "benches", CHECKPOINTS)
    return _hash(path.read_bytes(), shared.encode(), _sources(ROOT / "papers" / own).encode(), _sources(golden.FOLDER).encode())


@lru_cache(maxsize=1)
def _commit() -> dict:
    """Commit ("" outside a checkout), whether files differ from it, and the time."""
    return {"commit": _git("rev-parse", "--short=10", "HEAD"), "dirty": bool(_git("status", "--porcelain", "-uno")),
            "date": datetime.now().astimezone().isoformat(" ", "minutes")}


def _golden_commit(study) -> str:
    return _git("log", "-1", "--format=%h of %cs", "--", str(golden.path_of(study)))


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
