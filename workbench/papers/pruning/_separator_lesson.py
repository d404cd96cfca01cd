"""The picture and the exercise of the speech separator."""

from __future__ import annotations

import numpy as np


def lanes_and_cycles(point: dict, exhibits):
    """Left: cycles of each layer beside those of a dense array. Right: how busy each lane was in it (the rest is waiting at barriers)."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if "cycles" not in exhibits:
        return go.Figure(layout={"title": {"text": "no machine runs this net: it is dense float32"}, "height": 120})
    cycles, dense, work = exhibits["cycles"][:, 0], exhibits["dense cycles"][:, 0], exhibits["lane work"]
    blocks = (len(cycles) - 5) // 3
    names = ["encoder", "bottleneck", *(f"{i + 1} {part}" for i in range(blocks) for part in ("expand", "depth", "reduce")), "mask", "mask × encoder", "decoder"]
    figure = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.6, 0.4], horizontal_spacing=0.03,
                           subplot_titles=("cycles for ½ s of sound", "lanes at work"))
    figure.add_bar(y=names, x=dense.tolist(), orientation="h", name="dense array", marker={"color": "rgba(130,130,130,0.35)"}, row=1, col=1)
    figure.add_bar(y=names, x=cycles.tolist(), orientation="h", name="here", marker={"color": "#0072B2"}, row=1, col=1)
    busy = np.round(work / np.maximum(1, cycles[:, None]), 2)
    figure.add_heatmap(y=names, x=[f"lane {i}" for i in range(work.shape[1])], z=busy.tolist(), zmin=0, zmax=1, colorscale="Cividis",
                       colorbar={"title": {"text": "busy"}, "thickness": 10}, hovertemplate="%{y}, %{x}: %{z:.0%} busy<extra></extra>", row=1, col=2)
    return figure.update_layout(barmode="overlay", height=110 + 17 * len(names), margin={"l": 10, "r": 10, "t": 44, "b": 30},
                                legend={"orientation": "h", "y": -0.04}, yaxis={"autorange": "reversed", "automargin": True, "tickfont": {"size": 9}})


STUB = '''import numpy as np

def tile_cycles(weights, live):
    """weights: bool (8, n), the non-zero weights of the eight lanes; live: bool (n, 16), the non-zero activations that they meet.
    Lanes run freely until the barrier at the end of the tile. Return its cycles."""
    return int(np.ceil(weights.mean() * live.mean() * weights.shape[1] * 16))    # density × density: what papers on paper do
'''
SOLUTION = '''import numpy as np

def tile_cycles(weights, live):
    work = weights.astype(int) @ live.astype(int).sum(1)
    return int(work.max())
'''


def check_exercise(namespace: dict) -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    one = np.zeros((8, 5), bool)
    one[3] = True
    got = namespace["tile_cycles"](one, np.ones((5, 16), bool))
    assert got == 80, f"one lane has all the work, 5 weights × 16 samples: 80 cycles, however idle the others are; not {got}"
    for density in (0.1, 0.5):
        weights, live = rng.random((8, 40)) < density, rng.random((40, 16)) < 0.4
        want = max(sum(int(live[i].sum()) for i in np.flatnonzero(lane)) for lane in weights)
        got = namespace["tile_cycles"](weights, live)
        assert got == want, f"the slowest lane needs {want} cycles, not {got}"
