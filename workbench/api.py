"""The top of the house: papers by name for everything that a notebook or a script does. (`from workbench import papers, show, explore, compress, …`)

Here alone contracts and papers meet by name: ``compress(net, "fscl", …)`` looks the method up, the contracts themselves know no paper.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import pandas as pd

from .core import registry
from .core.measurements import Measurements
from .core.study import Study, StudyError


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

    page = Explorer(measurements(paper), contenders, predict, stored_only, **knobs)
    if not page.stored_only:
        from .own_input import corner

        page.own = partial(corner, page.study)
    return page


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


def by_name(name: Any) -> Any:
    """A paper's or a classic's method by id or short name; an object that is one already is returned as it is."""
    if not isinstance(name, str):
        return name
    if (entry := registry.find(name)).kind == "classic":
        return _classic(entry)
    found = study(name).method
    if found is None:
        raise StudyError(f"{name} has no method to apply to things of your own")
    return found


def _classic(entry: registry.Entry) -> Any:
    """A classic that is an object, with its default settings."""
    import importlib
    import inspect

    found = getattr(importlib.import_module(entry.module), entry.symbol)
    namesake = next(e for e in registry.catalogue() if (e.module, e.symbol) == (entry.module, entry.symbol))
    if namesake is not entry:
        raise StudyError(f"{entry.name} is {namesake.name}'s {entry.symbol} with another setting: hand in the object")
    if not isinstance(found, type) or any(p.default is p.empty for p in inspect.signature(found).parameters.values()):
        raise StudyError(f"{entry.name} is a step of other methods ({entry.module}.{entry.symbol}), none to apply by itself")
    return found()


def for_networks(name: Any) -> tuple[Any, str]:
    """A method by name (or itself) and the function by which it compresses networks, ``scores`` or ``compress``. StudyError: it compresses another kind of thing."""
    import inspect

    method, said = by_name(name), name if isinstance(name, str) else "method"
    for function, takes in (("scores", ("groups", "model")), ("compress", ("model", "ratio"))):
        if hasattr(method, function):
            found = tuple(inspect.signature(getattr(method, function)).parameters)
            if found[:2] != takes:
                raise StudyError(f"{said}: it compresses another kind of thing: {function}({', '.join(found)})")
            return method, function
    raise StudyError(f"{said}: {type(method).__name__} is no method for networks of one's own: it has neither `scores` nor `compress`")


def compress(model: Any, method: Any, ratio: float, **settings: Any):
    """Your own ``nn.Module`` by a paper's method (id, short name or object); see `contracts.model.compress` for the arguments.

    Latency is timed unless ``probe=None`` is given, for as long as the machine is free of sweeps; where it is not, the report says so.
    """
    from .contracts.model import compress as apply

    return apply(model, for_networks(method)[0], ratio, **{"probe": timed, **settings})


def timed(pair: Mapping[str, Callable[[], Any]], wait: float = 20, rounds: int = 12) -> Any:
    """`probe.compare` of the pair as soon as no sweep runs on this machine; after ``wait`` seconds the words why not."""
    from .core import probe

    try:
        with probe.alone(timeout=wait):
            return probe.compare(pair, rounds)
    except TimeoutError as error:
        return f"not measured ({error})"


def encode(data: Any, codec: Any = "iflow") -> bytes:
    """An array or bytes as one stream of bytes, by a paper's codec; see `contracts.data.encode`."""
    from .contracts.data import encode as apply

    return apply(data, by_name(codec))


def decode(stream: bytes, limit: int = 1 << 30) -> Any:
    """What `encode` was given; the stream names its codec. Anything else raises `contracts.data.StreamError`."""
    from .contracts.data import decode as apply

    def find(name: str) -> Any:
        return next((entry.study().method for entry in registry.implemented() if name in (entry.name, entry.arxiv)), None)

    return apply(stream, find, limit)
