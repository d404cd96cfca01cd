"""Plotly figures in a notebook, drawn by the browser alone where it can: what a slider shows at stored settings is sent ahead, so that moving it asks no kernel.

    kernel    Chart.show(figure, at) ───────────────► drawn; also what a page shows that is loaded anew
              Chart.ahead(index, figure) ──► kept by index
    browser   slider moves to index ──► what is kept for it is drawn at once; the kernel's own word, which comes later, says the same and changes nothing

Where only the points of the last trace change (the rings of a curve), only they are sent and drawn. plotly.js comes once a kernel (:func:`library`), not once a figure.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from math import isnan
from typing import Any

import anywidget
import plotly.graph_objects as go
import traitlets
from ipywidgets import Widget, widget_serialization

SCRIPT = """
const plotly = () => new Promise((done) => {
  const look = () => globalThis.workbenchPlotly ? done(globalThis.workbenchPlotly) : setTimeout(look, 30);
  look();
});
export default { async render({ model, el }) {
  const Plotly = await plotly(), plot = el.appendChild(document.createElement("div"));
  let slider = null, kept = {}, base = null, rings = null;
  const draw = ({ figure, points }) => {
    if (figure?.key && figure.key !== base) {
      base = figure.key, rings = null;
      Plotly.react(plot, figure.data, figure.layout, { responsive: true, displaylogo: false });
    }
    if (points?.key && points.key !== rings) {
      rings = points.key;
      Plotly.restyle(plot, { x: [points.x], y: [points.y] }, [plot.data.length - 1]);
    }
  };
  const now = () => {  // the kernel may still speak of where the slider has been
    const at = model.get("at"), here = slider.get("index");
    if (at === here || !(at in kept && here in kept)) draw({ figure: model.get("figure"), points: model.get("points") });
  };
  const moved = () => draw(kept[slider.get("index")] ?? {});
  const heard = (message) => {
    if (message.clear) kept = {};
    if ("index" in message) kept[message.index] = message;
  };
  const follow = async () => {
    slider?.off("change:index", moved);
    slider = await model.widget_manager.get_model(model.get("slider").slice("IPY_MODEL_".length));
    slider.on("change:index", moved);
  };
  const heeded = { "change:slider": follow, "change:figure": now, "change:points": now, "change:at": now, "msg:custom": heard };
  await follow();
  for (const [event, act] of Object.entries(heeded)) model.on(event, act);
  const sized = new ResizeObserver(() => el.clientWidth && base && Plotly.Plots.resize(plot));
  sized.observe(el);
  now();
  model.send({ ready: true });
  return () => {
    for (const [event, act] of Object.entries(heeded)) model.off(event, act);
    slider.off("change:index", moved);
    sized.disconnect();
    Plotly.purge(plot);
  };
} };
"""


@lru_cache(maxsize=1)
def _library() -> type[Widget]:
    from plotly.offline import get_plotlyjs

    class Library(anywidget.AnyWidget):
        _esm = (f"const module = {{ exports: {{}} }}, exports = module.exports;\n{get_plotlyjs()}\n"
                "globalThis.workbenchPlotly = module.exports;\nexport default { render() {} };")
        made: Widget | None = None

    return Library


def library() -> Widget:
    """The widget that brings plotly.js into the page: one for all charts of this kernel, made anew where somebody has closed it."""
    kind = _library()
    if kind.made is None or kind.made.comm is None:
        kind.made = kind()
    return kind.made


def _keyed(content: dict[str, Any]) -> dict[str, Any]:
    return {"key": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16], **content}


class Chart(anywidget.AnyWidget):
    """One figure. ``slider``: the `GridSlider` whose settings are sent ahead. What is shown is ``figure``, its last trace at ``points`` where these are given."""

    _esm = SCRIPT
    slider = traitlets.Instance(Widget).tag(sync=True, **widget_serialization)
    figure = traitlets.Dict().tag(sync=True)
    points = traitlets.Dict().tag(sync=True)
    at = traitlets.Int(-1).tag(sync=True)

    def __init__(self, slider: Widget, **settings):
        self._kept: dict[int, dict[str, Any]] = {}
        super().__init__(slider=slider, **settings)
        self.on_msg(lambda _widget, content, _buffers: [self.send(kept) for kept in self._kept.values()] if content.get("ready") else None)

    def show(self, figure: go.Figure | None = None, points: tuple | None = None, at: int = -1) -> None:
        """Draws ``figure`` (None: the one that is there), with its last trace at ``points`` (x, y); ``at``: the slider's index that this belongs to, −1: none."""
        with self.hold_sync():
            if figure is not None:
                self.figure = _keyed(json.loads(figure.to_json()))
            self.points, self.at = _points(points), at

    def ahead(self, index: int, figure: go.Figure | None = None, points: tuple | None = None) -> None:
        """Sends what the chart will show when its slider is at ``index``."""
        kept = {"index": index, "points": _points(points)} | ({} if figure is None else {"figure": _keyed(json.loads(figure.to_json()))})
        if self._kept.get(index) != kept:
            self._kept[index] = kept
            self.send(kept)

    def forget(self) -> None:
        """What was sent ahead holds no longer."""
        self._kept.clear()
        self.send({"clear": True})


def _points(points: tuple | None) -> dict[str, Any]:
    return {} if points is None else _keyed({name: [None if isnan(v) else float(v) for v in values] for name, values in zip("xy", points, strict=True)})
