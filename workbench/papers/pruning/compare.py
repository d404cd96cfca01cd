"""Pruning your own network: one call, or many criteria and shares side by side.

    small = prune(model, criterion="taylor", granularity="channel", ratio=.5, data=loader).model
    frame = compare_pruners(model, loader, criteria=["l1", "taylor", "thinet"], ratios=[.3, .5, .7])
    pareto(frame).show()
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch
from torch import nn

from ...benches.vision import file_bytes
from ...contracts.model import inputs_and_labels
from ...contracts.structure.surgery import channel_groups, forward, macs, parameters, reestimate_batchnorm
from . import Pruned, inside_blocks
from .classics import LAYERS
from .classics_of_data import CRITERIA, batches
from .granularity import Pruner


def prune(model: nn.Module, criterion="taylor", granularity: str = "channel", ratio: float = 0.5, data: Iterable | None = None, example=None,
          allocation: str = "uniform") -> Pruned:
    """A pruned copy of ``model`` (``.model``): a share ``ratio`` of each layer's channels, weights, rows, kernels or of the blocks is gone.

    ``criterion``: a name of `CRITERIA` or an object with ``scores``; ``data``: a loader of (inputs, labels), of which the criterion and the batch-norm
    statistics are taken; ``example``: a batch of inputs (default: from ``data``). Zeros (not channels, blocks) have ``.save(path)``, a sparse file.
    ValueError: an unknown name, a criterion that needs data or labels without them, a granularity that no layer of the model has, ratio outside [0, 1).
    """
    return Pruner(criterion, granularity, allocation).apply(copy.deepcopy(model).eval(), ratio, data, example)


@torch.no_grad()
def costs(model: nn.Module, example) -> dict[str, int]:
    """What pruning is for, counted for one sample: ``macs``, ``parameters``, ``activations`` (bytes of the largest input + output of a layer, which must
    be held at once) and ``traffic`` (bytes moved if every layer reads its weights and input and writes its output once). Zeros count as numbers."""
    moved, held = [], []

    def see(module, inputs, output):
        maps = (inputs[0][:1].numel() + output[:1].numel()) * output.element_size()
        held.append(maps)
        moved.append(maps + sum(p.numel() * p.element_size() for p in module.parameters()))

    hooks = [m.register_forward_hook(see) for m in model.modules() if isinstance(m, LAYERS)]
    try:
        total = macs(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return {"macs": total, "parameters": parameters(model), "activations": max(held, default=0), "traffic": sum(moved)}


@torch.no_grad()
def accuracy(model: nn.Module, loader: Iterable) -> float:
    """Right answers on the loader, in %."""
    right, seen = 0, 0
    for inputs, labels in batches(loader, "accuracy"):
        right += int((forward(model, inputs).argmax(-1) == labels).sum())
        seen += len(labels)
    return 100 * right / seen


def compare_pruners(model: nn.Module, loader: Iterable, criteria: Sequence = tuple(CRITERIA), ratios: Sequence[float] = (0.3, 0.5),
                    granularity: str = "channel", evaluate: Callable[[nn.Module], float] | None = None) -> pd.DataFrame:
    """One row per criterion and ratio: ``criterion, ratio, quality, bytes`` and :func:`costs`, without tuning but with batch-norm re-estimation.

    ``loader`` is read several times; ``evaluate(model)`` judges (default: accuracy on ``loader``, which the criteria have seen: hand in another for a
    fair figure). ValueError: an empty list, and all that :func:`prune` refuses.
    """
    if not len(criteria) or not len(ratios):
        raise ValueError(f"{'ratios' if len(criteria) else 'criteria'}: at least one is needed, found none")
    loader, rows = list(loader), []
    if not loader:
        raise ValueError("loader: it yields no batch")
    example = inputs_and_labels(loader[0])[0]
    model = copy.deepcopy(model).eval()
    for name in criteria:
        pruner = Pruner(name, granularity)
        known = pruner.scores(inside_blocks(channel_groups(model, example)), model, loader) if granularity == "channel" else None  # once for all ratios
        for ratio in ratios:
            pruned = pruner.apply(model, ratio, loader, example, known=known)
            if ratio:
                reestimate_batchnorm(pruned.model, (inputs for inputs, _ in batches(loader, "batch norm", labels=False)))
            rows.append({"criterion": name if isinstance(name, str) else type(name).__name__, "ratio": ratio,
                         "quality": evaluate(pruned.model) if evaluate else accuracy(pruned.model, loader), **costs(pruned.model, example),
                         "bytes": file_bytes(pruned)})
    return pd.DataFrame(rows)


def pareto(frame: pd.DataFrame, cost: str = "bytes", quality: str = "quality"):
    """Quality against cost, one line per criterion; the points that no other point beats in both are ringed."""
    import plotly.graph_objects as go

    for name in (cost, quality, "criterion"):
        if name not in frame:
            raise ValueError(f"frame: no column {name!r}; it has {', '.join(frame)}")
    ordered = frame.sort_values([cost, quality], ascending=[True, False])
    best = ordered[ordered[quality] > ordered[quality].cummax().shift(fill_value=-float("inf"))]
    dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
    figure = go.Figure([go.Scatter(x=rows[cost], y=rows[quality], name=str(name), mode="lines+markers", line={"dash": dashes[i % 6]},
                                   marker={"symbol": i % 24}) for i, (name, rows) in enumerate(ordered.groupby("criterion"))])
    figure.add_scatter(x=best[cost], y=best[quality], name="not beaten", mode="markers", marker={"symbol": "circle-open", "size": 16, "color": "#d55e00"})
    return figure.update_layout(xaxis_title=cost, yaxis_title=quality)
