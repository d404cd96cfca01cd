"""Which channels of a network stand or fall together: read once from a traced forward pass, then only index arithmetic.

    conv A ──► BN ──► ReLU ──► conv B          group "A", size = A.out_channels
    rows of A  γ β             columns of B    producers │ norms │ consumers

A *unit* is what is removed at once: usually one channel; behind a grouped convolution one channel of each of its groups; before a flatten it
owns H·W columns of the linear layer. The edges come from torch-pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023, section 3); the
units are the connected components of the channels along them. A layer that cannot be pruned safely (network input and output, attention heads,
channel shuffles, …) is left out; :func:`left_alone` says why. Removing channels: :mod:`workbench.contracts.surgery`.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex

OP = tp.ops.OPTYPE
CONV = nn.modules.conv._ConvNd
NORM = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
MIXING = re.compile("Bmm|ScaledDot|FlashAtt|EfficientAtt|Softmax|Cum|Sort|Fft|Pdist|Norm")
REDUCING = re.compile("Sum|Mean|Max|Min|Amax|Amin|Var|Std|Prod|LogSumExp|NormBackward")


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
        return weight.detach()[index].flatten(1)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only be removed together. A score of a group is a tensor of shape (size,): higher is kept."""

    name: str  # qualified name of the producer whose channels number the units
    size: int
    members: tuple[Member, ...]

    producers = property(lambda self: [m for m in self.members if m.role == "producer"])
    consumers = property(lambda self: [m for m in self.members if m.role == "consumer"])
    norms = property(lambda self: [m for m in self.members if m.role == "norm"])
    depthwise = property(lambda self: [m for m in self.members if m.role == "depthwise"])
    coupled = property(lambda self: len(self.producers) > 1, doc="A residual stream or the like; the usual choice is to prune inside blocks only.")

    def spread(self, member: Member, values: Tensor) -> Tensor:
        """(size, …) from one value per unit of ``member``; zero for units that the member does not hold."""
        return values.new_zeros(self.size, *values.shape[1:]).index_copy(0, member.units, values)


def _slots(member: Member) -> Tensor:
    """Columns of the weight: in a grouped convolution every group has the same ``in / groups`` of them."""
    groups = member.module.groups
    return member.index[:, : member.index.shape[1] // groups] if groups > 1 else member.index


# ---------------------------------------------------------------------------------------------------------------- groups

def main_output(out) -> Tensor:
    """The tensor that matters of what a model returns: Hugging Face outputs give ``.logits``, everything else its first tensor."""
    return out.logits if hasattr(out, "logits") else next(iter(_tensors(out)))


def forward(model: nn.Module, example) -> Tensor:
    """The model's main output for a tensor, a tuple of arguments or a dict of keywords."""
    return main_output(model(**example) if isinstance(example, Mapping) else model(*example) if isinstance(example, tuple) else model(example))


def _tensors(out) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, (list, tuple)) else ()
    return [t for part in parts for t in _tensors(part)]


def check_finite(model: nn.Module) -> None:
    """ValueError naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"model: the weights of {name!r} hold NaN or infinite values; nothing can be scored")


def _graph(model: nn.Module, example) -> tuple[tp.DependencyGraph, set, set]:
    """Dependency graph, the output's autograd nodes, the traced inputs. Leaves mode, flags and gradients of the model as they were."""
    training = {m: m.training for m in model.modules()}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    traced = []

    def leaf(x):  # inputs become parameters: a channel tied to them (x + conv(x)) shows up in the graph
        if isinstance(x, Tensor) and x.is_floating_point():
            traced.append(nn.Parameter(x.detach().clone()))
            return traced[-1]
        return x

    if isinstance(example, Mapping):
        inputs = {k: leaf(v) for k, v in example.items()}
    else:
        inputs = tuple(leaf(x) for x in example) if isinstance(example, tuple) else leaf(example)
    outputs = set()

    def run(net, x):
        try:
            out = _tensors(net(**x) if isinstance(x, Mapping) else net(*x) if isinstance(x, tuple) else net(x))
        except Exception as error:
            shape = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            raise ValueError(f"example: the model cannot be traced with an example of shape {shape}: {error}") from error
        out = [t for t in out if t.grad_fn is not None]
        if not out:
            raise ValueError("model: no output depends on a weight by differentiable operations, so its channels cannot be traced")
        outputs.update(t.grad_fn for t in out)
        return out

    graph = tp.DependencyGraph()
    try:
        for p in frozen:
            p.requires_grad_(True)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(model, inputs, run, unwrapped_parameters=[(p, 1) for p in traced if p.dim() != 3], verbose=False)
    finally:
        for p in frozen:
            p.requires_grad_(False)
        for module, mode in training.items():
            module.training = mode
    return graph, outputs, set(map(id, traced))


def _refusal(node, outputs: set, inputs: set) -> str:
    """Why a channel that flows through this node must stay; empty if it may go."""
    if node.type == OP.OUTPUT or node.grad_fn in outputs:
        return "it reaches the network's output"
    if id(node.module) in inputs:
        return "it is tied to the network's input"
    if node.type in (OP.MHA, OP.LSTM):
        return f"it runs through a {type(node.module).__name__}"
    if node.type == OP.PARAMETER and node.module.dim() > 3 and sum(s > 1 for s in node.module.shape) > 1:
        return f"it meets a bare parameter of shape {tuple(node.module.shape)}"
    name = node.grad_fn.name() if node.type in (OP.ELEMENTWISE, OP.RESHAPE) and hasattr(node.grad_fn, "name") else ""
    if not name or type(node.module).__module__.startswith("torch.nn"):
        return ""
    sizes = getattr(node.grad_fn, "_saved_self_sym_sizes", ())
    if MIXING.search(name) or ("View" in name and len(sizes) > 4):
        return f"it runs through {name}, which regroups channels (attention heads, shuffles)"
    dims = getattr(node.grad_fn, "_saved_dim", ())
    if REDUCING.search(name) and len(sizes) > 3 and 1 in ((dims,) if isinstance(dims, int) else [d % len(sizes) for d in dims or ()]):
        return f"it is reduced over channels by {name}"
    return ""


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


class _Left(Exception):
    """A reason to leave a layer alone."""


def _spread(graph, root, outputs, inputs) -> dict[tuple, list[tuple[int, int]]]:
    """Follow every output channel of ``root`` through the graph: (node, side) -> [(channel there, channel of root)]."""
    start = root.module
    fn = graph.get_pruner_of_module(start).prune_out_channels
    stack = [(root, fn, [_HybridIndex(i, i) for i in range(_channels(start, "out", 0))])]
    seen, reached = set(), defaultdict(list)
    while stack:
        node, fn, pairs = stack.pop()
        key = (node, fn.__func__, tuple(pairs))
        if key in seen:
            continue
        seen.add(key)
        side = "out" if graph.is_out_channel_pruning_fn(fn) else "in"
        if reason := _refusal(node, outputs, inputs) if side == "out" or node.type == OP.OUTPUT else "":
            raise _Left(reason)
        channels = _channels(node.module, side, node.pruning_dim) if node.type not in (OP.ELEMENTWISE, OP.OUTPUT) or isinstance(node.module, nn.PReLU) else None
        if channels == 1 and len(pairs) > 1:  # broadcast over channels: nothing to remove there, and nothing is coupled through it
            continue
        if channels is not None:
            if max(p.idx for p in pairs) >= channels:
                raise _Left(f"its channels do not line up with {node.name.split(' (')[0]!r}")
            reached[node, side] += pairs
        for dep in node.dependencies:
            if dep.is_triggered_by(fn):
                mapped = pairs
                for mapping in dep.index_mapping:
                    mapped = mapping(mapped) if mapping is not None else mapped
                if mapped:
                    stack.append((dep.target, dep.handler, mapped))
    return reached


def _units(reached: dict, size: int) -> list[int]:
    """Unit of every root channel: channels that meet in one place, or in one slot of a grouped convolution, are one unit (union–find)."""
    parent = list(range(size))

    def find(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for (node, side), pairs in reached.items():
        module, first = node.module, {}
        slot = None
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else getattr(module, "groups", 1)
        if groups > 1 and node.type != OP.DEPTHWISE_CONV:
            channels = _channels(module, side, 0)
            if isinstance(module, CONV) and module.transposed or len({p.idx for p in pairs}) != channels:
                raise _Left(f"it covers the grouped layer {node.name.split(' (')[0]!r} only in part: the counts per group would differ")
            slot = channels // groups
        for idx, root in pairs:
            key = idx if slot is None else idx % slot
            a, b = find(first.setdefault(key, root)), find(root)
            parent[max(a, b)] = min(a, b)
    order = {}
    return [order.setdefault(find(i), len(order)) for i in range(size)]


def _role(node, side: str) -> str:
    if node.type == OP.DEPTHWISE_CONV:
        return "depthwise"
    if isinstance(node.module, (CONV, nn.Linear)):
        return "producer" if side == "out" else "consumer"
    return "norm" if isinstance(node.module, NORM) else "other"


def _group(graph, root, names, outputs, inputs) -> ChannelGroup:
    reached = _spread(graph, root, outputs, inputs)
    unit = _units(reached, _channels(root.module, "out", 0))
    if max(unit) == 0:
        raise _Left("it has a single unit")
    members = []
    for (node, side), pairs in reached.items():
        held = defaultdict(set)
        for idx, channel in pairs:
            held[unit[channel]].add(idx)
        if len({len(v) for v in held.values()}) > 1:
            raise _Left(f"its units hold different numbers of channels in {node.name.split(' (')[0]!r}")
        units = sorted(held)
        members.append(Member(names[node.module], node.module, _role(node, side), torch.tensor(units),
                              torch.tensor([sorted(held[u]) for u in units]), node.pruning_dim if node.type == OP.PARAMETER else 0))
    return ChannelGroup(names[root.module], max(unit) + 1, tuple(members))


def _scan(model: nn.Module, example, ignore: Iterable = ()) -> tuple[list[ChannelGroup], dict[str, str]]:
    check_finite(model)
    graph, outputs, inputs = _graph(model, example)
    names = {module: name for name, module in model.named_modules()} | {p: name for name, p in model.named_parameters()}
    ignored = {names.get(i, i) for i in ignore}
    order = {module: i for i, module in enumerate(names)}
    roots = sorted((n for m, n in graph.module2node.items() if n.type in (OP.CONV, OP.LINEAR)),
                   key=lambda n: (-_channels(n.module, "out", 0), order[n.module]))  # the widest first: it reaches all parts of a concatenation
    groups, left, covered = [], {}, set()
    for root in roots:
        name = names[root.module]
        if name in covered:
            continue
        try:
            group = _group(graph, root, names, outputs, inputs)
            produced = {m.name for m in group.producers}
            if produced & (covered | ignored):
                raise _Left("it is ignored" if produced & ignored else "a part of its channels belongs to another group")
        except _Left as reason:
            left[name] = str(reason)
            continue
        covered |= produced
        groups.append(group)
    position = {name: i for i, name in enumerate(names.values())}
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
