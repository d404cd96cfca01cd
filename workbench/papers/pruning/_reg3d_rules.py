"""The rules of 3D-Reg: how much each layer loses (part 6, reconstructed), how ranks are averaged (part 2), how fast each factor moves (part 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

SMALLEST = 0.02   # a layer without a single redundant component still gets this redundancy, so that every ratio can rise


def redundancy(weight: Tensor, energy: float = 0.95) -> float:
    """ρ = 1 − (principal components that hold ``energy`` of the filter matrix N × C·kt·ky·kx) / N."""
    power = torch.linalg.svdvals(weight.detach().flatten(1).double()) ** 2
    components = 1 + int((power.cumsum(0) < energy * power.sum()).sum())
    return max(SMALLEST, 1 - components / len(weight))


def cost_aware(redundancies: np.ndarray, costs: np.ndarray, eta: float = 0.5) -> np.ndarray:
    """Relative ratios ρ_l (c_l / mean c)^η: redundant and dear layers lose most."""
    return redundancies * (costs / costs.mean()) ** eta


def uniform(redundancies: np.ndarray, costs: np.ndarray, eta: float = 0.5) -> np.ndarray:
    """Wrong on purpose: the same ratio everywhere."""
    return np.ones(len(costs))


def quotas(weights: np.ndarray, sizes: Sequence[int], cost: Callable[[np.ndarray], float], speedup: float, most: float = 0.95) -> np.ndarray:
    """How many groups each layer loses, ceil(min(most, κ w_l)·G_l), with the smallest κ (bisection) at which ``cost(shares removed)`` ≤ 1/speedup.

    ValueError: that speed-up cannot be reached with at most ``most`` of each layer gone.
    """
    sizes = np.asarray(sizes)

    def counts(kappa: float) -> np.ndarray:
        return np.minimum(np.ceil(np.minimum(most, kappa * weights) * sizes - 1e-9), sizes - 1).astype(int)

    low, high = 0.0, 2 * most / weights[weights > 0].min()
    if (floor := cost(counts(high) / sizes)) > 1 / speedup:
        raise ValueError(f"speedup: {speedup} cannot be reached; with {most:.0%} of each layer gone it is {1 / floor:.2f}")
    for _ in range(60 if speedup > 1 else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(counts(middle) / sizes) <= 1 / speedup else (middle, high)
    return counts(high) if speedup > 1 else np.zeros(len(sizes), int)


def averaged(history: Tensor, rank: Tensor, n: int) -> Tensor:
    """h ← ((n − 1) h + r) / n: the mean rank of all iterations so far."""
    return ((n - 1) * history + rank) / n


def latest(history: Tensor, rank: Tensor, n: int) -> Tensor:
    """Wrong on purpose: only the newest rank counts."""
    return rank


def symmetric(j: Tensor, wanted: int, top: float, u: float = 0.25) -> Tensor:
    """Δλ of rank ``j`` with ``wanted`` groups still to go: A e^{−aj} up to J₁ = ⅔ P, behind it the same curve turned about (J₁, uA), which is 0 at j = P."""
    a = np.log(2 / u) / wanted
    knee = -np.log(u) / a
    return torch.where(j < knee, top * torch.exp(-a * j), 2 * u * top - top * torch.exp((-a * (2 * knee - j)).clamp_max(50.0)))


def two_sided(j: Tensor, wanted: int, top: float, u: float = 0.25) -> Tensor:
    """The official code's second scheme: +A e^{−a₁j} below P, −A e^{−a₂(G−1−j)} above, both falling to uA at the border."""
    last = int(j.max())
    a1, a2 = -np.log(u) / wanted, -np.log(u) / max(1, last - wanted)
    return torch.where(j < wanted, top * torch.exp(-a1 * j), -top * torch.exp(-a2 * (last - j)))


def linear(j: Tensor, wanted: int, top: float, u: float = 0.25) -> Tensor:
    """A (1 − j/P)."""
    return top * (1 - j / wanted)


def only_up(j: Tensor, wanted: int, top: float, u: float = 0.25) -> Tensor:
    """Wrong on purpose: no factor ever falls, so that a group once thought unimportant cannot recover."""
    return symmetric(j, wanted, top, u).clamp_min(0)
