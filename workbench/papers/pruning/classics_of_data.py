"""The classic criteria that look at data: gradients of the loss, activations, the reconstruction of the next layer.

``data`` is a loader of (inputs, labels) batches, ``a`` a channel's map behind batch norm and ReLU, ``g`` the gradient of the loss. ValueError: no data,
no labels where they are needed, an empty loader. Protocol and the criteria of weights alone: :mod:`.classics`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.model import inputs_and_labels
from ...contracts.structure.channels import ChannelGroup, Member
from ...contracts.structure.surgery import forward
from ...contracts.structure.tuning import first
from .classics import FPGM, L1, L2, BatchNormScale, Clusters, ConsumerNorm, OfWeights, ProductNorm, Random, weights

# --- gradients ----------------------------------------------------------------------------------------------------------------------------------


def batches(data: Iterable | None, criterion: str, labels: bool = True) -> Iterator[tuple]:
    """(inputs, labels) of each batch of the loader. ValueError: no data, no labels, an empty loader."""
    if data is None:
        raise ValueError(f"data: the criterion {criterion} looks at images{' and labels' * labels}; hand in a loader")
    empty = True
    for batch in data:
        inputs, targets = inputs_and_labels(batch)
        if labels and targets is None:
            raise ValueError(f"data: the criterion {criterion} needs batches of (inputs, labels); found inputs alone")
        empty = False
        yield inputs, targets
    if empty:
        raise ValueError("data: the loader yields no batch")


def gradients(model: nn.Module, data, criterion: str, single: int = 0) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Per batch, or for ``single`` samples one by one: {layer name: (weight, gradient of the mean loss)}."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    values = weights(model)
    seen = 0
    for inputs, labels in batches(data, criterion):
        for rows in range(len(labels)) if single else (slice(None),):
            rows = slice(rows, rows + 1) if single else rows
            cut = {k: v[rows] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[rows]
            with torch.enable_grad():
                loss = F.cross_entropy(forward(model, cut), labels[rows])
            found = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
            yield {name: (w.detach(), torch.zeros_like(w) if g is None else g) for (name, w), g in zip(values.items(), found, strict=True)}
            seen += 1
            if single and seen == single:
                return


@dataclass(frozen=True)
class OBD(OfWeights):
    """½·h·w² with h the diagonal of the empirical Fisher matrix, E[g²] over single samples (LeCun et al. 1990, equation 5)."""

    samples: int = 64

    def saliency(self, model: nn.Module, data=None) -> dict[str, Tensor]:
        total, count = defaultdict(float), 0
        for found in gradients(model, data, "OBD", self.samples):
            count += 1
            for name, (weight, gradient) in found.items():
                total[name] = total[name] + 0.5 * gradient**2 * weight**2
        return {name: value / count for name, value in total.items()}


@dataclass(frozen=True)
class SNIP(OfWeights):
    """|g·w|, the loss's sensitivity to a connection (Lee et al. 2019, equation 4); meant for the net at initialisation."""

    def saliency(self, model: nn.Module, data=None) -> dict[str, Tensor]:
        total, shown = defaultdict(float), {}
        for found in gradients(model, data, "SNIP"):
            for name, (weight, gradient) in found.items():
                total[name], shown[name] = total[name] + gradient, weight
        return {name: (gradient * shown[name]).abs() for name, gradient in total.items()}


def watched(group: ChannelGroup, model: nn.Module) -> Member:
    """The layer behind which a channel's map is complete: the last of its norms, depthwise layers and producers in the model's order."""
    order = [name for name, _ in model.named_modules()]
    return max((m for m in group.members if m.role in ("producer", "norm", "depthwise")), key=lambda m: order.index(m.name))


def run_watching(groups: Sequence[ChannelGroup], model: nn.Module, see: Callable[[str, Tensor, int], Tensor | None], step: Callable[[], Tensor]) -> Tensor:
    """What ``step`` returns, run while ``see(group name, output, channel dimension)`` is shown each group's map; what it returns stands in for the map."""
    hooks = []
    for group in groups:
        module = watched(group, model).module
        dim = -1 if isinstance(module, (nn.Linear, nn.LayerNorm)) else 1
        hooks.append(module.register_forward_hook(lambda _, __, out, name=group.name, dim=dim: see(name, out, dim)))
    try:
        return step()
    finally:
        for hook in hooks:
            hook.remove()


def per_unit(group: ChannelGroup, model: nn.Module, values: Tensor) -> Tensor:
    """(size,) from one value per channel of the watched layer (channels of one unit are summed)."""
    member = watched(group, model)
    return group.spread(member, values[member.index].sum(1))


@dataclass(frozen=True)
class Taylor:
    """|Σ_hw a·g| per image, averaged, and divided by its layer's L2 norm (Molchanov et al. 2017, equations 8 and 9).

    A gate of ones is multiplied into every map; the gradient that reaches the gate *is* Σ_hw a·g. Read behind batch norm: at a ReLU both sides agree.
    """

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        total = defaultdict(float)
        for inputs, labels in batches(data, "Taylor"):
            for name, parts in self.products(groups, model, inputs, labels).items():
                total[name] = total[name] + parts.abs().sum(0)
        return {group.name: F.normalize(per_unit(group, model, total[group.name]), dim=0) for group in groups}

    @torch.enable_grad()
    def products(self, groups: Sequence[ChannelGroup], model: nn.Module, inputs, labels: Tensor) -> dict[str, Tensor]:
        """{group name: (N, channels)}: Σ_hw a·g of every image."""
        gates: dict[str, Tensor] = {}

        def see(name, out, dim):
            shape = [len(out)] + [1] * (out.dim() - 1)
            shape[dim] = out.shape[dim]
            gates[name] = torch.ones(shape, device=out.device, requires_grad=True)
            return out * gates[name]

        outputs = run_watching(groups, model, see, lambda: forward(model, inputs))
        loss = F.cross_entropy(outputs, labels, reduction="sum")
        return dict(zip(gates, (g.flatten(1) for g in torch.autograd.grad(loss, list(gates.values()))), strict=True))


# --- activations --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """What a channel's map looks like behind ReLU: ``zeros`` (minus their average share, APoZ: Hu et al. 2016, equation 1), ``mean`` (Molchanov et al.
    2017, section 2.2) or ``entropy`` (of 16 bins of its average per image: Luo and Wu 2017, equation 3)."""

    statistic: str = "zeros"

    def __post_init__(self):
        if self.statistic not in ("zeros", "mean", "entropy"):
            raise ValueError(f"statistic must be zeros, mean or entropy, not {self.statistic!r}")

    @torch.no_grad()
    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        rows = defaultdict(list)

        def see(name, out, dim):
            maps = F.relu(out).movedim(dim, 1).flatten(2) if out.dim() > 2 else F.relu(out)[:, :, None]
            rows[name].append(((maps == 0).double() if self.statistic == "zeros" else maps).mean(2))

        for inputs, _ in batches(data, f"activation {self.statistic}", labels=False):
            run_watching(groups, model, see, lambda inputs=inputs: forward(model, inputs))
        return {group.name: per_unit(group, model, self.summary(torch.cat(rows[group.name]))) for group in groups}

    def summary(self, rows: Tensor) -> Tensor:
        """(channels,) from one value per image and channel."""
        if self.statistic != "entropy":
            return rows.mean(0) * (-1 if self.statistic == "zeros" else 1)
        low, high = rows.min(0).values, rows.max(0).values
        bins = F.one_hot(((rows - low) / (high - low).clamp_min(1e-12) * 15.999).long().clamp(0, 15), 16).double().mean(0)
        return -(bins * bins.clamp_min(1e-12).log()).sum(1)


@dataclass(frozen=True)
class HRank:
    """The mean rank of a channel's map behind ReLU, as a matrix (Lin et al. 2020, equation 4); of the first ``images`` of the loader, for each map costs
    a singular value decomposition. A channel without a map (of a linear layer) has rank one where it is not silent."""

    images: int = 32

    @torch.no_grad()
    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        rows, left = defaultdict(list), self.images

        def see(name, out, dim):
            maps = F.relu(out).movedim(dim, 1)
            rows[name].append(torch.linalg.matrix_rank(maps) if maps.dim() == 4 else (maps != 0).flatten(2).any(2) if maps.dim() > 2 else maps != 0)

        for inputs, _ in batches(data, "HRank", labels=False):
            inputs = first(inputs, left)
            run_watching(groups, model, see, lambda inputs=inputs: forward(model, inputs))
            left -= len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
            if left <= 0:
                break
        return {group.name: per_unit(group, model, torch.cat(rows[group.name]).double().mean(0)) for group in groups}


# --- reconstruction -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThiNet:
    """Drop, one after another, the channel without which the *next* layer's outputs change least: argmin Σ(Σ_{dropped} x)², x the part of a sampled
    output that a channel contributes (Luo et al. 2017, algorithm 1); then scale the kept ones by least squares (equation 7)."""

    positions: int = 8  # sampled per image
    seed: int = 0

    @torch.no_grad()
    def contributions(self, groups: Sequence[ChannelGroup], model: nn.Module, data) -> dict[str, Tensor]:
        """{group name: (samples, size)}: x of every unit, over all layers that read it."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        generator = torch.Generator().manual_seed(self.seed)
        hooks = [m.module.register_forward_pre_hook(lambda _, x, g=group, m=m: found[g.name].append(g.spread(
            m, self.parts(m.module, x[0], generator)[:, m.index].sum(2).T).T)) for group in groups for m in group.consumers]
        try:
            for inputs, _ in batches(data, "ThiNet", labels=False):
                forward(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: torch.cat(parts).double() for name, parts in found.items()}

    def parts(self, module: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        """(samples, in): what each input channel adds to one output value, at random places and of random filters."""
        def draw(high: int, count: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)

        if isinstance(module, nn.Linear):
            rows = x.flatten(0, -2)
            rows = rows[draw(len(rows), self.positions * len(x))] if len(rows) > len(x) else rows.repeat(self.positions, 1)
            return rows * module.weight[draw(module.out_features, len(rows))]
        if not isinstance(module, nn.Conv2d) or module.groups > 1:
            raise ValueError(f"criterion: ThiNet reads plain 2-D convolutions and linear layers, found {module}")
        (ky, kx), (sy, sx), (py, px), (dy, dx) = module.kernel_size, module.stride, module.padding, module.dilation
        padded = F.pad(x, (px, px, py, py))
        image = torch.arange(len(x)).repeat_interleave(self.positions)
        height, width = ((padded.shape[i] - d * (k - 1) - 1) // s + 1 for i, d, k, s in ((2, dy, ky, sy), (3, dx, kx, sx)))
        y, col, j = draw(height, len(image)) * sy, draw(width, len(image)) * sx, draw(module.out_channels, len(image))
        return sum(padded[image, :, y + a * dy, col + b * dx] * module.weight[j, :, a, b] for a in range(ky) for b in range(kx))

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {name: self.order(x.T @ x) for name, x in self.contributions(groups, model, data).items()}

    @staticmethod
    def order(gram: Tensor) -> Tensor:
        """(size,): the step at which the greedy choice drops each unit, from the Gram matrix of the contributions."""
        step, cost = torch.zeros(len(gram)), gram.diagonal().clone()
        for n in range(len(gram)):
            drop = int(cost.argmin())
            step[drop] = n
            cost = cost + 2 * gram[:, drop]
            cost[drop] = torch.inf
        return step

    @torch.no_grad()
    def repair(self, model: nn.Module, drop, groups: Sequence[ChannelGroup], data) -> nn.Module:
        """A copy in which the readers of the kept units are scaled so that their outputs come nearest to what they were."""
        repaired = copy.deepcopy(model)
        for name, x in self.contributions([g for g in groups if g.name in drop], model, data).items():
            group = next(g for g in groups if g.name == name)
            scale = torch.ones(group.size)
            keep = torch.ones(group.size, dtype=torch.bool).index_fill(0, torch.as_tensor(drop[name]), False).nonzero().flatten()
            ridge = 1e-6 * x.square().mean() * len(x)
            scale[keep] = torch.linalg.solve(x[:, keep].T @ x[:, keep] + ridge * torch.eye(len(keep)), x[:, keep].T @ x.sum(1)).float()
            for member in group.consumers:
                weight = repaired.get_submodule(member.name).weight
                by_input = torch.ones(weight.shape[1]).index_copy(0, member.index.flatten(), scale[member.units].repeat_interleave(member.index.shape[1]))
                weight.mul_(by_input.reshape(1, -1, *[1] * (weight.dim() - 2)))
        return repaired


CRITERIA: dict[str, type | Callable] = {
    "random": Random, "l1": L1, "l2": L2, "consumer norm": ConsumerNorm, "product of norms": ProductNorm, "bn-gamma": BatchNormScale, "fpgm": FPGM,
    "k-means": Clusters, "taylor": Taylor, "obd": OBD, "snip": SNIP, "apoz": Activation, "mean activation": lambda: Activation("mean"),
    "entropy": lambda: Activation("entropy"), "hrank": HRank, "thinet": ThiNet,
}


def criterion(name) -> object:
    """The criterion of this name (one of `CRITERIA`), or ``name`` itself where it is one already."""
    if not isinstance(name, str):
        return name
    if name.lower() not in CRITERIA:
        raise ValueError(f"criterion: one of {', '.join(CRITERIA)}, or an object with `scores`; found {name!r}")
    return CRITERIA[name.lower()]()
