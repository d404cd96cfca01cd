"""Races against other libraries, each in an environment of its own, because their pins clash:  ``workbench race-peers [NAME …]``.

    NAME.txt (pinned) ─► <cache>/peers/NAME, made once ─► NAME.py runs there ─► data/peers/NAME.json ─► notebooks and reports

**A new peer is two files in this folder.**

1. ``NAME.txt``: requirements, every line ``package==version``: the peer, and what the race needs of the workbench (``torch`` as in ``constraints.txt``).
   Without this file the race runs in the workbench's own environment, before all others: so does `house`, whose scores the peers race against.
2. ``NAME.py``: run as ``python NAME.py OUT``, on one thread, with the workbench importable. It writes the text OUT: a JSON object with ``format`` 1,
   ``peer``, ``version``, ``environment`` (`core.golden.environment`), ``points`` (a list), and what else there is to tell; ``speed``, if it was timed, is a
   list of rows with ``ratio`` (ours ÷ theirs, below 1: ours is faster). It writes after every part and goes on where it was. One that cannot run here
   (no data, no network) says why in its last line and exits with 77.

A peer that cannot be installed, needs the network or is not for this machine is told in one line, and the others race. Its last result is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer

from ..core.measurements import cache_folder
from ..core.registry import ROOT
from ..core.setup import python_of
from ..core.study import StudyError

HERE = Path(__file__).resolve().parent
RESULTS = ROOT.parent / "data" / "peers"
COLUMNS = ("peer", "status", "library", "version", "torch", "cpu", "points", "ratio", "reason")
CANNOT = 77  # the exit code of a race that cannot run here (as of a test that is skipped)
INSTALL_SECONDS, RACE_SECONDS = 3600, 4 * 3600
OFFLINE = re.compile(r"name resolution|NewConnectionError|ConnectTimeout|ProxyError|Network is unreachable|Connection refused|getaddrinfo|NameResolutionError")


@dataclass(frozen=True)
class Outcome:
    """How a race ended. ``status``: raced, cannot run here, no network, not installed, crashed, out of time; ``reason``: one line, empty if it raced."""

    peer: str
    status: str
    reason: str = ""
    seconds: float = 0.0


class _Ended(Exception):
    """A command did not end well: a status and a reason."""


def peers() -> list[str]:
    """All races, those in the workbench's own environment first."""
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    return sorted(names, key=lambda name: (HERE / f"{name}.txt").exists())


def race_peers(names: Iterable[str] = (), race_seconds: float = RACE_SECONDS) -> tuple[list[dict], int]:
    """Races these peers (default: all), each by itself, and tells on stderr how it goes. Returns a row for each, how it ended beside what is stored of it
    (see `results`), and an exit code: 1 if a race crashed or ran out of time, or if none ran though there is a network; else 0."""
    wanted, known = list(names), peers()
    if unknown := [name for name in wanted if name not in known]:
        raise StudyError(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    if not race_seconds > 0:
        raise StudyError(f"the time limit must be above 0, not {race_seconds:g} s")
    own = [name for name in known if not (HERE / f"{name}.txt").exists()]
    outcomes = []
    for name in [name for name in known if not wanted or name in wanted or name in own]:
        outcomes.append(_raced(name, race_seconds))
        print(f"{name}: {outcomes[-1].status}" + (f": {outcomes[-1].reason}" if outcomes[-1].reason else f" in {outcomes[-1].seconds:.0f} s"), file=sys.stderr)
    status = {outcome.status for outcome in outcomes}
    ran = any(outcome.status == "raced" and outcome.peer not in own for outcome in outcomes) or status == {"raced"}
    stored = {row["peer"]: row for row in results()}
    return [stored.get(outcome.peer, {}) | asdict(outcome) for outcome in outcomes], int(bool(status & {"crashed", "out of time"}) or not ran and not status <= {"raced", "no network", "cannot run here"})


def results(names: Iterable[str] = ()) -> list[dict]:
    """What is stored (of these peers, default: all), a row each: ``peer, library, version, torch, python, cpu, points, ratio, reason, file``; ``ratio``
    is the median of ours ÷ theirs in CPU time, None where it was not timed."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem not in (list(names) or [path.stem]):
            continue
        try:
            stored = json.loads(path.read_text(encoding="utf8"))
            library, made, speed = stored["peer"], stored["environment"], [row["ratio"] for row in stored.get("speed", [])]
            rows.append({"peer": path.stem, "library": library, "version": stored.get("version") or made.get(library, ""), "torch": made.get("torch", ""),
                         "python": made["python"], "cpu": made["cpu"], "points": len(stored["points"]), "ratio": statistics.median(speed) if speed else None,
                         "reason": stored.get("reason", ""), "file": str(path)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(f"{path} is damaged ({type(error).__name__}: {error}); remove it and race again") from None
    return rows


def _raced(name: str, seconds: float) -> Outcome:
    start = time.monotonic()
    try:
        python = environment(name) if (HERE / f"{name}.txt").exists() else Path(sys.executable)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        code, said = _run([python, "-P", HERE / f"{name}.py", RESULTS / f"{name}.json"], seconds, {**threads, "PYTHONPATH": str(ROOT.parent)}, show=True)
        if code:
            raise _Ended("cannot run here" if code == CANNOT else "crashed", said[-1] if said else f"exit code {code}, without a word")
    except _Ended as ended:
        return Outcome(name, *ended.args, time.monotonic() - start)
    return Outcome(name, "raced", "", time.monotonic() - start)


def environment(name: str) -> Path:
    """The Python of the peer's environment: made once, and again when its requirements or the Python version change."""
    folder, wanted = cache_folder() / "peers" / name, HERE / f"{name}.txt"
    python, stamp = python_of(folder), folder / "made-from"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"{name}: making {folder}", file=sys.stderr)
    for command in ([sys.executable, "-m", "venv", "--clear", "--without-pip", folder],  # our pip serves it
                    [sys.executable, "-m", "pip", "--python", python, "install", "--no-compile", "--disable-pip-version-check", "--retries", "1", "-r", wanted]):
        code, said = _run(command, INSTALL_SECONDS)
        if code:
            errors = [line for line in said if line.startswith("ERROR")] or said or [f"exit code {code}"]
            raise _Ended("no network", "its requirements cannot be fetched") if any(map(OFFLINE.search, said)) else _Ended("not installed", errors[-1])
    stamp.write_text(digest)
    return python


def _run(command: list, seconds: float, environment: dict[str, str] | None = None, show: bool = False) -> tuple[int, list[str]]:
    """The exit code and the lines of what was said (passed on to stderr with ``show``). What is still there after ``seconds`` is killed with all it started."""
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT.parent, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
    said, late = [], []
    timer = Timer(seconds, lambda: (late.append(True), _kill(process)))
    timer.start()
    try:
        for line in process.stdout:
            said.append(line.rstrip())
            if show:
                print(line, end="", file=sys.stderr)
        code = process.wait()
    except BaseException:  # Ctrl-C: a session of its own does not get it
        _kill(process)
        raise
    finally:
        timer.cancel()
    if late:
        raise _Ended("out of time", f"stopped after {seconds:g} s; what it had stored is kept, and it goes on from there")
    return code, [line for line in said if line.strip()]


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
