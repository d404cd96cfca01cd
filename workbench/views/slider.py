"""A slider over the values of a grid: the browser's own range input, so that it has a label, a spoken value, and moves by mouse, touch and keyboard."""

from __future__ import annotations

from collections.abc import Sequence

import anywidget
import traitlets

SCRIPT = """
let count = 0;
export default { render({ model, el }) {
  const id = `wb-slider-${++count}-${Math.random().toString(36).slice(2)}`;
  const make = (tag, settings) => el.appendChild(Object.assign(document.createElement(tag), settings));
  make("label", { htmlFor: id, textContent: model.get("description") });
  const input = make("input", { type: "range", id, min: 0, max: model.get("labels").length - 1, step: 1 });
  const output = make("output", {});
  const draw = () => {
    input.value = model.get("index");
    output.textContent = model.get("labels")[model.get("index")];
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => { model.set("index", Number(input.value)); draw(); model.save_changes(); });
  model.on("change:index", draw);
  el.classList.add("wb-slider");
  input.dataset.lmSuppressShortcuts = "true";  // in JupyterLab the arrow keys would fold the cell's heading
  draw();
} };
"""
STYLE = """.wb-slider{display:flex;gap:10px;align-items:center;color:var(--jp-ui-font-color1,inherit)}
.wb-slider input{flex:1;min-width:120px}.wb-slider output{min-width:4em;font-variant-numeric:tabular-nums}"""


class GridSlider(anywidget.AnyWidget):
    """``value``: one of ``grid``; observe ``index``."""

    _esm, _css = SCRIPT, STYLE
    index = traitlets.Int(0).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)

    def __init__(self, grid: Sequence[float], value: float, description: str, **settings):
        self.grid = tuple(grid)
        super().__init__(index=self.grid.index(value), labels=[f"{v:.4g}" for v in self.grid], description=description, **settings)

    @property
    def value(self) -> float:
        return self.grid[self.index]

    @value.setter
    def value(self, value: float) -> None:
        self.index = self.grid.index(value)
