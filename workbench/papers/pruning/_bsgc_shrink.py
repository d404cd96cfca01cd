"""The compressing side of BSGC: what a channel costs, the proximal step that switches channels off, and how they are then really taken out.

    batch-norm scales γ ──prox──► some are exactly 0 ──► such a channel sends a constant ──► folded into whoever reads it ──► `remove`
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...contracts.structure.channels import ChannelGroup, Member, channel_groups
from ...contracts.structure.macs import macs_by_layer
from ...contracts.structure.surgery import remove
from ...contracts.structure.trace import CONV, forward

Live = Mapping[str, Tensor]  # group name -> bool (size,): the channels that carry something


def prunable(model: nn.Module, example) -> list[ChannelGroup]:
    """The groups that one layer writes (residual streams keep their channels). ValueError: none."""
    groups = [group for group in channel_groups(model, example) if not group.coupled]
    if not groups:
        raise ValueError("model: no layer's channels can be removed: all are residual streams, inputs or outputs")
    return groups


def scales(group: ChannelGroup) -> nn.Parameter | None:
    """γ of the first batch norm of the group (None: it has none, and the filters themselves are shrunk)."""
    norms = [member.module for member in group.norms if getattr(member.module, "weight", None) is not None]
    return norms[0].weight if norms else None


def strength(group: ChannelGroup) -> Tensor:
    """(size,): |γ|, or, where no batch norm follows, ‖filter‖₂ by the layer's mean: what the proximal step shrinks."""
    gamma = scales(group)
    if gamma is not None:
        return gamma.detach().abs()
    lengths = _lengths(group)
    return lengths / lengths.mean().clamp_min(1e-12)


def _lengths(group: ChannelGroup) -> Tensor:
    return sum(group.spread(member, member.weights().square().sum(1)) for member in group.producers).sqrt()


def alive(groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Which channels are not switched off; a group keeps its strongest one in any case."""
    live = {}
    for group in groups:
        live[group.name] = strength(group) > 0
        live[group.name][int(strength(group).argmax())] = True
    return live


# ---------------------------------------------------------------------------------------------------------------- counting

class Counter:
    """Parameters and MACs of the rebuilt network, from the live channels alone, exactly: both are proportional to a layer's inputs and to its outputs."""

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], example):
        self.groups, self.macs_of = groups, macs_by_layer(model, example)
        self.sides: dict[str, dict[str, list[tuple[str, Member]]]] = {}
        for group in groups:
            for member in group.members:
                side = "in" if member.role == "consumer" else "out"
                self.sides.setdefault(member.name, {"in": [], "out": []})[side].append((group.name, member))
        self.layers = {name: module for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}

    def shares(self, name: str, live: Live) -> tuple[float, float]:
        """The shares of a layer's inputs and outputs that stay."""
        found = []
        for side in ("in", "out"):
            members = self.sides.get(name, {}).get(side, [])
            gone = sum(int((~live[group][member.units]).sum()) * member.index.shape[1] for group, member in members)
            found.append(1 - gone / self.width(name, side) if members else 1.0)
        return found[0], found[1]

    def width(self, name: str, side: str) -> int:
        module = self.layers[name]
        if isinstance(module, CONV):
            return module.in_channels if side == "in" else module.out_channels
        if isinstance(module, nn.Linear):
            return module.in_features if side == "in" else module.out_features
        return len(module.weight)

    def of_layer(self, name: str, live: Live, currency: str) -> float:
        """A layer's parameters or MACs."""
        inputs, outputs = self.shares(name, live) if name in self.layers else (1.0, 1.0)
        if currency == "macs":
            return self.macs_of.get(name, 0) * inputs * outputs
        return sum(p.numel() * outputs * (inputs if leaf == "weight" else 1) for leaf, p in self.layers[name].named_parameters(recurse=False)) \
            if name in self.layers else 0.0

    def total(self, live: Live, currency: str) -> int:
        """``currency``: ``parameters`` or ``macs``."""
        return round(sum(self.of_layer(name, live, currency) for name in {*self.layers, *self.macs_of}))

    def costs(self, live: Live, currency: str) -> dict[str, float]:
        """Group → c_l: what the network saves without one of its channels, given which neighbours are alive; normalised to a sum of 1 over groups."""
        found = {}
        for group in self.groups:
            less = dict(live)
            less[group.name] = live[group.name].clone()
            less[group.name][int(live[group.name].nonzero()[0])] = False
            found[group.name] = sum(self.of_layer(name, live, currency) - self.of_layer(name, less, currency) for name in {m.name for m in group.members})
        total = sum(found.values())
        return {name: value / total for name, value in found.items()}


# ---------------------------------------------------------------------------------------------------------------- switching off

def soft_threshold(values: Tensor, by: float) -> Tensor:
    """The proximal operator of ``by``·|·|: sign(v)·max(|v| − by, 0). It ends in zeros that are exact."""
    return values.sign() * (values.abs() - by).clamp_min(0)


@torch.no_grad()
def shrink(groups: Sequence[ChannelGroup], by: Mapping[str, float], operator=soft_threshold) -> None:
    """One proximal step, in place: γ of every channel, or the length of its filter where there is no batch norm, gets shorter by ``by[group]``."""
    for group in groups:
        gamma = scales(group)
        if gamma is not None:
            gamma.copy_(operator(gamma, by[group.name]))
            continue
        now = strength(group)
        factor = operator(now, by[group.name]) / now.clamp_min(1e-12)
        for member in group.producers:
            weight, rows = member.module.weight, member.index
            for column in range(rows.shape[1]):
                weight[rows[:, column]] *= factor[member.units].view(-1, *[1] * (weight.dim() - 1))
            if member.module.bias is not None:  # a channel that is off must not go on through its bias
                member.module.bias[rows[:, 0]] *= (factor[member.units] > 0).to(weight.dtype)


# ---------------------------------------------------------------------------------------------------------------- taking out

@dataclass(frozen=True)
class Reading:
    """How a layer reads a channel that is off: the constant that comes in, and what it adds to each output away from the border (outputs,)."""

    consumer: nn.Module
    norm: nn.Module | None
    constant: float
    adds: Tensor
    jump: float  # the most that this may change an output, in its standard deviations: at a zero-padded border, or where the channel is not constant after all


@torch.no_grad()
def readings(model: nn.Module, groups: Sequence[ChannelGroup], off: Mapping[str, Tensor], example) -> list[tuple[str, int, list[Reading]]]:
    """(group, channel, how each layer reads it) for the channels ``off``. What they send is seen in one forward pass: behind γ = 0 it is the same everywhere, and
    stays so through any activation and pooling (not through a depthwise convolution's padding, nor where a second batch norm reads the same channel)."""
    consumers = {member.name: member.module for group in groups if len(off.get(group.name, ())) for member in group.consumers}
    seen: dict[str, Tensor] = {}
    written: dict[int, nn.Module] = {}  # id of a layer's output -> the batch norm that reads it
    kept: list[Tensor] = []

    def look(name):
        def hook(module, inputs, output):
            seen[name] = inputs[0]
            kept.append(output)  # alive, so that no other tensor gets its id
            written[id(output)] = module
        return hook

    after: dict[nn.Module, nn.Module] = {}

    def follow(module, inputs):
        if id(inputs[0]) in written:
            after[written[id(inputs[0])]] = module

    hooks = [module.register_forward_hook(look(name)) for name, module in consumers.items()]
    hooks += [m.register_forward_pre_hook(follow) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {module: module.training for module in model.modules()}
    try:
        forward(model.eval(), example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    found = []
    for group in groups:
        for unit in torch.as_tensor(off.get(group.name, ())).tolist():
            read = []
            for member in group.consumers:
                slot = (member.units == unit).nonzero().flatten()
                if len(slot):
                    columns = member.index[slot[0]]
                    read += [_reading(member.module, after.get(member.module), seen[member.name], int(column)) for column in columns]
            found.append((group.name, unit, read))
    return found


def _reading(consumer: nn.Module, norm: nn.Module | None, inputs: Tensor, column: int) -> Reading:
    weight = consumer.weight.detach()
    if isinstance(consumer, CONV) and (consumer.groups > 1 or consumer.transposed):
        raise ValueError("model: a grouped or transposed convolution reads channels that batch norm switches off; what they send cannot be folded there")
    taps = weight[:, column].reshape(len(weight), -1)
    sent = inputs.select(1 if isinstance(consumer, CONV) else -1, column)
    constant = float(sent[(0, *(size // 2 for size in sent.shape[1:]))])        # away from every border
    spread = (norm.running_var + norm.eps).sqrt() if norm is not None else torch.ones(len(taps))
    padded = isinstance(consumer, CONV) and any(p for p in consumer.padding if not isinstance(p, str))
    off = max(float((sent - constant).abs().max()), abs(constant) if padded else 0.0)
    return Reading(consumer, norm, constant, taps.sum(1) * constant, float((taps.abs().sum(1) / spread).max()) * off)


@torch.no_grad()
def fold(read: Sequence[Reading]) -> None:
    """Adds what a channel's constant adds to its readers: to their bias, or to the mean that the batch norm behind them subtracts. Exact away from padded borders."""
    for reading in read:
        if reading.norm is not None:
            reading.norm.running_mean -= reading.adds
        elif reading.consumer.bias is not None:
            reading.consumer.bias += reading.adds
        else:
            reading.consumer.bias = nn.Parameter(reading.adds.clone())


def take_out(model: nn.Module, off: Mapping[str, Tensor], example, outgoing: float = float("inf"), folding=fold, surgery=remove) -> tuple[nn.Module, float]:
    """A smaller copy of ``model`` without the channels ``off``, whose constants are folded; and the largest jump at a border that this made, in standard deviations.
    A channel that would make one above ``outgoing`` stays."""
    model = copy.deepcopy(model)
    groups = prunable(model, example)
    drop: dict[str, list[int]] = {}
    largest = 0.0
    for name, unit, read in readings(model, groups, off, example):
        jump = max((reading.jump for reading in read), default=0.0)
        if jump <= outgoing:
            folding(read)
            drop.setdefault(name, []).append(unit)
            largest = max(largest, jump)
    return (surgery(model, drop, example, groups) if drop else model), largest
