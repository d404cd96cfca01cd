"""The classic pruning criteria, each written once: rivals everywhere, and what people look for first.

A criterion is a small dataclass with ``scores(groups, model, data) -> {group name: (size,) tensor}``; the lowest scores go. ``P`` denotes the filters
that produce a channel, ``Q`` the slices of the next layer that read it.
"""
# classic: random | Random channels, the control that every criterion must beat | 1990
# classic: l1 | L1-norm filter pruning (Li et al., Pruning Filters for Efficient ConvNets) | 2016
# classic: consumer-norm | Norm of the weights that read a channel | 2017
# classic: product-norm | Product of a channel's producing and reading norms | 2017

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...contracts.surgery import ChannelGroup


def norms(group: ChannelGroup, side: str, power: int = 1) -> Tensor:
    """(size,) L1 (``power=1``) or L2 norm per unit of the weights that produce or consume it, summed over the layers on that side."""
    members = group.producers if side == "producers" else group.consumers
    return sum(group.spread(member, member.weights().norm(power, dim=1)) for member in members)


@dataclass(frozen=True)
class Random:
    """Uniformly random scores; the group's name enters the seed, so that layers differ."""

    seed: int = 0

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        def draw(name: str, size: int) -> Tensor:
            return torch.rand(size, generator=torch.Generator().manual_seed(self.seed * 7919 + zlib.crc32(name.encode())))

        return {group.name: draw(group.name, group.size) for group in groups}


@dataclass(frozen=True)
class L1:
    """‖P‖₁, the norm of the filter itself (Li et al. 2016, section 3.1)."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {group.name: norms(group, "producers") for group in groups}


@dataclass(frozen=True)
class ConsumerNorm:
    """‖Q‖₁, the norm of the next layer's slices that read the channel."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {group.name: norms(group, "consumers") for group in groups}


@dataclass(frozen=True)
class ProductNorm:
    """‖P‖₂·‖Q‖₂: magnitude on both sides, without their directions."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {group.name: norms(group, "producers", 2) * norms(group, "consumers", 2) for group in groups}
