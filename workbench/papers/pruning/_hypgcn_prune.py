"""The hybrid pruning of RFC-HyPGCN (parts 2 to 6): input channels of graph convolutions, whole temporal filters, taps by balanced patterns, every second frame.

Everything that goes is really gone: a `GraphConv` of the bench reads its kept channels only, a `TapConv` multiplies its kept taps only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches.skeleton.nets import AGCN, TAPS, TwoStream

LOOP = 8                                    # filters after which the patterns repeat
RATES = (0.0, 0.5, 0.67, 0.7, 0.75)


@dataclass(frozen=True)
class Preset:
    """channels: share of input channels that go in each block; taps: share of temporal taps; skip: every second frame only."""

    channels: tuple[float, ...]
    taps: float
    skip: bool


# by how much fewer multiplications are wanted; found once by counting multiplications, nothing was trained for it
PRESETS = {1.0: Preset((0, 0, 0, 0), 0.0, False), 2.0: Preset((0, 0.25, 0.35, 0.45), 0.5, False), 3.0: Preset((0, 0.5, 0.55, 0.65), 0.7, False),
           5.0: Preset((0, 0.4, 0.45, 0.55), 0.67, True), 8.4: Preset((0, 0.6, 0.75, 0.875), 0.75, True)}


def plan_of(preset: str | float | Preset) -> Preset:
    """The plan called ``"3x"`` or 3.0 (a `Preset` is one). ValueError: there is none of that name."""
    if isinstance(preset, Preset):
        return preset
    try:
        return PRESETS[float(str(preset).removesuffix("x"))]
    except (KeyError, ValueError):
        raise ValueError(f"preset: one of {', '.join(f'{value:g}x' for value in PRESETS)}, or a Preset, found {preset!r}") from None


# --- patterns of taps -----------------------------------------------------------------------------------------------------------------------------------


def balanced(rate: float, filters: int, seed: int = 0, taps: int = TAPS) -> np.ndarray:
    """(filters, taps) bool, sampling-like: within a loop of eight filters every tap is kept equally often (± 1), each filter's taps lie evenly spaced, and their
    numbers differ by one at most. ValueError: a rate that leaves a filter nothing."""
    total = round((1 - rate) * LOOP * taps)
    if not 0 <= rate < 1 or total < LOOP:
        raise ValueError(f"taps: a share in [0, 1) that leaves each filter at least one of {taps} taps, found {rate}")
    sizes = [(total * (i + 1)) // LOOP - (total * i) // LOOP for i in range(LOOP)]
    used, loop = np.zeros(taps, int), np.zeros((LOOP, taps), bool)
    for i, size in enumerate(sizes):
        # the phase at which the evenly spaced taps meet those used least
        grids = [[(phase + j * taps // size) % taps for j in range(size)] for phase in range(taps)]
        best = min(grids, key=lambda grid: (np.bincount(grid, minlength=taps) + used).var())
        loop[i, best] = True
        used += loop[i]
    while used.max() - used.min() > 1:      # one tap moves from the most to the least used position
        high, low = int(used.argmax()), int(used.argmin())
        row = next(i for i in range(LOOP) if loop[i, high] and not loop[i, low])
        loop[row, [high, low]] = False, True
        used = loop.sum(0)
    return loop[np.arange(filters) % LOOP]


def unbalanced(rate: float, filters: int, seed: int = 0, taps: int = TAPS) -> np.ndarray:
    """The ablation: as many taps, anywhere. A filter may keep one or eight."""
    total = int(balanced(rate, filters).sum())
    rng = np.random.default_rng(seed)
    flat = np.zeros(filters * taps, bool)
    flat[rng.permutation(filters * taps)[:total]] = True
    return flat.reshape(filters, taps)


# --- layers ----------------------------------------------------------------------------------------------------------------------------------------------


class TapConv(nn.Module):
    """A temporal convolution of kept taps: ``weight`` (rows, C), a row for each (tap, filter) that is left, sorted by tap, ``counts[tap]`` of them, for
    ``filters`` (rows,). (N, C, T, V) → (N, C', T', V); filters without any tap give 0."""

    def __init__(self, conv: nn.Conv2d, kept: np.ndarray):
        super().__init__()
        if conv.kernel_size[1] != 1 or conv.kernel_size[0] != kept.shape[1]:
            raise ValueError(f"conv: a temporal kernel of {kept.shape[1]}×1 is needed for these patterns, found {conv.kernel_size[0]}×{conv.kernel_size[1]}")
        tap, filters = np.nonzero(kept.T)
        self.counts = np.bincount(tap, minlength=kept.shape[1]).tolist()
        self.register_buffer("filters", torch.from_numpy(filters))
        self.weight = nn.Parameter(conv.weight.detach()[filters, :, tap, 0].clone())
        self.out_channels, self.stride, self.pad = conv.out_channels, conv.stride[0], conv.padding[0]

    @property
    def kept(self) -> np.ndarray:
        """(filters, taps) bool."""
        mask, tap = np.zeros((self.out_channels, len(self.counts)), bool), np.repeat(np.arange(len(self.counts)), self.counts)
        mask[self.filters.numpy(), tap] = True
        return mask

    @property
    def alive(self) -> Tensor:
        return torch.zeros(self.out_channels).index_fill(0, self.filters, 1.0).view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, t, v = x.shape
        x, out = F.pad(x, (0, 0, self.pad, self.pad)), (t + 2 * self.pad - len(self.counts)) // self.stride + 1
        y = x.new_zeros(n, self.out_channels, out * v)
        for tap, (weight, filters) in enumerate(zip(self.weight.split(self.counts), self.filters.split(self.counts), strict=True)):
            if len(filters):
                y = y.index_add(1, filters, weight @ x[:, :, tap:tap + self.stride * (out - 1) + 1:self.stride].flatten(2))
        return y.view(n, self.out_channels, out, v)


class Gate(nn.Module):
    """Batch norm of what a `TapConv` gives; filters that are gone stay at 0 (its shift would revive them)."""

    def __init__(self, norm: nn.BatchNorm2d, conv: TapConv):
        super().__init__()
        self.norm = copy.deepcopy(norm)
        self.register_buffer("alive", conv.alive)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.alive


# --- pruning ------------------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HybridPruning:
    """``patterns``: `balanced` or `unbalanced`; ``coarse``: remove temporal filters that only pruned channels read; ``largest``: wrong on purpose, the
    channels with the largest weights go."""

    patterns: Callable = balanced
    coarse: bool = True
    largest: bool = False

    def prune(self, model: TwoStream, plan: Preset, seed: int = 0) -> TwoStream:
        """A pruned copy, not yet tuned. ValueError: shares that do not fit the model's blocks."""
        small = copy.deepcopy(model)
        small.skip = plan.skip or model.skip
        for stream in (small.joints, small.bones):
            self.prune_stream(stream, plan, seed)
        return small.eval()

    def prune_stream(self, net: AGCN, plan: Preset, seed: int = 0) -> None:
        if len(plan.channels) != len(net.blocks):
            raise ValueError(f"channels: one share a block is needed ({len(net.blocks)}), found {len(plan.channels)}")
        gone = [prune_channels(block.gcn, share, self.largest) for block, share in zip(net.blocks, plan.channels, strict=True)]
        for i, block in enumerate(net.blocks):
            dead = gone[i + 1] if self.coarse and i + 1 < len(net.blocks) else []
            block.tcn = TapConv(block.tcn, pattern_of(block.tcn.out_channels, dead, plan.taps, self.patterns, seed + i))
            block.bn2 = Gate(block.bn2, block.tcn)


def prune_channels(gcn: nn.Module, share: float, largest: bool = False) -> list[int]:
    """Takes the input channels with the smallest Σ_k ‖W_k[:, c]‖₁ out of a graph convolution, for all three k; their numbers."""
    if not 0 <= share < 1:
        raise ValueError(f"channels: shares in [0, 1), found {share}")
    score = gcn.weight.detach().abs().sum((0, 1)) * (-1 if largest else 1)
    order = score.argsort(stable=True)[:min(int(share * gcn.in_channels), gcn.in_channels - 1)]
    stays = torch.ones(gcn.in_channels, dtype=torch.bool).index_fill(0, order, False)
    gcn.kept, gcn.weight = stays.nonzero().flatten(), nn.Parameter(gcn.weight.detach()[:, :, stays].clone())
    return sorted(order.tolist())


def pattern_of(filters: int, dead: Iterable[int], rate: float, patterns: Callable = balanced, seed: int = 0) -> np.ndarray:
    """(filters, taps) bool: patterns for the filters that stay, none for the dead (coarse pruning)."""
    stays = np.ones(filters, bool)
    stays[list(dead)] = False
    mask = np.zeros((filters, TAPS), bool)
    mask[stays] = patterns(rate, int(stays.sum()), seed) if rate else True
    return mask
