"""How channels flow through a network: torch-pruning's dependency graph of one forward pass, with exact index maps on its edges.

    conv A ─► relu ─► cat ─► conv B        an edge carries "channel c here is channel c′ there":
                      ▲                    cat shifts by the widths before it, a flatten gives each channel its H·W columns,
    conv C ───────────┘                    a split passes on a range; everything else leaves channels where they are

Autograd nodes know the shape of what they made, so the maps are computed, not guessed. Where channels cannot be followed (views into attention
heads, shuffles, slices, softmax over channels, …) the node carries a *refusal*: the reason why channels that run through it must stay.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

OP = tp.ops.OPTYPE
CONV = nn.modules.conv._ConvNd
CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
CHANNELS_FIRST = (CONV, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)
MIXING = re.compile("Bmm|ScaledDot|Attention|Fft|Pdist|Norm|PixelShuffle|PixelUnshuffle|ChannelShuffle|Index|Gather|Roll|Flip|Im2col|Unfold|Einsum")
ACROSS = re.compile("Softmax|Cum|Sort|Sum|Mean|Max|Min|Amax|Amin|Var|Std|Prod|LogSumExp")
PRODUCT = re.compile("^(Addmm|Mm|Addmv|Mv|Dot|Addbmm|Linear|Convolution|MkldnnLinear|MkldnnConvolution)Backward")
Pairs = np.ndarray  # (n, 2) int64: channel here, channel of the layer that the search started from


def main_output(out) -> Tensor:
    """The tensor that matters of what a model returns: Hugging Face outputs give ``.logits``, everything else its first tensor."""
    return out.logits if hasattr(out, "logits") else next(iter(tensors_of(out)))


def call(model: nn.Module, example):
    """The model on a tensor, a tuple of arguments or a dict of keywords."""
    return model(**example) if isinstance(example, Mapping) else model(*example) if isinstance(example, tuple) else model(example)


def forward(model: nn.Module, example) -> Tensor:
    """The model's main output for a tensor, a tuple of arguments or a dict of keywords."""
    return main_output(call(model, example))


def tensors_of(out) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, (list, tuple)) else ()
    return [t for part in parts for t in tensors_of(part)]


def shape_of(fn, number: int = 0) -> tuple[int, ...]:
    """Shape of output ``number`` of an autograd node; () where it is unknown."""
    if hasattr(fn, "variable"):
        return tuple(fn.variable.shape)
    known = getattr(fn, "_input_metadata", ())  # the inputs of a backward node are the outputs of the forward operation
    return tuple(int(s) for s in known[number].shape) if number < len(known) else ()


def dims_of(fn, rank: int) -> list[int]:
    """The dimensions that an operation names, counted from the front (autograd stores negative ones as unsigned numbers)."""
    stored = getattr(fn, "_saved_dim", ())
    stored = (stored,) if isinstance(stored, int) else stored or ()
    return [(d - 2**64 if d >= 2**63 else d) % rank for d in stored] if rank else []


def regroup(source: tuple[int, ...], dim: int, target: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Where a view puts dimension ``dim``: (its dimension in ``target``, how often it repeats there, how many entries one channel has in a row).

    (2, 16, 4, 4) → (2, 256), dim 1: (1, 1, 16). None: the view cuts it up or leaves it in no single dimension.
    """
    for first, last in itertools.product(range(dim, -1, -1), range(dim + 1, len(source) + 1)):
        before, width = math.prod(source[:first]), math.prod(source[first:last])
        for e, size in enumerate(target):
            if size == width and math.prod(target[:e]) == before:
                return e, math.prod(source[first:dim]), math.prod(source[dim + 1:last])
    return None


class Stays(Exception):
    """Why a layer's channels must stay."""


class Trace:
    """``nodes``: torch-pruning's nodes, their dependencies with exact ``index_mapping``; ``refusals``: node -> why channels through it must stay."""

    def __init__(self, model: nn.Module, example):
        self.names = {module: name for name, module in model.named_modules()} | {p: name for name, p in model.named_parameters()}
        self.outputs: set = set()
        self.graph, self.inputs = self._run(model, example)
        self.nodes = list(self.graph.module2node.values())
        self._dim: dict = {}
        self._edges: dict = {}
        modules = list(model.modules())
        self.layer_weights = {m.weight for m in modules if isinstance(m, (CONV, nn.Linear))}
        self.owners = Counter(id(weight) for m in modules if isinstance(weight := getattr(m, "weight", None), Tensor))
        for node in self.nodes:
            self._align_parameters(node)
        self.refusals = {node: reason for node in self.nodes if (reason := self._refusal(node))}
        for node in self.nodes:
            for dep in node.dependencies:
                dep.index_mapping = [None, None]
        for node in self.nodes:
            self._connect(node)

    def _run(self, model: nn.Module, example) -> tuple[tp.DependencyGraph, set[int]]:
        """The graph of one forward pass in evaluation mode; the model's modes and flags are afterwards as they were."""
        training = [m for m in model.modules() if m.training]
        frozen = [p for p in model.parameters() if not p.requires_grad]
        inputs: list[nn.Parameter] = []

        def leaf(x):  # inputs become parameters, so that a channel tied to them (x + conv(x)) shows up in the graph
            if isinstance(x, Tensor) and x.is_floating_point():
                inputs.append(nn.Parameter(x.detach().clone()))
                return inputs[-1]
            return x

        def run(net, x):
            try:
                out = [t for t in tensors_of(call(net, x)) if t.grad_fn is not None]
            except Exception as error:
                raise ValueError(f"example: the model cannot be traced with an example of {shape_text(example)}: {error}") from error
            if not out:
                raise ValueError("model: no output depends on a weight by differentiable operations, so its channels cannot be traced")
            self.outputs.update(t.grad_fn for t in out)
            return out

        leaves = {k: leaf(v) for k, v in example.items()} if isinstance(example, Mapping) else \
            tuple(leaf(x) for x in example) if isinstance(example, tuple) else leaf(example)
        try:
            for p in frozen:
                p.requires_grad_(True)
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tp.DependencyGraph().build_dependency(model, leaves, run, unwrapped_parameters=[(p, 1) for p in inputs], verbose=False)
        finally:
            for p in frozen:
                p.requires_grad_(False)
            for module in training:
                module.training = True
        return graph, set(map(id, inputs))

    def shared(self, module) -> bool:
        """Whether another layer has the same weight."""
        return self.owners[id(getattr(module, "weight", None))] > 1

    def edges(self, node) -> list[tuple]:
        """(input node, its autograd node, which of its outputs, the shape of that) of every traced input, in order."""
        if node not in self._edges:
            found = [(fn, number, shape_of(fn, number)) for fn, number in getattr(node.grad_fn, "next_functions", ()) if fn is not None
                     and not (hasattr(fn, "variable") and fn.variable not in self.graph.module2node)]
            self._edges[node] = [(source, *edge) for source, edge in zip(node.inputs, found, strict=True)] if len(found) == len(node.inputs) else []
        return self._edges[node]

    def dim(self, node) -> int | None:
        """The channel dimension of what the node makes."""
        if node not in self._dim:
            rank = len(shape_of(node.grad_fn))
            if isinstance(node.module, CHANNELS_FIRST):
                self._dim[node] = 1
            elif isinstance(node.module, (*CHANNELS_LAST, nn.Embedding)):
                self._dim[node] = rank - 1
            elif node.type == OP.PARAMETER:
                self._dim[node] = None
            else:
                found = (self._moved(node.grad_fn, self.dim(source), shape) for source, _, _, shape in self.edges(node))
                self._dim[node] = next((d for d in found if d is not None), None)
        return self._dim[node]

    def _moved(self, fn, dim: int | None, source: tuple[int, ...]) -> int | None:
        """The channel dimension after an operation, from that before it."""
        target, name = shape_of(fn), fn.name() if hasattr(fn, "name") else ""
        if dim is None or not target:
            return None
        if "Transpose" in name:
            a, b = ((d - 2**64 if d >= 2**63 else d) % len(source) for d in (fn._saved_dim0, fn._saved_dim1))
            return {a: b, b: a}.get(dim, dim)
        if "Permute" in name:
            return [d % len(source) for d in fn._saved_dims].index(dim)
        if "View" in name or "Reshape" in name:
            found = regroup(source, dim, target)
            return found[0] if found else 1 if len(source) == 2 and regroup(target, 1, source) else None  # the latter: (B, C·H·W) → (B, C, H, W)
        if "Unsqueeze" in name:
            return dim + (dims_of(fn, len(target))[0] <= dim)
        if len(target) < len(source):  # reductions, select, squeeze
            gone = dims_of(fn, len(source)) or [i for i, s in enumerate(source) if s == 1]
            return None if dim in gone else dim - sum(d < dim for d in gone)
        return dim + len(target) - len(source)  # broadcasting aligns the last dimensions

    def _refusal(self, node) -> str:
        """Why channels that run through the node must stay; empty if they may go."""
        if node.type == OP.OUTPUT or node.grad_fn in self.outputs:
            return "it reaches the network's output"
        if id(node.module) in self.inputs:
            return "it is tied to the network's input"
        if node.type in (OP.MHA, OP.LSTM):
            return f"it runs through a {type(node.module).__name__}"
        if node.type == OP.DEPTHWISE_CONV and node.module.in_channels != node.module.out_channels:
            return "it enters a convolution with several channels for each output"
        if node.type == OP.PARAMETER or (node.module in self.names and node.type != OP.ELEMENTWISE):
            return ""
        name = node.grad_fn.name() if hasattr(node.grad_fn, "name") else "an unknown operation"
        if MIXING.search(name):
            return f"it runs through {name}, which regroups channels"
        if PRODUCT.search(name):
            return "" if self._inside_a_layer(node.grad_fn) else f"it runs through {name}, which belongs to no layer"
        return next(filter(None, (self._lost(node, name, source, before) for source, _, _, before in self.edges(node))), "") or self._crossed(node, name)

    def _lost(self, node, name: str, source, before: tuple[int, ...]) -> str:
        """Why the channels of one input cannot be followed through an operation that is no layer."""
        dim, after = self.dim(source), shape_of(node.grad_fn)
        if dim is None or not before:
            return ""
        here = dim in dims_of(node.grad_fn, len(before))
        if here and ACROSS.search(name):
            return f"it is combined across channels by {name}"
        if here and (node.type == OP.UNBIND or "Select" in name):
            return f"single channels are picked by {name}"
        if here and node.type == OP.SLICE and after != before:
            return "the model's code slices its channels"
        if node.type in (OP.CONCAT, OP.SPLIT, OP.UNBIND):
            return ""
        moved = self._moved(node.grad_fn, dim, before)
        if node.type == OP.RESHAPE:
            return f"a view regroups its channels ({before} to {after}: attention heads, shuffles)" if moved is None else ""
        if moved is not None and after[moved] != before[dim] != 1:
            return f"{name} makes {after[moved]} channels of {before[dim]}"
        return ""

    def _crossed(self, node, name: str) -> str:
        moved = {self._moved(node.grad_fn, self.dim(source), shape) for source, _, _, shape in self.edges(node)} - {None}
        return f"its channels meet those of another dimension in {name}" if len(moved) > 1 else ""

    def _inside_a_layer(self, fn, depth: int = 3) -> bool:
        """Whether a product is that of a layer, whose weight it reads (a linear layer on (batch, tokens, channels) is view, product, view)."""
        return any(getattr(source, "variable", None) in self.layer_weights or (depth > 0 and re.match("T|Transpose|Permute|Expand|.*View", source.name())
                   and self._inside_a_layer(source, depth - 1)) for source, _ in fn.next_functions if source is not None)

    def _align_parameters(self, node) -> None:
        """The channel dimension of bare parameters that an operation combines with channels (layer scale, position embeddings)."""
        dim, rank = self.dim(node), len(shape_of(node.grad_fn))
        for source in node.inputs if dim is not None and node.type == OP.ELEMENTWISE else ():
            if source.type == OP.PARAMETER and 0 <= (axis := dim - rank + source.module.dim()) and id(source.module) not in self.inputs:
                source.pruning_dim = axis

    def _connect(self, node) -> None:
        """Index maps of the edges from the node's inputs to it, and back."""
        counted: dict[int, int] = {}
        widths = self._widths(node) if node.type == OP.CONCAT else None
        for i, (source, fn, number, before) in enumerate(self.edges(node)):
            after, back = [None, None], [None, None]  # forwards: leave the source, enter the node
            if source.type == OP.SPLIT and self.dim(source) in dims_of(fn, len(shape_of(fn))):
                sizes = [shape_of(fn, k)[self.dim(source)] for k in range(number + 1)]
                start, width = sum(sizes[:-1]), sizes[-1]
                after[0], back[1] = _range(start, width), _shift(start)
            dim, target = self.dim(source), shape_of(node.grad_fn)
            expected = 1 if isinstance(node.module, CHANNELS_FIRST) else len(before) - 1 if isinstance(node.module, CHANNELS_LAST) else dim
            if widths:
                after[1], back[0] = _shift(widths[i][0]), _range(*widths[i])
            elif dim is not None and dim != expected:
                after[1] = back[0] = _blocked(f"its channels are another dimension where they enter {self.names[node.module]!r}")
            elif node.type == OP.RESHAPE and dim is not None and self.dim(node) is not None:
                if found := regroup(before, dim, target):
                    after[1], back[0] = _repeat(*found[1:], before[dim]), _unrepeat(found[2], before[dim])
                elif found := regroup(target, 1, before):
                    after[1], back[0] = _unrepeat(found[2], target[1]), _repeat(*found[1:], target[1])
            elif node.type == OP.ELEMENTWISE and len(node.inputs) > 1 and self._broadcast(node, before):
                after[1] = back[0] = _nothing
            node.dependencies[i].index_mapping = back
            onward = [d for d in source.dependencies[len(source.inputs):] if d.target is node]
            onward[counted.setdefault(id(source), 0)].index_mapping = after
            counted[id(source)] += 1

    def _broadcast(self, node, before: tuple[int, ...]) -> bool:
        """Whether an input has no channels of its own, but is spread over them (a scalar, a spatial map)."""
        dim, after = self.dim(node), shape_of(node.grad_fn)
        axis = None if dim is None else dim - len(after) + len(before)
        return axis is not None and (axis < 0 or before[axis] == 1 < after[dim])

    def _widths(self, node) -> list[tuple[int, int]] | None:
        """(offset, width) of every traced input of a concatenation over channels; None if it runs over another dimension."""
        rank = len(shape_of(node.grad_fn))
        dim = self.dim(node)
        if dim is None or dims_of(node.grad_fn, rank) != [dim]:
            return None
        sizes = [shape_of(fn, number)[dim] if fn is not None else -1 for fn, number in node.grad_fn.next_functions]
        if -1 in sizes:  # a part that no weight influences
            sizes[sizes.index(-1)] = shape_of(node.grad_fn)[dim] - sum(s for s in sizes if s > 0)
        offsets = np.cumsum([0, *sizes]).tolist()
        traced = {(fn, number) for _, fn, number, _ in self.edges(node)}
        return [(offsets[i], sizes[i]) for i, edge in enumerate(node.grad_fn.next_functions) if tuple(edge) in traced]


def shape_text(example) -> str:
    return f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"type {type(example).__name__}"


def _shift(offset: int) -> Callable[[Pairs], Pairs]:
    return lambda pairs: pairs + [offset, 0]


def _range(start: int, width: int) -> Callable[[Pairs], Pairs]:
    return lambda pairs: pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + width)] - [start, 0]


def _repeat(outer: int, inner: int, channels: int) -> Callable[[Pairs], Pairs]:
    """Channel c becomes the entries o·channels·inner + c·inner + i."""
    steps = (np.arange(outer)[:, None] * channels * inner + np.arange(inner)).ravel()
    return lambda pairs: np.stack([(pairs[:, :1] * inner + steps).ravel(), np.repeat(pairs[:, 1], len(steps))], 1)


def _unrepeat(inner: int, channels: int) -> Callable[[Pairs], Pairs]:
    return lambda pairs: np.unique(np.stack([pairs[:, 0] // inner % channels, pairs[:, 1]], 1), axis=0)


def _nothing(pairs: Pairs) -> Pairs:
    return pairs[:0]


def _blocked(reason: str) -> Callable[[Pairs], Pairs]:
    def stop(pairs: Pairs) -> Pairs:
        raise Stays(reason)
    return stop
