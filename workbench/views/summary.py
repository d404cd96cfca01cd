"""Measurements in numbers: means over replicas with intervals, per contender and knob value; what a knob comes to; who is ahead at equal cost.

A point is the mean over replicas, each the mean over its seeds; its interval is the 90 % one of `claims.estimate`. Charts (`figures`) and readouts draw
what stands here and compute nothing of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..core.claims import estimate
from ..core.measurements import Measurements, Stored
from ..core.study import Study, StudyError


def label(study: Study, name: str) -> str:
    """The words for a metric or a knob on an axis or beside a slider."""
    if name in study.track.metrics:
        return study.track.metrics[name].label
    knob = study.knob(name)
    return knob.label or knob.name.replace("_", " ")


def number(study: Study, metric: str, value: float) -> str:
    """A metric's value with its decimals (a knob's with what it needs)."""
    if metric in study.track.metrics and np.isfinite(value):
        return f"{value:,.{study.track.metrics[metric].decimals}f}"
    return f"{value:g}"


def shown(study: Study, contenders: Sequence[str] | None = None) -> list[str]:
    """The contenders to draw: those asked for, else all but the ablations. An unknown one is an error that lists the known."""
    if contenders is None:
        return list(study.contenders)
    unknown = [name for name in contenders if name not in study.field]
    if unknown:
        raise StudyError(f"{study.name} has no contender {unknown[0]!r}; it has {', '.join(study.field)}")
    return list(contenders)


def more_is_better(study: Study, y: str) -> bool:
    return study.track.metrics[y].more_is_better if y in study.track.metrics else True


def axes(study: Study, x: str | None, y: str | None, knob: str | None) -> tuple[str, str, str]:
    """The axes and the knob that varies; by default the track's cost and quality, and the first knob."""
    x, y, knob = x or study.track.cost, y or study.track.quality, knob or study.knobs[0].name
    study.knob(knob)
    for what, name, allowed in (("x", x, [*study.track.metrics, *(k.name for k in study.knobs)]), ("y", y, list(study.track.metrics))):
        if name not in allowed:
            raise StudyError(f"{what} is {name!r}; {study.name} measures {', '.join(allowed)}")
    return x, y, knob


def groups_of(m: Measurements, tier: str) -> dict[tuple, list[Stored]]:
    """The points by contender and knobs: one group holds the replicas and seeds of one setting."""
    groups: dict[tuple, list[Stored]] = {}
    for stored in m.points:
        if stored.point.tier == tier:
            groups.setdefault((stored.point.contender, stored.point.knobs), []).append(stored)
    return groups


def _by_replica(group: Sequence[Stored], metric: str) -> dict[int, float]:
    """Replica → the mean of a metric (or the value of a knob) over its seeds; points without it are left out."""
    values: dict[int, list[float]] = {}
    for stored in group:
        value = stored.result.metrics.get(metric, dict(stored.point.knobs).get(metric, np.nan))
        if np.isfinite(value):
            values.setdefault(stored.point.replica, []).append(float(value))
    return {replica: float(np.mean(values[replica])) for replica in sorted(values)}


def setting(study: Study, contender: str, current: Mapping[str, float]) -> tuple:
    """The group of a contender at knob values (those not given: defaults)."""
    return contender, tuple(sorted((knob.name, round(current.get(knob.name, knob.default), 10)) for knob in study.knobs_of(contender)))


def _row(study: Study, key: tuple, group: Sequence[Stored], x: str, y: str) -> dict:
    name, knobs = key
    xs, ys = _by_replica(group, x), _by_replica(group, y)
    interval = estimate(list(ys.values()), 0)
    return {"contender": name, "role": study.field[name].role, **{k.name: np.nan for k in study.knobs}, **dict(knobs),
            x: float(np.mean(list(xs.values()) or np.nan)), y: interval.value, "low": interval.low, "high": interval.high, "replicas": len(ys),
            "points": len(group)}


def _frame(study: Study, rows: list[dict], x: str, y: str) -> pd.DataFrame:
    columns = ["contender", "role", *(k.name for k in study.knobs), x, y, "low", "high", "replicas", "points"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))


def table(m: Measurements, x: str | None = None, y: str | None = None, contenders: Sequence[str] | None = None, knob: str | None = None,
          tier: str = "embedded") -> pd.DataFrame:
    """The numbers behind the curve, one row a contender and value of ``knob`` (default: the first), other knobs at their defaults.

    Columns: ``contender, role``, the study's knobs (NaN where a contender lacks one), ``x`` and ``y`` (means; default: the track's cost and quality),
    ``low, high`` (90 % interval of ``y`` over replicas), ``replicas, points``.
    """
    study, groups = m.study, groups_of(m, tier)
    x, y, knob = axes(study, x, y, knob)
    rows = []
    for name in shown(study, contenders):
        keys = sorted((key for key in groups if key[0] == name and key == setting(study, name, {knob: dict(key[1]).get(knob, np.nan)})),
                      key=lambda key: dict(key[1]).get(knob, 0))
        rows += [_row(study, key, groups[key], x, y) for key in keys]
    return _frame(study, [row for row in rows if np.isfinite([row[x], row[y]]).all()], x, y)


def marks(m: Measurements, current: Mapping[str, float], contenders: Sequence[str] | None = None, x: str | None = None, y: str | None = None,
          tier: str = "embedded") -> pd.DataFrame:
    """As `table`, the contenders at the ``current`` knob values (others at their defaults); contenders without a knob are fixed points and stay out."""
    study, groups = m.study, groups_of(m, tier)
    x, y, _ = axes(study, x, y, None)
    keys = [setting(study, name, current) for name in shown(study, contenders) if study.knobs_of(name)]
    return _frame(study, [_row(study, key, groups[key], x, y) for key in keys if key in groups], x, y)


def equivalents(m: Measurements, current: Mapping[str, float], contender: str | None = None, tier: str = "embedded") -> dict[str, float]:
    """What the knob values come to: every metric of ``contender`` (default: the subject) there, mean over replicas. Empty where not measured."""
    group = groups_of(m, tier).get(setting(m.study, contender or m.subject, current), [])
    values = {name: list(_by_replica(group, name).values()) for name in m.study.track.metrics}
    return {name: float(np.mean(found)) for name, found in values.items() if found}


def versus(m: Measurements, current: Mapping[str, float], contenders: Sequence[str] | None = None, knob: str | None = None,
           tier: str = "embedded") -> pd.DataFrame:
    """The subject at the ``current`` knob values against each contender *at equal cost*, paired over replicas.

    A contender's quality at the subject's cost is interpolated linearly between its measured points and never beyond them. Columns: ``contender,
    role, difference, low, high`` (of the subject's quality, positive: the subject is better; 90 % interval), ``replicas, verdict``.
    """
    study, groups = m.study, groups_of(m, tier)
    x, y, knob = axes(study, None, None, knob)
    here = groups.get(setting(study, m.subject, current), [])
    costs, qualities = _by_replica(here, x), _by_replica(here, y)
    sign = 1 if more_is_better(study, y) else -1
    rows, measured = [], {key[0] for key in groups} - {m.subject}
    for name in shown(study, contenders):
        if name not in measured:
            continue
        curves: dict[int, list[tuple[float, float]]] = {}
        for key, group in groups.items():
            if key[0] == name and key == setting(study, name, {knob: dict(key[1]).get(knob, np.nan)}):
                ys = _by_replica(group, y)
                for replica, cost in _by_replica(group, x).items():
                    curves.setdefault(replica, []).append((cost, ys.get(replica, np.nan)))
        differences = []
        for replica in sorted(costs.keys() & curves.keys()):
            xs, ys = np.array(sorted(curves[replica])).T
            if xs[0] <= costs[replica] <= xs[-1]:
                differences.append(sign * (qualities[replica] - np.interp(costs[replica], xs, ys)))
        found = estimate(differences, 0)
        verdict = ("not measured at this cost" if not differences else "one replica: no interval" if len(differences) == 1 else
                   "better" if found.low > 0 else "worse" if found.high < 0 else "tie")
        rows.append({"contender": name, "role": study.field[name].role, "difference": found.value, "low": found.low, "high": found.high,
                     "replicas": len(differences), "verdict": verdict})
    return pd.DataFrame(rows, columns=["contender", "role", "difference", "low", "high", "replicas", "verdict"])
