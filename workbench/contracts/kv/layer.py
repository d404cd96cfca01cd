"""What a method sees of one attention layer: its keys, values, queries and mask; attention rows only where they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .cache import KVLayer


@dataclass
class Layer:
    """One layer where it attends. ``h`` key–value heads serve ``H`` query heads; ``q`` tokens are new, ``n`` are held, those included.

    keys, values: (batch, h, n, head_dim), keys as they are attended to (after RoPE). queries: (batch, H, q, head_dim), after RoPE. ids: (batch, q) new
    tokens, None where the model got embeddings. mask: None (causal) or (batch, 1 or H, q, n), True or 0 where a query may look; ``sliding``: by a window.
    rope: cosines and sines (batch or 1, q, head_dim) of the new tokens and the model's function that rotates by them; None without RoPE.
    state: the method's own tensors (batch, h or 1, n), which stay with the tokens that are kept and count as bytes. notes: what layers of one forward
    pass leave for those above them; gone after it. tally: counts what was computed for the method. cache: what holds the layer.
    """

    index: int
    layers: int
    keys: Tensor
    values: Tensor
    queries: Tensor
    mask: Tensor | None
    scaling: float
    ids: Tensor | None = None
    rope: tuple[Tensor, Tensor, Callable] | None = None
    sliding: bool = False
    cache: KVLayer | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)
    tally: Counter = field(default_factory=Counter)

    @property
    def prefill(self) -> bool:
        """Whether all tokens are new."""
        return self.queries.shape[2] == self.keys.shape[2]

    @property
    def positions(self) -> Tensor:
        """(batch or 1, h or 1, n): places in the sequence of the tokens held; −1 where a shorter head is padded."""
        return torch.arange(self.keys.shape[2], device=self.keys.device).view(1, 1, -1) if self.prefill else self.cache.places()

    def attention(self, rows: int | Tensor | None = None) -> Tensor:
        """(batch, H, r, n) float32: attention rows of the last ``rows`` queries, of chosen ones (r,) or of all, by a softmax beside the model's."""
        rows = self._chosen(rows)
        (b, h, n, d), (_, heads, q, _) = self.keys.shape, self.queries.shape
        self.tally["attention entries"] += b * heads * len(rows) * n
        queries = self.queries[:, :, rows].float().reshape(b, h, -1, d)
        logits = (queries @ self.keys.float().transpose(2, 3) * self.scaling).view(b, heads, -1, n)
        if self.mask is None:
            logits = logits.masked_fill(torch.arange(n, device=rows.device) > rows[:, None] + n - q, -torch.inf)
        else:
            mask = self.mask[:, :, rows]
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
        return logits.softmax(-1).nan_to_num()  # queries of padding look at nothing

    def received(self, rows: int | Tensor | None = None, strip: int = 128) -> Tensor:
        """(batch, H, n) float32: attention that each token receives, summed over such queries; computed in strips of rows, never whole."""
        return sum(self.attention(part).sum(2) for part in self._chosen(rows).split(strip))

    def per_kv_head(self, x: Tensor) -> Tensor:
        """(batch, H, …) → (batch, h, …): the mean over the query heads that one key–value head serves."""
        return x.unflatten(1, (self.keys.shape[1], -1)).mean(2)

    def keys_before_rope(self) -> Tensor:
        """(batch, h, n, head_dim): keys with their rotation undone. ValueError: the model does not rotate whole keys, or not all tokens are new."""
        if self.rope is None or self.rope[0].shape[-1] != self.keys.shape[3] or not self.prefill:
            raise ValueError(f"keys_before_rope: layer {self.index} has no rotation of whole keys to undo here; RoPE models have one, during the prefill")
        cos, sin, rotate = self.rope
        return rotate(self.keys, self.keys, cos, -sin)[1] / (cos ** 2 + sin ** 2)[:, None]  # the sum is not 1 where the model scales its rotation

    def _chosen(self, rows: int | Tensor | None) -> Tensor:
        q = self.queries.shape[2]
        if isinstance(rows, Tensor):
            return rows
        if rows is not None and not 1 <= rows <= q:
            raise ValueError(f"rows: attention of the last {rows} queries was asked for; there are {q} (a smaller window is needed)")
        return torch.arange(0 if rows is None else q - rows, q, device=self.queries.device)

    def visible(self) -> Tensor | None:
        """(batch, n) bool: what is no padding, which no query sees, and what a sliding window has not left behind; None where that is all."""
        if self.mask is None or not self.prefill:
            return None
        mask = self.mask[:, 0] if self.mask.dtype == torch.bool else self.mask[:, 0] == 0
        seen = mask[:, -1] if self.sliding else mask.any(1)
        return None if seen.all() else seen.expand(len(self.keys), -1)

    def row(self, b: int, columns: Tensor) -> Layer:
        """This layer for the sequence ``b`` alone, as if it had ``columns`` (n,) only."""
        mask = None if self.mask is None else self.mask[min(b, len(self.mask) - 1)][None, :, columns][..., columns]
        rope = None if self.rope is None else (*(x[min(b, len(x) - 1)][None, columns] for x in self.rope[:2]), self.rope[2])
        ids = None if self.ids is None else self.ids[b:b + 1, columns]
        return replace(self, keys=self.keys[b:b + 1, :, columns], values=self.values[b:b + 1, :, columns], queries=self.queries[b:b + 1, :, columns],
                       ids=ids, mask=mask, rope=rope, state={}, notes=self.notes.setdefault(("row", b), {}))
