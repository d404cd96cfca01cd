"""What is taken out, and how much of it where: single weights, kernel rows, kernels, strided positions, channels, residual blocks, channels per image.

    criterion ──► one value per unit ──► allocation: how many units each layer loses ──► zeros (stored sparsely) or smaller tensors

Only channels and blocks make the dense network smaller; the rest leaves zeros, whose gain is bytes (`contracts.files.sparse`), not multiply–accumulates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.files.sparse import save_sparse
from ...contracts.model import inputs_and_labels
from ...contracts.structure.channels import ChannelGroup, channel_groups, check_finite
from ...contracts.structure.surgery import forward, macs_by_layer, reestimate_batchnorm, remove
from . import Pruned, inside_blocks
from .classics import LAYERS
from .classics_of_data import batches, criterion

ZEROS = ("weight", "row", "kernel", "strided")
GRANULARITIES = (*ZEROS, "channel", "block")
ALLOCATIONS = ("uniform", "global", "sensitivity", "searched")


@dataclass
class Sparse(Pruned):
    """A network with zeros; ``masks``: layer name -> bool like its weight, True where the weight stays. Its file is a sparse one."""

    masks: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> int:
        return save_sparse(path, self.model)


@dataclass(frozen=True)
class Pruner:
    """One-shot pruning: criterion × granularity × allocation. ``inverted`` (to be wrong on purpose) removes what is worth most."""

    criterion: object = "taylor"
    granularity: str = "channel"
    allocation: str = "uniform"
    inverted: bool = False

    def __post_init__(self):
        for name, allowed in (("granularity", GRANULARITIES), ("allocation", ALLOCATIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        criterion(self.criterion)
        if self.granularity in ZEROS and self.allocation not in ("uniform", "global"):
            raise ValueError(f"allocation: 'uniform' or 'global' for the granularity {self.granularity!r}, found {self.allocation!r}")

    @property
    def mode(self) -> str:
        """What the model contract calls the allocation."""
        return "uniform" if self.allocation == "uniform" else "global"

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        """{group name: (size,)}; higher is kept."""
        return {name: -value if self.inverted else value for name, value in criterion(self.criterion).scores(groups, model, data).items()}

    def apply(self, model: nn.Module, ratio: float, data: Iterable | None = None, example=None, validation: Iterable | None = None,
              known: Mapping[str, Tensor] | None = None) -> Pruned:
        """A pruned copy: a share ``ratio`` of the units of each layer (or of all) is gone. ``validation``: what allocations are judged on;
        ``known``: channel scores that were computed before.

        ValueError: ratio outside [0, 1), data missing that the criterion needs, a granularity that no layer of the model has.
        """
        check_ratio(ratio)
        check_finite(model)
        if example is None and data is not None:
            example, _ = next(batches(data, "example", labels=False))
        if self.granularity in ZEROS:
            return self.zeros(model, ratio, data)
        if example is None:
            raise ValueError("example: hand in a batch of inputs, or data")
        if self.granularity == "block":
            return self.blocks(model, ratio, data, example)
        groups = inside_blocks(channel_groups(model, example))
        scores = known or self.scores(groups, model, data)
        counts = allocate(self.allocation, groups, scores, ratio, model, example, validation or data) if ratio else {}
        drop = {g.name: scores[g.name].argsort(stable=True)[:counts[g.name]] for g in groups if counts.get(g.name)}
        return Pruned(self.cut(model, drop, example, groups, data), {"kept": percent(1 - counts.get(g.name, 0) / g.size for g in groups)})

    def cut(self, model, drop, example, groups, data) -> nn.Module:
        """Repaired where the criterion knows how to (least squares), then really smaller."""
        repair = getattr(criterion(self.criterion), "repair", None)
        return remove(repair(model, drop, groups, data) if repair and drop else model, drop, example, groups)

    def blocks(self, model, ratio, data, example) -> Pruned:
        return drop_blocks(model, ratio, data, example)

    @torch.no_grad()
    def soften(self, model: nn.Module, ratio: float, example) -> dict[str, Tensor]:
        """Zero the lowest filters in place, for soft pruning: batch norm stays, else no gradient would reach them again. {layer name: filters}."""
        groups = inside_blocks(channel_groups(model, example))
        zeroed, scores = {}, self.scores(groups, model)
        for group in groups:
            units = lowest(scores[group.name], ratio)
            for member in group.producers:
                zeroed[member.name] = member.index[units[member.units]].flatten()
                model.get_submodule(member.name).weight[zeroed[member.name]] = 0
        return zeroed

    def zeros(self, model: nn.Module, ratio: float, data: Iterable | None) -> Sparse:
        chosen = criterion(self.criterion)
        if not hasattr(chosen, "saliency"):
            raise ValueError(f"granularity: {self.granularity!r} needs a criterion with a value per weight (l1, l2, obd, snip, random); "
                             f"{type(chosen).__name__} values whole channels")
        values = {name: -v if self.inverted else v for name, v in chosen.saliency(model, data).items()}
        masks = keep(values, ratio, self.granularity, self.allocation)
        zeroed = copy.deepcopy(model)
        apply_masks(zeroed, masks)
        return Sparse(zeroed, {"kept": percent(mask.float().mean().item() for mask in masks.values())}, masks=masks)


def check_ratio(ratio: float) -> None:
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio: share of the units to remove must lie in [0, 1), found {ratio}")


def percent(shares: Iterable[float]) -> np.ndarray:
    return np.array([round(100 * share) for share in shares], np.uint8)


# --- zeros --------------------------------------------------------------------------------------------------------------------------------------


def keep(values: Mapping[str, Tensor], ratio: float, granularity: str, allocation: str = "uniform") -> dict[str, Tensor]:
    """Layer name -> mask like its weight. ``uniform``: the same share of every layer, ``global``: one threshold for all.

    Rows, kernels and strided positions exist in layers with a spatial kernel only; others are left alone. ValueError: no such layer.
    """
    dims = {"weight": (), "row": (-1,), "kernel": (-2, -1)}.get(granularity, ())
    chosen = {name: v for name, v in values.items() if granularity == "weight" or v.dim() == 4 and v[0, 0].numel() > 1}
    if not chosen:
        raise ValueError(f"granularity: {granularity!r} needs a convolution with a kernel larger than 1×1; the model has none")
    if granularity == "strided":
        return {name: strided(v, ratio) for name, v in chosen.items()}
    units = {name: v.sum(dims, keepdim=True) if dims else v for name, v in chosen.items()}
    if allocation == "global":
        flags = lowest(torch.cat([v.flatten() for v in units.values()]), ratio).split([v.numel() for v in units.values()])
    else:
        flags = [lowest(v.flatten(), ratio) for v in units.values()]
    return {name: (~flag).view_as(v).expand_as(chosen[name]).clone() for (name, v), flag in zip(units.items(), flags, strict=True)}


def lowest(values: Tensor, ratio: float) -> Tensor:
    """True at the ``round(ratio·n)`` lowest; at least one stays."""
    gone = torch.zeros(len(values), dtype=torch.bool)
    gone[values.argsort(stable=True)[:min(round(ratio * len(values)), len(values) - 1)]] = True
    return gone


def strided(value: Tensor, ratio: float) -> Tensor:
    """Intra-kernel strided sparsity: of K kernel positions n stay, K/n apart; all filters that read one input channel share the best offset, so that
    whole columns of the convolution's matrix vanish (Anwar et al. 2017, section 3.2). (O, I, ky, kx) -> mask of that shape."""
    count = value[0, 0].numel()
    stay = max(1, round(count * (1 - ratio)))
    columns = value.flatten(2).sum(0)  # (I, K)
    grids = torch.stack([(torch.arange(stay) * count // stay + offset) % count for offset in range(count)])  # (offsets, n)
    best = grids[columns[:, grids].sum(2).argmax(1)]  # (I, n)
    return torch.zeros_like(columns, dtype=torch.bool).scatter(1, best, True).view(value.shape[1:]).expand_as(value).clone()


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero, in place, what the masks do not keep."""
    for name, mask in masks.items():
        model.get_submodule(name).weight.mul_(mask)


# --- allocation ---------------------------------------------------------------------------------------------------------------------------------


def allocate(how: str, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], ratio: float, model: nn.Module, example,
             data: Iterable | None) -> dict[str, int]:
    """Group name -> number of channels to drop; at least one stays in each."""
    if how == "uniform":
        shares = {g.name: ratio for g in groups}
    elif how == "global":
        flags = lowest(torch.cat([scores[g.name] / scores[g.name].abs().mean().clamp_min(1e-30) for g in groups]), ratio).split([g.size for g in groups])
        shares = {g.name: flag.double().mean().item() for g, flag in zip(groups, flags, strict=True)}
    else:
        data = [inputs_and_labels(batch) for batch in batches(data, f"allocation {how}")]
        shares = (sensitivity if how == "sensitivity" else searched)(groups, scores, ratio, model, example, data)
    return {g.name: min(round(shares[g.name] * g.size), g.size - 1) for g in groups}


@torch.no_grad()
def loss(model: nn.Module, data: Sequence[tuple]) -> float:
    """Mean cross-entropy, after batch-norm re-estimation on the same inputs."""
    reestimate_batchnorm(model, (inputs for inputs, _ in data))
    return float(sum(F.cross_entropy(forward(model, x), y, reduction="sum") for x, y in data) / sum(len(y) for _, y in data))


def _pruned_loss(groups, scores, shares, model, example, data) -> float:
    drop = {g.name: scores[g.name].argsort(stable=True)[:min(round(shares.get(g.name, 0) * g.size), g.size - 1)] for g in groups}
    return loss(remove(model, {name: units for name, units in drop.items() if len(units)}, example, groups), data)


def sensitivity(groups, scores, ratio, model, example, data) -> dict[str, float]:
    """Prune one layer at a time, note the loss, and let every layer go as far as the *same* rise of the loss allows (after Li et al. 2016, 3.2)."""
    at = np.array([0, 0.25, 0.5, 0.75, 0.95])
    base = loss(copy.deepcopy(model), data)
    rise = {g.name: np.maximum.accumulate([0, *(max(_pruned_loss(groups, scores, {g.name: s}, model, example, data) - base, 0) for s in at[1:])])
            for g in groups}
    low, high = 0.0, max(r[-1] for r in rise.values())
    for _ in range(40):
        level = (low + high) / 2
        shares = {name: float(np.interp(level, r + 1e-9 * at, at)) for name, r in rise.items()}
        removed = sum(shares[g.name] * g.size for g in groups) / sum(g.size for g in groups)
        low, high = (level, high) if removed < ratio else (low, level)
    return shares


def searched(groups, scores, ratio, model, example, data, policies: int = 24, seed: int = 0) -> dict[str, float]:
    """The best of random policies by its loss on validation data, all at the multiply–accumulates of the uniform one (which is among them)."""
    random, layers = np.random.default_rng(seed), macs_by_layer(model, example)
    target = macs_left(groups, layers, {g.name: ratio for g in groups})
    tried = [{g.name: ratio for g in groups}]
    for _ in range(policies - 1):
        weight, low, high = dict(zip([g.name for g in groups], random.uniform(0.1, 1, len(groups)), strict=True)), 0.0, 10.0
        for _ in range(30):
            scale = (low + high) / 2
            shares = {name: min(scale * w, 0.95) for name, w in weight.items()}
            low, high = (scale, high) if macs_left(groups, layers, shares) > target else (low, scale)
        tried.append(shares)
    return min(tried, key=lambda shares: _pruned_loss(groups, scores, shares, model, example, data))


def macs_left(groups: Sequence[ChannelGroup], layers: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """MACs of the rebuilt net: a layer's are proportional to the channels it reads and to those it writes."""
    left = dict.fromkeys(layers, 1.0)
    for group in groups:
        for name in {(m.name, m.role) for m in group.members if m.role in ("producer", "consumer", "depthwise")}:
            if name[0] in left:
                left[name[0]] *= 1 - min(round(shares[group.name] * group.size), group.size - 1) / group.size
    return sum(layers[name] * share for name, share in left.items())


# --- blocks -------------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def residual_blocks(model: nn.Module, example) -> list[str]:
    """Names of the parts that hand their input through when all their weights are zero: those can be dropped whole."""
    seen: dict[str, tuple] = {}
    parts = {name: m for name, m in model.named_modules() if name and any(isinstance(c, LAYERS) for c in m.modules()) and next(m.children(), None)}
    hooks = [m.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)})) for name, m in parts.items()]
    try:
        forward(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, (x, y) in seen.items():
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
            empty = copy.deepcopy(parts[name]).eval()
            for parameter in empty.parameters():
                parameter.zero_()
            for buffer in empty.buffers():  # running means, which nothing multiplies by zero
                buffer.copy_(torch.zeros_like(buffer))
            if torch.equal(empty(x), x):
                found.append(name)
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def drop_blocks(model: nn.Module, ratio: float, data: Iterable | None, example) -> Pruned:
    """Replace a share of the residual blocks, those whose loss rises least when they alone are gone, by nothing. ValueError: no residual block."""
    names = residual_blocks(model, example)
    if not names:
        raise ValueError("granularity: 'block' needs residual parts that keep the shape of their input; the model has none")
    count = min(round(ratio * len(names)), len(names) - 1)
    small = copy.deepcopy(model)
    if count:
        data = [inputs_and_labels(batch) for batch in batches(data, "block sensitivity")]
        rise = {name: loss(without(model, [name]), data) for name in names}
        small = without(model, sorted(names, key=rise.get)[:count])
    return Pruned(small, {"kept": percent([1 - count / len(names)])})


def without(model: nn.Module, names: Sequence[str]) -> nn.Module:
    small = copy.deepcopy(model)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(parent), leaf, nn.Identity())
    return small
