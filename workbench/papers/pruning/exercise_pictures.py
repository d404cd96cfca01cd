"""What a student's answer does, drawn beside what is right: a wrong one is seen to fail. Pure functions of the student's namespace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

YOURS, RIGHT = "#D55E00", "#0072B2"


def _figure(title: str, x: str, y: str):
    import plotly.graph_objects as go

    return go.Figure(layout={"height": 300, "margin": {"l": 10, "r": 10, "t": 40, "b": 40}, "title": {"text": title, "font": {"size": 14}},
                             "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}})


def dead_channel(namespace: dict):
    """FSCL's exercise: five channels, of which channel 2 is read by nobody. Scores as shares of their sum."""
    import torch

    generator = torch.Generator().manual_seed(2)
    written, read = torch.randn(5, 3, 9, generator=generator), torch.randn(5, 4, 9, generator=generator)
    read[2] = 0
    yours = torch.as_tensor(namespace["consecutive_similarity"](written, read)).double()
    right = torch.bmm(written, read.transpose(1, 2)).abs().sum((1, 2)).double()
    share = float(yours[2] / yours.sum())
    figure = _figure(f"channel 2 is read by nobody: your score gives it {100 * share:.0f} % of all" + ("" if share == 0 else ", and keeps it"),
                     "channel", "share of all scores")
    for name, values, colour, pattern in (("yours", yours, YOURS, "/"), ("right", right, RIGHT, "")):
        figure.add_bar(x=list(range(5)), y=(values / values.sum()).round(decimals=3).tolist(), name=name, marker={"color": colour, "pattern": {"shape": pattern}})
    return figure


def budget(namespace: dict):
    """AMC's exercise: what 40 random agents spend behind the student's wall, against a budget of 10."""
    work, rng = [4.0, 8.0, 2.0, 6.0], np.random.default_rng(0)
    spent = [sum(a * w for a, w in zip(namespace["wall"](rng.uniform(size=4).tolist(), work, 10.0), work, strict=True)) for _ in range(40)]
    over = sum(total > 10 + 1e-9 for total in spent)
    figure = _figure(f"{over} of 40 random agents spend more than the budget", "agent", "cost of the layers kept")
    figure.add_bar(x=list(range(1, 41)), y=np.round(spent, 2).tolist(), marker_color=[YOURS if total > 10 + 1e-9 else RIGHT for total in spent], name="spent")
    return figure.add_hline(y=10, line_dash="dash", annotation_text="budget")


def schedule(namespace: dict):
    """The survey's exercise: the share of zeros along 15 steps of which 10 prune, and how much of what is left goes in each."""
    steps = np.arange(16)
    yours = np.array([namespace["share"](int(step), 10, 0.9) for step in steps], float)
    right = 0.9 * (1 - (1 - np.minimum(steps / 10, 1)) ** 3)
    last = (yours[10] - yours[9]) / max(1e-9, 1 - yours[9])
    figure = _figure(f"your last pruning step takes {100 * last:.0f} % of the weights that are left (cubic: {100 * (right[10] - right[9]) / (1 - right[9]):.0f} %)",
                     "step", "share of weights that are zero")
    return _lines(figure, steps, yours, right)


def _lines(figure, x: Sequence, yours: np.ndarray, right: np.ndarray):
    figure.add_scatter(x=list(map(float, x)), y=np.round(right, 4).tolist(), name="right", line={"color": RIGHT})
    return figure.add_scatter(x=list(map(float, x)), y=np.round(yours, 4).tolist(), name="yours", line={"color": YOURS, "dash": "dash"}, mode="lines+markers")
