"""The classic pruning criteria, each written once: rivals everywhere, and what people look for first.

A criterion is a small dataclass. Two questions can be put to it:

    scores(groups, model, data)   -> {group name: (size,) tensor}      what is a channel worth?  The lowest go.
    saliency(model, data)         -> {layer name: tensor like weight}  what is a weight worth?  (magnitude, OBD, SNIP, random)

``P`` denotes the filters that produce a channel, ``Q`` the slices of the next layer that read it. `scores` leaves the model as it was. Here stand the
criteria that look at weights alone; those that look at data are in :mod:`.classics_of_data`, what is done with scores in :mod:`.procedures`.
"""
# classic: random | Random channels, the control that every criterion must beat | 1990 | classics.Random
# classic: l1 | L1-norm filter pruning (Li et al., Pruning Filters for Efficient ConvNets) | 2016 | classics.L1
# classic: l2 | L2-norm filter pruning (He et al., Soft Filter Pruning) | 2018 | classics.L2
# classic: consumer-norm | Norm of the weights that read a channel | 2017 | classics.ConsumerNorm
# classic: product-norm | Product of a channel's producing and reading norms | 2017 | classics.ProductNorm
# classic: fpgm | Filter pruning via geometric median (He et al., FPGM) | 2019 | classics.FPGM
# classic: kmeans-filters | Clustered filters: keep the one nearest to each centre (Son et al.) | 2018 | classics.Clusters
# classic: bn-gamma | Batch-norm scale as a channel's worth (Liu et al., Network Slimming) | 2017 | classics.BatchNormScale
# classic: taylor | Taylor expansion of the loss per feature map (Molchanov et al.) | 2017 | classics_of_data.Taylor
# classic: obd | Optimal Brain Damage: half h w squared (LeCun et al.) | 1990 | classics_of_data.OBD
# classic: snip | SNIP: connection sensitivity before training (Lee et al.) | 2019 | classics_of_data.SNIP
# classic: apoz | Average percentage of zeros (Hu et al., Network Trimming) | 2016 | classics_of_data.Activation
# classic: mean-activation | Mean activation of a channel (Molchanov et al., section 2.2) | 2017 | classics_of_data.Activation
# classic: hrank | HRank: the rank of a channel's maps (Lin et al.) | 2020 | classics_of_data.HRank
# classic: thinet | ThiNet: greedy reconstruction of the next layer and least squares (Luo et al.) | 2017 | classics_of_data.ThiNet
# classic: magnitude | Fine-grained magnitude pruning (Han et al.) | 2015 | procedures.magnitude_masks
# classic: kernel-pruning | Whole two-dimensional kernels and kernel rows (Mao et al., Anwar et al.) | 2017 | granularity.keep
# classic: ikss | Intra-kernel strided sparsity (Anwar et al.) | 2017 | granularity.strided
# classic: block-drop | Dropping residual blocks by sensitivity | 2018 | granularity.drop_blocks
# classic: gradual | Gradual pruning with a cubic schedule (Zhu and Gupta) | 2017 | procedures.cubic
# classic: iterative | Iterative pruning and tuning (Han et al.) | 2015 | procedures.rounds
# classic: sfp | Soft filter pruning: zeroed filters may grow again (He et al.) | 2018 | procedures.soft
# classic: lottery-ticket | Lottery ticket: rounds of pruning, each rewound to the start (Frankle and Carbin) | 2019 | lottery.lottery_ticket
# classic: ssl | Structured sparsity learning: group LASSO (Wen et al.) | 2016 | procedures.shrink_filters
# classic: slimming | Network slimming: an L1 penalty on batch-norm scales (Liu et al.) | 2017 | procedures.shrink_scales
# classic: admm | ADMM weight pruning (Zhang et al.) | 2018 | procedures.ADMM
# classic: sensitivity-scan | Layer shares from a sensitivity scan (Li et al., section 3.2) | 2016 | granularity.sensitivity
# classic: channel-gating | Channels computed only where the input asks for them (after Gao et al.) | 2019 | gating.GatedConv

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.structure.channels import ChannelGroup
from ...contracts.structure.trace import CONV

LAYERS = (CONV, nn.Linear)


def norms(group: ChannelGroup, side: str, power: int = 1) -> Tensor:
    """(size,) L1 (``power=1``) or L2 norm per unit of the weights that produce or consume it, summed over the layers on that side."""
    members = group.producers if side == "producers" else group.consumers
    return sum(group.spread(member, member.weights().norm(power, dim=1)) for member in members)


def filters(group: ChannelGroup) -> Tensor:
    """(size, n): the weights that produce each unit, side by side where several layers do."""
    return torch.cat([group.spread(member, member.weights()) for member in group.producers], 1)


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Layer name -> its weight, of every convolution and linear layer."""
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, LAYERS)}


class OfWeights:
    """Criteria that value single weights; a channel is worth the sum over the filters that produce it."""

    def saliency(self, model: nn.Module, data=None) -> dict[str, Tensor]:
        raise NotImplementedError

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        values = self.saliency(model, data)
        return {group.name: sum(group.spread(m, m.weights(values[m.name]).sum(1)) for m in group.producers) for group in groups}


# --- nothing but weights ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Random:
    """Uniformly random scores; the group's name enters the seed, so that layers differ."""

    seed: int = 0

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {group.name: self._draw(group.name, (group.size,)) for group in groups}

    def saliency(self, model: nn.Module, data=None) -> dict[str, Tensor]:
        return {name: self._draw(name, weight.shape) for name, weight in weights(model).items()}

    def _draw(self, name: str, shape) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(self.seed * 7919 + zlib.crc32(name.encode())))


@dataclass(frozen=True)
class L1:
    """‖P‖₁, the norm of the filter itself (Li et al. 2016, section 3.1); of a single weight |w|."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {group.name: norms(group, "producers") for group in groups}

    def saliency(self, model: nn.Module, data=None) -> dict[str, Tensor]:
        return {name: weight.detach().abs() for name, weight in weights(model).items()}


@dataclass(frozen=True)
class L2(OfWeights):
    """‖P‖₂ (He et al. 2018, section 3.2), as the sum of squares, which ranks alike."""

    def saliency(self, model: nn.Module, data=None) -> dict[str, Tensor]:
        return {name: weight.detach() ** 2 for name, weight in weights(model).items()}


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


@dataclass(frozen=True)
class BatchNormScale:
    """|γ| (Liu et al. 2017, section 3)."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        found = {}
        for group in groups:
            norm = [m for m in group.norms if getattr(m.module, "weight", None) is not None]
            if not norm:
                raise ValueError(f"criterion: the batch-norm scale cannot rank {group.name!r}: no normalisation with a scale follows it")
            found[group.name] = sum(group.spread(m, m.weights().abs().mean(1)) for m in norm)
        return found


@dataclass(frozen=True)
class FPGM:
    """dᵢ = Σⱼ ‖Pᵢ − Pⱼ‖₂: what lies nearest to the geometric median of its layer is what the others can replace (He et al. 2019, section 3.3)."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {group.name: torch.cdist(filters(group), filters(group)).sum(1) for group in groups}


@dataclass(frozen=True)
class Clusters:
    """k-means over a layer's unit-length filters: the filter nearest to each centre stays; of the rest, the one nearest to its centre goes first.

    ``share``: centres per filter. Centres start from farthest-first picks (no chance), then 10 Lloyd steps (after Son et al. 2018, section 3).
    """

    share: float = 0.5

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {group.name: self.score(F.normalize(filters(group), dim=1)) for group in groups}

    def score(self, points: Tensor) -> Tensor:
        """(n,) from (n, d): distance to the own centre; plus the largest of these for each centre's representative."""
        picks = [int((points - points.mean(0)).norm(dim=1).argmax())]
        while len(picks) < max(1, round(self.share * len(points))):
            picks.append(int(torch.cdist(points, points[picks]).min(1).values.argmax()))
        centres = points[picks]
        for _ in range(10):
            own = torch.cdist(points, centres).argmin(1)
            centres = torch.stack([points[own == k].mean(0) if (own == k).any() else centres[k] for k in range(len(centres))])
        distance = torch.cdist(points, centres)
        score = distance.min(1).values
        return score.index_add(0, distance.argmin(0).unique(), (1 + score.max()).expand(len(distance.argmin(0).unique())))
