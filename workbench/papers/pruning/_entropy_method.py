"""Entropy pruning, the method: pooled responses → histogram → entropy per channel; layer by layer; and the strategy for VGG-like heads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.model import inputs_and_labels
from ...contracts.structure.channels import ChannelGroup, check_finite
from ...contracts.structure.macs import check_runs
from ...contracts.structure.surgery import channel_groups, forward, macs_by_layer, reestimate_batchnorm, remove, select
from ...contracts.structure.trace import CONV
from ...contracts.structure.tuning import first
from . import Pruned, inside_blocks
from .classics_of_data import per_unit, run_watching

# --- 1 statistic, 2 entropy ---------------------------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Every layer asked for has been seen: the rest of the forward pass is not needed."""


@torch.no_grad()
def pooled_responses(groups: Sequence[ChannelGroup], model: nn.Module, data: Iterable | None) -> dict[str, Tensor]:
    """{group name: (M, channels)}: the spatial mean of every map behind batch norm and ReLU, a row an image (section 3.2: global average pooling).

    The pass stops behind the last layer asked for. ValueError: no data, a layer without a spatial output, NaN or infinite maps.
    """
    if data is None:
        raise ValueError("data: entropy is measured on images; hand in a loader (labels are not needed)")
    rows: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    waiting: set[str] = set()

    def see(name: str, out: Tensor, dim: int) -> None:
        if out.dim() < 3 or dim != 1:
            raise ValueError(f"model: the output of {name!r} has shape {tuple(out.shape)}, without spatial positions to average over")
        pooled = F.relu(out).flatten(2).mean(2)
        if not torch.isfinite(pooled).all():
            raise ValueError(f"data: the activations of {name!r} hold NaN or infinite values")
        rows[name].append(pooled.double())
        waiting.discard(name)
        if not waiting:
            raise _Enough

    for batch in data:
        waiting.update(rows)
        try:
            run_watching(groups, model, see, lambda batch=batch: forward(model, inputs_and_labels(batch)[0]))
        except _Enough:
            pass
    if not all(rows.values()):
        raise ValueError("data: the loader yields no batch")
    return {name: torch.cat(parts) for name, parts in rows.items()}


@dataclass(frozen=True)
class ChannelEntropy:
    """H_j = −Σ_b p_b log p_b of ``bins`` equal bins between the least and the largest pooled response of channel j, in nats (section 3.2).

    ``span`` = ``layer`` takes one range for all channels of a layer, so that H sees the scale again; ``inverted`` keeps what says least: two things
    to be wrong on purpose.
    """

    bins: int = 100
    span: str = "channel"
    inverted: bool = False

    def __post_init__(self):
        if not isinstance(self.bins, int) or self.bins < 2:
            raise ValueError(f"bins: a whole number of at least 2, found {self.bins!r}")
        if self.span not in ("channel", "layer"):
            raise ValueError(f"span: 'channel' or 'layer', found {self.span!r}")

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data: Iterable | None) -> dict[str, Tensor]:
        """{group name: (size,)}, higher is kept; all layers on the model as it is (the method asks for one layer at a time)."""
        responses = pooled_responses(groups, model, data)
        return {group.name: (-1 if self.inverted else 1) * per_unit(group, model, self.entropy(responses[group.name])) for group in groups}

    def counts(self, responses: Tensor) -> Tensor:
        """(channels, bins) int64 from (M, channels): how many images fall into each bin; one ``bincount`` for all channels."""
        low, high = responses.min(0).values, responses.max(0).values
        if self.span == "layer":
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        place = ((responses - low) / (high - low).clamp_min(torch.finfo(responses.dtype).tiny) * self.bins).long().clamp(0, self.bins - 1)
        channels = responses.shape[1]
        flat = place + self.bins * torch.arange(channels)
        return torch.bincount(flat.flatten(), minlength=channels * self.bins).reshape(channels, self.bins)

    def entropy(self, responses: Tensor) -> Tensor:
        """(channels,) from (M, channels); 0 for a channel that never changes."""
        share = self.counts(responses).double() / len(responses)
        return -torch.special.xlogy(share, share).sum(1)


# --- 3 selection, 4 schedule --------------------------------------------------------------------------------------------------------------------


@dataclass
class LayerByLayer(Pruned):
    """A pruned net with what decided: ``scores`` and ``dropped`` (units of the network before), by layer in the order of pruning."""

    scores: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, Tensor] = field(default_factory=dict)


def prunable(model: nn.Module, example: Any) -> list[ChannelGroup]:
    """The convolutions inside blocks, first to last: all of a plain net's, in a residual block those whose output is not added (section 4: of a
    bottleneck the first two). Fully connected layers have no map to average; :func:`head_to_gap` replaces them."""
    return [g for g in inside_blocks(channel_groups(model, example)) if all(isinstance(m.module, CONV) for m in g.producers)]


def uniform_loss(groups: Sequence[ChannelGroup], share: float) -> dict[str, int]:
    """The same ``share`` of every layer's filters; one always stays."""
    if not 0 <= share < 1:
        raise ValueError(f"share: of the filters to remove, must lie in [0, 1), found {share}")
    return {group.name: min(group.size - 1, round(share * group.size)) for group in groups}


def take(data: Iterable | None, images: int) -> list:
    """The first ``images`` inputs of a loader, in its batches. ValueError: it yields fewer."""
    if data is None:
        raise ValueError("data: entropy is measured on images; hand in a loader (labels are not needed)")
    found, have = [], 0
    for batch in data:
        inputs = inputs_and_labels(batch)[0]
        size = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
        part = inputs if have + size <= images else first(inputs, images - have)
        found.append(batch if have + size <= images else (part, batch[1][:images - have]) if isinstance(batch, (tuple, list)) and len(batch) > 1 else part)
        have += min(size, images - have)
        if have == images:
            return found
    raise ValueError(f"images: {images} are asked for, the loader yields {have}")


@dataclass(frozen=True)
class EntropyPruning:
    """Prune a layer, repair, measure the next layer on what is now there (section 3.3).

    ``criterion``: any object with `scores`; ``images``: how many it looks at; ``fold``: the mean of a removed channel goes into the next layer's bias
    (ours; the paper just removes). ``recompute=False`` takes all scores from the dense net, to be wrong on purpose.
    """

    criterion: Any = ChannelEntropy()
    images: int = 1024
    fold: bool = False
    recompute: bool = True

    cut = staticmethod(remove)  # only ablations bring their own
    head = staticmethod(lambda model, example: head_to_gap(model, example))

    def __post_init__(self):
        if not isinstance(self.images, int) or self.images < 1:
            raise ValueError(f"images: a positive whole number, found {self.images!r}")

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example: Any) -> nn.Module:
        """The model contract: equal shares of all layers' filters, so many that ``ratio`` of the MACs goes."""
        groups = prunable(model, example)
        if not groups:
            raise ValueError("model: it has no convolution whose channels may be pruned")
        level = {group.name: torch.zeros(group.size) for group in groups}
        drop = select(groups, level, model, example, ratio, "uniform")
        return self.prune(model, {name: len(units) for name, units in drop.items()}, data, example).model

    def prune(self, model: nn.Module, lose: Mapping[str, int], data: Iterable | None, example: Any,
              after: Callable[[nn.Module], None] | None = None) -> LayerByLayer:
        """``lose``: {layer: filters to remove}. ``after`` each layer: fine-tune the net in place (default: new batch-norm statistics). With nothing
        to lose the net is a copy, untouched. ValueError: unknown layers, too many filters, too few images."""
        check_finite(model)
        small = copy.deepcopy(model)
        order = [group.name for group in prunable(model, example)]
        if unknown := set(lose) - set(order):
            raise ValueError(f"lose: no prunable convolution is called {', '.join(sorted(unknown))}; there are {', '.join(order)}")
        order = [name for name in order if lose.get(name)]
        result = LayerByLayer(small)
        if not order:
            return result
        images = take(data, self.images)
        after = after or (lambda net: reestimate_batchnorm(net, [inputs_and_labels(batch)[0] for batch in images]))
        known = {} if self.recompute else self.criterion.scores(prunable(model, example), model, images)
        for name in order:
            groups = prunable(small, example)
            group = next(g for g in groups if g.name == name)
            score = known.get(name) if known else self.criterion.scores([group], small, images)[name]
            units = score.argsort(stable=True)[:lose[name]].sort().values
            if self.fold:
                absorb(small, group, units, per_unit(group, small, pooled_responses([group], small, images)[name].mean(0)).float())
            small = self.cut(small, {name: units}, example, groups)
            after(small)
            result.scores[name], result.dropped[name] = score, units
        result.model = small
        return result

    def vgg(self, model: nn.Module, share: float, data: Iterable | None, example: Any, after: Callable[[nn.Module], None] | None = None) -> LayerByLayer:
        """The strategy for VGG (section 4.1): ``share`` of the filters of the convolutions that hold 90 % of the MACs, and a pooled linear head."""
        leading = set(leading_layers(model, example))
        small = self.head(model, example)
        return self.prune(small, uniform_loss([g for g in prunable(small, example) if g.name in leading], share), data, example, after)


@torch.no_grad()
def absorb(model: nn.Module, group: ChannelGroup, units: Tensor, means: Tensor) -> None:
    """In place: what ``units`` feed their readers on average becomes the readers' bias, W[:, u] summed over the kernel times the mean of u."""
    for member in group.consumers:
        layer = model.get_submodule(member.name)
        if getattr(layer, "groups", 1) != 1 or getattr(layer, "transposed", False):
            raise ValueError(f"fold: {member.name!r} is a grouped or transposed convolution; its bias cannot take up a channel's mean")
        gone = torch.isin(member.units, units)
        columns, mean = member.index[gone], means[member.units[gone]]
        by_column = layer.weight.flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight
        shift = (by_column[:, columns].sum(2) * mean).sum(1)  # (out,)
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift)


# --- 5 VGG ------------------------------------------------------------------------------------------------------------------------------------------


def leading_layers(model: nn.Module, example: Any, share: float = 0.9) -> list[str]:
    """The first convolutions, as many as hold ``share`` of all MACs: those worth pruning for speed (of VGG-16, conv1-1 … conv4-3)."""
    counts = macs_by_layer(model, example)
    total, names, so_far = sum(counts.values()), [], 0
    for name, module in model.named_modules():
        if isinstance(module, CONV) and name in counts and so_far < share * total:
            names.append(name)
            so_far += counts[name]
    return names


def head_to_gap(model: nn.Module, example: Any) -> nn.Module:
    """A VGG-like net (`features`, a sequence with convolutions; then a `classifier` of linear layers) with global average pooling and one fresh linear
    layer in the head's place. A copy; the convolutions stay the same to the last bit. ValueError: another kind of net."""
    features, head = getattr(model, "features", None), getattr(model, "classifier", None)
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)] if isinstance(head, nn.Module) else []
    convolutions = [m for m in features.modules() if isinstance(m, CONV)] if isinstance(features, nn.Sequential) else []
    if not linear or not convolutions:
        raise ValueError(f"model: `features`, a sequence with convolutions, and a `classifier` with linear layers are needed; {type(model).__name__} lacks them")
    pooled = copy.deepcopy(model)
    pooled.features.append(nn.AdaptiveAvgPool2d(1))
    if hasattr(pooled, "avgpool"):  # torchvision's VGG would blow the pooled map up again
        pooled.avgpool = nn.Identity()
    pooled.classifier = nn.Linear(convolutions[-1].out_channels, linear[-1].out_features)
    check_runs(pooled, example)
    return pooled
