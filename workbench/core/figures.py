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
from .measurements import Measurements
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


def table(m: Measurements, x: str | None = None, y: str | None = None, contenders: Sequence[str] | None = None, knob: str | None = None,
          tier: str = "embedded") -> pd.DataFrame:
    """The numbers behind the curve, one row a contender and value of ``knob`` (default: the first), other knobs at their defaults.

    Columns: ``contender, role``, the study's knobs (NaN where a contender lacks one), ``x`` and ``y`` (means; default: the track's cost and quality),
    ``low, high`` (90 % interval of ``y`` over replicas), ``replicas, points``.
    """
    study = m.study
    x, y, knob = x or study.track.cost, y or study.track.quality, knob or study.knobs[0].name
    study.knob(knob)
    known = set(m.frame.columns) - {"paper", "contender", "role", "track", "tier", "key"}
    for what, name in (("x", x), ("y", y)):
        if name not in known:
            raise StudyError(f"{what} is {name!r}; {study.name} measures {', '.join(sorted(known & set(study.track.metrics)))}")
    rows = []
    for name in shown(study, contenders):
        own = study.knobs_of(name)
        pinned = {other.name: other.default for other in own if other.name != knob}
        points = m.rows(name, tier, **pinned).dropna(subset=[x, y])
        groups = points.groupby(knob) if knob in {k.name for k in own} else [(np.nan, points)]
        for value, group in groups:
            if not len(group):
                continue
            means = group.groupby("replica")[list({x, y})].mean()
            interval = estimate(means[y], 0)
            rows.append({"contender": name, "role": study.field[name].role, **{k.name: np.nan for k in study.knobs}, **pinned, knob: value,
                         x: means[x].mean(), y: interval.value, "low": interval.low, "high": interval.high,
                         "replicas": len(means), "points": len(group)})
    columns = ["contender", "role", *(k.name for k in study.knobs), x, y, "low", "high", "replicas", "points"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))


def marks(rows: pd.DataFrame, current: Mapping[str, float], x: str, y: str, knob: str) -> pd.DataFrame:
    """The rows of a `table` that stand at the current value of ``knob`` (contenders without the knob are fixed points and stay out)."""
    here = np.isclose(rows[knob].astype(float), current[knob])
    return rows.loc[here, ["contender", x, y, "low", "high"]]


def curve(m: Measurements, current: Mapping[str, float] | None = None, contenders: Sequence[str] | None = None, x: str | None = None,
          y: str | None = None, knob: str | None = None, rows: pd.DataFrame | None = None) -> go.Figure:
    """Quality against cost: one line a contender (markers alone where its knob does not slide), rings at the ``current`` knob values.

    ``x``, ``y``: other metrics (or a knob as ``x``); ``knob``: which one varies; ``rows``: a `table` of these already at hand. The last trace is the rings'.
    """
    study = m.study
    x, y, knob = x or study.track.cost, y or study.track.quality, knob or study.knobs[0].name
    rows = table(m, x, y, contenders, knob) if rows is None else rows
    slides, styles = study.knob(knob).slides, palette(study)
    figure = go.Figure()
    for name in dict.fromkeys(rows.contender):
        points, style = rows[rows.contender == name], styles[name]
        line = slides and len(points) > 1
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
    here = marks(rows, current, x, y, knob) if current and knob in current else rows.iloc[:0]
    figure.add_scatter(x=here[x], y=here[y], mode="markers", name=CURRENT, hoverinfo="skip",
                       marker={"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 2.5, "color": INK}})
    figure.update_xaxes(title_text=label(study, x))
    figure.update_yaxes(title_text=label(study, y))
    if rows.empty:
        figure.add_annotation(text="nothing measured yet", showarrow=False, xref="paper", yref="paper", x=.5, y=.5)
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
    x, y, knob = x or study.track.cost, y or study.track.quality, knob or study.knobs[0].name
    rows = table(m, x, y, contenders, knob) if rows is None else rows
    axes = f"{label(study, y)} against {label(study, x)} on the track {study.track.name}"
    if rows.empty:
        return f"{axes}: nothing measured yet."
    names, replicas = rows.contender.nunique(), int(rows.replicas.max())
    text = [f"{axes}: {names} contender{'s'[:names > 1]}, mean over {replicas} replica{'s'[:replicas > 1]}."]
    ours = rows[rows.contender == m.subject]
    if len(ours):
        first, last = ours.iloc[0], ours.iloc[-1]
        course = f"{m.subject}: {number(study, y, first[y])} at {number(study, x, first[x])}"
        text.append(course + (f", {number(study, y, last[y])} at {number(study, x, last[x])}." if len(ours) > 1 else "."))
    value = (current or {}).get(knob, study.knob(knob).default)
    here = marks(rows, {knob: value}, x, y, knob).sort_values(y, ascending=not _more_is_better(study, y))
    if len(here):
        order = "; ".join(f"{name} {number(study, y, quality)}" for name, quality in zip(here.contender, here[y], strict=True))
        text.append(f"At {label(study, knob)} {value:g}, best first: {order}.")
    return " ".join(text)


def _more_is_better(study: Study, y: str) -> bool:
    return study.track.metrics[y].more_is_better if y in study.track.metrics else True


def picture(m: Measurements, current: Mapping[str, float], contender: str | None = None, replica: int = 0, tier: str = "embedded") -> go.Figure | None:
    """The paper's own picture of one measured point of ``contender`` (default: the subject): `Study.picture` gets the knobs and metrics of the
    point, ``contender``, ``replica`` and ``seed``. None where the point is not stored or carries no exhibits."""
    name = contender or m.subject
    for stored in m.points:
        point = stored.point
        if (point.contender, point.replica, point.seed, point.tier) == (name, replica, 0, tier) \
                and all(np.isclose(value, current.get(knob, m.study.knob(knob).default)) for knob, value in point.knobs):
            if not stored.result.exhibits:
                return None
            facts = {**stored.result.metrics, **dict(point.knobs), "contender": name, "replica": replica, "seed": point.seed}
            drawn = m.study.picture(facts, stored.result.exhibits)
            return neutral(drawn) if isinstance(drawn, go.Figure) else drawn
    return None
