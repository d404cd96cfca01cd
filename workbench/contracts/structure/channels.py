"""Which channels of a network stand or fall together: read once from a traced forward pass, then only index arithmetic.

    conv A ──► BN ──► ReLU ──► conv B          group "A", size = A.out_channels
    rows of A  γ β             columns of B    producers │ norms │ consumers

A *unit* is what is removed at once: usually one channel; behind a grouped convolution one channel of each of its groups; before a flatten it
owns H·W columns of the linear layer. The edges come from torch-pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023, section 3); the
units are the connected components of the channels along them. A layer that cannot be pruned safely (network input and output, attention heads,
channel shuffles, …) is left out; :func:`left_alone` says why. Removing channels: :mod:`workbench.contracts.structure.surgery`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from .trace import CONV, OP, Pairs, Stays, Trace, dims_of, shape_of

NORM = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, eq=False)
class Member:
    """One layer's share of a group. ``index[i]`` are the channels (rows if it produces, columns if it consumes) of unit ``units[i]``."""

    name: str
    module: nn.Module | nn.Parameter
    role: str  # "producer" | "consumer" | "norm" | "depthwise" | "other" (embedding, PReLU, bare parameter)
    units: Tensor  # (u,) int64; all units in order, unless the layer feeds only a part of a concatenation
    index: Tensor  # (u, channels per unit) int64
    dim: int = 0  # of a bare parameter: its channel dimension

    def weights(self, tensor: Tensor | None = None) -> Tensor:
        """(u, n): every entry of the layer's weight that belongs to each unit (rows, columns, or γ); ``tensor``: another one of that shape."""
        weight = self.module if isinstance(self.module, nn.Parameter) else self.module.weight
        weight = weight if tensor is None else tensor
        if weight is None:
            return torch.ones(self.index.shape)
        index = self.index
        if isinstance(self.module, CONV) and self.role == "consumer":
            weight, index = (weight if self.module.transposed else weight.transpose(0, 1)), _slots(self)
        elif self.role == "consumer" or isinstance(self.module, nn.Embedding) or (self.role == "producer" and getattr(self.module, "transposed", False)):
            weight = weight.transpose(0, 1)
        elif isinstance(self.module, nn.Parameter):
            weight = weight.movedim(self.dim, 0)
        every = len(index) == len(weight) and index.shape[1] == 1 and torch.equal(index[:, 0], torch.arange(len(index)))
        return (weight.detach() if every else weight.detach()[index]).reshape(len(index), -1)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only be removed together. A score of a group is a tensor of shape (size,): higher is kept."""

    name: str  # qualified name of the producer whose channels number the units
    size: int
    members: tuple[Member, ...]
    coupled: bool = False  # several producers are added up: a residual stream; the usual choice is to prune inside the blocks only

    producers = property(lambda self: [m for m in self.members if m.role == "producer"])
    consumers = property(lambda self: [m for m in self.members if m.role == "consumer"])
    norms = property(lambda self: [m for m in self.members if m.role == "norm"])
    depthwise = property(lambda self: [m for m in self.members if m.role == "depthwise"])

    def spread(self, member: Member, values: Tensor) -> Tensor:
        """(size, …) from one value per unit of ``member``; zero for units that the member does not hold."""
        return values.new_zeros(self.size, *values.shape[1:]).index_copy(0, member.units, values)


def _slots(member: Member) -> Tensor:
    """Columns of the weight: in a grouped convolution every group has the same ``in / groups`` of them."""
    groups = member.module.groups
    return member.index[:, : member.index.shape[1] // groups] if groups > 1 else member.index


def check_finite(model: nn.Module) -> None:
    """ValueError naming the first parameter that holds NaN or infinity."""
    if all(math.isfinite(total) for total in torch.stack([p.detach().sum(dtype=torch.float32).cpu() for p in model.parameters()
                                                          if p.is_floating_point()] or [torch.zeros(())]).tolist()):
        return  # a sum is finite only where everything that it adds is
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"model: the weights of {name!r} hold NaN or infinite values; nothing can be scored")


def _channels(module, side: str, dim: int) -> int | None:
    if isinstance(module, nn.Parameter):
        return module.shape[dim]
    if isinstance(module, CONV):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1] if len(module.normalized_shape) == 1 else -1
    for attribute in ("num_features", "num_channels", "embedding_dim"):
        if hasattr(module, attribute):
            return getattr(module, attribute)
    return module.num_parameters if isinstance(module, nn.PReLU) and module.num_parameters > 1 else None


def _layer(node) -> str:
    return repr(node.name.split(" (")[0])


def _spread(trace: Trace, root) -> tuple[dict[tuple, Pairs], bool]:
    """Follow every output channel of ``root`` through the graph: (node, side) -> pairs (channel there, channel of root); whether any are added up."""
    graph = trace.graph
    count = np.arange(_channels(root.module, "out", 0))
    stack = [(root, graph.get_pruner_of_module(root.module).prune_out_channels, np.stack([count, count], 1))]
    seen, reached, added = set(), defaultdict(list), False
    while stack:
        node, fn, pairs = stack.pop()
        side = "out" if graph.is_out_channel_pruning_fn(fn) else "in"
        if (key := (node, fn.__func__, pairs.tobytes())) in seen:
            continue
        seen.add(key)
        if node in trace.refusals and (side == "out" or node.type not in (OP.CONV, OP.LINEAR)):
            raise Stays(trace.refusals[node])
        added |= node.type == OP.ELEMENTWISE and len(node.inputs) > 1 and re.match("(Add|Sub)Backward", getattr(node.grad_fn, "name", str)()) is not None
        channels = _channels(node.module, side, node.pruning_dim)
        if channels == 1 and len(pairs) > 1:  # broadcast over channels: nothing to remove there, and nothing is coupled through it
            continue
        if channels is not None and pairs[:, 0].max() >= channels:
            raise Stays(f"its channels do not line up with {_layer(node)}")
        if channels is not None or node.type == OP.SPLIT:
            reached[node, side].append(pairs)
        for dep in node.dependencies:
            if dep.is_triggered_by(fn):
                mapped = pairs
                for mapping in dep.index_mapping:
                    mapped = mapping(mapped) if mapping is not None else mapped
                if len(mapped):
                    stack.append((dep.target, dep.handler, mapped))
    return {key: found[0] if len(found) == 1 else _distinct(np.concatenate(found)) for key, found in reached.items()}, added


def _distinct(pairs: Pairs) -> Pairs:
    """Rows sorted and each once (faster than ``np.unique`` over an axis)."""
    width = int(pairs[:, 1].max()) + 1
    key = pairs[:, 0] * width + pairs[:, 1]
    return pairs if (key[1:] > key[:-1]).all() else np.stack(np.divmod(np.unique(key), width), 1)


def _slots_of(trace: Trace, node, side: str, pairs: Pairs) -> int | None:
    """Channels i and i + slots must go together: in the groups of a grouped layer, in the parts of a split. None: no such tie."""
    if node.type == OP.SPLIT:
        parts = len(node.grad_fn._input_metadata)
        dim = trace.dim(node)
        if dim not in dims_of(node.grad_fn, len(shape_of(node.grad_fn))):
            return None
        sizes = [shape_of(node.grad_fn, k)[dim] for k in range(parts)]
        channels = sum(sizes)
        if len(set(sizes)) > 1:
            raise Stays(f"it is split into parts of {sizes} channels")
    else:
        parts = node.module.num_groups if isinstance(node.module, nn.GroupNorm) else getattr(node.module, "groups", 1)
        channels = _channels(node.module, side, node.pruning_dim)
        if parts == 1 or node.type == OP.DEPTHWISE_CONV:
            return None
        if getattr(node.module, "transposed", False):
            raise Stays(f"{_layer(node)} is a grouped transposed convolution")
    if len(np.unique(pairs[:, 0])) != channels:
        raise Stays(f"it is only a part of what enters the grouped layer {_layer(node)}: its groups would differ in width")
    return channels // parts


def _units(trace: Trace, reached: dict[tuple, Pairs], size: int) -> np.ndarray:
    """(size,) unit of every root channel: channels that meet anywhere, or in one slot of a grouped layer, are one unit (connected components)."""
    edges = [np.zeros((0, 2), np.int64)]
    for (node, side), pairs in reached.items():
        slots = _slots_of(trace, node, side, pairs)
        place = pairs[:, 0] if slots is None else pairs[:, 0] % slots
        if (place[1:] > place[:-1]).all():  # each once
            continue
        order = np.argsort(place, kind="stable")
        place, root = place[order], pairs[order, 1]
        same = (place[1:] == place[:-1]) & (root[1:] != root[:-1])
        edges.append(np.stack([root[1:][same], root[:-1][same]], 1))
    edge = np.concatenate(edges)
    if not len(edge):
        return np.arange(size)
    _, label = connected_components(coo_matrix((np.ones(len(edge)), edge.T), (size, size)), directed=False)
    _, first, unit = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[unit]  # numbered by their first channel


def _role(node, side: str) -> str:
    if node.type == OP.DEPTHWISE_CONV:
        return "depthwise"
    if isinstance(node.module, (CONV, nn.Linear)):
        return "producer" if side == "out" else "consumer"
    return "norm" if isinstance(node.module, NORM) else "other"


def _by_unit(unit: np.ndarray, channel: np.ndarray, node) -> tuple[np.ndarray, np.ndarray]:
    """The units (u,), ascending, and the channels (u, channels per unit) that each holds in a layer, from what holds each channel."""
    if (unit[1:] > unit[:-1]).all():
        return unit, channel[:, None].copy()
    held = _distinct(np.stack([unit, channel], 1))  # sorted by unit, then by channel
    starts = np.flatnonzero(np.concatenate(([True], held[1:, 0] != held[:-1, 0])))
    counts = np.diff(starts, append=len(held))
    if counts.min() != counts.max():
        raise Stays(f"its units hold different numbers of channels in {_layer(node)}")
    return held[starts, 0], held[:, 1].reshape(len(starts), -1).copy()


def _group(trace: Trace, root) -> ChannelGroup:
    reached, added = _spread(trace, root)
    unit = _units(trace, reached, _channels(root.module, "out", 0))
    if unit.max() == 0:
        raise Stays("it is a single unit")
    if twice := [_layer(node) for node, _ in reached if trace.shared(node.module)]:
        raise Stays(f"the weights of {twice[0]} belong to another layer too")
    members = []
    for (node, side), pairs in reached.items():
        if node.type == OP.SPLIT:
            continue
        units, index = _by_unit(unit[pairs[:, 1]], pairs[:, 0], node)
        members.append(Member(trace.names[node.module], node.module, _role(node, side), torch.from_numpy(units), torch.from_numpy(index),
                              node.pruning_dim if node.type == OP.PARAMETER else 0))
    return ChannelGroup(trace.names[root.module], int(unit.max()) + 1, tuple(members), added and sum(m.role == "producer" for m in members) > 1)


def _scan(model: nn.Module, example, ignore: Iterable = ()) -> tuple[list[ChannelGroup], dict[str, str]]:
    check_finite(model)
    trace = Trace(model, example)
    names = list(trace.names.values())
    ignored = {trace.names.get(i, i) if isinstance(i, nn.Module) else i for i in ignore}
    if unknown := ignored - set(names):
        raise ValueError(f"ignore: the model has no layer {', '.join(map(str, unknown))}")
    position = {name: i for i, name in enumerate(names)}
    roots = sorted((n for n in trace.nodes if n.type in (OP.CONV, OP.LINEAR) and n.module in trace.names),
                   key=lambda n: (-_channels(n.module, "out", 0), position[trace.names[n.module]]))  # the widest first: it reaches all parts of a concatenation
    groups, left, covered = [], {}, set()
    for root in roots:
        name = trace.names[root.module]
        if name in covered:
            continue
        try:
            group = _group(trace, root)
            produced = {m.name for m in group.producers}
            if produced & (covered | ignored):
                raise Stays("it is ignored" if produced & ignored else "a part of its channels belongs to another group")
        except Stays as reason:
            left[name] = str(reason)
            continue
        covered |= produced
        groups.append(group)
    return sorted(groups, key=lambda g: position[g.name]), {k: v for k, v in left.items() if k not in covered}


def channel_groups(model: nn.Module, example, ignore: Iterable[str | nn.Module] = ()) -> list[ChannelGroup]:
    """Every set of channels that can be pruned, in the model's order. ``example``: a tensor, tuple or dict of inputs (batch of one is enough).

    ``ignore``: layers (or their names) whose output channels must stay. ValueError: NaN weights, an example that does not fit, nothing to prune.
    """
    groups, left = _scan(model, example, ignore)
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise ValueError(f"model: nothing to prune ({reasons or 'no convolution or linear layer'})")
    return groups


def left_alone(model: nn.Module, example, ignore: Iterable[str | nn.Module] = ()) -> dict[str, str]:
    """Layer -> the reason why :func:`channel_groups` leaves it out."""
    return _scan(model, example, ignore)[1]
