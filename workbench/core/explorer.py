"""The explorer of one paper: sliders, contenders, the quality–cost curve, the paper's picture, its claims.

    slider ──► state ──┬─ stored point ──► rings, picture, table: patched in place at once
                       └─ not stored ────► `live.Live`: measured in worker processes, the latest value wins

Under ``WORKBENCH_STATIC=1`` (notebooks executed for publishing) it shows the same content without widgets, as plain plotly and HTML.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from html import escape

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from plotly.utils import PlotlyJSONEncoder

from . import figures, live
from .claims import Verdict, judge
from .measurements import Measurements, Stored
from .slider import GridSlider
from .study import Study, StudyError

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


def patch(widget: go.FigureWidget, figure: go.Figure) -> None:
    """Makes ``widget`` show ``figure``: sends the properties that differ where the traces are of the same kinds, else replaces the traces."""
    same = [t.type for t in widget.data] == [t.type for t in figure.data]
    pairs = [(widget.layout, figure.layout), *(zip(widget.data, figure.data, strict=True) if same else ())]
    with widget.batch_update():
        for old, new in pairs:
            before, after = old.to_plotly_json(), new.to_plotly_json()
            for name in {*before, *after} - {"template", "uid", "type"}:
                if not _equal(before.get(name), after.get(name)):
                    old[name] = after.get(name)
    if not same:
        widget.data = []
        widget.add_traces(list(figure.data))


def _equal(a, b) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is not None and b is not None and np.array_equal(np.asarray(a), np.asarray(b))
    return a == b


def html_table(headers: Sequence[str], rows: Sequence[Sequence], caption: str) -> str:
    """A table as HTML; numbers are set right."""
    cells = "".join("<tr>" + "".join(f'<td class="n">{c}</td>' if isinstance(c, float | int) or str(c)[:1] in "+−" else f"<td>{escape(str(c))}</td>"
                                     for c in row) + "</tr>" for row in rows)
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headers)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{cells}</table>"


def claims_table(verdicts: Sequence[Verdict]) -> str:
    """The ledger as HTML, in the order given: status, text, what was measured with its interval, the margin, what breaks it."""
    def value(number) -> str:
        return f"{number:.3g}" if isinstance(number, float) else "" if number is None else str(number)

    rows = [(f"{MARKS[v.status]} {v.status}", v.text, value(v.measured) + (f" ({value(v.interval[0])} … {value(v.interval[1])})" if v.interval else ""),
             value(v.margin), v.evidence, ", ".join(v.broken_by), v.note) for v in verdicts]
    return html_table(("status", "claim", "measured (90 % interval)", "margin", "evidence", "broken by", "likely reason"), rows, "Claims, failures first")


class Explorer:
    """One paper's explorer; display it as the last value of a cell.

    ``m``: its stored points. ``contenders``: those shown at first (default: all but the ablations). ``predict``: the results stay hidden until a guess is
    given. ``stored_only``: measure nothing (default: where ``WORKBENCH_JOBS`` is 0). ``knobs``: values to start from; between grid points they are measured.
    """

    def __init__(self, m: Measurements, contenders: Sequence[str] | None = None, predict: bool = True, stored_only: bool | None = None, **knobs: float):
        self.study: Study = m.study
        self.shown = figures.shown(self.study, contenders)
        self.stored_only = live.jobs() == 0 if stored_only is None else stored_only
        self.state = {knob.name: knob.default for knob in self.study.knobs}
        for name, value in knobs.items():
            knob = self.study.knob(name)
            if not knob.grid[0] <= value <= knob.grid[-1]:
                raise StudyError(f"{name} must be from {knob.grid[0]:g} to {knob.grid[-1]:g}, not {value!r}")
            self.state[name] = value
        self.stored, self.m = m, m
        self.x, self.y, self.over = self.study.track.cost, self.study.track.quality, self.study.knobs[0].name
        self.revealed, self.guessed = not predict, None
        self.verdicts: list[Verdict] = []
        self.live = live.Live(self.study, self._arrived, self._ended)
        self._lock, self._quiet, self._box, self._seen = threading.RLock(), False, None, {}

    # --- what is shown, without widgets -----------------------------------------------------------------------------------------------------------

    def line(self, state: dict | None = None) -> str:
        """This state (or another) as one line of code."""
        knobs = [f"{name}={value:g}" for name, value in (state or self.state).items() if value != self.study.knob(name).default]
        some = [f"contenders={self.shown!r}"] if self.shown != figures.shown(self.study) else []
        return f'explore({", ".join([repr(self.study.name).replace(chr(39), chr(34)), *knobs, *some])})'

    def reading(self, state: dict | None = None) -> str:
        """The knob's equivalents: what the subject's point comes to in every metric."""
        found = figures.equivalents(self.m, state or self.state)
        if not found:
            return f"{self.m.subject}: not measured at this setting"
        parts = [f"{figures.label(self.study, name)} <b>{figures.number(self.study, name, value)}</b>" for name, value in found.items()]
        return f"<b>{escape(self.m.subject)}</b>: " + " · ".join(parts)

    def here(self, state: dict | None = None) -> str:
        """The shown contenders against the subject at equal cost, as HTML."""
        rows = figures.versus(self.m, state or self.state, self.shown, self.over)
        quality = figures.label(self.study, self.study.track.quality)
        signed = [(row.contender, row.role, f"{row.difference:+.1f}".replace("-", "−") if row.replicas else "",
                   f"{row.low:.1f} … {row.high:.1f}" if row.replicas > 1 else "", row.verdict) for row in rows.itertuples()]
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
        order = ["not reproduced", "undecided", "needs hardware", "holds"]
        self.verdicts = sorted((judge(self.study, claim, self.stored) for claim in self.study.claims), key=lambda v: order.index(v.status))
        return self.verdicts

    # --- static ---------------------------------------------------------------------------------------------------------------------------------

    def _ipython_display_(self):
        from IPython.display import display

        if static():
            self.display_static()
        else:
            display(self.widget)

    def display_static(self, claims: bool = True) -> None:
        """The same content without widgets: plain plotly, HTML."""
        from IPython.display import HTML, display

        self._rows = figures.table(self.m, self.x, self.y, self.shown, self.over)
        display(HTML(f"{STYLE}<div class='wb'><p><code>{escape(self.line())}</code></p><p>{self.reading()}</p></div>"))
        display(plain(figures.curve(self.m, self.state, self.shown, self.x, self.y, self.over, self._rows)), raw=True)
        drawn = figures.picture(self.m, self.state)
        if drawn is not None:
            display(HTML(drawn)) if isinstance(drawn, str) else display(plain(drawn), raw=True)
        ledger = claims_table(self.judged()) if claims else ""
        display(HTML(f"<div class='wb'>{self.words()}{self.numbers()}{self.here()}{ledger}</div>"))

    # --- widgets --------------------------------------------------------------------------------------------------------------------------------

    @property
    def widget(self) -> widgets.Widget:
        """The widget (built when first asked for)."""
        if self._box is None:
            self._box = self._build()
            self._redraw()
            self._ask()
            threading.Thread(target=self._judge, daemon=True).start()
        return self._box

    def _build(self) -> widgets.Widget:
        wide, plain_style = widgets.Layout(width="100%"), {"description_width": "initial"}
        self.sliders, self.exact = {}, {}
        for knob in self.study.knobs:
            words = figures.label(self.study, knob.name)
            self.sliders[knob.name] = GridSlider(knob.grid, self._nearest(knob.name), words, layout=widgets.Layout(width="62%"))
            whole = all(isinstance(v, int) for v in knob.grid)
            box = widgets.BoundedIntText if whole else widgets.BoundedFloatText
            self.exact[knob.name] = box(value=self.state[knob.name], min=knob.grid[0], max=knob.grid[-1], step=1 if whole else 0.01,
                                        description="exactly", disabled=self.stored_only, layout=widgets.Layout(width="180px"))
            self.sliders[knob.name].observe(lambda change, name=knob.name: self.set(**{name: change.owner.value}), "index")
            self.exact[knob.name].observe(lambda change, name=knob.name: self.set(**{name: change.new}), "value")
        self.toggles = {name: widgets.Checkbox(value=name in self.shown, description=f"{name} ({c.role})", indent=False,
                                               layout=widgets.Layout(width="auto", margin="0 14px 0 0"))
                        for name, c in self.study.field.items()}
        for toggle in self.toggles.values():
            toggle.observe(self._toggled, "value")
        metrics = [(figures.label(self.study, name), name) for name in self.study.track.metrics]
        knobs = [(figures.label(self.study, knob.name), knob.name) for knob in self.study.knobs]
        self.axes = {"x": widgets.Dropdown(options=metrics + knobs, value=self.x, description="across", style=plain_style),
                     "y": widgets.Dropdown(options=metrics, value=self.y, description="up", style=plain_style),
                     "over": widgets.Dropdown(options=knobs, value=self.over, description="curve over", style=plain_style)}
        for name, box in self.axes.items():
            box.observe(lambda change, name=name: self._turned(name, change.new), "value")
        self.curve, self.canvas = go.FigureWidget(), go.FigureWidget()
        self.stage = widgets.VBox([self.canvas])
        self.drawing, self.reading_, self.here_, self.words_, self.numbers_, self.claims_ = (widgets.HTML() for _ in range(6))
        self.claims_.value = "judging the claims …"
        self.code = widgets.Text(description="as code", layout=wide, style=plain_style)
        self.status, self.progress = widgets.HTML(), widgets.IntProgress(layout=widgets.Layout(width="160px", visibility="hidden"))
        self.stop = widgets.Button(description="Stop", layout=widgets.Layout(width="70px", visibility="hidden"))
        self.stop.on_click(lambda _: self._stopped("stopped"))
        self.measure = widgets.Button(description="Measure the quick profile", layout=widgets.Layout(width="220px"), disabled=self.stored_only)
        self.measure.on_click(lambda _: self._start(self.study.points("quick")))
        self.measure.layout.display = "none" if self.m.points else ""
        self.guess = widgets.FloatText(description=f"Your guess: {figures.label(self.study, self.y)} of {self.m.subject} at this setting",
                                       style=plain_style, layout=widgets.Layout(width="60%"))
        self.reveal = widgets.Button(description="Show", button_style="primary", layout=widgets.Layout(width="80px"))
        self.reveal.on_click(lambda _: self.predict(self.guess.value))
        self.first = widgets.Checkbox(value=not self.revealed, description="predict first", indent=False)
        self.first.observe(lambda change: self._hide(change.new), "value")
        self.asking = widgets.HBox([self.guess, self.reveal])
        self.results = widgets.VBox([self.reading_, self.curve, widgets.HBox([*self.axes.values()] if len(knobs) > 1 else [self.axes["x"], self.axes["y"]]),
                                     self.here_, self.words_, self.numbers_])
        self._hide(not self.revealed)
        sliders = [widgets.HBox([self.sliders[name], self.exact[name]]) for name in self.sliders]
        return widgets.VBox([widgets.HTML(f"{STYLE}<h3>{escape(self.study.name)} on {escape(self.study.track.title or self.study.track.name)}</h3>"),
                             *sliders, widgets.HBox([self.status, self.progress, self.stop, self.measure]),
                             widgets.Box(list(self.toggles.values()), layout=widgets.Layout(flex_flow="row wrap")), self.first, self.asking,
                             self.results, self.stage, self.drawing, self.claims_, self.code]).add_class("wb")

    def _nearest(self, name: str) -> float:
        return min(self.study.knob(name).grid, key=lambda v: abs(v - self.state[name]))

    def set(self, **knobs: float) -> None:
        """Moves knobs, as their sliders do: what is stored is shown at once, what is not is measured in the background."""
        with self._lock:
            moved = {name: round(value, 10) for name, value in knobs.items() if round(value, 10) != self.state[name]}
            if self._quiet or not moved:
                return
            self.live.stop()
            self.state.update(moved)
            self._quiet = True
            try:
                for name in moved:
                    self.sliders[name].value, self.exact[name].value = self._nearest(name), self.state[name]
            finally:
                self._quiet = False
            self._refresh(changed=False)
            self._ask()

    def predict(self, guess: float) -> None:
        """Takes the guess, shows the results and says how far off it was."""
        found = figures.equivalents(self.m, self.state).get(self.y)
        unit = figures.label(self.study, self.y)
        self.guessed = (self.state[self.over], guess)
        said = f"You guessed {guess:g}" + (f"; measured: {figures.number(self.study, self.y, found)} ({unit}), off by {abs(found - guess):.3g}."
                                           if found is not None else ".")
        self._show(said)
        self._hide(False)

    def _hide(self, hidden: bool) -> None:
        self.revealed = not hidden
        for box, visible in ((self.results, not hidden), (self.claims_, not hidden), (self.asking, hidden)):
            box.layout.display = "" if visible else "none"
        self.first.value = hidden

    def _toggled(self, _change) -> None:
        with self._lock:
            self.shown = [name for name, toggle in self.toggles.items() if toggle.value]
            self._redraw()
            self._ask()

    def _turned(self, axis: str, value: str) -> None:
        with self._lock:
            setattr(self, axis, value)
            self._redraw()

    def _redraw(self) -> None:
        """The whole view: the curve, its table, and what depends on the current point."""
        self._rows = figures.table(self.stored, self.x, self.y, self.shown, self.over)
        patch(self.curve, figures.curve(self.m, self.state, self.shown, self.x, self.y, self.over, self._rows))
        self.numbers_.value = self.numbers()
        self._refresh()
        threading.Thread(target=self._prepare, daemon=True).start()

    def _refresh(self, changed: bool = True) -> None:
        """What depends on the current point alone. A setting seen before is only sent, unless what is shown there has ``changed``."""
        if changed:
            self._seen = {}
        xs, ys, drawn, *texts = self._snapshot(self.state, self._seen)
        with self.curve.batch_update():
            self.curve.data[-1].x, self.curve.data[-1].y = xs, ys
        self.stage.layout.display = "" if isinstance(drawn, go.Figure) else "none"
        if isinstance(drawn, go.Figure):
            patch(self.canvas, drawn)
        self.drawing.value = drawn if isinstance(drawn, str) else "" if drawn else "no picture at this setting"
        for box, text in zip((self.reading_, self.here_, self.words_, self.code), texts, strict=True):
            box.value = text

    def _snapshot(self, state: dict, seen: dict) -> tuple:
        key = tuple(state.values())
        if key not in seen:
            marks, drawn = figures.marks(self.m, state, self.shown, self.x, self.y), figures.picture(self.m, state)
            seen[key] = (marks[self.x].to_numpy(), marks[self.y].to_numpy(), drawn, self.reading(state), self.here(state), self.words(state),
                         self.line(state))
        return seen[key]

    def _prepare(self) -> None:
        """Draws the other stored grid points ahead, in a thread that yields to the sliders, so that the first visit is as quick as the second."""
        seen = self._seen
        for value in self.study.knob(self.over).grid:
            with self._lock:
                if self._seen is not seen:
                    return
                self._snapshot({**self.state, self.over: value}, seen)
            time.sleep(0.01)

    # --- measuring --------------------------------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Has what is shown but not stored at the current setting measured, if that is allowed."""
        have = {(s.point.contender, s.point.knobs) for s in self.m.points}
        missing = [point for point in live.points_at(self.study, self.shown, self.state)
                   if (point.contender, point.knobs) not in have and not self.study.field[point.contender].grid]
        if not missing or (not self.m.points and self._on_grid()):
            self._show("" if self.m.points else "nothing is stored for this paper yet")
        elif self.stored_only:
            self._show("not stored at this setting; only stored results are shown here")
        else:
            self._start(missing)

    def _on_grid(self) -> bool:
        return all(value in self.study.knob(name).grid for name, value in self.state.items())

    def _start(self, points) -> None:
        self._show(f"measuring {len(points)} points …", busy=(0, len(points)))
        self.live.request(points)

    def _arrived(self, stored: Stored | None, done: int, total: int) -> None:
        with self._lock:
            if stored is not None:
                self.m = Measurements(self.study, (*self.m.points, stored))
                if self._on_grid():
                    self.stored = self.m
                self._refresh()
            self._show(f"measured {done} of {total} points", busy=(done, total))

    def _ended(self, failures: list) -> None:
        with self._lock:
            self._redraw()
            self.measure.layout.display = "none" if self.m.points else ""
            self._show("; ".join(map(str, failures)) if failures else "measured now")
        self._judge()

    def _stopped(self, why: str) -> None:
        self.live.stop()
        self._show(why)

    def _show(self, text: str, busy: tuple[int, int] | None = None) -> None:
        self.status.value = f'<span role="status">{escape(text)}</span>'
        self.progress.layout.visibility = self.stop.layout.visibility = "visible" if busy else "hidden"
        if busy:
            self.progress.max, self.progress.value = busy[1], busy[0]

    def _judge(self) -> None:
        self.claims_.value = claims_table(self.judged()) if self.stored.points else "no claims judged: nothing is measured yet"
