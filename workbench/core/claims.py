"""Claims: inequalities with a margin and an interval, and the verdict on them.

Intervals are 90 % two-sided Student-t intervals over independent units (so each bound is a 95 % one-sided statement). For trained models the
unit is the *replica*, an independently trained checkpoint; seeds are averaged within it first. For untrained things the unit is the item.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .measurements import Measurements
from .study import Claim, Metric, Outcome, Study, StudyError

HOLDS, NOT_REPRODUCED, UNDECIDED, NEEDS_HARDWARE = "holds", "not reproduced", "undecided", "needs hardware"
LEVEL = 0.90


@dataclass(frozen=True)
class Estimate:
    """``value`` with interval ``low … high``, to be ``at_least`` (or at most) ``margin``; ``units`` says over how many independent units."""

    value: float
    low: float
    high: float
    margin: float
    at_least: bool = True
    units: int = 1
    unit: str = ""

    @property
    def status(self) -> str:
        if not np.isfinite([self.value, self.low, self.high]).all():
            return UNDECIDED
        low, high, margin = (self.low, self.high, self.margin) if self.at_least else (-self.high, -self.low, -self.margin)
        return HOLDS if low >= margin else NOT_REPRODUCED if high < margin else UNDECIDED


def estimate(values: Sequence[float], margin: float, at_least: bool = True, unit: str = "replicas") -> Estimate:
    """The mean of independent ``values`` with its interval. A single value that cannot vary (a count, a size) is its own interval."""
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        return Estimate(np.nan, np.nan, np.nan, margin, at_least, 0, unit)
    mean = float(values.mean())
    half = 0.0 if values.size == 1 else float(stats.t.ppf((1 + LEVEL) / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return Estimate(mean, mean - half, mean + half, margin, at_least, values.size, unit)


def better(metric: str, than: str, by: float = 0.0, at_equal: str | None = None, over: tuple[float, float] | None = None,
           of: str | None = None, **knobs: float) -> Callable[[Measurements], Estimate]:
    """The subject's (or contender ``of``'s) ``metric`` is better than ``than``'s by at least ``by``, paired over replicas (``Metric.more_is_better`` gives the direction).

    ``at_equal``: compare at equal values of this cost metric, by linear interpolation between measured points, averaged over the range that both
    measured (cut to ``over``, in the cost's unit). Without it, points with equal knobs are compared (pinned by ``knobs``; else all shared ones).
    """

    def test(m: Measurements) -> Estimate:
        sign = 1 if _metric(m, metric).more_is_better else -1
        ours, theirs = m.rows(of, **knobs), m.rows(than, **knobs)
        differences = []
        for replica in sorted(set(ours.replica) & set(theirs.replica)):
            a, b = ours[ours.replica == replica], theirs[theirs.replica == replica]
            difference = _at_equal(a, b, at_equal, metric, over) if at_equal else _at_same_knobs(m.study, a, b, metric)
            if difference is not None:  # None: no common knob value or cost; NaN (something diverged) stays and leaves the claim undecided
                differences.append(sign * difference)
        return estimate(differences, by)

    return _speaks_of(of, test)


def _speaks_of(of: str | None, test: Callable) -> Callable:
    """Notes on a claim's test which contender it is about (`judge` puts ablations and rivals in its place)."""
    test.of = of or ""
    return test


def _metric(m: Measurements, name: str) -> Metric:
    if name not in m.study.track.metrics:
        raise StudyError(f"track {m.study.track.name} has no metric {name!r}; it has {', '.join(m.study.track.metrics)}")
    return m.study.track.metrics[name]


def _at_same_knobs(study: Study, a, b, metric: str) -> float | None:
    shared = [knob.name for knob in study.knobs if a[knob.name].notna().all() and b[knob.name].notna().all() and len(a) and len(b)]
    if not shared:
        return a[metric].mean(skipna=False) - b[metric].mean(skipna=False)
    means = [rows.groupby(shared)[metric].mean() for rows in (a, b)]
    common = means[0].index.intersection(means[1].index)
    return (means[0][common] - means[1][common]).mean(skipna=False) if len(common) else None


def _at_equal(a, b, cost: str, metric: str, over: tuple[float, float] | None) -> float | None:
    curves = [rows.groupby("seed")[[cost, metric]].apply(lambda r: r.sort_values(cost).to_numpy()) for rows in (a, b)]
    low = max(curve[0, 0] for group in curves for curve in group)
    high = min(curve[-1, 0] for group in curves for curve in group)
    if over:
        low, high = max(low, over[0]), min(high, over[1])
    if not low <= high:
        return None
    costs = np.linspace(low, high, 33)
    mean = [np.mean([np.interp(costs, curve[:, 0], curve[:, 1]) for curve in group], axis=0) for group in curves]
    return float((mean[0] - mean[1]).mean())


def bound(metric: str, at_least: float | None = None, at_most: float | None = None, of: str | None = None, relative_to: str | None = None,
          **knobs: float) -> Callable[[Measurements], Estimate]:
    """The subject's (or contender ``of``'s) mean ``metric`` is at least / at most a number; with ``relative_to`` it is divided by that contender's."""
    if (at_least is None) == (at_most is None):
        raise StudyError("bound needs one of at_least and at_most")

    def test(m: Measurements) -> Estimate:
        _metric(m, metric)
        rows = m.rows(of, **knobs).groupby("replica")[metric].mean()
        if relative_to:
            rows = rows / m.rows(relative_to, **knobs).groupby("replica")[metric].mean()
        return estimate(rows.dropna().to_numpy(), at_least if at_most is None else at_most, at_most is None)

    return _speaks_of(of, test)


def better_per_item(sample: str, than: str, by: float = 0.0, more_is_better: bool = True, **knobs: float) -> Callable[[Measurements], Estimate]:
    """As `better`, paired over the items of a sample (for things that are not trained: files, photographs), pooled over points."""

    def test(m: Measurements) -> Estimate:
        ours, theirs = (m.samples(m.rows(name, **knobs), sample) for name in (None, than))
        if not ours or not theirs:
            return estimate([], by)
        difference = np.mean(np.stack(ours), 0).astype(float) - np.mean(np.stack(theirs), 0)
        return estimate(difference if more_is_better else -difference, by, unit="items")

    return test


def monotone(metric: str, knob: str, rising: bool = True, least: float = 0.9) -> Callable[[Measurements], Estimate]:
    """Spearman's rank correlation of ``metric`` with ``knob`` is at least ``least`` (at most ``-least`` if falling), per replica."""

    def test(m: Measurements) -> Estimate:
        _metric(m, metric)
        rows = m.rows(**{k.name: k.default for k in m.study.knobs_of(m.subject) if k.name != m.study.knob(knob).name})
        sign = 1 if rising else -1
        values = [sign * stats.spearmanr(group[knob], group[metric]).statistic if group[metric].nunique() > 1 else 0.0  # constant: no trend at all
                  for _, group in rows.groupby("replica") if group[knob].nunique() > 2]
        return estimate(values, least)

    return test


@dataclass(frozen=True)
class Verdict:
    """One row of the ledger."""

    paper: str
    family: str
    what: str
    name: str
    text: str
    kind: str
    status: str
    measured: float | str | None
    margin: float | str | None
    interval: tuple[float, float] | None
    evidence: str
    broken_by: tuple[str, ...] = ()
    note: str = ""


def run_checks(study: Study, family: str = "") -> list[Verdict]:
    """Each check on the method (green or red), and the ablations and rivals that turn it red."""
    subject = study.contenders[study.subject].subject
    others = {name: ablation.stand_in for name, ablation in study.ablations.items() if ablation.stand_in is not None}
    others |= {name: c.subject for name, c in study.contenders.items() if c.subject is not None and c.subject != subject and c.evidence != "recorded"}
    verdicts = []
    for check in study.checks:
        outcome = _outcome(check, subject)
        broken = tuple(name for name, other in others.items() if not _outcome(check, other).ok)
        verdicts.append(Verdict(study.paper, family, "check", check.name, check.text, "exact", "green" if outcome.ok else "red", outcome.measured,
                                outcome.allowed, None, "live", broken))
    return verdicts


def _outcome(check, subject) -> Outcome:
    try:
        return check.run(subject)
    except Exception as error:  # a check that raises is red, and says why; an ablation may break in any way
        return Outcome(False, f"{type(error).__name__}: {error}", "no error")


def judge(study: Study, claim: Claim, m: Measurements, family: str = "") -> Verdict:
    """The verdict on one claim and the stand-ins (ablations, rivals) of which it does not hold."""
    touched = _touched(study, claim, m)
    of = getattr(claim.test, "of", "") or study.subject
    ranks = ("live", "checkpoint", "recorded")  # the weakest evidence among the contenders that the claim looks at
    evidence = max((study.field[name].evidence for name in touched or {of}), key=ranks.index) if claim.test else "recorded"
    common = {"paper": study.paper, "family": family, "what": "claim", "name": claim.name, "text": claim.text, "evidence": evidence,
              "kind": "comparative" if len(touched) > 1 else "quantitative"}
    if claim.needs or claim.test is None:
        return Verdict(**common, status=NEEDS_HARDWARE, measured=None, margin=None, interval=None, note=claim.needs)
    try:
        result = claim.test(m)
    except Exception as error:  # one claim that cannot be judged must not hide the others
        return Verdict(**common, status=UNDECIDED, measured=None, margin=None, interval=None, note=f"{type(error).__name__}: {error}")
    broken = ()
    if result.status == HOLDS:
        # What the claim compares with cannot stand in: against itself it would "break" any margin.
        names = [name for name, c in study.field.items() if name not in touched | {of} and c.role in ("ablation", "rival", "control", "paper")]
        broken = tuple(name for name in names if _breaks(claim, m.standing_in(name, of)))
    note = claim.reason if result.status != HOLDS else ""
    if result.units == 0:
        note = f"nothing to compare was measured{': ' if note else ''}{note}"
    known = np.isfinite([result.value, result.low, result.high]).all()
    return Verdict(**common, status=result.status, measured=result.value if known else None, margin=result.margin,
                   interval=(result.low, result.high) if known else None, broken_by=broken, note=note)


def _breaks(claim: Claim, m: Measurements) -> bool:
    """Whether the claim was put to the stand-in and did not hold; a stand-in that lacks the points, metric or sample was not put to it."""
    try:
        result = claim.test(m)
    except (KeyError, ValueError, IndexError):
        return False
    return result.units > 0 and result.status != HOLDS


class _Touched(Measurements):
    """Measurements that note which contenders a claim looks at."""

    def rows(self, contender=None, tier="embedded", **knobs):
        self._cache.setdefault("touched", set()).add(contender or self.subject)
        return super().rows(contender, tier, **knobs)


def _touched(study: Study, claim: Claim, m: Measurements) -> set[str]:
    if claim.test is None:
        return set()
    watched = _Touched(study, m.points)
    with contextlib.suppress(Exception):
        claim.test(watched)
    return watched._cache.get("touched", set()) & set(study.field)


def ledger(study: Study, m: Measurements, family: str = "") -> list[Verdict]:
    """All checks and claims, failures first."""
    order = {"red": 0, NOT_REPRODUCED: 1, UNDECIDED: 2, NEEDS_HARDWARE: 3, HOLDS: 4, "green": 5}
    return sorted(run_checks(study, family) + [judge(study, claim, m, family) for claim in study.claims], key=lambda v: order[v.status])
