"""How a setting of AMC is applied to a network: operator 7 (input channels, least squares) and fine-grained pruning (arXiv 1802.03494, section 3.1).

    layer t:  X (positions, c·k·k) ──► W ──► Y (positions, n)            keep the channels S with the largest Σ|W[:, c]|
              X_S ──► W' = argmin ‖X_S W' − Y‖²                          Y: of the original network, before BN

X and Y are sampled at a few output positions of each calibration image. XᵀX and XᵀY are computed once: they hold the normal equations of *every* subset S,
so an episode costs no more than a small solve per layer, and nothing for a setting of a layer that was met before.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import partial
from itertools import product

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.files.storage import fit
from ...contracts.structure.surgery import ChannelGroup, Member, channel_groups, forward, macs_by_layer
from ._amc_environment import Cost, Counts, LatencyTable, Layer, Space

PRUNABLE = (nn.Conv2d, nn.Linear)


def least_squares(gram: Tensor, cross: Tensor, weight: Tensor) -> Tensor:
    """W' (n, d) from XᵀX (d, d) and XᵀY (d, n), without intercept. A ridge of 1e-6 of the mean diagonal keeps dead channels at zero."""
    ridge = 1e-6 * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, cross).T.to(weight.dtype)


def patches(layer: nn.Module, x: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
    """X (m, c·k·k), float64: what a layer sees at output positions ``where`` (rows and columns, each (images, positions)); a linear layer sees its rows."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).double()
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode).permute(0, 2, 3, 1)
    rows = (where[0] * sh)[:, :, None, None] + dh * torch.arange(kh)[:, None]
    columns = (where[1] * sw)[:, :, None, None] + dw * torch.arange(kw)
    found = padded[torch.arange(len(x))[:, None, None, None], rows, columns]  # (images, positions, kh, kw, c)
    return found.permute(0, 1, 4, 2, 3).flatten(2).flatten(0, 1).double()


def responses(layer: nn.Module, y: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
    """Y (m, n), float64: the layer's outputs there, without its bias."""
    if isinstance(layer, nn.Linear):
        found = y.flatten(0, -2)
    else:
        found = y.permute(0, 2, 3, 1)[torch.arange(len(y))[:, None], *where].flatten(0, 1)
    return (found if layer.bias is None else found - layer.bias).double()


@contextmanager
def hooked(model: nn.Module, names: Iterable[str], register: Callable):
    """Hooks on some layers of a model, taken off again."""
    handles = [register(model.get_submodule(name), name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def shapes_of(model: nn.Module, example: Tensor) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Layer -> shapes of its input and output, for convolutions and linear layers in the order of their use. ValueError: one that is used twice."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def note(layer, inputs, output, name):
        if name in shapes:
            raise ValueError(f"model: unsupported coupling: layer {name!r} is used more than once in a pass")
        shapes[name] = inputs[0].shape, output.shape

    names = [name for name, layer in model.named_modules() if isinstance(layer, PRUNABLE)]
    with hooked(model, names, lambda layer, name: layer.register_forward_hook(partial(note, name=name))):
        forward(model, example)
    return shapes


class ChannelOperator:
    """Operator 7 on a network: ``operator(counts) -> smaller network`` keeps ``counts[i]`` channels of group i and refits each layer that lost inputs.

    A layer whose inputs all stay keeps its weights, bit for bit. ValueError: couplings that one share a layer cannot express.
    """

    def __init__(self, model: nn.Module, images: Tensor, points: int = 10, solve=least_squares, seed: int = 0):
        self.model, self.images, self.solve = model, images, solve
        example = images[:1]
        self.groups = _supported(channel_groups(model, example))
        self.feeds = {member.name: (i, member) for i, group in enumerate(self.groups) for member in group.consumers}
        self.fed_by = {member.name: (i, member) for i, group in enumerate(self.groups) for member in group.producers}
        self.shapes = shapes_of(model, example)
        generator = torch.Generator().manual_seed(seed)
        self.where = {name: tuple(torch.randint(extent, (len(images), points), generator=generator) for extent in self.shapes[name][1][2:4])
                      for name in self.feeds}
        self.order = []
        for group in self.groups:  # shared channels are ranked by the first layer that reads them
            reader = min(group.consumers, key=lambda member: list(self.shapes).index(member.name))
            self.order.append(reader.weights().abs().sum(1).argsort(descending=True, stable=True))
        self.cuts = [cut for i, group in enumerate(self.groups) for member in group.members for cut in _cuts(model, i, member)]
        self.solved: dict[tuple[str, int], Tensor] = {}
        self.work = copy.deepcopy(model)
        self.moments, self.responses = self._observe()

    @torch.no_grad()
    def _observe(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """XᵀX and XᵀY of every layer whose input can be pruned, and Y."""
        found: dict[str, list] = {name: [] for name in self.feeds}
        first = 0

        def watch(layer, inputs, output, name):
            where = tuple(axis[first:first + len(output)] for axis in self.where[name])
            x, y = patches(layer, inputs[0], where), responses(layer, output, where)
            found[name].append((x.T @ x, x.T @ y, y))

        with hooked(self.model, self.feeds, lambda layer, name: layer.register_forward_hook(partial(watch, name=name))):
            for part in self.images.split(64):
                forward(self.model, part)
                first += len(part)
        parts = {name: tuple(zip(*batches, strict=True)) for name, batches in found.items()}
        return {name: (sum(gram), sum(cross)) for name, (gram, cross, _) in parts.items()}, {name: torch.cat(y) for name, (_, _, y) in parts.items()}

    def columns(self, name: str, count: int) -> Tensor:
        """Which columns of a layer's flattened weight stay when its group keeps ``count`` units, ascending."""
        i, member = self.feeds[name]
        channels = member.index[self.order[i][:count]].flatten().sort().values
        area = self.model.get_submodule(name).weight[0, 0].numel()
        return (channels[:, None] * area + torch.arange(area)).flatten()

    def refit(self, name: str, count: int) -> Tensor:
        """The layer's weights (n, c kept, …) on its ``count`` best input channels, all outputs; remembered."""
        if (name, count) not in self.solved:
            weight, columns = self.model.get_submodule(name).weight.detach(), self.columns(name, count)
            gram, cross = self.moments[name]
            flat = self.solve(gram[columns][:, columns], cross[columns], weight.flatten(1)[:, columns])
            self.solved[name, count] = flat.reshape(len(weight), -1, *weight.shape[2:])
        return self.solved[name, count]

    def dropped(self, counts: Counts) -> dict[str, Tensor]:
        """Group name -> units to remove (see `contracts.structure.surgery.remove`)."""
        return {g.name: order[count:] for g, order, count in zip(self.groups, self.order, counts, strict=True) if count < g.size}

    def tensors(self, counts: Counts) -> dict[str, Tensor]:
        """The state of the smaller network: every tensor cut to the channels that stay, the weights of layers that lost inputs refitted."""
        state = dict(self.model.state_dict())
        for name, (i, _) in self.feeds.items():
            if counts[i] < self.groups[i].size:
                state[f"{name}.weight"] = self.refit(name, counts[i])
        for name, i, index in self.cuts:
            if counts[i] < self.groups[i].size:
                state[name] = state[name][index[self.order[i][:counts[i]]].flatten().sort().values]
        return state

    def __call__(self, counts: Counts) -> nn.Module:
        return fit(copy.deepcopy(self.model), {name: tensor.clone() for name, tensor in self.tensors(counts).items()})

    def trial(self, counts: Counts) -> nn.Module:
        """The same network in a module that the next trial overwrites: what an episode of a search judges."""
        return fit(self.work, self.tensors(counts))

    def rows(self, name: str, counts: Counts) -> Tensor:
        """Which outputs of a layer stay, ascending."""
        if name not in self.fed_by:
            return torch.arange(len(self.model.get_submodule(name).weight))
        i, member = self.fed_by[name]
        return member.index[self.order[i][:counts[i]]].flatten().sort().values

    @torch.no_grad()
    def sequential(self, counts: Counts) -> nn.Module:
        """As calling, but X is what the layer receives *after the earlier layers were pruned*: one pass over the images, each layer refitted as it is reached."""
        small = self(counts)

        def refit(layer, inputs, name):
            x, y = patches(layer, inputs[0], self.where[name]), self.responses[name][:, self.rows(name, counts)]
            layer.weight.data = self.solve(x.T @ x, x.T @ y, layer.weight.flatten(1)).reshape(layer.weight.shape)

        pruned = [name for name, (i, _) in self.feeds.items() if counts[i] < self.groups[i].size]
        with hooked(small, pruned, lambda layer, name: layer.register_forward_pre_hook(partial(refit, name=name))):
            forward(small, self.images)
        return small


def _cuts(model: nn.Module, choice: int, member: Member) -> list[tuple[str, int, Tensor]]:
    """The tensors of a layer whose first dimension shrinks with a group, as (name, group, index). (What a layer reads is refitted.)"""
    if member.role == "consumer":
        return []
    names = [name for name, tensor in model.get_submodule(member.name).state_dict().items() if tensor.dim()]
    return [(f"{member.name}.{name}", choice, member.index) for name in names]


def _supported(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """The groups, if one share of channels describes each: whole layers, no grouped convolution but depthwise ones, no concatenation."""
    read: dict[str, str] = {}
    for group in groups:
        for member in group.members:
            layer = member.module
            width = {"consumer": getattr(layer, "in_channels", getattr(layer, "in_features", 0)),
                     "producer": getattr(layer, "out_channels", getattr(layer, "out_features", 0))}.get(member.role, member.index.numel())
            reason = ("it is no layer of a kind that AMC prunes" if isinstance(layer, (nn.Parameter, nn.Embedding)) or
                      member.role in ("producer", "consumer", "depthwise") and not isinstance(layer, PRUNABLE) else
                      "it is a grouped convolution" if member.role != "depthwise" and getattr(layer, "groups", 1) > 1 else
                      f"it also reads channels of {read[member.name]!r}" if member.role == "consumer" and member.name in read else
                      "only a part of its channels is coupled" if member.index.numel() != width or len(member.units) != group.size else "")
            if reason:
                raise ValueError(f"model: unsupported coupling of group {group.name!r} at layer {member.name!r}: {reason}")
            if member.role == "consumer":
                read[member.name] = group.name
    return groups


def channel_space(operator: ChannelOperator, lower: float = 0.2, round_to: int = 8) -> Space:
    """One choice a channel group. Costs: ``macs`` and ``parameters``, both exact. The first layer's input and the last one's output belong to no group."""
    choices, model = len(operator.groups), operator.model
    inside, outside = {name: i for name, (i, _) in operator.feeds.items()}, {}
    for i, group in enumerate(operator.groups):
        outside |= {member.name: i for member in group.members if member.role != "consumer"}
    work = macs_by_layer(model, operator.images[:1])

    def cost(terms: list[tuple[str, int, bool]]) -> Cost:
        """From (layer, size, whether its inputs count as well as its outputs)."""
        unit = np.eye(choices + 1)
        return Cost(np.array([size for _, size, _ in terms], float), np.stack([unit[inside.get(name, -1) if both else -1] for name, _, both in terms]),
                    np.stack([unit[outside.get(name, -1)] for name, _, _ in terms]))

    sizes = [(name if name in outside else name.rpartition(".")[0], p.numel(), p.dim() > 1) for name, p in model.named_parameters()]
    costs = {"macs": cost([(name, size, True) for name, size in work.items()]), "parameters": cost(sizes)}
    depthwise = {member.name for group in operator.groups for member in group.depthwise}
    layers = tuple(_layer(model.get_submodule(name), name, shape, work[name], inside.get(name))
                   for name, (shape, _) in operator.shapes.items() if name not in depthwise)
    return Space(layers, np.array([group.size for group in operator.groups]), lower, round_to, costs, operator.trial, operator.sequential)


def _layer(layer: nn.Module, name: str, shape: tuple[int, ...], macs: int, choice: int | None) -> Layer:
    n, c = layer.weight.shape[:2]
    extent = (*shape[2:], layer.stride[0], layer.kernel_size[0]) if isinstance(layer, nn.Conv2d) else (1, 1, 1, 1)
    return Layer(name, (n, c, *extent), macs, choice)


def weight_space(model: nn.Module, images: Tensor, lower: float = 0.05) -> Space:
    """Fine-grained mode: each layer keeps its largest weights, the choice is its density. Costs: ``weights`` left, and ``macs`` with a weight that is not 0
    (what hardware for sparse weights would do; ordinary hardware gains nothing)."""
    work, shapes = macs_by_layer(model, images[:1]), shapes_of(model, images[:1])
    layers = tuple(_layer(model.get_submodule(name), name, shape, work[name], i) for i, (name, (shape, _)) in enumerate(shapes.items()))
    sizes = np.array([model.get_submodule(layer.name).weight.numel() for layer in layers])
    inside, outside = np.eye(len(layers), len(layers) + 1), np.eye(len(layers) + 1)[[-1] * len(layers)]

    def apply(counts: Counts) -> nn.Module:
        sparse = copy.deepcopy(model)
        for layer, count in zip(layers, counts, strict=True):
            weight = sparse.get_submodule(layer.name).weight.data.view(-1)
            weight[weight.abs().argsort(descending=True, stable=True)[count:]] = 0
        return sparse

    costs = {"weights": Cost(sizes.astype(float), inside, outside), "macs": Cost(np.array([layer.macs for layer in layers], float), inside, outside)}
    return Space(layers, sizes, lower, 1, costs, apply, apply)


@torch.no_grad()
def latency_table(operator: ChannelOperator, batch: int = 1, shares=(0.25, 0.5, 0.75, 1.0), repeats: int = 5) -> LatencyTable:
    """Times each layer alone at every pair of input and output shares (milliseconds a batch, the best of ``repeats``), once; the search then only looks up.
    Made monotone, so that keeping fewer channels never counts as slower."""
    unit, tables = np.eye(len(operator.groups) + 1), []
    depthwise = {member.name: i for i, group in enumerate(operator.groups) for member in group.depthwise}
    for name, (shape, _) in operator.shapes.items():
        layer, x = operator.model.get_submodule(name), torch.randn(batch, *shape[1:])
        times = np.empty((len(shares), len(shares)))
        for (i, a), (j, b) in product(enumerate(shares), enumerate(shares)):
            weight, part = (layer.weight[:max(1, round(b * len(layer.weight)))], x)
            if name in depthwise:
                part = x[:, :len(weight)].contiguous()
            elif name in operator.feeds:
                kept = max(1, round(a * weight.shape[1]))
                weight, part = weight[:, :kept].contiguous(), (x[..., :kept] if isinstance(layer, nn.Linear) else x[:, :kept]).contiguous()
            run = partial(F.linear, part, weight) if isinstance(layer, nn.Linear) else partial(
                F.conv2d, part, weight, None, layer.stride, layer.padding, layer.dilation, len(weight) if name in depthwise else 1)
            times[i, j] = min(_milliseconds(run) for _ in range(repeats))
        times = np.maximum.accumulate(np.maximum.accumulate(times, 0), 1)
        inside = -1 if name in depthwise or name not in operator.feeds else operator.feeds[name][0]
        outside = depthwise.get(name, operator.fed_by[name][0] if name in operator.fed_by else -1)
        tables.append((unit[inside], unit[outside], RegularGridInterpolator((shares, shares), times, bounds_error=False, fill_value=None)))
    return LatencyTable(tuple(tables))


def _milliseconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)
