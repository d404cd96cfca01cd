"""The top of the house: papers by name for everything that a notebook or a script does. (`from workbench import papers, show, explore, compress, …`)

Here alone contracts and papers meet by name: ``compress(net, "fscl", …)`` looks the method up, the contracts themselves know no paper.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from .core import registry
from .core.measurements import Measurements
from .core.study import Study, StudyError

SECTIONS = ("lesson", "picture", "history", "numbers", "code", "parts", "exercise", "solution", "claims")


def papers(family: str | None = None) -> pd.DataFrame:
    """All 165 papers in catalogue order, then the classics: ``arxiv, title, family, implemented`` (classics have a short key in ``arxiv``)."""
    rows = [(e.arxiv, e.title, e.family, e.implemented) for e in registry.catalogue()]
    frame = pd.DataFrame(rows, columns=["arxiv", "title", "family", "implemented"])
    if family is None:
        return frame
    if family not in set(frame.family):
        raise ValueError(f"no family {family!r}; there are {', '.join(frame.family.unique())}")
    return frame[frame.family == family].reset_index(drop=True)


def study(paper: str | Study) -> Study:
    """A paper's study, by arXiv id or short name."""
    return paper if isinstance(paper, Study) else registry.find(paper).study()


def measurements(paper: str | Study | Measurements) -> Measurements:
    """A paper's stored points."""
    from .core import golden

    if isinstance(paper, Measurements):
        return paper
    path = golden.path_of(study(paper))
    return _stored(study(paper).paper, path.stat().st_mtime_ns) if path.exists() else _read(study(paper))


@lru_cache(maxsize=16)
def _stored(paper: str, changed: int) -> Measurements:
    """A golden file as it was when last ``changed``: read once, though every cell of a notebook asks for it."""
    return _read(study(paper))


def _read(of: Study) -> Measurements:
    from .core import live

    return Measurements(of, live.known(of))


def explore(paper: str | Study | Measurements, contenders: Sequence[str] | None = None, predict: bool = True, stored_only: bool | None = None,
            **knobs: float):
    """The explorer of a paper (arXiv id, short name, study, or the measurements of a race); see `views.explorer.Explorer` for the arguments.

    ``explore("fscl", macs_removed=0.5)`` starts at that setting; the widget's last line is always the code that brings back what it shows.
    """
    from .views.explorer import Explorer

    return Explorer(measurements(paper), contenders, predict, stored_only, **knobs)


def browse(family: str, *without: str) -> None:
    """The live papers of a family (but ``without`` these) behind one selector; without a kernel, one after the other."""
    from IPython.display import HTML, display

    from .views.readout import static

    entries = [entry for entry in registry.select(family) if not {entry.name, entry.arxiv} & set(without)]
    if static() or not entries:
        for entry in entries:
            display(HTML(f"<h3>{entry.title}</h3>"), explore(entry.arxiv))
        return
    import ipywidgets as widgets

    choice, box = widgets.Dropdown(options=[("choose a paper", ""), *((e.title, e.arxiv) for e in entries)], description="paper"), widgets.VBox()
    choice.observe(lambda change: setattr(box, "children", [explore(change.new).widget] if change.new else []), "value")
    display(widgets.VBox([choice, box]))


def race(where: str | Study | Measurements, jobs: int | None = None, **mine: Any) -> Measurements:
    """Your own on a board (``race("vgg-small/macs", mine=MyScore)``) or a paper's track, measured now at the quick values, beside the stored points: to
    `explore`, or to rank on a `board`. On a board a score, an allocation, a schedule or a whole method is taken as it is, or its class; else a `Contender`."""
    from .core import live, sweep

    if live.jobs() == 0:
        raise StudyError("WORKBENCH_JOBS is 0 here: nothing is measured, only stored results are shown")
    if not mine:
        raise StudyError('race: nothing to race; name it, as in race("vgg-small/macs", mine=MyScore)')
    stored = measurements(where)
    entered = {name.replace("_", " "): stored.study.entered(thing) for name, thing in mine.items()}
    return sweep.require(sweep.race(stored.study, stored, min(jobs or live.jobs(), live.jobs()), **entered))


def board(paper: str | Study | Measurements, against: str | None = None, over: tuple[float, float] | None = None, cost: str | None = None,
          contenders: Sequence[str] | None = None) -> pd.DataFrame:
    """The track's board: each contender's quality against ``against``'s (default: the paper's) at equal cost, averaged over the range of costs that both
    measured (cut to ``over``), paired over replicas; best first. An interval that covers zero is a tie. ``contenders``: only these, e.g. those tuned for equally many steps."""
    from .core.claims import better
    from .views.summary import shown

    m = measurements(paper)
    track, names = m.study.track, shown(m.study, contenders)
    m, rows = m.standing_in(against or m.subject), []
    pinned = {knob.name: knob.default for knob in m.study.knobs[1:]}
    for name in names:
        if name != m.subject and len(m.rows(name)):
            e = better(track.quality, name, at_equal=cost or track.cost, over=over, **pinned)(m)
            verdict = "no common range of cost" if not e.units else "one replica" if e.units < 2 else \
                "tie" if e.low <= 0 <= e.high else "worse" if e.low > 0 else "better"
            rows.append((name, m.study.field[name].role, -e.value, -e.high, -e.low, e.units, verdict))
    columns = ["contender", "role", f"{track.quality} against {m.subject}", "low", "high", "replicas", "verdict"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[2], ascending=False, na_position="last").reset_index(drop=True)


def save_table(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """A board, ledger or any other table as ``.csv`` or ``.tex`` (booktabs), written whole. ValueError: another ending."""
    from pathlib import Path

    from .core.measurements import write_whole

    path = Path(path)
    if path.suffix not in (".csv", ".tex"):
        raise ValueError(f"path: it must end in .csv or .tex, not {path.suffix!r}")
    text = table.to_csv(index=False) if path.suffix == ".csv" else table.to_latex(index=False, escape=True, float_format="%.2f", na_rep="")
    write_whole(path, text.encode())


def not_raced(family: str, track: str) -> pd.DataFrame:
    """Why each other paper of the family is not on the track's board: ``arxiv, title, because``."""
    found = {entry.name: entry for entry in registry.boards()}
    here = found[track].study() if track in found else None
    raced = {c.source for c in here.contenders.values()} if here else set()
    rows = []
    for entry in registry.catalogue():
        if entry.family == family and entry.kind == "paper" and entry.arxiv not in raced:
            own = entry.study().track.name if entry.implemented else ""
            if own != track or here:
                why = (here.absent if here else {}).get(entry.arxiv, f"runs on another track: {own}" if own != track else "races in its own study on this track")
                rows.append((entry.arxiv, entry.title, why if own else "not implemented yet"))
    return pd.DataFrame(rows, columns=["arxiv", "title", "because"])


def ledger(what: str) -> pd.DataFrame:
    """Every claim of a paper, a family or ``all``, judged from the stored points, failures first: ``paper, claim, status, measured, low, high, margin,
    evidence, broken by, likely reason``. (``workbench check`` also runs the checks, and with ``--fresh`` measures everything anew.)"""
    from .views.readout import Readout

    rows = []
    for entry in registry.select(what):
        for v in Readout(measurements(entry.arxiv)).judged():
            low, high = v.interval or (None, None)
            rows.append((entry.name, v.text, v.status, v.measured, low, high, v.margin, v.evidence, ", ".join(v.broken_by), v.note))
    columns = ["paper", "claim", "status", "measured", "low", "high", "margin", "evidence", "broken by", "likely reason"]
    frame, order = pd.DataFrame(rows, columns=columns), ["not reproduced", "undecided", "needs hardware", "holds"]
    return frame.sort_values("status", key=lambda s: s.map(order.index), kind="stable").reset_index(drop=True)


def lesson(paper: str | Study) -> str:
    """The paper's lesson: the docstring of its module, Markdown with LaTeX maths. A classic's: that of its class or function."""
    if (classic := _classic(paper)) is not None:
        return f"**{registry.find(paper).title}** ({registry.find(paper).date}). {inspect.getdoc(classic)}"
    return inspect.getdoc(importlib.import_module(registry.find(study(paper).paper).module)) or ""


def _classic(name: Any) -> Any:
    """The class or function that a classic's short name stands for; None for anything else."""
    entry = registry.find(name) if isinstance(name, str) else None
    return getattr(importlib.import_module(entry.module), entry.symbol) if entry is not None and entry.kind == "classic" else None


def show(paper: str | Study | Measurements, *sections: str) -> None:
    """Shows sections of a paper's page (default: lesson, picture, claims): as rich output in a notebook, elsewhere as text.

    ``lesson``, ``picture`` (curve, picture and comparison at the default setting), ``history`` (what the contenders recorded on the way), ``numbers``, ``code`` (of the method), ``parts`` (what builds and
    what proves each part of the paper), ``exercise``, ``solution``, ``claims``. A classic has a lesson and its code.
    """
    from IPython import get_ipython
    from IPython.display import HTML, Code, Markdown, display

    from .views import figures, summary
    from .views.readout import STYLE, Readout, claims_table, plain

    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise ValueError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if (classic := _classic(paper)) is not None:
        rich = get_ipython() is not None
        for section in sections or ("lesson", "code"):
            text = lesson(paper) if section == "lesson" else inspect.getsource(classic)
            display(Markdown(text) if section == "lesson" else Code(text, language="python")) if rich else print(text, end="\n\n")
        return
    m = measurements(paper)
    task, source = m.study.exercise, inspect.getsource(type(m.study.method)) if m.study.method is not None else ""
    hints = "".join(f"<details><summary>Hint {i}</summary>{hint}</details>\n" for i, hint in enumerate(task.hints, 1))
    page, rich = Readout(m), get_ipython() is not None
    for section in sections or ("lesson", "picture", "claims"):
        if not rich:
            print({"lesson": lambda: lesson(m.study), "picture": lambda: figures.describe(m), "numbers": lambda: summary.table(m).to_string(),
                   "history": lambda: ", ".join(sorted({name for stored in m.points for name in stored.result.series})),
                   "code": lambda: source, "parts": lambda: _parts(m.study).to_string(), "solution": lambda: task.solution,
                   "exercise": lambda: "\n".join([task.question, task.stub, *task.hints]),
                   "claims": lambda: "\n".join(f"{v.status:>15}  {v.text}" for v in page.judged())}[section](), end="\n\n")
        elif section == "picture":
            page.display_static(claims=False)
        elif section == "history":
            for series in sorted({name for stored in m.points for name in stored.result.series}):
                display(plain(figures.history(m, series)), raw=True)
        elif section in ("code", "solution"):
            display(Code(source if section == "code" else task.solution, language="python"))
        else:
            display({"lesson": lambda: Markdown(lesson(m.study)), "numbers": lambda: summary.table(m), "parts": lambda: _parts(m.study),
                     "exercise": lambda: Markdown(f"{task.question}\n\n```python\n{task.stub}```\n\n{hints}"),
                     "claims": lambda: HTML(f"{STYLE}<div class='wb'>{claims_table(page.judged())}</div>")}[section]())


def _parts(of: Study) -> pd.DataFrame:
    rows = [(label, part.function.__qualname__, part.proof, part.ablation, "yes" if part.reconstructed else "") for label, part in of.parts.items()]
    return pd.DataFrame(rows, columns=["part of the paper", "built by", "proved by", "disabled by", "reconstructed"])


def grade(paper: str | Study, answer: str | dict) -> str:
    """Checks an answer to the paper's exercise, given as source text or as a notebook's ``globals()``: says that it passes, or what is wrong."""
    task, namespace = study(paper).exercise, answer
    try:
        if isinstance(answer, str):
            namespace = {}
            exec(answer, namespace)  # noqa: S102 (the student's own code, on the student's machine)
        task.check(namespace)
    except KeyError as missing:
        return f"✘ define {missing} first"
    except Exception as error:  # whatever the student's code raises is the answer to show
        return f"✘ {error}" if isinstance(error, AssertionError) else f"✘ {type(error).__name__}: {error}"
    return "✔ passes"


def draw(paper: str | Study, answer: str | dict):
    """What an answer to the paper's exercise does, beside what is right: a plotly figure; a text where it cannot be drawn (see `grade` for ``answer``)."""
    task, namespace = study(paper).exercise, answer
    if task.picture is None:
        return f"{study(paper).name}: this exercise has no picture"
    try:
        if isinstance(answer, str):
            namespace = {}
            exec(answer, namespace)  # noqa: S102 (the student's own code, on the student's machine)
        return _shown(task.picture(namespace))
    except Exception as error:
        return f"✘ nothing to draw yet: {type(error).__name__}: {error}"


def _shown(figure):
    """A plotly figure as it is; in a notebook that is published, as plain data without a script of its own."""
    from .views.readout import plain, static

    if not static():
        return figure
    from IPython.display import display

    return display(plain(figure), raw=True)


def _method(name: Any) -> Any:
    """A paper's method by id or short name; an object that is one already is returned as it is."""
    if not isinstance(name, str):
        return name
    found = study(name).method
    if found is None:
        raise StudyError(f"{name} has no method to apply to things of your own")
    return found


def compress(model: Any, method: Any, ratio: float, **settings: Any):
    """Your own ``nn.Module`` by a paper's method (id, short name or object); see `contracts.model.compress` for the arguments.

    Latency is timed unless ``probe=None`` is given, for as long as the machine is free of sweeps; where it is not, the report says so.
    """
    from .contracts.model import compress as apply

    return apply(model, _method(method), ratio, **{"probe": _timed, **settings})


def _timed(pair: Mapping[str, Callable[[], Any]]) -> Any:
    from .core import probe

    try:
        with probe.alone(timeout=20):
            return probe.compare(pair, rounds=12)
    except TimeoutError as error:
        return f"not measured ({error})"


def encode(data: Any, codec: Any = "iflow") -> bytes:
    """An array or bytes as one stream of bytes, by a paper's codec; see `contracts.data.encode`."""
    from .contracts.data import encode as apply

    return apply(data, _method(codec))


def decode(stream: bytes, limit: int = 1 << 30) -> Any:
    """What `encode` was given; the stream names its codec. Anything else raises `contracts.data.StreamError`."""
    from .contracts.data import decode as apply

    def find(name: str) -> Any:
        return next((entry.study().method for entry in registry.implemented() if name in (entry.name, entry.arxiv)), None)

    return apply(stream, find, limit)
