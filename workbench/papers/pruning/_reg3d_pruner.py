"""Pruning while training: groups of weights, layer ratios, and the schedule that fades groups out. See :mod:`.reg3d` for the idea.

    attach(optimizer)     before each of its steps λ_g W_g is added to the gradient; behind it the removed groups are put back to zero
    step()                once a training step: every `interval` steps ranks → averaged ranks → Δλ → λ; groups at the target go for good
    finish()              what is left, really smaller
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts.files.artifact import ArtifactError, read, save
from ...contracts.structure.channels import ChannelGroup, check_finite
from ...contracts.structure.surgery import channel_groups, macs_by_layer, remove
from ...contracts.structure.trace import CONV
from . import inside_blocks
from ._reg3d_columns import gather
from ._reg3d_rules import averaged, cost_aware, quotas, redundancy, symmetric
from .granularity import macs_left

KINDS = ("column", "filter", "channel")


@dataclass(frozen=True)
class Slab:
    """A tensor's share of a layer's groups: ``shape`` has the tensor's size where groups differ and 1 elsewhere, ``unit`` (numel of shape,) says which group
    stands there; ``counts``: whether its weights enter the group's importance (a filter's batch-norm and depthwise entries fade along, but do not count)."""

    tensor: nn.Parameter
    shape: tuple[int, ...]
    unit: Tensor
    counts: bool = True

    def spread(self, values: Tensor) -> Tensor:
        return values[self.unit].view(self.shape).to(self.tensor)


@dataclass
class Layer:
    """The groups of one layer with their state: factor λ, averaged rank h, and whether they are still there; ``quota``: how many must go."""

    name: str
    slabs: list[Slab]
    quota: int = 0
    factor: Tensor = field(default=None)
    history: Tensor = field(default=None)
    alive: Tensor = field(default=None)

    def __post_init__(self):
        size = int(self.slabs[0].unit.max()) + 1
        self.factor, self.history, self.alive = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.bool)

    @property
    def size(self) -> int:
        return len(self.alive)

    @property
    def open(self) -> int:
        """How many groups must still go."""
        return self.quota - int((~self.alive).sum())

    @torch.no_grad()
    def importance(self) -> Tensor:
        """(groups,) L1 norm of each group."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for slab in self.slabs:
            if slab.counts:
                other = [d for d, n in enumerate(slab.shape) if n == 1]
                norm = slab.tensor.abs().sum(other) if other else slab.tensor.abs()
                total.index_add_(0, slab.unit, norm.flatten().double().cpu())
        return total

    @torch.no_grad()
    def zero(self) -> None:
        """Puts the groups that are gone to zero."""
        if not bool(self.alive.all()):
            for slab in self.slabs:
                slab.tensor.mul_(slab.spread(self.alive.float()))


def find_layers(model: nn.Module, example, kind: str) -> list[Layer]:
    """The layers that can lose groups. Columns: every plain convolution; filters and channels: the channel groups outside residual streams.

    ValueError: an unknown kind, no convolution, a grouped or transposed one in column mode, one that reads pruned channels in channel mode.
    """
    if kind not in KINDS:
        raise ValueError(f"group: one of {', '.join(KINDS)}, found {kind!r}")
    check_finite(model)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, CONV)}
    if not convs:
        raise ValueError("model: it has no convolution, so there is no group of weights to prune")
    if kind == "column":
        odd = [name for name, m in convs.items() if m.groups > 1 or m.transposed]
        if odd:
            raise ValueError(f"group: columns need plain convolutions; {', '.join(odd)} is grouped or transposed (group='filter' works)")
        return [Layer(name, [Slab(m.weight, (1, *m.weight.shape[1:]), torch.arange(m.weight[0].numel()))]) for name, m in convs.items()]
    groups = inside_blocks(channel_groups(model, example))
    odd = sorted({m.name for g in groups for m in g.consumers if isinstance(m.module, CONV) and (m.module.groups > 1 or m.module.transposed)})
    if kind == "channel" and odd:
        raise ValueError(f"group: channels need readers that are plain convolutions or linear layers; {', '.join(odd)} is grouped or transposed (group='filter' works)")
    return [Layer(g.name, _slabs(g, kind)) for g in groups]


def _slabs(group: ChannelGroup, kind: str) -> list[Slab]:
    found = []
    for member in group.producers + group.depthwise + group.norms if kind == "filter" else group.consumers:
        unit = torch.zeros(int(member.index.max()) + 1, dtype=torch.long)
        unit[member.index.flatten()] = member.units.repeat_interleave(member.index.shape[1])
        for name in ("weight", "bias") if kind == "filter" else ("weight",):
            tensor = getattr(member.module, name, None)
            if tensor is not None:
                dim = 0 if kind == "filter" else 1
                shape = tuple(len(unit) if d == dim else 1 for d in range(tensor.dim()))
                found.append(Slab(tensor, shape, unit, counts=name == "weight" and member.role == ("producer" if kind == "filter" else "consumer")))
    return found


# --- pruning while training -----------------------------------------------------------------------------------------------------------------------


class Pruner:
    """What every schedule here shares: the groups, how many of each layer go, permanent zeros, the smaller network at the end.

    ``measure``: a function that returns a loss; it is called before and after each removal, and the difference is noted in ``damage``.
    """

    def __init__(self, model: nn.Module, example, speedup: float = 2.0, group: str = "column", ratios: Callable = cost_aware, first: float = 0.5,
                 measure: Callable[[], float] | None = None, compact: Callable[[nn.Module], nn.Module] = gather):
        if not speedup >= 1:
            raise ValueError(f"speedup: at least 1, found {speedup}")
        self.model, self.example, self.kind, self.measure, self.compact = model, example, group, measure, compact
        self.layers = find_layers(model, example, group)
        counts = macs_by_layer(model, example)
        dense = {layer.name: counts[layer.name] for layer in self.layers}
        total = sum(counts[name] for name, m in model.named_modules() if isinstance(m, CONV))
        convs = {layer.name: model.get_submodule(layer.name) for layer in self.layers}
        wanted = ratios(np.array([redundancy(m.weight) for m in convs.values()]), np.array(list(dense.values()), float))
        wanted[0] *= first
        if group == "column":
            share = np.array(list(dense.values())) / total
            def cost(gone):
                return 1 - float(share @ gone)
        else:
            groups, layers = inside_blocks(channel_groups(model, example)), {name: n for name, n in counts.items() if isinstance(model.get_submodule(name), CONV)}
            def cost(gone):
                return macs_left(groups, layers, {g.name: float(s) for g, s in zip(groups, gone, strict=True)}) / total
        for layer, quota in zip(self.layers, quotas(wanted, [layer.size for layer in self.layers], cost, speedup), strict=True):
            layer.quota = int(quota)
        self.iteration, self.damage = 0, []

    @property
    def done(self) -> bool:
        return all(layer.open <= 0 for layer in self.layers)

    def attach(self, optimizer: torch.optim.Optimizer) -> Pruner:
        """From now on the optimizer's steps pull at the groups and keep what is gone at zero."""
        optimizer.register_step_pre_hook(lambda *_: self.pull())
        optimizer.register_step_post_hook(lambda *_: self.hold())
        return self

    def pull(self) -> None:
        """Adds the penalty's gradient (nothing here)."""

    def hold(self) -> None:
        for layer in self.layers:
            layer.zero()

    def step(self) -> None:
        """Once behind each training step."""
        self.iteration += 1

    def take(self, chosen: Mapping[str, Tensor]) -> None:
        """Removes groups (layer → indices) for good."""
        before = self.measure() if self.measure else 0.0
        for layer in self.layers:
            if layer.name in chosen:
                layer.alive[chosen[layer.name]] = False
        self.hold()
        if self.measure:
            self.damage.append(self.measure() - before)

    def finish(self) -> nn.Module:
        """What is left as a network of its own: dead channels, filters and slices taken out, columns gathered."""
        return self.compact(self.masked()) if self.kind == "column" else self.masked()

    def masked(self) -> nn.Module:
        """The network with ordinary convolutions (zeros where columns went), without the channels that nothing reads any more (or all of whose filters went)."""
        model = copy.deepcopy(self.model).eval()
        try:
            groups = inside_blocks(channel_groups(model, self.example))
        except ValueError:  # a single layer, say: no channel could go
            return model
        state = {layer.name: layer for layer in self.layers}
        drop = {}
        for group in groups:
            dead = ~state[group.name].alive if self.kind != "column" else unread(group)
            units = dead.nonzero().flatten()[:group.size - 1]
            if len(units):
                drop[group.name] = units
        return remove(model, drop, self.example, groups)


def unread(group: ChannelGroup) -> Tensor:
    """(size,) bool: the units all of whose columns are gone in every layer that reads them."""
    return sum(group.spread(m, (m.weights() != 0).any(1).double()) for m in group.consumers) == 0


class RegPruner(Pruner):
    """3D-Reg: a factor per group that rises or falls with the group's averaged rank.

    A: the increment of the least important group; target: the factor at which a group goes; deadline: the iteration at which what is still due goes at once
    (None: no limit). ``average``, ``increment`` and ``sign`` are the parts that ablations replace (``sign=-1``: reversed ranks).
    """

    def __init__(self, model: nn.Module, example, speedup: float = 2.0, group: str = "column", A: float = 2.5e-4, target: float = 2.5, interval: int = 1,
                 deadline: int | None = None, average: Callable = averaged, increment: Callable = symmetric, sign: int = 1, **settings):
        super().__init__(model, example, speedup, group, **settings)
        for name, value in (("A", A), ("target", target), ("interval", interval)):
            if not value > 0:
                raise ValueError(f"{name}: a positive number, found {value}")
        self.A, self.target, self.interval, self.deadline = A, target, interval, deadline
        self.average, self.increment, self.sign, self.forced, self.trail = average, increment, sign, 0, []

    @torch.no_grad()
    def pull(self) -> None:
        """∂/∂W of ½ Σ λ_g ‖W_g‖²."""
        for layer in self.layers:
            if layer.factor.any():
                for slab in layer.slabs:
                    if slab.tensor.grad is not None:
                        slab.tensor.grad.addcmul_(slab.spread(layer.factor).expand_as(slab.tensor), slab.tensor)

    def step(self) -> None:
        self.iteration += 1
        if self.iteration % self.interval or self.done:
            return
        n, chosen = self.iteration // self.interval, {}
        late = self.deadline is not None and self.iteration >= self.deadline
        for layer in self.layers:
            if layer.open <= 0:
                layer.factor.zero_()
                continue
            order = self.rank(layer, n)
            layer.factor[order] = (layer.factor[order] + self.increment(torch.arange(len(order), dtype=torch.float64), layer.open, self.A)).clamp_min(0)
            ripe = order if late else order[layer.factor[order] >= self.target]
            if len(ripe):
                chosen[layer.name] = ripe[:layer.open]
                self.forced += int((layer.factor[chosen[layer.name]] < self.target).sum())
        self.trail.append({layer.name: layer.factor.clone() for layer in self.layers})
        if chosen:
            self.take(chosen)

    def rank(self, layer: Layer, n: int) -> Tensor:
        """The groups left, least important first, by averaged rank."""
        left = layer.alive.nonzero().flatten()
        rank = (self.sign * layer.importance()[left]).argsort(stable=True).argsort().double()
        layer.history[left] = self.average(layer.history[left], rank, n)
        return left[layer.history[left].argsort(stable=True)]

    def save(self, path: str | Path) -> int:
        """λ, averaged ranks and what is gone, in one file; bytes."""
        tensors = {f"{layer.name}/{part}": getattr(layer, part) for layer in self.layers for part in ("factor", "history", "alive")}
        return save(path, tensors, {"iteration": self.iteration, "group": self.kind, "quota": {layer.name: layer.quota for layer in self.layers}})

    def restore(self, path: str | Path) -> RegPruner:
        """Goes on where `save` stopped, on the same network. ArtifactError: damaged; ValueError: of other layers or another kind of group."""
        artifact = read(path)
        try:
            meta, parts = artifact.meta, {layer.name: [artifact.tensors[f"{layer.name}/{p}"] for p in ("factor", "history", "alive")] for layer in self.layers}
            fits = meta["group"] == self.kind and all(len(t) == layer.size for layer in self.layers for t in parts[layer.name])
            iteration, quota = int(meta["iteration"]), {layer.name: int(meta["quota"][layer.name]) for layer in self.layers}
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: no state of a RegPruner of this network: {error}") from error
        if not fits:
            raise ValueError(f"path: {path} holds groups of another kind or network")
        for layer in self.layers:
            (layer.factor, layer.history, layer.alive), layer.quota = parts[layer.name], quota[layer.name]
        self.iteration = iteration
        self.hold()
        return self
