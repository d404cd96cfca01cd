"""What an explorer shows, as text, tables and plain figures: the part that needs no widgets. Also all that is left of it in a published notebook.

Under ``WORKBENCH_STATIC=1`` (notebooks executed for publishing) an explorer displays this instead of widgets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.utils import PlotlyJSONEncoder

from ..core.claims import Verdict, judge
from ..core.measurements import Measurements
from ..core.study import Study, StudyError
from . import figures, summary

STYLE = """<style>.wb table{border-collapse:collapse;font-size:13px}.wb table caption{text-align:left}
.wb table td,.wb table th{padding:2px 10px;text-align:left;line-height:1.4;border-bottom:1px solid rgba(128,128,128,.3)}
.wb table td.n{text-align:right;font-variant-numeric:tabular-nums}.wb p{margin:4px 0}.wb summary{cursor:pointer}</style>"""
MARKS = {"holds": "✔", "green": "✔", "not reproduced": "✘", "red": "✘", "undecided": "?", "needs hardware": "–"}


def static() -> bool:
    """Whether output must stay small and work without a kernel."""
    return os.environ.get("WORKBENCH_STATIC", "") not in ("", "0")


def plain(figure: go.Figure) -> dict:
    """A figure as a mime bundle that holds the plotly figure alone (0.05 MB instead of the 5 MB of a figure with its own script)."""
    content = json.loads(json.dumps(figure.to_plotly_json(), cls=PlotlyJSONEncoder))  # plain lists, null for what is not a number
    return {"application/vnd.plotly.v1+json": {**content, "config": {"responsive": True, "displaylogo": False}}}


def html_table(headers: Sequence[str], rows: Sequence[Sequence], caption: str) -> str:
    """A table as HTML; numbers are set right."""
    cells = "".join("<tr>" + "".join(f'<td class="n">{c}</td>' if isinstance(c, float | int) or str(c)[:1] in "+−" else f"<td>{escape(str(c))}</td>"
                                     for c in row) + "</tr>" for row in rows)
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headers)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{cells}</table>"


def claims_table(verdicts: Sequence[Verdict]) -> str:
    """The ledger as HTML, in the order given: status, text, what was measured with its interval, the margin, what breaks it ("" of a board: no claims)."""
    if not verdicts:
        return ""

    def value(number) -> str:
        return f"{number:.3g}" if isinstance(number, float) else "" if number is None else str(number)

    rows = [(f"{MARKS[v.status]} {v.status}", v.text, value(v.measured) + (f" ({value(v.interval[0])} … {value(v.interval[1])})" if v.interval else ""),
             value(v.margin), v.evidence, ", ".join(v.broken_by), v.note) for v in verdicts]
    return html_table(("status", "claim", "measured (90 % interval)", "margin", "evidence", "broken by", "likely reason"), rows, "Claims, failures first")


class Readout:
    """One paper at one setting. ``m``: its points; ``contenders``: those shown (default: all but the ablations); ``knobs``: values (default: theirs)."""

    def __init__(self, m: Measurements, contenders: Sequence[str] | None = None, **knobs: float):
        self.study: Study = m.study
        self.shown = summary.shown(self.study, contenders)
        self.state = {knob.name: knob.default for knob in self.study.knobs}
        for name, value in knobs.items():
            knob = self.study.knob(name)
            if not knob.grid[0] <= value <= knob.grid[-1]:
                raise StudyError(f"{name} must be from {knob.grid[0]:g} to {knob.grid[-1]:g}, not {value!r}")
            self.state[name] = value
        self.stored, self.m = m, m
        self.x, self.y, self.over = self.study.track.cost, self.study.track.quality, self.study.knobs[0].name
        self.verdicts: list[Verdict] = []

    def line(self, state: dict | None = None) -> str:
        """This state (or another) as one line of code."""
        knobs = [f"{name}={value:g}" for name, value in (state or self.state).items() if value != self.study.knob(name).default]
        some = [f"contenders={self.shown!r}"] if self.shown != summary.shown(self.study) else []
        return f'explore({", ".join([repr(self.study.name).replace(chr(39), chr(34)), *knobs, *some])})'

    def reading(self, state: dict | None = None) -> str:
        """The knob's equivalents: what the subject's point comes to in every metric."""
        found = summary.equivalents(self.m, state or self.state)
        if not found:
            return f"{self.m.subject}: not measured at this setting"
        parts = [f"{summary.label(self.study, name)} <b>{summary.number(self.study, name, value)}</b>" for name, value in found.items()]
        return f"<b>{escape(self.m.subject)}</b>: " + " · ".join(parts)

    def here(self, state: dict | None = None) -> str:
        """The shown contenders against the subject at equal cost, as HTML."""
        rows = summary.versus(self.m, state or self.state, self.shown, self.over)
        quality = summary.label(self.study, self.study.track.quality)
        def number(value: float, sign: str = "") -> str:
            return f"{value + 0:{sign}.1f}".replace("-", "−")

        signed = [(row.contender, row.role, number(row.difference, "+") if row.replicas else "",
                   f"{number(row.low)} … {number(row.high)}" if row.replicas > 1 else "", row.verdict) for row in rows.itertuples()]
        return html_table(("against", "role", f"difference in {quality}", "90 % interval", f"{self.m.subject} is"), signed,
                          "At this cost (rivals' curves read between their measured points, paired over replicas)")

    def words(self, state: dict | None = None) -> str:
        """The curve in words, written from its numbers, as HTML."""
        return f"<p>{escape(figures.describe(self.m, state or self.state, self.shown, self.x, self.y, self.over, self._rows))}</p>"

    def numbers(self) -> str:
        """The table behind the curve, as HTML."""
        table = self._rows.round(2).to_html(index=False, border=0, na_rep="")
        return f"<details><summary>The numbers behind the chart</summary>{table}</details>"

    def judged(self) -> list[Verdict]:
        """The verdicts on the paper's claims, failures first (from the stored points of the design; a live point does not change a verdict)."""
        order, cache = ["not reproduced", "undecided", "needs hardware", "holds"], self.stored._cache
        key = ("verdicts", self.stored.subject)
        if key not in cache:
            cache[key] = sorted((judge(self.study, claim, self.stored) for claim in self.study.claims), key=lambda v: order.index(v.status))
        self.verdicts = cache[key]
        return self.verdicts

    def display_static(self, claims: bool = True) -> None:
        """The same content without widgets: plain plotly, HTML."""
        from IPython.display import HTML, display

        self._rows = summary.table(self.m, self.x, self.y, self.shown, self.over)
        display(HTML(f"{STYLE}<div class='wb'><p><code>{escape(self.line())}</code></p><p>{self.reading()}</p></div>"))
        display(plain(figures.curve(self.m, self.state, self.shown, self.x, self.y, self.over, self._rows)), raw=True)
        drawn = figures.picture(self.m, self.state)
        if drawn is not None:
            display(HTML(drawn)) if isinstance(drawn, str) else display(plain(drawn), raw=True)
        ledger = claims_table(self.judged()) if claims else ""
        display(HTML(f"<div class='wb'>{self.words()}{self.numbers()}{self.here()}{ledger}</div>"))
