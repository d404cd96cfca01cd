"""Measurements drawn: the quality–cost curve, the table behind it, its description in words, and a paper's own picture.

    Measurements ──► table ──► curve(…) ──► plotly figure          describe(…) ──► alt text
                       └─────► marks(…) ──► the rings at the current knob values

Everything is pure: the explorer, the notebooks and the report pages draw with the same functions. Lines join measured points only; what stands between
them was not measured. A point is the mean over replicas, each the mean over its seeds; its bar or band is the 90 % interval of `claims.estimate`.
Colours are legible on white and on near-black and to colour-blind eyes, and no two contenders of a study share both dash and marker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .claims import estimate
from .measurements import Measurements, Stored
from .study import Study, StudyError

INK, GRID = "#767676", "rgba(128,128,128,0.22)"
HUES = {"paper": ("#d55e00", "#b8720a"), "rival": ("#0077bb", "#00917c", "#aa4499", "#7a7fd0", "#5b8fa8", "#c2558f", "#3f8fd6"),
        "bound": ("#8c564b",), "control": (INK,), "ablation": ("#9a6fb0", "#a0703c", "#5f8a5f")}
DASHES = {"paper": ("solid",), "rival": ("dash", "dot", "dashdot", "longdash", "longdashdot"), "bound": ("3px,9px",), "control": ("9px,3px",),
          "ablation": ("2px,3px",)}
SYMBOLS = {"paper": ("circle", "circle-open-dot"), "rival": ("square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon"),
           "bound": ("triangle-down", "triangle-down-open", "y-down-open"), "control": ("square-open", "diamond-open", "hexagon-open", "star-open"),
           "ablation": ("x", "x-open", "asterisk-open", "hash-open", "y-up-open", "y-left-open", "y-right-open")}
CURRENT = "current point"


@dataclass(frozen=True)
class Style:
    """How a contender is drawn: ``color`` (#rrggbb), plotly ``dash`` and marker ``symbol``, line ``width`` in pixels."""

    color: str
    dash: str
    symbol: str
    width: float

    def faded(self, alpha: float) -> str:
        """The colour as ``rgba(…)`` with this opacity."""
        red, green, blue = (int(self.color[i:i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha:g})"


def palette(study: Study) -> dict[str, Style]:
    """The style of every contender and ablation; it depends on the study alone, so that a contender looks alike in every chart."""
    seen: dict[str, int] = {}
    styles = {}
    for name, contender in study.field.items():
        role = contender.role
        i = seen[role] = seen.get(role, -1) + 1
        choices = (HUES[role], DASHES[role], SYMBOLS[role])
        styles[name] = Style(*(choice[i % len(choice)] for choice in choices), 3.5 if role == "paper" else 2)
    return styles


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


def _axes(study: Study, x: str | None, y: str | None, knob: str | None) -> tuple[str, str, str]:
    """The axes and the knob that varies; by default the track's cost and quality, and the first knob."""
    x, y, knob = x or study.track.cost, y or study.track.quality, knob or study.knobs[0].name
    study.knob(knob)
    for what, name, allowed in (("x", x, [*study.track.metrics, *(k.name for k in study.knobs)]), ("y", y, list(study.track.metrics))):
        if name not in allowed:
            raise StudyError(f"{what} is {name!r}; {study.name} measures {', '.join(allowed)}")
    return x, y, knob


def _groups(m: Measurements, tier: str) -> dict[tuple, list[Stored]]:
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


def _at(study: Study, contender: str, current: Mapping[str, float]) -> tuple:
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
    study, groups = m.study, _groups(m, tier)
    x, y, knob = _axes(study, x, y, knob)
    rows = []
    for name in shown(study, contenders):
        keys = sorted((key for key in groups if key[0] == name and key == _at(study, name, {knob: dict(key[1]).get(knob, np.nan)})),
                      key=lambda key: dict(key[1]).get(knob, 0))
        rows += [_row(study, key, groups[key], x, y) for key in keys]
    return _frame(study, [row for row in rows if np.isfinite([row[x], row[y]]).all()], x, y)


def marks(m: Measurements, current: Mapping[str, float], contenders: Sequence[str] | None = None, x: str | None = None, y: str | None = None,
          tier: str = "embedded") -> pd.DataFrame:
    """As `table`, the contenders at the ``current`` knob values (others at their defaults); contenders without a knob are fixed points and stay out."""
    study, groups = m.study, _groups(m, tier)
    x, y, _ = _axes(study, x, y, None)
    keys = [_at(study, name, current) for name in shown(study, contenders) if study.knobs_of(name)]
    return _frame(study, [_row(study, key, groups[key], x, y) for key in keys if key in groups], x, y)


def equivalents(m: Measurements, current: Mapping[str, float], contender: str | None = None, tier: str = "embedded") -> dict[str, float]:
    """What the knob values come to: every metric of ``contender`` (default: the subject) there, mean over replicas. Empty where not measured."""
    group = _groups(m, tier).get(_at(m.study, contender or m.subject, current), [])
    values = {name: list(_by_replica(group, name).values()) for name in m.study.track.metrics}
    return {name: float(np.mean(found)) for name, found in values.items() if found}


def versus(m: Measurements, current: Mapping[str, float], contenders: Sequence[str] | None = None, knob: str | None = None,
           tier: str = "embedded") -> pd.DataFrame:
    """The subject at the ``current`` knob values against each contender *at equal cost*, paired over replicas.

    A contender's quality at the subject's cost is interpolated linearly between its measured points and never beyond them. Columns: ``contender,
    role, difference, low, high`` (of the subject's quality, positive: the subject is better; 90 % interval), ``replicas, verdict``.
    """
    study, groups = m.study, _groups(m, tier)
    x, y, knob = _axes(study, None, None, knob)
    here = groups.get(_at(study, m.subject, current), [])
    costs, qualities = _by_replica(here, x), _by_replica(here, y)
    sign = 1 if _more_is_better(study, y) else -1
    rows, measured = [], {key[0] for key in groups} - {m.subject}
    for name in shown(study, contenders):
        if name not in measured:
            continue
        curves: dict[int, list[tuple[float, float]]] = {}
        for key, group in groups.items():
            if key[0] == name and key == _at(study, name, {knob: dict(key[1]).get(knob, np.nan)}):
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


def curve(m: Measurements, current: Mapping[str, float] | None = None, contenders: Sequence[str] | None = None, x: str | None = None,
          y: str | None = None, knob: str | None = None, rows: pd.DataFrame | None = None) -> go.Figure:
    """Quality against cost: one line a contender (markers alone where its knob does not slide), rings at the ``current`` knob values.

    ``x``, ``y``: other metrics (or a knob as ``x``); ``knob``: which one varies; ``rows``: a `table` of these already at hand. The last trace is the rings'.
    """
    study = m.study
    x, y, knob = _axes(study, x, y, knob)
    rows = table(m, x, y, contenders, knob) if rows is None else rows
    slides, styles = study.knob(knob).slides, palette(study)
    figure = go.Figure()
    for name in dict.fromkeys(rows.contender):
        points, style = rows[rows.contender == name], styles[name]
        line = slides and len(points) > 1 and not study.field[name].grid
        if line and study.field[name].role == "paper" and (points.high > points.low).any():
            figure.add_scatter(x=[*points[x], *points[x][::-1]], y=[*points.high, *points.low[::-1]], fill="toself", fillcolor=style.faded(0.14),
                               line_width=0, mode="lines", hoverinfo="skip", showlegend=False, legendgroup=name, name=f"{name} interval")
            bars = None
        else:
            bars = {"type": "data", "symmetric": False, "array": points.high - points[y], "arrayminus": points[y] - points.low,
                    "color": style.faded(0.5), "thickness": 1, "width": 3} if (points.high > points.low).any() else None
        texts = [_hover(study, point, x, y, knob) for point in points.to_dict("records")]
        figure.add_scatter(x=points[x], y=points[y], mode="lines+markers" if line else "markers", name=name, legendgroup=name, error_y=bars,
                           line={"color": style.color, "dash": style.dash, "width": style.width},
                           marker={"symbol": style.symbol, "size": 10 if style.width > 2 else 8, "color": style.color},
                           text=texts, hovertemplate="%{text}<extra></extra>")
    here = marks(m, current, list(dict.fromkeys(rows.contender)), x, y) if current else rows.iloc[:0]
    figure.add_scatter(x=here[x], y=here[y], mode="markers", name=CURRENT, hoverinfo="skip",
                       marker={"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 2.5, "color": INK}})
    figure.update_xaxes(title_text=label(study, x))
    figure.update_yaxes(title_text=label(study, y))
    if rows.empty:
        figure.add_annotation(text="nothing measured yet", showarrow=False, xref="paper", yref="paper", x=.5, y=.5)
    return neutral(figure)


def history(m: Measurements, series: str, contenders: Sequence[str] | None = None, current: Mapping[str, float] | None = None) -> go.Figure:
    """A series (reward per episode, loss per step) at the ``current`` knob values: the running mean of the replicas bold, each replica faint."""
    groups, styles, figure = _groups(m, "embedded"), palette(m.study), go.Figure()
    for name in shown(m.study, contenders):
        found = [np.asarray(stored.result.series[series], float) for stored in groups.get(_at(m.study, name, current or {}), [])
                 if series in stored.result.series]
        for values in found:
            figure.add_scatter(y=values, mode="lines", line={"color": styles[name].faded(0.25), "width": 1}, showlegend=False, hoverinfo="skip")
        if found:
            mean = pd.DataFrame(found).mean().rolling(10, min_periods=1, center=True).mean()
            figure.add_scatter(y=mean, mode="lines", name=name, line={"color": styles[name].color, "dash": styles[name].dash, "width": 3})
    if not figure.data:
        figure.add_annotation(text=f"no series {series!r} is stored at this setting", showarrow=False, xref="paper", yref="paper", x=.5, y=.5)
    figure.update_layout(xaxis_title="step", yaxis_title=series)
    return neutral(figure)


def _hover(study: Study, point: Mapping, x: str, y: str, knob: str) -> str:
    lines = [f"<b>{point['contender']}</b> ({point['role']})"]
    if not np.isnan(point[knob]):
        lines.append(f"{label(study, knob)}: {point[knob]:g}")
    lines.append(f"{label(study, x)}: {number(study, x, point[x])}")
    spread = f" ({number(study, y, point['low'])} – {number(study, y, point['high'])})" if point["high"] > point["low"] else ""
    return "<br>".join([*lines, f"{label(study, y)}: {number(study, y, point[y])}{spread}"])


def neutral(figure: go.Figure, height: int = 380) -> go.Figure:
    """Gives a figure a look that suits light and dark pages: no background, grey ink, quiet grid; returns the same figure."""
    figure.update_layout(template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": INK, "size": 13},
                         height=figure.layout.height or height, margin={"l": 60, "r": 16, "t": 36 if figure.layout.title.text else 16, "b": 52},
                         hoverlabel={"bgcolor": "#222", "font_color": "#eee"}, legend={"font_size": 12})
    figure.update_xaxes(gridcolor=GRID, linecolor=GRID, zerolinecolor=GRID, automargin=True)
    figure.update_yaxes(gridcolor=GRID, linecolor=GRID, zerolinecolor=GRID, automargin=True)
    return figure


def describe(m: Measurements, current: Mapping[str, float] | None = None, contenders: Sequence[str] | None = None, x: str | None = None,
             y: str | None = None, knob: str | None = None, rows: pd.DataFrame | None = None) -> str:
    """The curve in words, written from its numbers: its axes, the course of the paper's contender, and the order at the current (else default) knob."""
    study = m.study
    x, y, knob = _axes(study, x, y, knob)
    rows = table(m, x, y, contenders, knob) if rows is None else rows
    axes = f"{label(study, y)} against {label(study, x)} on the track {study.track.name}"
    if rows.empty:
        return f"{axes}: nothing measured yet."
    names, replicas = rows.contender.nunique(), int(rows.replicas.max())
    text = [f"{axes}: {names} contender{'s'[:names > 1]}, mean over {replicas} replica{'s'[: replicas > 1]}."]
    ours = rows[rows.contender == m.subject]
    if len(ours):
        first, last = ours.iloc[0], ours.iloc[-1]
        course = f"{m.subject}: {number(study, y, first[y])} at {number(study, x, first[x])}"
        text.append(course + (f", {number(study, y, last[y])} at {number(study, x, last[x])}." if len(ours) > 1 else "."))
    state = {k.name: (current or {}).get(k.name, k.default) for k in study.knobs}
    here = marks(m, state, list(dict.fromkeys(rows.contender)), x, y).sort_values(y, ascending=not _more_is_better(study, y))
    if len(here):
        order = "; ".join(f"{name} {number(study, y, quality)}" for name, quality in zip(here.contender, here[y], strict=True))
        where = ", ".join(f"{label(study, name)} {value:g}" for name, value in state.items())
        text.append(f"At {where}, best first: {order}.")
    return " ".join(text)


def _more_is_better(study: Study, y: str) -> bool:
    return study.track.metrics[y].more_is_better if y in study.track.metrics else True


def picture(m: Measurements, current: Mapping[str, float], contender: str | None = None, replica: int = 0, tier: str = "embedded") -> go.Figure | None:
    """The paper's own picture of one measured point of ``contender`` (default: the subject): `Study.picture` gets the knobs and metrics of the
    point, ``contender``, ``replica`` and ``seed``. None where the point is not stored or carries no exhibits."""
    key = _at(m.study, contender or m.subject, current)
    stored = next((s for s in _groups(m, tier).get(key, []) if (s.point.replica, s.point.seed) == (replica, 0)), None)
    if stored is None or not stored.result.exhibits:
        return None
    facts = {**stored.result.metrics, **dict(stored.point.knobs), "contender": key[0], "replica": replica, "seed": 0}
    drawn = m.study.picture(facts, stored.result.exhibits)
    if not isinstance(drawn, go.Figure):
        return drawn
    for trace in drawn.data:
        if trace.type in ("heatmap", "contour", "surface"):
            trace.z = np.asarray(trace.z, np.float32)  # an array travels with its gaps; a list with NaN is no JSON
    return neutral(drawn)
