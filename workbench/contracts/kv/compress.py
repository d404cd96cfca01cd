"""From scores and budgets to the slots that stay: the same for every method, so that a race compares the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cache import Dense, Index, KVLayer, rectangle
from .layer import Layer


def kept_tokens(n: int, ratio: float) -> int:
    """How many of ``n`` tokens stay when the share ``ratio`` goes: n − ⌊ratio·n⌋, at least 1."""
    return n - math.floor(ratio * n + 1e-9)  # 0.29 · 100 is 28.999… in binary


def check_ratio(ratio: Any) -> None:
    """ValueError unless 0 ≤ ratio < 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ValueError(f"ratio: the share of the cache to remove must lie in [0, 1), found {ratio!r}")


def compress(pairs: Sequence[tuple[Layer, KVLayer]], evict: Any = None, encode: Any = None, forget: int = 0) -> None:
    """Lets each layer hold what ``evict`` leaves of it, in the form of ``encode``; either may be None.

    pairs: what the layers saw in the prefill, and the caches that hold it; all layers at once where ``evict`` has ``budgets``.
    forget: so many of the newest tokens are scored with, and then neither held nor counted as seen.
    """
    layers = [layer for layer, _ in pairs]
    write = encode.encode if encode is not None else Dense
    if evict is None or (getattr(evict, "ratio", None) == 0 and not hasattr(evict, "budgets") and not hasattr(evict, "step")):
        chosen: list[Index | None] = [None] * len(layers)
    else:
        with torch.no_grad():
            chosen = list(choose(layers, evict, forget))
    for (layer, cache), index in zip(pairs, chosen, strict=True):
        cache.state = layer.state
        if index is None and encode is None:
            cache.crop(-forget)
        else:
            cache.keep(index, write, forget)


def choose(layers: Sequence[Layer], method: Any, forget: int = 0) -> list[Index]:
    """Per layer the slots that stay. Rows of a batch with padding are judged one by one, as if each were alone, and never keep padding."""
    visible = [layer.visible() for layer in layers]
    if all(rows is None for rows in visible):
        return [select(layer, s, k, forget) for layer, s, k in zip(layers, *judge(layers, method), strict=True)]
    if hasattr(method, "step"):
        raise ValueError(f"attention_mask: {type(method).__name__} evicts while decoding, which needs prompts of equal length, without padding or "
                         "sliding window")
    found: list[list[Sequence[Tensor]]] = [[] for _ in layers]
    for b in range(len(layers[0].keys)):
        columns = [torch.arange(layer.keys.shape[2]) if rows is None else rows[b].nonzero()[:, 0] for layer, rows in zip(layers, visible, strict=True)]
        alone = [layer.row(b, c) for layer, c in zip(layers, columns, strict=True)]
        for lists, layer, c, s, k in zip(found, alone, columns, *judge(alone, method), strict=True):
            index = select(layer, s, k, forget)
            lists.append([c[slots] for slots in index[0]] if len(index[0]) > 1 else [c[index[0][0]]] * layer.keys.shape[1])
    return [rectangle(lists) for lists in found]


def judge(layers: Sequence[Layer], method: Any) -> tuple[list[Tensor], list[int | Tensor]]:
    """Scores (batch, kv_heads or 1, n) and numbers of tokens that stay, an int or (kv_heads,) or (batch, kv_heads), of each layer; both checked."""
    name, scores = type(method).__name__, []
    for layer in layers:
        (b, h, n, _), s = layer.keys.shape, method.scores(layer)
        if tuple(s.shape) not in ((b, h, n), (b, 1, n)) or s.isnan().any():
            found = f"{tuple(s.shape)}{' with NaN' if s.isnan().any() else ''}"
            raise ValueError(f"{name}.scores: numbers of shape {(b, h, n)} (batch, kv_heads, n) are needed, found {found}")
        scores.append(s)
    if not hasattr(method, "budgets"):
        return scores, [kept_tokens(layer.keys.shape[2], method.ratio) for layer in layers]
    budgets = list(method.budgets(layers))
    if len(budgets) != len(layers):
        raise ValueError(f"{name}.budgets: one budget for each of {len(layers)} layers is needed, found {len(budgets)}")
    for layer, k in zip(layers, budgets, strict=True):
        low, high = int(torch.as_tensor(k).min()), int(torch.as_tensor(k).max())
        if low < 1 or high > layer.keys.shape[2]:
            raise ValueError(f"{name}.budgets: layer {layer.index} can keep 1 to {layer.keys.shape[2]} tokens a head, found {low} to {high}")
    return scores, budgets


def select(layer: Layer, scores: Tensor, budget: int | Tensor, forget: int = 0) -> Index:
    """The best ``budget`` slots, ascending; equal scores favour the earlier token. The ``forget`` newest tokens count as kept already."""
    n = layer.keys.shape[2] - forget
    order = scores[..., :n].argsort(dim=-1, descending=True, stable=True)
    if not isinstance(budget, Tensor) or budget.ndim == 0:
        return order[..., :max(0, int(budget) - forget)].sort(-1).values
    order, budget = order.expand(-1, layer.keys.shape[1], -1), budget.expand(*layer.keys.shape[:2])
    return rectangle([[head[:max(0, int(k) - forget)].sort().values for head, k in zip(row, counts, strict=True)]
                      for row, counts in zip(order, budget, strict=True)])
