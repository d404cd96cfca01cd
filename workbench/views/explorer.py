"""The explorer of one paper: sliders, contenders, the quality–cost curve, the paper's picture, its claims.

    slider ──► state ──┬─ stored point ──► rings, picture: drawn by the browser at once (see `chart`); words: by the kernel
                       └─ not stored ────► `live.Live`: measured in worker processes, the latest value wins

What it shows is a `readout.Readout`; here are the widgets and the measuring between grid points.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from html import escape

import ipywidgets as widgets
import plotly.graph_objects as go

from ..core import live
from ..core.measurements import Measurements, Stored
from . import figures, summary
from .chart import Chart, library
from .readout import STYLE, Readout, claims_table, static
from .slider import GridSlider


class Explorer(Readout):
    """One paper's explorer; display it as the last value of a cell.

    ``m``: its stored points. ``contenders``: those shown at first (default: all but the ablations). ``predict``: the results stay hidden until a guess is
    given. ``stored_only``: measure nothing (default: where ``WORKBENCH_JOBS`` is 0). ``knobs``: values to start from; between grid points they are measured.
    """

    def __init__(self, m: Measurements, contenders: Sequence[str] | None = None, predict: bool = True, stored_only: bool | None = None, **knobs: float):
        super().__init__(m, contenders, **knobs)
        self.stored_only = live.jobs() == 0 if stored_only is None else stored_only
        self.revealed = not predict
        self.live = live.Live(self.study, self._arrived, self._ended)
        self._lock, self._quiet, self._box, self._seen = threading.RLock(), False, None, {}
        self.own = None  # current knob values, as a function → widgets that follow them

    def _ipython_display_(self):
        from IPython.display import display

        if static():
            self.display_static()
        else:
            display(self.widget)

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
            words = summary.label(self.study, knob.name)
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
        metrics = [(summary.label(self.study, name), name) for name in self.study.track.metrics]
        knobs = [(summary.label(self.study, knob.name), knob.name) for knob in self.study.knobs]
        self.axes = {"x": widgets.Dropdown(options=metrics + knobs, value=self.x, description="across", style=plain_style),
                     "y": widgets.Dropdown(options=metrics, value=self.y, description="up", style=plain_style),
                     "over": widgets.Dropdown(options=knobs, value=self.over, description="curve over", style=plain_style)}
        for name, box in self.axes.items():
            box.observe(lambda change, name=name: self._turned(name, change.new), "value")
        self.curve, self.canvas = go.Figure(), go.Figure()
        self.charts = Chart(self.sliders[self.over]), Chart(self.sliders[self.over])
        self.stage = widgets.VBox([self.charts[1]])
        self.drawing, self.reading_, self.here_, self.words_, self.numbers_, self.claims_ = (widgets.HTML() for _ in range(6))
        self.claims_.value = "judging the claims …"
        self.code = widgets.Text(description="as code", layout=wide, style=plain_style)
        self.status, self.progress = widgets.HTML(), widgets.IntProgress(layout=widgets.Layout(width="160px", visibility="hidden"))
        self.stop = widgets.Button(description="Stop", layout=widgets.Layout(width="70px", visibility="hidden"))
        self.stop.on_click(lambda _: self._stopped("stopped"))
        self.measure = widgets.Button(description="Measure the quick profile", layout=widgets.Layout(width="220px"), disabled=self.stored_only)
        self.measure.on_click(lambda _: self._start(self.study.points("quick")))
        self.measure.layout.display = "none" if self.m.points else ""
        self.guess = widgets.FloatText(description=f"Your guess: {summary.label(self.study, self.y)} of {self.m.subject} at this setting",
                                       style=plain_style, layout=widgets.Layout(width="60%"))
        self.reveal = widgets.Button(description="Show", button_style="primary", layout=widgets.Layout(width="80px"))
        self.reveal.on_click(lambda _: self.predict(self.guess.value))
        self.first = widgets.Checkbox(value=not self.revealed, description="predict first", indent=False)
        self.first.observe(lambda change: self._hide(change.new), "value")
        self.asking = widgets.HBox([self.guess, self.reveal])
        self.results = widgets.VBox([self.reading_, self.charts[0], widgets.HBox([*self.axes.values()] if len(knobs) > 1 else [self.axes["x"], self.axes["y"]]),
                                     self.here_, self.words_, self.numbers_])
        self._hide(not self.revealed)
        sliders = [widgets.HBox([self.sliders[name], self.exact[name]]) for name in self.sliders]
        return widgets.VBox([widgets.HTML(f"{STYLE}<h3>{escape(self.study.name)} on {escape(self.study.track.title or self.study.track.name)}</h3>"),
                             *sliders, widgets.HBox([self.status, self.progress, self.stop, self.measure]),
                             widgets.Box(list(self.toggles.values()), layout=widgets.Layout(flex_flow="row wrap")), self.first, self.asking,
                             self.results, self.stage, self.drawing, self.claims_, self.code, library(), *(self.own(lambda: self.state) if self.own else ())]).add_class("wb")

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
            other = bool(set(moved) - {self.over})
            self._refresh(changed=other)
            if other:
                self._ahead()
            self._ask()

    def predict(self, guess: float) -> None:
        """Takes the guess, shows the results and says how far off it was."""
        found = summary.equivalents(self.m, self.state).get(self.y)
        unit = summary.label(self.study, self.y)
        said = f"You guessed {guess:g}" + (f"; measured: {summary.number(self.study, self.y, found)} ({unit}), off by {abs(found - guess):.3g}."
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
            for chart in self.charts if axis == "over" else ():
                chart.slider = self.sliders[value]
            self._redraw()

    def _redraw(self) -> None:
        """The whole view: the curve, its table, and what depends on the current point."""
        self._rows = summary.table(self.stored, self.x, self.y, self.shown, self.over)
        self.curve = figures.curve(self.m, self.state, self.shown, self.x, self.y, self.over, self._rows)
        self.numbers_.value = self.numbers()
        self._refresh(curve=self.curve)
        self._ahead()

    def _refresh(self, changed: bool = True, curve: go.Figure | None = None) -> None:
        """What depends on the current point alone, or a new ``curve`` with it. A setting seen before is only sent, unless what is shown there has ``changed``."""
        if changed:
            self._seen = {}
            for chart in self.charts:
                chart.forget()
        xs, ys, drawn, *texts = self._snapshot(self.state, self._seen)
        grid = self.study.knob(self.over).grid
        at = grid.index(self.state[self.over]) if self.state[self.over] in grid else -1
        self.curve.data[-1].update(x=xs, y=ys)
        self.charts[0].show(curve, points=(xs, ys), at=at)
        self.stage.layout.display = "" if isinstance(drawn, go.Figure) else "none"
        if isinstance(drawn, go.Figure):
            self.canvas = drawn
            self.charts[1].show(drawn, at=at)
        self.drawing.value = drawn if isinstance(drawn, str) else "" if drawn else "no picture at this setting"
        for box, text in zip((self.reading_, self.here_, self.words_, self.code), texts, strict=True):
            box.value = text

    def _snapshot(self, state: dict, seen: dict) -> tuple:
        key = tuple(state.values())
        if key not in seen:
            marks, drawn = summary.marks(self.m, state, self.shown, self.x, self.y), figures.picture(self.m, state)
            seen[key] = (marks[self.x].to_numpy(), marks[self.y].to_numpy(), drawn, self.reading(state), self.here(state), self.words(state),
                         self.line(state))
        return seen[key]

    def _ahead(self) -> None:
        """Sends the charts of the other stored grid points ahead, in a thread that yields to the sliders, so that moving the slider asks no kernel."""
        threading.Thread(target=self._prepare, args=(self._seen, dict(self.state)), daemon=True).start()

    def _prepare(self, seen: dict, state: dict) -> None:
        for index, value in enumerate(self.study.knob(self.over).grid):
            with self._lock:
                if self._seen is not seen or {**self.state, self.over: 0} != {**state, self.over: 0}:
                    return
                xs, ys, drawn, *_ = self._snapshot({**state, self.over: value}, seen)
                self.charts[0].ahead(index, points=(xs, ys))
                if isinstance(drawn, go.Figure):
                    self.charts[1].ahead(index, drawn)
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
