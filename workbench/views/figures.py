"""Measurements drawn: the quality–cost curve, the table behind it, its description in words, and a paper's own picture.

    Measurements ──► summary.table ──► curve(…) ──► plotly figure          describe(…) ──► alt text

Everything is pure: the explorer, the notebooks and the report pages draw with the same functions. Lines join measured points only; what stands between
them was not measured. Colours are legible on white and on near-black and to colour-blind eyes, and no two contenders of a study share both dash and marker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..core.measurements import Measurements
from ..core.study import Study
from .summary import axes, groups_of, label, marks, more_is_better, number, setting, shown, table

INK, GRID = "#767676", "rgba(128,128,128,0.22)"
HUES = {"paper": ("#d55e00", "#b8720a"), "rival": ("#0077bb", "#00917c", "#aa4499", "#7a7fd0", "#5b8fa8", "#c2558f", "#3f8fd6"),
        "bound": ("#8c564b",), "control": (INK,), "ablation": ("#9a6fb0", "#a0703c", "#5f8a5f")}
DASHES = {"paper": ("solid",), "rival": ("dash", "dot", "dashdot", "longdash", "longdashdot"), "bound": ("3px,9px",), "control": ("9px,3px",),
          "ablation": ("2px,3px",)}
SYMBOLS = {"paper": ("circle", "circle-open-dot"), "rival": ("square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon"),
           "bound": ("triangle-down", "triangle-down-open", "y-down-open"), "control": ("square-open", "diamond-open", "hexagon-open", "star-open"),
           "ablation": ("x", "x-open", "asterisk-open", "hash-open", "y-up-open", "y-left-open", "y-right-open")}
CURRENT = "current point"
SUBPLOT_TITLE = 16  # pixels, what plotly gives the title of a subplot


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


def curve(m: Measurements, current: Mapping[str, float] | None = None, contenders: Sequence[str] | None = None, x: str | None = None,
          y: str | None = None, knob: str | None = None, rows: pd.DataFrame | None = None) -> go.Figure:
    """Quality against cost: one line a contender (markers alone where its knob does not slide), rings at the ``current`` knob values.

    ``x``, ``y``: other metrics (or a knob as ``x``); ``knob``: which one varies; ``rows``: a `table` of these already at hand. The last trace is the rings'.
    """
    study = m.study
    x, y, knob = axes(study, x, y, knob)
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
    groups, styles, figure = groups_of(m, "embedded"), palette(m.study), go.Figure()
    for name in shown(m.study, contenders):
        found = [np.asarray(stored.result.series[series], float) for stored in groups.get(setting(m.study, name, current or {}), [])
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
    for trace in figure.select_traces(selector={"type": "treemap"}):  # branches are see-through: their words are written on the page, not on a colour
        branches = {*trace.parents}
        trace.textfont.color = [INK if sector in branches else _on(fill) for sector, fill in zip(trace.ids or trace.labels, trace.marker.colors or (), strict=False)]
    return figure


def _on(fill: str) -> str:
    """Black or white, whichever reads better on ``#rrggbb``."""
    if not str(fill).startswith("#") or len(fill) != 7:
        return INK
    red, green, blue = (int(fill[i:i + 2], 16) for i in (1, 3, 5))
    return "#111111" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "#ffffff"


def describe(m: Measurements, current: Mapping[str, float] | None = None, contenders: Sequence[str] | None = None, x: str | None = None,
             y: str | None = None, knob: str | None = None, rows: pd.DataFrame | None = None) -> str:
    """The curve in words, written from its numbers: its axes, the course of the paper's contender, and the order at the current (else default) knob."""
    study = m.study
    x, y, knob = axes(study, x, y, knob)
    rows = table(m, x, y, contenders, knob) if rows is None else rows
    drawn = f"{label(study, y)} against {label(study, x)} on the track {study.track.name}"
    if rows.empty:
        return f"{drawn}: nothing measured yet."
    names, replicas = rows.contender.nunique(), int(rows.replicas.max())
    text = [f"{drawn}: {names} contender{'s'[:names > 1]}, mean over {replicas} replica{'s'[: replicas > 1]}."]
    ours = rows[rows.contender == m.subject]
    if len(ours):
        first, last = ours.iloc[0], ours.iloc[-1]
        course = f"{m.subject}: {number(study, y, first[y])} at {number(study, x, first[x])}"
        text.append(course + (f", {number(study, y, last[y])} at {number(study, x, last[x])}." if len(ours) > 1 else "."))
    state = {k.name: (current or {}).get(k.name, k.default) for k in study.knobs}
    here = marks(m, state, list(dict.fromkeys(rows.contender)), x, y).sort_values(y, ascending=not more_is_better(study, y))
    if len(here):
        order = "; ".join(f"{name} {number(study, y, quality)}" for name, quality in zip(here.contender, here[y], strict=True))
        where = ", ".join(f"{label(study, name)} {value:g}" for name, value in state.items())
        text.append(f"At {where}, best first: {order}.")
    return " ".join(text)


def picture(m: Measurements, current: Mapping[str, float], contender: str | None = None, replica: int = 0, tier: str = "embedded") -> go.Figure | None:
    """The paper's own picture of one measured point of ``contender`` (default: the subject): `Study.picture` gets the knobs and metrics of the
    point, ``contender``, ``replica`` and ``seed``. None where the point is not stored or carries no exhibits."""
    key = setting(m.study, contender or m.subject, current)
    stored = next((s for s in groups_of(m, tier).get(key, []) if (s.point.replica, s.point.seed) == (replica, 0)), None)
    if stored is None or not stored.result.exhibits:
        return None
    facts = {**stored.result.metrics, **dict(stored.point.knobs), "contender": key[0], "replica": replica, "seed": 0}
    drawn = m.study.picture(facts, stored.result.exhibits)
    if not isinstance(drawn, go.Figure):
        return drawn
    for trace in drawn.data:
        if trace.type in ("heatmap", "contour", "surface"):
            values = np.asarray(trace.z, float)
            trace.z = np.where(np.isnan(values), None, values)  # a gap is None: NaN is no JSON
    for note in drawn.layout.annotations:
        if note.font.size == SUBPLOT_TITLE:  # in a narrow column neighbours would overlap
            note.font.size = 11
    return neutral(drawn)
