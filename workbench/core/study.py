"""What a paper declares: one `Study` of plain data, at the end of its file.

    method ──► Contender ──► thing ──► Track.measure ──► Result ──► tidy frame ──► Claim ──► verdict
                  ▲ knobs, replica, seed                    (samples, series, exhibits) ──► picture

A *contender* makes the compressed thing from knob values, a replica (which independently trained checkpoint) and a seed. The *track*, which
belongs to a bench, measures it; a paper never reports its own numbers. *Checks* are exact and look at the method itself; *claims* are
inequalities between measured points, with an interval. *Ablations* disable one numbered part each and must turn a check red or break a claim.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

ROLES = ("paper", "rival", "bound", "control", "ablation")
EVIDENCE = ("live", "checkpoint", "recorded")
PROFILES = ("quick", "full")
QUICK_REPLICAS = 3


class StudyError(ValueError):
    """A study, or a question put to one, is wrong; the message says what was found and what is allowed."""


@dataclass(frozen=True)
class Knob:
    """A slider. ``grid``: values of the full profile, ascending; ``quick``: those that claims need (a part of ``grid``).

    ``neutral`` is the value at which the method must change nothing; ``slides=False`` draws markers instead of a line (fine-tuned points).
    """

    name: str
    grid: Sequence[float]
    default: float
    quick: Sequence[float] = ()
    neutral: float | None = None
    label: str = ""
    slides: bool = True

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(_plain(value) for value in self.grid))
        object.__setattr__(self, "quick", tuple(_plain(value) for value in self.quick) or (self.default,))
        unknown = [value for value in (self.default, *self.quick) if value not in self.grid]
        if unknown:
            raise StudyError(f"knob {self.name}: {unknown} not in its grid {list(self.grid)}")


def _plain(value: Any) -> Any:
    """Grid values as plain Python numbers, rounded so that 0.30000000000000004 is 0.3 in keys, files and labels."""
    value = value.item() if isinstance(value, np.generic) else value
    return round(value, 10) if isinstance(value, float) else value


@dataclass(frozen=True)
class Contender:
    """One way to make the compressed thing.

    ``make(**knobs, replica=…, seed=…, tier=…)`` gets those of these arguments that its signature names. ``subject`` is what checks examine (by
    default nothing). ``seeds``/``replicas``: how many to measure (``replicas=None``: all of the track's). ``grid``: its own values of a knob, where they are not the
    knob's (few, for fine-tuned points). ``evidence``: ``live``,
    ``checkpoint`` (the thing is a shipped net) or ``recorded`` (too long for ``quick``, which takes its points from the golden file). ``source``: on a
    board, the id of the paper that it comes from.
    """

    make: Callable[..., Any]
    role: str = "rival"
    subject: Any = None
    seeds: int = 1
    replicas: int | None = None
    evidence: str = "live"
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""
    source: str = ""

    def __post_init__(self):
        for value, allowed, what in ((self.role, ROLES, "role"), (self.evidence, EVIDENCE, "evidence")):
            if value not in allowed:
                raise StudyError(f"contender {what} must be one of {', '.join(allowed)}, not {value!r}")

    @cached_property
    def arguments(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.make).parameters)

    @cached_property
    def needed(self) -> frozenset[str]:
        """The arguments of `make` that have no default."""
        parameters = inspect.signature(self.make).parameters.values()
        return frozenset(p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


@dataclass(frozen=True)
class Ablation:
    """The method with one numbered ``part`` of its card disabled. ``contender`` stands in for the paper's in the claims (``None``: only checks
    can see it), ``subject`` stands in for the method in the checks (default: the contender's)."""

    part: str
    contender: Contender | None = None
    subject: Any = None

    @property
    def stand_in(self) -> Any:
        return self.subject if self.subject is not None or self.contender is None else self.contender.subject


@dataclass(frozen=True)
class Result:
    """One measured point. ``metrics``: scalars (columns of the frame); ``samples``: per-item outcomes for paired intervals, e.g. uint8 right/wrong
    per test image; ``series``: curves, e.g. loss per step; ``exhibits``: small integer arrays that the picture needs (≤ 8 KB together)."""

    metrics: Mapping[str, float]
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    exhibits: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """How to show and compare one metric: its label with unit, and whether more is better."""

    label: str
    more_is_better: bool = True
    decimals: int = 1


@dataclass(frozen=True)
class Track:
    """A race course: one bench and one cost axis. ``measure(thing, replica=…, seed=…, tier=…)`` gets those of these arguments that it names.

    ``cost`` and ``quality`` name two of ``metrics``. ``data_key()`` identifies the data and checkpoints used, so that stored points of other data
    are not taken for these. ``reference`` is the uncompressed thing, measured once per replica.
    """

    name: str
    cost: str
    quality: str
    metrics: Mapping[str, Metric]
    measure: Callable[..., Result]
    data_key: Callable[[], str]
    replicas: int = 3
    tiers: tuple[str, ...] = ("embedded",)
    title: str = ""
    reference: Callable[..., Any] | None = None

    def __post_init__(self):
        missing = {self.cost, self.quality} - set(self.metrics)
        if missing:
            raise StudyError(f"track {self.name}: {', '.join(sorted(missing))} not in its metrics {', '.join(self.metrics)}")


@dataclass(frozen=True)
class Outcome:
    """What a check found: whether it passed, what was measured and what is allowed (both shown to the reader)."""

    ok: bool
    measured: float | str
    allowed: float | str


@dataclass(frozen=True)
class Check:
    """Exact or invariant. ``run(subject) -> Outcome``; an exception is a red check with its message."""

    name: str
    text: str
    run: Callable[[Any], Outcome]


@dataclass(frozen=True)
class Claim:
    """An inequality between measured numbers. ``test(measurements) -> Estimate`` (see `core.claims`); ``paper`` quotes the paper's own figure and where it
    stands; ``needs`` names hardware without which it cannot be measured here; ``reason`` says why it does not reproduce, where it does not."""

    name: str
    text: str
    test: Callable[..., Any] | None
    paper: str = ""
    needs: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """One numbered part of the card: the function that builds it, the check or claim that proves it, the ablation that disables it (if one does)."""

    function: Callable[..., Any]
    proof: str
    ablation: str = ""
    reconstructed: bool = False


@dataclass(frozen=True)
class Exercise:
    """``check(namespace) -> None`` raises AssertionError with a helpful message; ``stub`` and ``solution`` are source texts run in a namespace;
    ``picture(namespace)`` draws what an answer does beside what is right (a plotly figure)."""

    question: str
    stub: str
    hints: Sequence[str]
    check: Callable[[dict], None]
    solution: str
    picture: Callable[[dict], Any] | None = None


@dataclass(frozen=True)
class Study:
    """All that the workbench needs to slide, race, check, teach and report one paper.

    One without claims is a *board*: a track on which many papers and classics race. ``enter`` makes a contender of what a visitor brings (a score, an
    allocation, …); ``absent`` says of papers that do not race there why not.
    """

    paper: str
    name: str
    track: Track
    knobs: Sequence[Knob]
    contenders: Mapping[str, Contender]
    ablations: Mapping[str, Ablation]
    checks: Sequence[Check]
    claims: Sequence[Claim]
    parts: Mapping[str, Part]
    picture: Callable[[dict, Mapping[str, np.ndarray]], Any]
    exercise: Exercise | None
    method: Any = None
    time_limit: float = 120.0
    enter: Callable[[Any], Contender] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        papers = [name for name, contender in self.contenders.items() if contender.role == "paper"]
        if not papers:
            raise StudyError(f"{self.name}: no contender has the role 'paper'")
        if self.claims and len(self.ablations) < 2:
            raise StudyError(f"{self.name}: {len(self.ablations)} ablations; at least two are needed")
        names = [item.name for item in (*self.checks, *self.claims)]
        if len(set(names)) < len(names):
            raise StudyError(f"{self.name}: two checks or claims share a name: {sorted(n for n in set(names) if names.count(n) > 1)}")
        for label, part in self.parts.items():
            if part.proof not in names or (part.ablation and part.ablation not in self.ablations):
                raise StudyError(f"{self.name}, part {label}: unknown proof {part.proof!r} or ablation {part.ablation!r}")
        known = {knob.name for knob in self.knobs} | {"replica", "seed", "tier"}
        for name, contender in (*self.contenders.items(), *((n, a.contender) for n, a in self.ablations.items() if a.contender is not None)):
            missing = contender.needed - known
            if missing:
                raise StudyError(f"{self.name}, {name}: make() needs {', '.join(sorted(missing))}; there are {', '.join(sorted(known))}")
        clash = set(self.contenders) & set(self.ablations)
        if clash:
            raise StudyError(f"{self.name}: {clash} names both a contender and an ablation")

    @property
    def subject(self) -> str:
        """The name of the paper's own contender (the first, where there are variants)."""
        return next(name for name, contender in self.contenders.items() if contender.role == "paper")

    @cached_property
    def field(self) -> dict[str, Contender]:
        """Contenders and the ablations' contenders, by name."""
        from dataclasses import replace

        ablated = {name: replace(ablation.contender, role="ablation")
                   for name, ablation in self.ablations.items() if ablation.contender is not None}
        return {**self.contenders, **ablated}

    def entered(self, thing: Any) -> Contender:
        """A visitor's contender, or what `enter` makes of the thing. StudyError: neither."""
        if isinstance(thing, Contender):
            return thing
        if self.enter is None:
            raise StudyError(f"{self.name} races contenders only, not {type(thing).__name__}; a board takes scores, allocations and schedules as they are")
        return self.enter(thing)

    def knob(self, name: str) -> Knob:
        for knob in self.knobs:
            if knob.name == name:
                return knob
        raise StudyError(f"{self.name} has no knob {name!r}; it has {', '.join(k.name for k in self.knobs)}")

    def knobs_of(self, contender: str) -> list[Knob]:
        """The knobs that a contender's `make` names."""
        return [knob for knob in self.knobs if knob.name in self.field[contender].arguments]

    def points(self, profile: str = "quick", contenders: Sequence[str] | None = None, tier: str = "embedded") -> list[Point]:
        """The design: one knob varies at a time, the others stay at their defaults. Ablations are measured at the quick values only; ``quick`` measures
        at most three replicas, ``full`` all of them."""
        if profile not in PROFILES:
            raise StudyError(f"profile must be one of {', '.join(PROFILES)}, not {profile!r}")
        points: dict[Point, None] = {}
        for name in contenders or self.field:
            contender = self.field[name]
            if contender.evidence == "recorded" and profile == "quick":
                continue
            knobs = self.knobs_of(name)
            defaults = {knob.name: knob.default for knob in knobs}
            settings = [defaults] if not knobs else [
                {**defaults, knob.name: value} for knob in knobs
                for value in contender.grid.get(knob.name) or (knob.grid if profile == "full" and contender.role != "ablation" else knob.quick)]
            replicas = min(contender.replicas or self.track.replicas, self.track.replicas, QUICK_REPLICAS if profile == "quick" else self.track.replicas)
            for setting in settings:
                for replica in range(replicas):
                    for seed in range(contender.seeds):
                        points[Point(name, tuple(sorted(setting.items())), replica, seed, tier)] = None
        return list(points)


@dataclass(frozen=True)
class Point:
    """The address of one measurement within a study."""

    contender: str
    knobs: tuple[tuple[str, float], ...]
    replica: int = 0
    seed: int = 0
    tier: str = "embedded"


def call_with(function: Callable, arguments: frozenset[str] | None = None, **available: Any) -> Any:
    """Calls ``function`` with those of the ``available`` arguments that it names."""
    names = arguments if arguments is not None else frozenset(inspect.signature(function).parameters)
    return function(**{name: value for name, value in available.items() if name in names})


def measure(track: Track, contender: Contender, point: Point) -> Result:
    """Makes the thing at ``point`` and has the track measure it; ``series`` and ``exhibits`` that the thing carries are kept with the result."""
    where = {"replica": point.replica, "seed": point.seed, "tier": point.tier}
    thing = call_with(contender.make, contender.arguments, **dict(point.knobs), **where)
    result = call_with(track.measure, thing=thing, **where)
    missing = {track.cost, track.quality} - set(result.metrics)
    if missing:
        raise StudyError(f"track {track.name} measured no {', '.join(sorted(missing))}")
    exhibits = {**getattr(thing, "exhibits", {}), **result.exhibits}
    size = sum(np.asarray(array).nbytes for array in exhibits.values())
    if size > 8192:
        raise StudyError(f"{point.contender}: {size} bytes of exhibits; at most 8192 a point")
    return Result(dict(result.metrics), dict(result.samples), {**getattr(thing, "series", {}), **result.series}, exhibits)
