"""The command line: find, run, check, report and time papers, and fetch public data.

Results go to stdout (with ``--json`` nothing else does), progress and warnings to stderr. Exit codes: 0; 1 for a red check, a claim that turned
from holding to not reproduced or back, or points that failed; 2 for a wrong question; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .core import registry
from .core.registry import ROOT, Entry
from .core.setup import main as setup
from .core.study import PROFILES, StudyError

PAPER = "an arXiv id or a short name"
MANY = f"{PAPER}, a family, or all"
CLUSTER = "measure on the workers of this Dask scheduler instead of on this machine"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except StudyError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        again = " ".join(word for word in (argv if argv is not None else sys.argv[1:]) if word != "--fresh")
        print(f"\nstopped; every finished point is kept: `workbench {again}` goes on where this stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `workbench papers | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# ------------------------------------------------------------------------------------------------------------------------ finding

def papers(arguments) -> int:
    rows = [entry for entry in registry.catalogue() if arguments.family in (None, entry.family)]
    if not rows:
        raise StudyError(f"no family {arguments.family!r}; there are {', '.join(registry.families())}")
    if arguments.json:
        return _print_json([asdict(entry) | {"implemented": entry.implemented} for entry in rows])
    _print_table(["id", "name", "family", "title", ""],
                 [[entry.arxiv, entry.name if entry.kind == "paper" else "", entry.family, entry.title, _state(entry)] for entry in rows])
    done = sum(entry.implemented and entry.kind == "paper" for entry in rows)
    print(f"{done} of {sum(entry.kind == 'paper' for entry in rows)} papers live, {sum(entry.kind == 'classic' for entry in rows)} classics")
    return 0


def _state(entry: Entry) -> str:
    return entry.kind if entry.kind == "classic" else "live" if entry.implemented else ""


def show(arguments) -> int:
    entry = registry.find(arguments.paper)
    print(f"{entry.title}\n{entry.arxiv} · {entry.family} · {entry.date}" + (f" · {entry.name}" if entry.name else ""))
    if not entry.implemented:
        print("not implemented here yet")
        return 0
    module = importlib.import_module(entry.module)
    print(f"{module.__file__}\n\n{inspect.getdoc(module)}\n")
    if entry.kind == "classic":
        return 0
    study = entry.study()
    _print_table(["knob", "values", "default", "neutral", "meaning"],
                 [[k.name, ", ".join(f"{value:g}" for value in k.grid), k.default, k.neutral, k.label] for k in study.knobs])
    _print_table(["contender", "role", "knobs", "evidence", "note"],
                 [[name, c.role, ", ".join(k.name for k in study.knobs_of(name)), c.evidence, c.note] for name, c in study.field.items()])
    _print_table(["part", "function", "proof", "ablation"],
                 [[label + (" (reconstructed)" if p.reconstructed else ""), p.function.__qualname__, p.proof, p.ablation]
                  for label, p in study.parts.items()])
    _print_table(["check or claim", "text", "the paper says"], [[item.name, item.text, getattr(item, "paper", "")] for item in (*study.checks, *study.claims)])
    print(f"track {study.track.name} · {len(study.points('quick'))} points quick, {len(study.points('full'))} full · workbench check {study.name}")
    return 0


# ---------------------------------------------------------------------------------------------------------------------- measuring

def run(arguments) -> int:
    from .core import claims, golden
    from .core.sweep import require

    profile = arguments.profile or ("full" if arguments.golden else "quick")
    if arguments.golden and profile != "full":
        raise StudyError("--golden stores the full profile; it cannot be combined with --profile quick")
    failed = 0
    for entry in registry.select(arguments.what):
        study, result = _measure(entry, profile, arguments)
        failed += len(result.failures)
        columns = [study.track.cost, study.track.quality]
        means = result.measurements.frame.groupby("contender", sort=False)[columns].agg(["count", "min", "mean", "max"])
        labels = [study.track.metrics[name].label for name in columns]
        _print_table(["contender", "points", *(f"{label} {what}" for label in labels for what in ("min", "mean", "max"))],
                     [[name, int(row[columns[0], "count"]), *(row[column, what] for column in columns for what in ("min", "mean", "max"))]
                      for name, row in means.iterrows()])
        print(f"{study.name}: {len(result.measurements.points)} points, {result.measured} of them measured now in {result.cpu_seconds:.1f} CPU seconds")
        if arguments.golden:
            before = golden.read(study).get("verdicts", {})
            verdicts = claims.ledger(study, require(result), entry.family)
            print(f"wrote {golden.write(study, result.measurements, verdicts)}")
            for verdict in verdicts:
                if before.get(verdict.name, verdict.status) != verdict.status:
                    _warn(f"{verdict.name}: was {before[verdict.name]}, is now {verdict.status}")
    return int(failed > 0)


def check(arguments) -> int:
    from .core import claims, golden

    verdicts, bad = [], 0
    for entry in registry.select(arguments.what):
        study, result = _measure(entry, "quick", arguments)
        with contextlib.redirect_stdout(sys.stderr):  # a check may print; stdout is for the answer
            found = claims.ledger(study, result.measurements, entry.family)
        before = golden.read(study).get("verdicts", {})
        verdicts += found
        if not arguments.json:
            _print_ledger(entry, found)
        if not before:
            _warn(f"{study.name} has no golden file yet: `workbench run {study.name} --profile full --golden` makes it")
        for verdict in found:
            was = before.get(verdict.name)
            flipped = {was, verdict.status} == {claims.HOLDS, claims.NOT_REPRODUCED}
            bad += flipped or verdict.status == "red"
            if flipped:
                _warn(f"{study.name}, {verdict.name}: the golden file says {was!r}, now it is {verdict.status!r}", "FAILED")
            elif verdict.status == "red":
                _warn(f"{study.name}, {verdict.name}: {verdict.measured}, allowed {verdict.margin}", "RED CHECK")
            elif verdict.status == claims.UNDECIDED:
                _warn(f"{study.name}, {verdict.name}: undecided" + (f" ({verdict.note})" if verdict.note else ""))
        if arguments.fresh:
            for difference in golden.compare(study, result.measurements):
                _warn(f"{study.name}: differs from the golden file: {difference}")
    if arguments.json:
        _print_json([asdict(verdict) for verdict in verdicts])
    return int(bad > 0)


def _measure(entry: Entry, profile: str, arguments):
    """The study and its sweep; points that failed are reported on stderr."""
    from .core import golden
    from .core.sweep import sweep

    if arguments.jobs is not None and arguments.jobs < 1:
        raise StudyError(f"--jobs must be at least 1, not {arguments.jobs}")
    if arguments.jobs is not None and arguments.scheduler:
        raise StudyError("--jobs counts processes of this machine; on a cluster (--scheduler) its workers' threads are used")
    study = entry.study()
    with _progress(f"{study.name} {profile}") as on_point:
        result = sweep(study, profile, arguments.jobs, arguments.fresh, on_point=on_point, known=golden.points(study), scheduler=arguments.scheduler)
    for failure in result.failures:
        _warn(str(failure), "POINT FAILED")
    return study, result


def probe(arguments) -> int:
    from .core import probe

    entry = registry.find(arguments.paper)
    study = entry.study()
    make = getattr(importlib.import_module(entry.module), "PROBE", None)
    if make is None:
        raise StudyError(f"{study.name} has no PROBE: nothing of it is worth timing on this machine (its claims count operations or bytes)")
    with _progress(f"{study.name} probe") as on_round:
        timing = probe.compare(make(), rounds=arguments.rounds, threads=arguments.threads, on_round=on_round)
    _print_table(["", "median ms", f"ratio to {timing.first}", "90 % interval"],
                 [[name, row["median_ms"], row["ratio"], f"{row['low']:.3f} … {row['high']:.3f}"] for name, row in timing.rows.items()])
    print(f"stored in {probe.save(timing, entry.arxiv)}")
    return 0


def report(arguments) -> int:
    from .views.reports import report

    return report(arguments.what, fresh=arguments.fresh, out=arguments.out) or 0


def data(arguments) -> int:
    from .core import datasets

    if arguments.action == "list":
        sets = {item.name: [other for other in datasets.manifest() if other.name == item.name] for item in datasets.manifest()}
        _print_table(["name", "files", "MB", "licence", "here", "what"],
                     [[name, len(files), sum(item.bytes for item in files) / 1e6, files[0].licence,
                       ", ".join(sorted({datasets.state(item) for item in files} - {""})), files[0].what] for name, files in sets.items()])
    elif arguments.action == "get":
        for name in arguments.names or ["all"]:
            for path in datasets.get(name):
                print(path)
    else:
        problems = datasets.verify(arguments.names or ["all"])
        print("\n".join(problems) if problems else "every file that is here has the right bytes")
        return int(bool(problems))
    return 0


def papermill(arguments) -> int:
    from .views.reports.matrix import matrix

    out = arguments.out or ROOT.parent / "reports" / "sets" / Path(arguments.notebook).stem
    with _progress(f"{Path(arguments.notebook).name}") as on_set:
        return matrix(arguments.notebook, arguments.parameters, out, arguments.jobs, arguments.cell_seconds, arguments.fresh, on_set)


def race_peers(arguments) -> int:
    from . import peers

    rows, code = peers.race_peers(arguments.names, arguments.limit)
    if arguments.json:
        _print_json(rows)
    else:
        _print_table(peers.COLUMNS, [[row.get(name) for name in peers.COLUMNS] for row in rows])
    return code


def lab(arguments) -> int:
    """JupyterLab at the atlas: on localhost alone, behind a token, kernels over local sockets rather than ports."""
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", "--ServerApp.allow_remote_access=False",
               *([] if os.name == "nt" else ["--KernelManager.transport=ipc"]), *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
               *arguments.options, "notebooks/00_atlas.ipynb"]
    os.chdir(ROOT.parent)
    os.execv(sys.executable, command)  # it takes this process's place, so that whatever ends the command ends the server


# ------------------------------------------------------------------------------------------------------------------------ printing

def _warn(text: str, what: str = "warning") -> None:
    print(f"{what}: {text}", file=sys.stderr)


@contextlib.contextmanager
def _progress(title: str) -> Iterator:
    """A bar on stderr (none where that is no terminal); yields ``on(done, total)``."""
    from tqdm import tqdm

    with tqdm(desc=title, file=sys.stderr, disable=None, leave=False, dynamic_ncols=True) as bar:
        def on(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
        yield on


def _plain(value):
    """A value as JSON has it: plain numbers, null for what is not finite."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value if isinstance(value, (int, float, bool, type(None))) else str(value)


def _print_json(value) -> int:
    print(json.dumps(_plain(value), indent=1, ensure_ascii=False))
    return 0


def _cell(value) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:.4g}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _print_ledger(entry: Entry, verdicts) -> None:
    print(f"{entry.title} · {entry.arxiv} · {entry.family}")
    rows = []
    for v in verdicts:
        interval = "" if v.interval is None or v.interval[0] == v.interval[1] else f"{_cell(v.interval[0])} … {_cell(v.interval[1])}"
        rows.append([v.status, v.text + (f" — {v.note}" if v.note else ""), _plain(v.measured), interval, _plain(v.margin), v.evidence, ", ".join(v.broken_by)])
    _print_table(["status", "check or claim", "measured", "interval", "margin", "evidence", "broken by"], rows)


# ------------------------------------------------------------------------------------------------------------------------- parsing

def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("workbench", description="Model-compression papers as live methods: find, run, check, report, time.",
                                  epilog="`workbench COMMAND --help` has examples. Start: workbench papers; workbench show fscl; workbench check fscl")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, does, help: str, *examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", formatter_class=argparse.RawDescriptionHelpFormatter,
                                  epilog="examples:\n" + "\n".join(f"  workbench {example}" for example in examples))
        sub.set_defaults(command=does)
        return sub

    sub = command("papers", papers, "list the catalogue and what of it is live", "papers", "papers --family pruning", "papers --json")
    sub.add_argument("--family", metavar="F", help="only this family")
    sub.add_argument("--json", action="store_true", help="a JSON list on stdout")

    sub = command("show", show, "show a paper's lesson, knobs, contenders, parts, checks and claims", "show fscl", "show 2304.13397")
    sub.add_argument("paper", metavar="ID", help=PAPER)

    sub = command("run", run, "measure a paper's points; a stopped run goes on where it was", "run fscl", "run pruning --profile full --jobs 2",
                  "run fscl --profile full --golden", "run all --profile full --scheduler tcp://host:8786")
    sub.add_argument("what", metavar="ID|FAMILY", help=MANY)
    sub.add_argument("--profile", choices=PROFILES, help="quick: what claims need (default); full: the whole grid")
    sub.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: one a core)")
    sub.add_argument("--fresh", action="store_true", help="measure again what is stored")
    sub.add_argument("--scheduler", metavar="ADDRESS", help=CLUSTER)
    sub.add_argument("--golden", action="store_true", help="measure the full profile and store it as the paper's golden file")

    sub = command("check", check, "judge every check and claim", "check fscl", "check pruning --fresh", "check all --json > ledger.json")
    sub.add_argument("what", metavar="ID|FAMILY|all", help=MANY)
    sub.add_argument("--fresh", action="store_true", help="measure from nothing instead of using stored points")
    sub.add_argument("--json", action="store_true", help="a JSON list on stdout, one object per check and claim")
    sub.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: one a core)")
    sub.add_argument("--scheduler", metavar="ADDRESS", help=CLUSTER)

    sub = command("report", report, "execute the notebooks and write the HTML pages", "report", "report fscl --fresh", "report pruning --out /tmp/pages")
    sub.add_argument("what", nargs="?", default="all", metavar="ID|FAMILY|all", help=f"{MANY} (default)")
    sub.add_argument("--fresh", action="store_true", help="measure from nothing instead of showing the golden results")
    sub.add_argument("--out", type=Path, default=ROOT.parent / "reports", metavar="DIR", help="folder of the pages (default: reports)")

    sub = command("lesson", lambda a: importlib.import_module(".editions", __package__).main(a.family, a.student, a.out),
                  "write a family's notebook to hand out, with or without solutions", "lesson pruning --student", "lesson pruning --teacher --out solved.ipynb")
    sub.add_argument("family", metavar="FAMILY", help="a family that has a notebook")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--student", action="store_true", help="without solutions")
    which.add_argument("--teacher", action="store_true", help="with solutions (default)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="the notebook to write (default: named after the family's, in this folder)")

    sub = command("grade", lambda a: importlib.import_module(".grading", __package__).main(a.file, a.json, a.seconds),
                  "check the exercises of a notebook, or of a folder of them, each in a process with limits", "grade 01_pruning-student.ipynb",
                  "grade handed-in/ > marks.csv", "grade handed-in/ --json")
    sub.add_argument("file", type=Path, metavar="FILE|FOLDER", help="a notebook, or a folder of notebooks")
    sub.add_argument("--json", action="store_true", help="JSON on stdout")
    sub.add_argument("--seconds", type=float, default=20, metavar="N", help="time for one exercise (default: 20)")

    sub = command("data", data, "list, fetch or verify the public data sets", "data list", "data get kodak", "data verify")
    sub.add_argument("action", choices=("list", "get", "verify"))
    sub.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")

    sub = command("probe", probe, "time a paper's method against the best dense path, alone on the machine", "probe fscl", "probe fscl --rounds 50 --threads 2")
    sub.add_argument("paper", metavar="ID", help=PAPER)
    sub.add_argument("--rounds", type=int, default=30, metavar="N", help="rounds, each of which times every contender once (default: 30)")
    sub.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each contender (default: 1)")

    sub = command("papermill", papermill, "execute a notebook for many parameter sets, with one summary page",
                  "papermill notebooks/paper.ipynb sets.csv", "papermill mine.ipynb sets.json --jobs 4 --out /tmp/pages")
    sub.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="a notebook with a cell tagged 'parameters'")
    sub.add_argument("parameters", type=Path, metavar="FILE", help="a .csv with a header of names, or a .json list of objects: one row a set")
    sub.add_argument("--jobs", type=int, metavar="N", help="notebooks at once (default: one a core)")
    sub.add_argument("--out", type=Path, metavar="DIR", help="folder of the pages (default: reports/sets/NAME)")
    sub.add_argument("--cell-seconds", type=float, default=300, metavar="S", help="time limit of a cell (default: 300)")
    sub.add_argument("--fresh", action="store_true", help="run again what is finished")

    sub = command("race-peers", race_peers, "race other libraries, each in an environment of its own, and store the results as text", "race-peers",
                  "race-peers nncf --json")
    sub.add_argument("names", nargs="*", metavar="NAME", help="peers (default: all)")
    sub.add_argument("--limit", type=float, default=4 * 3600, metavar="S", help="seconds until a race is stopped; it goes on there next time (default: 14400)")
    sub.add_argument("--json", action="store_true", help="a JSON list on stdout, one object per peer")

    sub = command("lab", lab, "open JupyterLab at the atlas, on localhost only, with a token", "lab", "lab -- --no-browser --port=8890")
    sub.add_argument("options", nargs="*", metavar="-- OPTION", help="passed on to JupyterLab")

    command("setup", lambda arguments: setup([]), "make .venv and install the pinned dependencies (works on a bare Python)", "setup")
    return top
