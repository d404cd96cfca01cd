"""What must hold of every leaf of the survey's tree, exactly; and the engine broken on purpose in one part each, which must be noticed."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches import vision
from ...benches.vision.nets import BasicBlock
from ...contracts.files.sparse import load_sparse
from ...contracts.structure.surgery import channel_groups, macs, mask, parameters, reestimate_batchnorm, remove
from ...core.study import Outcome
from . import Pruned
from .classics_of_data import CRITERIA, OBD, ThiNet, criterion
from .granularity import ZEROS, Pruner, residual_blocks
from .taxonomy import BRANCHES, Leaf, leaves, resolve

NOT_HERE = {"obs"}  # a leaf without an entry: drawn in grey


@dataclass(frozen=True)
class Engine(Pruner):
    """The pruner that runs the tree's leaves, and the tree."""

    tree: Sequence[Leaf] = leaves()


# --- broken on purpose --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MasksOnly(Engine):
    """Zeroes where smaller tensors and sparse files belong, and new batch-norm statistics even where nothing was removed."""

    def cut(self, model, drop, example, groups, data):
        masked = mask(model, drop, example, groups)
        reestimate_batchnorm(masked, example)
        return masked

    def zeros(self, model, ratio, data):
        result = super().zeros(model, ratio, data)
        return Pruned(result.model, result.exhibits)

    def blocks(self, model, ratio, data, example):
        names, masked = residual_blocks(model, example), copy.deepcopy(model)
        for parameter in masked.get_submodule(names[0]).parameters():
            parameter.data.zero_()
        return Pruned(masked)


@dataclass(frozen=True)
class OneFormula(Engine):
    """Every criterion is the L1 norm under another name."""

    def scores(self, groups, model, data=None):
        return criterion("l1").scores(groups, model, data)


@dataclass(frozen=True)
class NoLeastSquares(Engine):
    """Drops what reconstruction chooses, and repairs nothing."""

    def cut(self, model, drop, example, groups, data):
        return remove(model, drop, example, groups)


@dataclass(frozen=True)
class HardZeros(Engine):
    """Soft pruning that takes the batch norm with the filter: nothing can grow back."""

    def soften(self, model, ratio, example):
        zeroed = super().soften(model, ratio, example)
        for group in channel_groups(model, example):
            for norm in group.norms:
                norm.module.weight.data[zeroed[group.name]] = 0
        return zeroed


# --- checks -------------------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def toy() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor]:
    """(a small trained-looking net, two batches of images and labels, an example)."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, 0.3, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    data = [(torch.randn(8, 3, 10, 10, generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(2)]
    reestimate_batchnorm(net, (x for x, _ in data))
    return net, data, data[0][0]


def every_leaf(method: Engine) -> list[Engine]:
    """One engine per criterion, granularity and allocation."""
    return [*(replace(method, criterion=name) for name in CRITERIA), *(replace(method, criterion="l1", granularity=g) for g in ZEROS),
            *(replace(method, criterion=name, granularity="weight", allocation="global") for name in ("l1", "obd", "snip")),
            *(replace(method, criterion="l1", allocation=name) for name in ("global", "sensitivity", "searched"))]


def neutral(method: Engine) -> Outcome:
    net, data, example = toy()
    with torch.no_grad():
        for leaf in every_leaf(method):
            if not torch.equal(leaf.apply(net, 0.0, data, example).model(example), net(example)):
                return Outcome(False, f"{leaf.criterion}, {leaf.granularity}, {leaf.allocation}: differs", "equal bit for bit")
    return Outcome(True, f"{len(every_leaf(method))} leaves equal bit for bit", "equal bit for bit")


def masked_equals_rebuilt(method: Engine) -> Outcome:
    net, data, example = toy()
    groups, worst = channel_groups(net, example), 0.0
    for name in CRITERIA:
        leaf = replace(method, criterion=name)
        drop = {group: score.argsort(stable=True)[:len(score) // 2] for group, score in leaf.scores(groups, net, data).items()}
        small = leaf.cut(net, drop, example, groups, data)
        repair = getattr(criterion(name), "repair", None)
        with torch.no_grad():
            worst = max(worst, float((small(example) - mask(repair(net, drop, groups, data) if repair else net, drop, example, groups)(example)).abs().max()))
        if parameters(small) > 0.5 * parameters(net):
            return Outcome(False, f"{name}: {parameters(small)} of {parameters(net)} parameters left", "at most half")
    return Outcome(worst <= 1e-4, worst, 1e-4)


def achieved_ratio(method: Engine) -> Outcome:
    """Uniform: within one unit of the ratio in every layer; global: within one unit in all."""
    net, data, example = toy()
    sizes = {"weight": 1, "row": 3, "kernel": 9}
    for ratio in (0.3, 0.7):
        for name in ("taylor", "thinet", "k-means"):
            small = replace(method, criterion=name).apply(net, ratio, data, example).model
            left = [small[i].out_channels for i in (0, 3)]
            if any(abs(n - (1 - ratio) * size) > 1 for n, size in zip(left, (8, 6), strict=True)):
                return Outcome(False, f"{name}: {left} of [8, 6] channels left at {ratio}", "one channel")
        for granularity in ZEROS:
            masks = replace(method, criterion="l1", granularity=granularity).apply(net, ratio, data, example).masks
            for layer, kept in masks.items():
                unit = sizes.get(granularity, kept.numel() // 9)
                if abs(int(kept.sum()) - (1 - ratio) * kept.numel()) > unit:
                    return Outcome(False, f"{granularity}, layer {layer}: {int(kept.sum())} of {kept.numel()} left at {ratio}", "one unit")
        masks = replace(method, criterion="l1", granularity="weight", allocation="global").apply(net, ratio, data, example).masks
        if abs(sum(int(m.sum()) for m in masks.values()) - (1 - ratio) * sum(m.numel() for m in masks.values())) > 1:
            return Outcome(False, f"global threshold at {ratio}", "one weight")
    return Outcome(True, "within one unit", "one unit")


def sparse_file(method: Engine) -> Outcome:
    """90 % zeros in VGG-small: the file gives every tensor back bit for bit, and is less than a sixth of the dense one."""
    model = vision.dense("vgg-small")
    result = replace(method, criterion="l1", granularity="weight").apply(model, 0.9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        result.save(path)
        again, size = load_sparse(path).state_dict(), path.stat().st_size
    same = all(torch.equal(value, again[name]) for name, value in result.model.state_dict().items())
    share = size / vision.file_bytes(model)
    return Outcome(same and share < 1 / 6, f"{'equal' if same else 'differs'}, {share:.3f} of the dense file", "equal, below 0.167")


def formulas(method: Engine) -> Outcome:
    """Taylor, OBD, FPGM, APoZ and ThiNet's greedy order, each against its formula written out in loops."""
    net, data, example = toy()
    group = channel_groups(net, example)[0]
    naive: dict[str, Tensor] = {}
    rows, zeros = [], []
    for images, labels in data:
        for x, y in zip(images, labels, strict=True):
            a = net[2](net[1](net[0](x[None]))).detach().requires_grad_(True)
            F.cross_entropy(net[3:](a), y[None]).backward()
            rows.append((a * a.grad).sum((0, 2, 3)).abs().detach())
            zeros.append((a == 0).double().mean((0, 2, 3)))
    naive["taylor"] = F.normalize(torch.stack(rows).mean(0), dim=0)
    naive["apoz"] = -torch.stack(zeros).mean(0)
    w = net[0].weight.detach().flatten(1)
    naive["fpgm"] = torch.stack([sum((w[i] - w[j]).norm() for j in range(8)) for i in range(8)])
    squares = []
    for images, labels in data:
        for x, y in zip(images, labels, strict=True):
            squares.append(torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), net[0].weight)[0] ** 2)
    naive["obd"] = (0.5 * torch.stack(squares)[:OBD().samples].mean(0) * net[0].weight.detach() ** 2).sum((1, 2, 3))
    x, dropped = ThiNet().contributions([group], net, data)[group.name], []
    while len(dropped) < 8:
        dropped.append(min(set(range(8)) - set(dropped), key=lambda c: float(x[:, [*dropped, c]].sum(1).square().sum())))
    naive["thinet"] = torch.tensor([float(dropped.index(c)) for c in range(8)])
    worst = {name: float((replace(method, criterion=name).scores([group], net, data)[group.name] - want).abs().max() / want.abs().max())
             for name, want in naive.items()}
    name = max(worst, key=worst.get)
    return Outcome(worst[name] < 1e-4, f"{name}: {worst[name]:.1e}", "1e-4 of the largest")


def duplicate_repaired(method: Engine) -> Outcome:
    """A channel that another one repeats is dropped; least squares doubles the other, and the outputs stay."""
    net, data, example = copy.deepcopy(toy()[0]), *toy()[1:]
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
            tensor[1] = tensor[0]
        net[3].weight[:, 1] = net[3].weight[:, 0]
    groups = channel_groups(net, example)
    small = replace(method, criterion="thinet").cut(net, {groups[0].name: [1]}, example, groups, data)
    with torch.no_grad():
        error = float((small(example) - net(example)).abs().max() / net(example).abs().max())
    return Outcome(error < 1e-3, error, 1e-3)


def regrowth(method: Engine) -> Outcome:
    """After soft pruning every zeroed filter still gets a gradient (where β > 0: behind ReLU a silent map hears nothing), so that it can grow back."""
    net, data, example = copy.deepcopy(toy()[0]), *toy()[1:]
    for norm in (net[1], net[4]):
        nn.init.constant_(norm.bias, 0.2)
    zeroed = replace(method, criterion="l2").soften(net, 0.5, example)
    before = [net.get_submodule(name).weight[rows].abs().max().item() for name, rows in zeroed.items()]
    net.train()
    F.cross_entropy(net(data[0][0]), data[0][1]).backward()
    back = [bool((net.get_submodule(name).weight.grad[rows].flatten(1).norm(dim=1) > 0).all()) for name, rows in zeroed.items()]
    return Outcome(not any(before) and all(back), f"largest zeroed weight {max(before)}, gradients reach {sum(back)} of {len(back)} layers", "0, all layers")


def blocks_dropped(method: Engine) -> Outcome:
    """Found are exactly the blocks that keep their input's shape; dropping one is the same as silencing its branch, and its MACs are gone."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), BasicBlock(8, 8, 8, 1), BasicBlock(8, 8, 8, 2), BasicBlock(8, 4, 8, 1),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    _, data, example = toy()
    found = residual_blocks(net, example)
    small = replace(method, granularity="block").apply(net, 0.5, data, example).model
    gone = [name for name in found if isinstance(small.get_submodule(name), nn.Identity)]
    silent = copy.deepcopy(net)
    for name in gone:
        nn.init.zeros_(silent.get_submodule(name).bn2.weight)
        nn.init.zeros_(silent.get_submodule(name).bn2.bias)
    with torch.no_grad():
        error = float((small(example) - silent(example)).abs().max())
    fewer = macs(net, example) - macs(small, example)
    return Outcome(found == ["2", "4"] and len(gone) == 1 and error < 1e-5 and fewer > 0, f"found {found}, dropped {gone}, error {error:.1e}, {fewer} MACs fewer",
                   "found ['2', '4'], one dropped, 1e-5, more than 0")


def complete_map(method: Engine) -> Outcome:
    """Every leaf is a paper of the catalogue or a classic, and no branch of the survey is empty."""
    unknown = {leaf.key for leaf in method.tree if resolve(leaf) is None} - NOT_HERE
    numbers = {part.split()[0] for leaf in method.tree for part in leaf.path}
    empty = sorted(set(BRANCHES) - numbers)
    return Outcome(not unknown and not empty, f"unknown {sorted(unknown)}, empty {empty}; {len(method.tree)} leaves", "none")


