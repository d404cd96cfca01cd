"""What AMC's agent acts in: a network walked layer by layer, a budget that cannot be left, and a reward (arXiv 1802.03494, section 3).

    layer t ──► state (11 numbers) ──► action a ──► budget wall ──► channels kept ──► next layer … ──► operator 7 ──► reward

A *choice* is what one action decides: the input channels of a layer, with everything coupled to them (`contracts.structure.channels`), or, in
fine-grained mode, the density of one layer's weights. `counts` holds, for each choice, how many channels (weights) stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from ...contracts.structure.surgery import forward

Counts = Sequence[int]


# ------------------------------------------------------------------------------------------------------------------- costs

@dataclass(frozen=True)
class Cost:
    """A sum over tensors of ``base · inside · outside``: both factors are linear in the shares kept. Exact for MACs and parameters.

    ``base`` (T,); ``inside``, ``outside`` (T, choices + 1), the last column being the share that no choice touches.
    """

    base: np.ndarray
    inside: np.ndarray
    outside: np.ndarray

    def __call__(self, share: np.ndarray) -> float:
        inside, outside = (side[:, :-1] @ share + side[:, -1] for side in (self.inside, self.outside))
        return float(self.base @ (inside * outside))


@dataclass(frozen=True)
class LatencyTable:
    """Measured milliseconds of every layer at a few input and output shares, bilinear between them: the lookup table of a latency budget."""

    tables: tuple[tuple[np.ndarray, np.ndarray, RegularGridInterpolator], ...]  # rows of inside and outside, and the table

    def __call__(self, share: np.ndarray) -> float:
        shares = np.append(share, 1.0)
        return float(sum(table((inside @ shares, outside @ shares)) for inside, outside, table in self.tables))


@dataclass(frozen=True)
class Layer:
    """A prunable layer: ``shape`` is (n outputs, c inputs, h, w, stride, kernel) with h, w of the input; ``choice`` decides its input (None: kept)."""

    name: str
    shape: tuple[int, int, int, int, int, int]
    macs: int
    choice: int | None


@dataclass(frozen=True)
class Space:
    """The choices: how large each is, how it may be rounded, what a setting costs (by name), and how it is applied to the network: ``trial`` to judge it
    at once, ``export`` to keep the result."""

    layers: tuple[Layer, ...]
    sizes: np.ndarray
    lower: float
    round_to: int
    costs: Mapping[str, Cost | LatencyTable]
    trial: Callable[[Counts], nn.Module]
    export: Callable[[Counts], nn.Module]

    def rounded(self, choice: int, share: float) -> int:
        """A share of a choice's channels, rounded up to a multiple of ``round_to`` (or to all of them), and never below the lower bound."""
        size = int(self.sizes[choice])
        least = -(-int(np.ceil(self.lower * size - 1e-9)) // self.round_to) * self.round_to
        return min(size, max(least, -(-int(np.ceil(share * size - 1e-9)) // self.round_to) * self.round_to))


# ------------------------------------------------------------------------------------------------------------------ the wall

def budget_wall(action: float, budget: float, other: float, this: float) -> float:
    """The largest share ≤ ``action`` that fits: ``other + share · this ≤ budget`` (algorithm 1). ``this``: what the choice costs in full, given the earlier
    choices; ``other``: the rest, with *all later choices at their lower bound*, so that the layers to come can still meet the budget."""
    return min(action, (budget - other) / this)


@dataclass
class Environment:
    """Episodes over a space: ``cost(shares)`` stays ≤ ``budget``; ``judge(counts) -> reward`` is asked once for each setting.

    ValueError: a budget below what the lower bounds leave (the message says how much that is).
    """

    space: Space
    cost: Callable[[np.ndarray], float]
    budget: float
    judge: Callable[[Counts], float]
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self):
        layers = self.space.layers
        self.floors = np.array([self.space.rounded(choice, 0) for choice in range(len(self.space.sizes))])
        self.total, floor = self.cost(np.ones(len(self.floors))), self.cost(self.floors / self.space.sizes)
        if floor > self.budget:
            raise ValueError(f"budget: {self.budget / self.total:.3f} of the network's cost, but the floor is {floor / self.total:.3f}: the lower bound "
                             f"{self.space.lower} of every layer, rounded up to a multiple of {self.space.round_to}")
        fixed = np.array([[t, *layer.shape, layer.macs] for t, layer in enumerate(layers)], float)
        span = fixed.max(0) - fixed.min(0)
        self.fixed = (fixed - fixed.min(0)) / np.where(span > 0, span, 1)
        self.rest = 1 - np.cumsum(fixed[:, -1]) / fixed[:, -1].sum()
        choices = [layer.choice for layer in layers]
        self.walk = [t for t, choice in enumerate(choices) if choice is not None and choice not in choices[:t]]

    def reward(self, counts: Counts) -> float:
        """The reward of a setting; a setting met again is not judged again."""
        key = tuple(int(count) for count in counts)
        if key not in self.known:
            self.known[key] = self.judge(key)
        return self.known[key]

    def state(self, t: int, share: np.ndarray, last: float) -> np.ndarray:
        """Eleven features: index, n, c, h, w, stride, kernel and MACs (scaled to 0 … 1 over the layers), share of the cost removed so far, share of the
        MACs after this layer, previous action. ``share``: the choices made; those to come count as kept whole."""
        return np.array([*self.fixed[t], 1 - self.cost(share) / self.total, self.rest[t], last])

    def step(self, choice: int, action: float, share: np.ndarray) -> int:
        """The channels that an action keeps. ``share``: the choices made, and the lower bounds of those to come. Rounding goes up, unless that would
        cross the wall: then down, so that no episode ever ends above the budget."""
        size, trial = self.space.sizes[choice], share.copy()

        def cost(value: float) -> float:
            trial[choice] = value
            return self.cost(trial)

        other = cost(0.0)
        count = self.space.rounded(choice, budget_wall(action, self.budget, other, cost(1.0) - other))
        while count > self.floors[choice] and cost(count / size) > self.budget * (1 + 1e-12):
            count = max(self.floors[choice], (count - 1) // self.space.round_to * self.space.round_to)
        return int(count)

    def rollout(self, act: Callable[[np.ndarray], float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One episode: ``act(state) -> action`` for each choice, at the first layer that it feeds; coupled layers follow. Returns the counts
        (choices,), the states (T, 11) and the actions (T,) as they were before the wall: those the agent chose, those it learns from."""
        kept, low, last = np.ones(len(self.floors)), self.floors / self.space.sizes, 1.0
        states, actions = [], []
        for t in self.walk:
            choice = self.space.layers[t].choice
            states.append(self.state(t, kept, last))
            actions.append(float(np.clip(act(states[-1]), 0, 1)))
            kept[choice] = low[choice] = last = self.step(choice, actions[-1], low) / self.space.sizes[choice]
        return np.rint(kept * self.space.sizes).astype(int), np.array(states), np.array(actions)


# ----------------------------------------------------------------------------------------------------------------- rewards

def budgeted(error: float, cost: float) -> float:
    """R = −Error: the wall takes care of the cost (section 3.3, resource-constrained)."""
    return -error


def guaranteed(error: float, cost: float) -> float:
    """R = −Error · log(cost): without a wall, as small as accuracy allows; ``cost`` in MACs or parameters (section 3.3, accuracy-guaranteed)."""
    return -error * float(np.log(cost))


@torch.no_grad()
def error_rate(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Share of wrong answers on labelled images. Batch norm uses the statistics of the images judged, so that they are re-estimated and used in one
    pass: after pruning the stored ones no longer fit, and a reward that keeps them chooses policies worse than uniform."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False  # the stored statistics are neither used nor changed
    right = sum((forward(model, x).argmax(1) == y).sum().item() for x, y in zip(images.split(batch), labels.split(batch), strict=True))
    for norm, (training, tracking) in zip(norms, before, strict=True):
        norm.training, norm.track_running_stats = training, tracking
    return 1 - right / len(labels)
