"""Structural surgery: choose channels by their scores and really take them out.

    groups = channel_groups(model, example)                       # one ChannelGroup per coupled set of channels
    scores = {g.name: sum(g.spread(m, m.weights().abs().sum(1)) for m in g.producers) for g in groups}   # L1: one number a unit
    drop = select(groups, scores, model, example, ratio=.5)       # {group name: units}, half of the multiply–accumulates
    small = remove(model, drop, example, groups)                  # a deep copy whose tensors are smaller
    reestimate_batchnorm(small, images)                           # before judging a net that is not fine-tuned
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .channels import ChannelGroup, Member, channel_groups, left_alone
from .macs import check_runs, macs, macs_by_layer, parameters
from .trace import CONV, forward, shape_text

__all__ = [
    "ChannelGroup", "Member", "channel_groups", "forward", "left_alone", "macs", "macs_by_layer", "mask", "parameters", "reestimate_batchnorm",
    "remove", "select",
]

Drop = Mapping[str, Sequence[int] | Tensor]
FIXED, EMPTY = {type(None), bool, int, float, str, torch.dtype}, {dict, list, set, OrderedDict}


# ---------------------------------------------------------------------------------------------------------------- removing

def _axes(member: Member, module) -> tuple[dict[str, int], tuple[str, ...]]:
    """The layer's tensors with the dimension that holds the member's channels, and the attributes that count them."""
    if isinstance(module, nn.Parameter):
        return {"": member.dim}, ()
    if member.role == "consumer":
        return ({"weight": 0 if getattr(module, "transposed", False) else 1}, ("in_channels" if isinstance(module, CONV) else "in_features",))
    if member.role == "producer":
        return ({"weight": 1 if getattr(module, "transposed", False) else 0, "bias": 0},
                ("out_channels" if isinstance(module, CONV) else "out_features",))
    if member.role == "depthwise":
        return {"weight": 0, "bias": 0}, ("in_channels", "out_channels", "groups")
    if isinstance(module, nn.Embedding):
        return {"weight": 1}, ("embedding_dim",)
    counts = tuple(a for a in ("num_features", "num_channels", "normalized_shape", "num_parameters") if hasattr(module, a))
    return {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0}, counts


def _cuts(member: Member, module, gone: Tensor) -> Iterator[tuple[str, Tensor, int, Tensor]]:
    """(name, tensor, dimension, entries to go, ascending) of the layer's tensors that exist."""
    for name, dim in _axes(member, module)[0].items():
        tensor = getattr(module, name, None) if name else module
        if tensor is not None:
            width = tensor.shape[dim]  # columns of a grouped convolution: its first group stands for all
            yield name, tensor, dim, gone if gone[-1] < width else gone[gone < width]


def _doomed(drop: Drop, groups: Sequence[ChannelGroup], model: nn.Module, example) -> list[tuple[Member, Tensor]]:
    """(member, its channels to go), one entry per layer and side."""
    known = {g.name: g for g in groups}
    found: dict[tuple[str, str], tuple[Member, list[Tensor]]] = {}
    for name, units in drop.items():
        if name not in known:
            reason = left_alone(model, example).get(name, f"the groups are {', '.join(known)}")
            raise ValueError(f"drop: {name!r} is no prunable group: {reason}")
        group, units = known[name], sorted(set(units.tolist() if isinstance(units, Tensor) else map(int, units)))
        if units and not 0 <= units[0] <= units[-1] < group.size:
            raise ValueError(f"drop: {name!r} has units 0 … {group.size - 1}, found {units[0]} … {units[-1]}")
        if len(units) >= group.size:
            raise ValueError(f"drop: {name!r} would lose all of its {group.size} channels; at least one must stay")
        going = torch.zeros(group.size, dtype=torch.bool)
        going[units] = True
        for member in group.members:
            found.setdefault((member.name, member.role), (member, []))[1].append(member.index[going[member.units]].flatten())
    gone = ((member, torch.cat(parts).unique() if len(parts) > 1 else parts[0].sort().values) for member, parts in found.values())
    return [(member, channels) for member, channels in gone if len(channels)]


def _part(modules: Mapping[str, nn.Module], name: str) -> nn.Module | nn.Parameter:
    """The layer or bare parameter of this name."""
    if name in modules:
        return modules[name]
    path, _, leaf = name.rpartition(".")
    return modules[path]._parameters[leaf]


def _rest(count: int, gone: Tensor) -> Tensor:
    stays = torch.ones(count, dtype=torch.bool)
    stays[gone] = False
    return stays.nonzero().flatten()


def remove(model: nn.Module, drop: Drop, example, groups: Sequence[ChannelGroup] | None = None) -> nn.Module:
    """A deep copy without the units ``{group name: indices}``; its tensors are smaller. ``groups``: those of ``model``, to save a trace.

    ValueError: unknown group, index out of range, a group that would lose everything, a model whose code fixes the number of channels.
    """
    groups = groups or channel_groups(model, example) if drop else ()
    small = _removed(model, drop, groups, example)
    try:
        if drop:
            check_runs(small, example)
    except ValueError as error:
        guilty = [name for name in drop if not _runs(_removed(model, {name: drop[name]}, groups, example), example)]
        raise ValueError(f"model: its own code fixes the number of channels of {', '.join(guilty or drop)} ({error.__cause__}); "
                         "name that in `ignore`") from error
    return small


def _removed(model: nn.Module, drop: Drop, groups: Sequence[ChannelGroup], example) -> nn.Module:
    modules = dict(model.named_modules())
    doomed = _doomed(drop, groups, model, example)
    smaller: dict[int, Tensor] = {}
    for member, gone in doomed:
        rests: dict[int, Tensor] = {}
        for _, tensor, dim, out in _cuts(member, _part(modules, member.name), gone):
            now = smaller.get(id(tensor), tensor).detach()
            count = now.shape[dim]
            rest = rests[count] if count in rests else rests.setdefault(count, _rest(count, out).to(now.device))
            smaller[id(tensor)] = now.index_select(dim, rest)
    for p in model.parameters():
        if id(p) in smaller:
            smaller[id(p)] = nn.Parameter(smaller[id(p)], p.requires_grad)
    small = _copied(model, smaller)  # the memo: where the copy would put a copy of a tensor, it puts the smaller one
    modules = dict(small.named_modules())
    for member, gone in doomed:
        module = _part(modules, member.name)
        for count in _axes(member, module)[1]:
            old = getattr(module, count)
            setattr(module, count, (old[0] - len(gone),) if isinstance(old, tuple) else old - len(gone))
    return small


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """As ``copy.deepcopy(module, memo)``, five times faster on plain modules: what cannot change is shared, empty tables of hooks are made anew."""
    kind = type(module)
    if id(module) in memo:
        return memo[id(module)]
    if hasattr(kind, "__deepcopy__") or hasattr(kind, "__slots__") or not kind.__setstate__.__module__.startswith("torch.nn.modules"):
        return copy.deepcopy(module, memo)
    new = memo[id(module)] = kind.__new__(kind)
    state = new.__dict__
    for name, value in module.__dict__.items():
        of = type(value)
        if of in FIXED or (of is tuple and all(type(v) in FIXED for v in value)):
            state[name] = value
        elif of in EMPTY and not value:
            state[name] = of()
        elif name == "_modules":
            state[name] = of((key, None if child is None else _copied(child, memo)) for key, child in value.items())
        elif name in ("_parameters", "_buffers"):
            state[name] = of((key, _cloned(tensor, memo)) for key, tensor in value.items())
        else:
            state[name] = copy.deepcopy(value, memo)
    return new


def _cloned(tensor: Tensor | None, memo: dict[int, Any]) -> Tensor | None:
    if tensor is None:
        return None
    if id(tensor) not in memo:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.is_leaf and tensor.grad is None and not vars(tensor)
        copied = tensor.detach().clone() if plain else copy.deepcopy(tensor, memo)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if plain and type(tensor) is nn.Parameter else copied
    return memo[id(tensor)]


class _NormOfRest(nn.Module):
    """A normalisation whose statistics run over several channels, computed over those that stay only."""

    def __init__(self, norm: nn.Module, stays: Tensor):
        super().__init__()
        self.norm, self.stays, self.dim = norm, stays, -1 if isinstance(norm, nn.LayerNorm) else 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(self.dim, self.stays, self.norm(x.index_select(self.dim, self.stays)))


def mask(model: nn.Module, drop: Drop, example, groups: Sequence[ChannelGroup] | None = None) -> nn.Module:
    """A deep copy of the same shape in which the same units are zero: what :func:`remove` must equal. For checks, never for speed or size."""
    groups = groups or channel_groups(model, example) if drop else ()
    masked, small = copy.deepcopy(model), _removed(model, drop, groups, example)
    modules = dict(masked.named_modules())
    for member, gone in _doomed(drop, groups, model, example):
        module = _part(modules, member.name)
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            path, _, leaf = member.name.rpartition(".")
            count = module.normalized_shape[0] if isinstance(module, nn.LayerNorm) else module.num_channels
            setattr(masked.get_submodule(path), leaf, _NormOfRest(small.get_submodule(member.name), _rest(count, gone)))
            continue
        with torch.no_grad():
            for name, tensor, dim, out in _cuts(member, module, gone):
                tensor.index_fill_(dim, out, 1 if name == "running_var" else 0)
    return masked


def _runs(model: nn.Module, example) -> bool:
    try:
        check_runs(model, example)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------- choosing

class _Predictor:
    """MACs of the rebuilt net from the numbers of units removed, exactly: a layer's MACs are proportional to its inputs and to its outputs."""

    def __init__(self, groups: Sequence[ChannelGroup], layers: Mapping[str, int]):
        self.rest = dict(layers)
        self.layers: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
        self.width: dict[tuple[str, str], int] = {}
        for i, group in enumerate(groups):
            for m in group.members:
                if m.role in ("producer", "consumer", "depthwise") and m.name in layers:
                    side = "in" if m.role == "consumer" else "out"
                    conv = isinstance(m.module, CONV)
                    self.width[m.name, side] = getattr(m.module, f"{side}_{'channels' if conv else 'features'}")
                    held = torch.zeros(group.size, dtype=torch.long).index_fill(0, m.units, m.index.shape[1])
                    self.layers[m.name][side].append((i, held))
        self.fixed = sum(v for k, v in layers.items() if k not in self.layers)
        self.base = dict(layers)

    def __call__(self, gone: Sequence[Tensor]) -> int:
        """``gone[i]``: the units removed from group i."""
        total = self.fixed
        for name, sides in self.layers.items():
            value = self.base[name]
            for side, parts in sides.items():
                width = self.width[name, side]
                value = value * (width - sum(int(held[gone[i]].sum()) for i, held in parts)) // width
            total += value
        return total


def select(groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], model: nn.Module, example, ratio: float,
           mode: str = "global", round_to: int = 1) -> dict[str, Tensor]:
    """The units to drop, lowest scores first, so that a share ``ratio`` of the model's MACs goes: {group name: indices}.

    ``mode="global"``: one threshold over scores divided by their group's mean magnitude; ``"uniform"``: the same share of every group.
    ``round_to``: every pruned group keeps a multiple of it. The MACs of the rebuilt net come as near to the target as one unit allows.
    ValueError: ratio outside [0, 1), a ratio beyond the floor (one unit, or ``round_to``, left per group), scores of wrong shape or NaN.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio: share of the MACs to remove must lie in [0, 1), found {ratio}")
    if mode not in ("global", "uniform"):
        raise ValueError(f"mode: 'global' or 'uniform', found {mode!r}")
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to: a positive whole number, found {round_to!r}")
    scored = [g for g in groups if g.name in scores]
    if unknown := set(scores) - {g.name for g in groups}:
        raise ValueError(f"scores: no group is called {sorted(unknown)}; the groups are {[g.name for g in groups]}")
    if not scored:
        raise ValueError("scores: no group has one")
    ranks, times = [], []
    for group in scored:
        score = torch.as_tensor(scores[group.name]).detach().double().cpu()
        if score.shape != (group.size,) or not torch.isfinite(score).all():
            raise ValueError(f"scores: {group.name!r} needs {group.size} finite numbers, found shape {tuple(score.shape)}"
                             + ("" if torch.isfinite(score).all() else " with NaN or infinite values"))
        rank = score.argsort(stable=True)
        ranks.append(rank)
        times.append(score[rank] / score.abs().mean().clamp_min(1e-30) if mode == "global" else (torch.arange(group.size) + .5) / group.size)
    if not ratio:
        return {}
    owner = torch.repeat_interleave(torch.arange(len(scored)), torch.tensor([g.size for g in scored]))
    owner = owner[torch.cat(times).argsort(stable=True)]  # owner[n]: the group that loses its next unit in step n

    def gone(step: int) -> list[Tensor]:
        lost = torch.bincount(owner[:step], minlength=len(scored)).tolist()
        keep = [min(g.size, max(1, -(-(g.size - n) // round_to)) * round_to) for g, n in zip(scored, lost, strict=True)]
        return [rank[:g.size - k] for g, rank, k in zip(scored, ranks, keep, strict=True)]

    predict = _Predictor(scored, macs_by_layer(model, example))
    dense = predict(gone(0))
    target, low, high = (1 - ratio) * dense, 0, len(owner)
    if (floor := predict(gone(high))) > target:
        raise ValueError(f"ratio: {ratio} of {dense} MACs cannot be removed; the floor, {round_to} channel(s) left in each of "
                         f"{len(scored)} groups, removes {1 - floor / dense:.3f}")
    while high - low > 1:  # predict(gone(low)) > target >= predict(gone(high))
        middle = (low + high) // 2
        low, high = (low, middle) if predict(gone(middle)) <= target else (middle, high)
    best = min((low, high), key=lambda step: abs(predict(gone(step)) - target))
    return {g.name: units.sort().values for g, units in zip(scored, gone(best), strict=True) if len(units)}


# ---------------------------------------------------------------------------------------------------------------- statistics

@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, images: Tensor | Iterable[Tensor], batch: int = 128) -> None:
    """Replace the BatchNorm statistics by the mean over ``images`` (a tensor, cut into batches, or batches), in place; leaves eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    model.eval()
    if not norms:
        return
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # cumulative average
        m.train()
    seen = 0
    try:
        for seen, x in enumerate(images.split(batch) if isinstance(images, Tensor) else images, 1):
            forward(model, x)
    except RuntimeError as error:
        raise ValueError(f"images: batch {seen} of {shape_text(x)} does not fit the model: {error}") from error
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        model.eval()
    if not seen:
        raise ValueError("images: no batch to estimate the BatchNorm statistics from")
