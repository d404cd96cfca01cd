"""Gradual magnitude pruning (Zhu and Gupta 2017) inside any training loop: a sparsity that rises along a cubic, one mask a layer, zeros put back.

    step t ──► Schedule.sparsity(t) ──► the smallest |w| of each layer, exactly round(s·n) of them ──► mask ──► w ← w · mask after every update
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches.recipes import one_cycle
from ...contracts.model import inputs_and_labels
from ...contracts.structure.trace import forward
from .classics import weights
from .granularity import apply_masks, keep


@dataclass(frozen=True)
class Schedule:
    r"""$s_t = s_f + (s_i - s_f)\,(1 - (t-t_0)/(n\Delta t))^3$ (equation 1 of Zhu and Gupta): ``final`` and ``initial`` shares of zeros, first step
    ``begin`` ($t_0$), masks anew every ``every`` steps ($\Delta t$), last time at step ``end`` ($t_0+n\Delta t$)."""

    final: float
    initial: float = 0.0
    begin: int = 0
    every: int = 10
    end: int = 100

    def __post_init__(self):
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(f"initial, final: shares of zeros with 0 ≤ initial ≤ final < 1, found {self.initial} and {self.final}")
        if self.every < 1 or not 0 <= self.begin <= self.end:
            raise ValueError(f"begin, every, end: steps with 0 ≤ begin ≤ end and every ≥ 1, found {self.begin}, {self.every} and {self.end}")

    def sparsity(self, step: int) -> float:
        """The share of zeros from ``step`` on (0 before ``begin``)."""
        if step < self.begin:
            return 0.0
        done = min((step - self.begin) / max(self.end - self.begin, 1), 1) if self.end > self.begin else 1.0
        return self.final + (self.initial - self.final) * (1 - done) ** 3

    def due(self, step: int) -> bool:
        """Whether new masks are made at ``step``: every ``every`` steps from ``begin`` on, and once more at ``end``."""
        return step == self.end or self.begin <= step < self.end and (step - self.begin) % self.every == 0


@dataclass
class GradualPruner:
    """Call :meth:`step` after every update of the weights. ``layers``: names of those to prune (default: every convolution and linear layer)."""

    model: nn.Module
    schedule: Schedule
    layers: Sequence[str] | None = None

    def __post_init__(self):
        known = weights(self.model)
        if unknown := set(self.layers or ()) - set(known):
            raise ValueError(f"layers: {', '.join(sorted(unknown))} are no convolution or linear layer of the model; it has {', '.join(known)}")
        self.layers = tuple(known if self.layers is None else self.layers)
        self.masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, t: int) -> None:
        """New masks where the schedule wants them (a weight that is zero has the smallest magnitude, so it stays zero), then the zeros."""
        if self.schedule.due(t):
            values = {name: weight.detach().abs() for name, weight in weights(self.model).items() if name in self.layers}
            self.masks = keep(values, self.schedule.sparsity(t), "weight", "uniform")
        apply_masks(self.model, self.masks)


def endless(data: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) of a loader again and again. ValueError: no batch, or no labels."""
    while True:
        empty = True
        for batch in data:
            inputs, labels = inputs_and_labels(batch)
            if labels is None:
                raise ValueError("data: training needs batches of (inputs, labels)")
            empty = False
            yield inputs, labels
        if empty:
            raise ValueError("data: the loader yields no batch")


def train_steps(model: nn.Module, stream: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float, after: Callable[[int], None] | None = None,
                loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None) -> list[float]:
    """``steps`` steps of AdamW in place, one cycle up to ``rate``; ``after(step)`` is called after each. ``loss(model, inputs, labels)``: default
    cross-entropy. Returns the losses; the model is left in evaluation mode."""
    loss = loss or (lambda net, inputs, labels: F.cross_entropy(forward(net, inputs), labels))
    losses: list[float] = []

    def on_step(step: int, value: float) -> None:
        losses.append(value)
        if after:
            after(step)

    one_cycle(model, (loss(model, inputs, labels) for inputs, labels in stream), steps, rate, on_step)
    return losses
