"""TripleNet's picture and exercise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...benches import designs
from ._triplenet_nets import links

PALETTE = ("#0072b2", "#d55e00", "#999999", "#e69f00", "#56b4e9", "#009e73", "#cc79a7")


def kernels_in_order(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Above, the bytes that each kernel of the deployed net moves, by operator; below, its multiply–accumulates: what is expensive is not what computes."""
    import plotly.graph_objects as go

    moved = (exhibits["read"].astype(int) + exhibits["written"]) / 1e3
    figure = go.Figure()
    for index, name in enumerate(designs.OPERATORS):
        where = np.flatnonzero(exhibits["operator"] == index)
        if len(where):
            figure.add_bar(x=where.tolist(), y=moved[where].round(2).tolist(), width=0.9, name=f"{name}: {moved[where].sum() / moved.sum():.0%} of the bytes",
                           marker_color=PALETTE[index], hovertemplate="kernel %{x}: %{y} KB<extra>" + name + "</extra>")
    figure.add_bar(x=list(range(len(moved))), y=(exhibits["macs"] / 1e3).round(1).tolist(), width=0.9, yaxis="y2", name="multiply–accumulates", marker_color="#444",
                   hovertemplate="kernel %{x}: %{y} thousand MACs<extra></extra>")
    title = f"{point['contender']}: {len(moved)} kernels move {moved.sum():.0f} KB for {exhibits['macs'].sum() / 1e6:.2f} million MACs"
    return figure.update_layout(
        title={"text": title, "font": {"size": 14}}, height=420, barmode="overlay",
        xaxis={"title": {"text": "kernels, in the order in which they run"}, "anchor": "y2"},
        yaxis={"title": {"text": "KB moved"}, "domain": [0.45, 1]}, yaxis2={"title": {"text": "thousand MACs"}, "domain": [0, 0.38]},
        legend={"orientation": "h", "y": -0.25}, margin={"l": 10, "r": 10, "t": 40, "b": 10})


STUB = '''def harmonic_links(layer):
    """Which layers does layer `layer` (1, 2, 3, …) of a harmonic block read? 0 is the block's input. Nearest first."""
    return list(range(layer - 1, -1, -1))       # this is a dense block: everything before
'''
SOLUTION = '''def harmonic_links(layer):
    return [layer - 2 ** i for i in range(layer.bit_length()) if layer % 2 ** i == 0]
'''


def check_exercise(namespace: dict) -> None:
    got = [list(namespace["harmonic_links"](layer)) for layer in range(1, 65)]
    assert got[6] == [6], f"7 is odd, so only 2⁰ divides it: layer 7 reads [6], not {got[6]}"
    assert got[7] == [7, 6, 4, 0], f"1, 2, 4 and 8 divide 8: layer 8 reads [7, 6, 4, 0], not {got[7]}"
    assert got == [links(layer) for layer in range(1, 65)], "layer − 2^i for every 2^i that divides the layer's number"
    assert sum(map(len, got)) < 64 * 3, "a harmonic block of 64 layers has fewer than three links a layer"
