"""What SMOEA's genomes are judged by: a part of a network run for a whole population of masks at once, and the parameters that each mask leaves.

    images ──► earlier layers, once ──► [ group of layers, P masks side by side ] ──► following layer ──► Y_p against Y
                                        batch of n·P: image by image, all masks of it

A *genome* is one bit a filter of the group's layers, 1 = keep, in the order of `channel_groups`. Only what depends on a mask is run again. Batch norms use the
statistics of the images at hand, each mask its own, because those of the dense network no longer fit behind a pruned layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...contracts.structure.channels import ChannelGroup
from ...contracts.structure.trace import CONV
from .classics_of_data import watched

BATCH = 512  # images × masks run at a time: a few megabytes a layer stay in the processor's cache


def segments(groups: Sequence[ChannelGroup]) -> list[slice]:
    """Where each layer's bits lie in the genome."""
    ends = np.cumsum([group.size for group in groups])
    return [slice(int(end) - group.size, int(end)) for group, end in zip(groups, ends, strict=True)]


class ParameterCount:
    """Parameters of the layers that the genome touches (the group's, and the input slices of those that follow), exactly, for many masks at once.

    A tensor holds ``base · kept outputs/outputs · kept inputs/inputs`` values: masks (P, bits) → (P,) whole numbers.
    """

    def __init__(self, groups: Sequence[ChannelGroup]):
        tensors: dict[tuple[str, str], dict] = {}
        for group, where in zip(groups, segments(groups), strict=True):
            for member in group.members:
                side = "in" if member.role == "consumer" else "out"
                for kind, tensor in _tensors(member.module):
                    if kind == "bias" and side == "in":
                        continue
                    entry = tensors.setdefault((member.name, kind), {"base": tensor.numel()})
                    width = _width(member.module, side)
                    held = entry.setdefault(side, (width, np.zeros(where.stop)))
                    grown = np.zeros(max(where.stop, len(held[1])))
                    grown[:len(held[1])] = held[1]
                    grown[where.start + member.units.numpy()] += member.index.shape[1]
                    entry[side] = (width, grown)
        self.terms = list(tensors.values())

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        gone, total = ~np.atleast_2d(masks), 0
        for term in self.terms:
            share = 1.0
            for side in ("in", "out"):
                if side in term:
                    width, held = term[side]
                    share = share * (width - gone[:, :len(held)] @ held) / width
            total = total + np.rint(term["base"] * share)
        return total.astype(int)


def _tensors(module) -> Iterator[tuple[str, Tensor]]:
    return iter([("weight", module)]) if isinstance(module, nn.Parameter) else module.named_parameters(recurse=False)


def _width(module, side: str) -> int:
    if isinstance(module, CONV):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    return len(module if isinstance(module, nn.Parameter) else module.weight)


class SubNetwork:
    """The layers of ``groups``, run for many masks of their filters on the same ``images`` (n, …).

    Its outputs are those of the layers that read the group from outside, behind their batch norms; with ``to_the_end`` the network's own.
    ``own_statistics=False`` (to be wrong on purpose) keeps the batch-norm statistics of the dense network.
    ValueError: torch.fx cannot trace the model.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor, to_the_end: bool = False, own_statistics: bool = True):
        try:
            self.net = fx.symbolic_trace(model.eval())
        except Exception as error:
            raise ValueError(f"model: torch.fx cannot follow its forward pass, so no part of it can be run alone: {error}") from error
        self.groups, self.images, self.own_statistics = list(groups), images, own_statistics
        self.size = sum(group.size for group in groups)
        self.interpreter, nodes = fx.Interpreter(self.net), list(self.net.graph.nodes)
        at = {node.target: node for node in nodes if node.op == "call_module"}
        self.masked = {at[watched(group, model).name]: i for i, group in enumerate(groups)}
        self.cone = set()
        for node in nodes:
            if node in self.masked or self.cone & set(node.all_input_nodes):
                self.cone.add(node)
        inside = {m.name for group in groups for m in group.producers}
        readers = [at[name] for name in dict.fromkeys(m.name for group in groups for m in group.consumers) if name not in inside]
        self.ends = [nodes[-1].args[0]] if to_the_end else [self._behind_norm(node) for node in readers]
        last = max(nodes.index(node) for node in self.ends)
        self.todo = [node for node in nodes[:last + 1] if node in self.cone and node.op != "output"]
        needed = {source for node in self.todo for source in node.all_input_nodes}
        self.shared: dict[fx.Node, object] = {}
        with torch.no_grad():
            for node in nodes[:last + 1]:  # the rest of the network, once
                if node.op == "placeholder":
                    self.shared[node] = images
                elif node not in self.cone and node.op != "output":
                    self.shared[node] = self._run(node, self.shared, 1)
            first = {node: self._run(node, self.shared, 1) for node in self.masked if not set(node.all_input_nodes) & self.cone}
            self.shared = {node: value for node, value in self.shared.items() if node in needed} | first
        self.whole = [end for end, in zip(*[next(iter(self._outputs(np.ones((1, self.size), bool))))], strict=True)]

    def _behind_norm(self, node: fx.Node) -> fx.Node:
        after = next(iter(node.users))
        return after if after.op == "call_module" and isinstance(self.net.get_submodule(after.target), nn.modules.batchnorm._BatchNorm) else node

    def _run(self, node: fx.Node, values: dict, masks: int) -> object:
        """One operation for ``masks`` masks; what no mask changed is repeated for each."""
        def value(source: fx.Node):
            found = values[source]
            spread = masks > 1 and source not in self.cone and source.op != "get_attr" and isinstance(found, Tensor) and found.dim()
            return found.repeat_interleave(masks, 0) if spread else found

        args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
        if node.op == "call_module" and self.own_statistics:
            norm = self.net.get_submodule(node.target)
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                return self._normalised(norm, args[0], masks)
        return getattr(self.interpreter, node.op)(node.target, args, kwargs)

    @staticmethod
    def _normalised(norm: nn.Module, x: Tensor, masks: int) -> Tensor:
        """Batch norm with the statistics of each mask's own images."""
        side_by_side = x.reshape(len(x) // masks, masks * x.shape[1], *x.shape[2:])
        scale, shift = (None if p is None else p.repeat(masks) for p in (norm.weight, norm.bias))
        return F.batch_norm(side_by_side, None, None, scale, shift, True, 0.0, norm.eps).view(x.shape)

    def _mask(self, x: Tensor, group: ChannelGroup, bits: Tensor, spread: bool) -> Tensor:
        """Zero the channels that each mask drops; ``spread``: ``x`` is still the same for all masks."""
        member = watched(group, self.net)
        dim = x.dim() - 1 if isinstance(member.module, (nn.Linear, nn.LayerNorm)) else 1
        kept = torch.ones(len(bits), x.shape[dim])
        kept[:, member.index.flatten()] = bits[:, member.units].repeat_interleave(member.index.shape[1], 1)
        shape = [1, len(bits)] + [1] * (x.dim() - 1)
        shape[dim + 1] = -1
        each = x.unsqueeze(1) if spread else x.view(len(x) // len(bits), len(bits), *x.shape[1:])
        return (each * kept.view(shape)).flatten(0, 1)

    @torch.no_grad()
    def _outputs(self, masks: np.ndarray) -> Iterator[list[Tensor]]:
        """For a few masks at a time, the outputs, each (n, masks, …)."""
        masks = np.asarray(masks, bool)
        if masks.ndim != 2 or masks.shape[1] != self.size:
            raise ValueError(f"masks: (P, {self.size}) bits, one a filter, are needed; found shape {masks.shape}")
        few, places = max(1, BATCH // len(self.images)), segments(self.groups)
        for part in np.split(masks, range(few, len(masks), few)):
            values = {node: value for node, value in self.shared.items() if node not in self.cone}
            for node in self.todo:
                fresh = node not in self.shared
                out = self._run(node, values, len(part)) if fresh else self.shared[node]
                if node in self.masked:
                    i = self.masked[node]
                    out = self._mask(out, self.groups[i], torch.from_numpy(part[:, places[i]].astype(np.float32)), not fresh)
                values[node] = out
            yield [values[end].view(len(self.images), len(part), *values[end].shape[1:]) for end in self.ends]

    def errors(self, masks: np.ndarray) -> np.ndarray:
        """f₂, the cheap one: ‖Y − Ŷ‖²/‖Y‖² of each mask, (P,), averaged over the layers that read the group."""
        parts = []
        for outputs in self._outputs(masks):
            parts.append(sum((((out - whole).square().flatten(2).sum((0, 2))) / whole.square().sum()) for out, whole in zip(outputs, self.whole, strict=True)))
        return torch.cat(parts).double().numpy() / len(self.ends)

    def answers(self, masks: np.ndarray) -> np.ndarray:
        """The class that the pruned network names for each image, (P, n); only with ``to_the_end``."""
        return torch.cat([outputs[0].argmax(2) for outputs in self._outputs(masks)], 1).T.numpy()
