"""EnSyth's picture and exercise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np


def elimination(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Above: validation accuracy of every set on the way, the chosen one marked. Below: which members are still in (columns: sets, rows: members).

    ``exhibits``: ``stays`` bits (sets, members), ``accuracy`` ten-thousandths a set, ``zeros`` per cent of zeros a member, ``kept`` members chosen.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if "stays" not in exhibits:
        return go.Figure(layout={"title": {"text": "one network: nothing was chosen"}, "height": 120})
    zeros, kept, accuracy = (exhibits[name].astype(int) for name in ("zeros", "kept", "accuracy"))
    stays = np.unpackbits(exhibits["stays"], axis=1)[:, :len(zeros)]
    order = np.argsort(zeros, kind="stable")
    sets, sizes = list(range(len(stays))), stays.sum(1).tolist()
    chosen = np.zeros(len(zeros), np.uint8)
    chosen[kept] = 1
    at = [i for i in sets if (stays[i] == chosen).all()]
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.35, 0.65], vertical_spacing=0.06)
    figure.add_scatter(x=sets, y=(accuracy / 100).tolist(), mode="lines+markers", line={"color": "#0072B2"}, name="validation accuracy",
                       customdata=sizes, hovertemplate="%{customdata} members: %{y:.2f} %<extra></extra>", row=1, col=1)
    if at:
        figure.add_scatter(x=at[:1], y=[accuracy[at[0]] / 100], mode="markers", marker={"symbol": "diamond", "size": 12, "color": "#D55E00"},
                           name=f"chosen: {len(kept)} members", row=1, col=1)
    figure.add_heatmap(z=stays.T[order].tolist(), x=sets, y=[f"{zeros[m]} % zeros, member {m}" for m in order], colorscale=[[0, "#F0E442"], [1, "#0072B2"]],
                       zmin=0, zmax=1, showscale=False, xgap=1, ygap=1, hovertemplate="%{y}: %{z} (1 is in)<extra></extra>", row=2, col=1)
    figure.update_xaxes(title_text="members in the set", tickvals=sets[::max(1, len(sets) // 12)], ticktext=[str(s) for s in sizes[::max(1, len(sets) // 12)]],
                        row=2, col=1)
    figure.update_yaxes(ticksuffix=" %", title_text="right", row=1, col=1)
    figure.update_yaxes(dtick=1, tickfont={"size": 9}, title_text="members (blue: still in)", row=2, col=1)
    return figure.update_layout(height=200 + 14 * len(zeros), margin={"l": 10, "r": 10, "t": 30, "b": 40}, legend={"orientation": "h", "y": 1.08})


STUB = '''import numpy as np

def eliminate(votes, labels):
    """votes: (members, images, classes); labels: (images,). A set answers with the class of its largest sum of votes. Return the list of
    (sorted members, share of right answers) from the whole pool down to one member; each time the member goes without which the rest is most often right."""
    kept = list(range(len(votes)))
    path = []
    while kept:
        path.append((list(kept), float((votes[kept].sum(0).argmax(1) == labels).mean())))
        kept.pop()                             # the last one, whatever it contributes
    return path
'''
SOLUTION = '''import numpy as np

def eliminate(votes, labels):
    kept, total = list(range(len(votes))), votes.sum(0)
    path = [(list(kept), float((total.argmax(1) == labels).mean()))]
    while len(kept) > 1:
        left = [float(((total - votes[m]).argmax(1) == labels).mean()) for m in kept]
        gone = int(np.argmax(left))
        total = total - votes[kept.pop(gone)]
        path.append((list(kept), left[gone]))
    return path
'''


def check_exercise(namespace: dict) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 60)
    votes = rng.integers(0, 100, (6, 60, 3))
    votes[2, np.arange(60), labels] += 60  # members 2 and 4 know something
    votes[4, np.arange(60), labels] += 40
    path = namespace["eliminate"](votes, labels)
    assert [len(kept) for kept, _ in path] == [6, 5, 4, 3, 2, 1], "the path goes from the whole pool to one member, one fewer each time"
    for kept, accuracy in path:
        assert np.isclose(accuracy, (votes[list(kept)].sum(0).argmax(1) == labels).mean()), f"the accuracy of {kept} is not what its votes give"
    for (before, _), (after, accuracy) in itertools.pairwise(path):
        tries = [(votes[[m for m in before if m != out]].sum(0).argmax(1) == labels).mean() for out in before]
        assert set(after) < set(before) and np.isclose(accuracy, max(tries)), f"from {before} another member should go: {max(tries):.3f} is possible"
