"""What a method sees of one attention layer: its keys, values, queries and mask; attention rows only where they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Layer:
    """One layer right after it has attended. ``h`` key–value heads serve ``H`` query heads; ``q`` tokens are new, ``n`` are held, those included.

    keys, values: (batch, h, n, head_dim), keys as they are attended to (after RoPE). queries: (batch, H, q, head_dim), after RoPE.
    positions: (batch or 1, h or 1, n) places of the tokens held, −1 where a shorter head is padded. mask: None (causal) or (batch, 1 or H, q, n), True
    or 0 where a query may look. rope: cosines and sines (batch or 1, q, head_dim) of the new tokens and the model's function that rotates by them.
    state: the method's own tensors (batch, h or 1, n), which stay with the tokens that are kept. tally: counts what was computed for the method.
    """

    index: int
    layers: int
    keys: Tensor
    values: Tensor
    queries: Tensor
    positions: Tensor
    mask: Tensor | None
    scaling: float
    rope: tuple[Tensor, Tensor, Callable] | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    tally: Counter = field(default_factory=Counter)

    def attention(self, last: int | None = None) -> Tensor:
        """(batch, H, last, n) float32: the attention rows of the ``last`` queries (default: all), by a softmax of their own beside the model's."""
        n = self.queries.shape[2]
        return self._rows(n - self._last(last), n)

    def received(self, last: int | None = None, rows: int = 128) -> Tensor:
        """(batch, H, n) float32: attention that each token receives, summed over the ``last`` queries; computed ``rows`` rows at a time."""
        n = self.queries.shape[2]
        return sum(self._rows(start, min(start + rows, n)).sum(2) for start in range(n - self._last(last), n, rows))

    def per_kv_head(self, x: Tensor) -> Tensor:
        """(batch, H, …) → (batch, h, …): the mean over the query heads that one key–value head serves."""
        return x.unflatten(1, (self.keys.shape[1], -1)).mean(2)

    def keys_before_rope(self) -> Tensor:
        """(batch, h, n, head_dim): keys with their rotation undone. ValueError: the model does not rotate whole keys, or not all tokens are new."""
        if self.rope is None or self.rope[0].shape[-1] != self.keys.shape[3] or self.queries.shape[2] != self.keys.shape[2]:
            raise ValueError(f"keys_before_rope: layer {self.index} has no rotation of whole keys to undo here; RoPE models have one, during the prefill")
        cos, sin, rotate = self.rope
        return rotate(self.keys, self.keys, cos, -sin)[1] / (cos ** 2 + sin ** 2)[:, None]  # the sum is not 1 where the model scales its rotation

    def _last(self, last: int | None) -> int:
        n = self.queries.shape[2]
        if last is None:
            return n
        if not 1 <= last <= n:
            raise ValueError(f"last: attention rows of {last} queries were asked for; this prompt has {n} tokens (a smaller window is needed)")
        return last

    def _rows(self, start: int, stop: int) -> Tensor:
        (b, h, n, d), (_, heads, q, _) = self.keys.shape, self.queries.shape
        self.tally["attention entries"] += b * heads * (stop - start) * n
        queries = self.queries[:, :, start:stop].float().reshape(b, h, -1, d)
        logits = (queries @ self.keys.float().transpose(2, 3) * self.scaling).view(b, heads, stop - start, n)
        if self.mask is None:
            hidden = torch.arange(n, device=logits.device) > torch.arange(start, stop, device=logits.device)[:, None] + n - q
            logits = logits.masked_fill(hidden, -torch.inf)
        else:
            mask = self.mask[:, :, start:stop]
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
        return logits.softmax(-1).nan_to_num()  # rows of padding look at nothing

    def visible(self) -> Tensor | None:
        """(batch, n) bool: tokens that the newest one may look at, all but padding and what a sliding window has left; None where that is all."""
        if self.mask is None or self.queries.shape[2] != self.keys.shape[2]:
            return None
        last = self.mask[:, 0, -1]
        last = last if last.dtype == torch.bool else last == 0
        return None if last.all() else last.expand(len(self.keys), -1)

    def row(self, b: int, columns: Tensor) -> Layer:
        """This layer for the sequence ``b`` alone, as if it had ``columns`` (n,) only."""
        mask = None if self.mask is None else self.mask[min(b, len(self.mask) - 1)][None, :, columns][..., columns]
        rope = None if self.rope is None else (*(x[min(b, len(x) - 1)][None, columns] for x in self.rope[:2]), self.rope[2])
        return replace(self, keys=self.keys[b:b + 1, :, columns], values=self.values[b:b + 1, :, columns], queries=self.queries[b:b + 1, :, columns],
                       positions=(columns - columns[0]).view(1, 1, -1), mask=mask, rope=rope, state={})
