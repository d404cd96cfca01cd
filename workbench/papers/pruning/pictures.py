"""Pictures that several pruning papers share; pure functions of a point and its exhibits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def kept_channels(point: dict, exhibits: Mapping[str, np.ndarray]):
    """One row a layer, one cell a channel: how high its score ranks within the layer (darker is higher), and a gap where it was removed.

    ``exhibits``: layer name → uint8 (channels,), 0 for a removed channel, else 1 + rank (at most 254).
    """
    import plotly.graph_objects as go

    names = list(exhibits)
    if not names:
        return go.Figure(layout={"title": {"text": "nothing was removed: this is the dense net"}, "height": 120})
    widest = max(len(row) for row in exhibits.values())
    grid = np.full((len(names), widest), np.nan)
    for i, name in enumerate(names):
        row = exhibits[name].astype(float)
        grid[i, :len(row)] = np.where(row > 0, (row - 1) / 253, np.nan)
    labels = [f"{name}  {int((exhibits[name] > 0).sum())}/{len(exhibits[name])}" for name in names]
    heat = go.Heatmap(z=np.round(grid, 2).tolist(), y=labels, colorscale="Cividis", reversescale=True, zmin=0, zmax=1, xgap=1, ygap=3, hoverongaps=False,
                      colorbar={"title": {"text": "rank"}, "thickness": 10}, hovertemplate="%{y}, channel %{x}: rank %{z}<extra></extra>")
    return go.Figure(heat, layout={"height": 90 + 34 * len(names), "margin": {"l": 10, "r": 10, "t": 36, "b": 36},
                                   "title": {"text": "channels kept (gaps are removed)", "font": {"size": 14}},
                                   "xaxis": {"title": {"text": "channel"}}, "yaxis": {"autorange": "reversed", "automargin": True}})
