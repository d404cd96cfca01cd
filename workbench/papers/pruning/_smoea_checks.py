"""The exact checks of the SMOEA study. A check examines an `SMOEA`; ablations are instances with one field replaced."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import nn

from ...benches import vision
from ...contracts.structure.surgery import channel_groups, mask, parameters, reestimate_batchnorm, remove
from ...core.study import Outcome
from . import inside_blocks
from ._smoea_pieces import ranks
from ._smoea_search import SMOEA, walk
from ._smoea_subnet import ParameterCount, SubNetwork, segments
from .classics import L1


def masks_only(model: nn.Module, drop, example, groups) -> nn.Module:
    """Wrong on purpose: zeroes instead of smaller tensors, and new batch-norm statistics even where nothing was removed."""
    masked = mask(model, drop, example, groups)
    reestimate_batchnorm(masked, vision.calibration())
    return masked


def toy(layers: int = 4) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small net, images and labels."""
    torch.manual_seed(3)
    parts, width = [], 3
    for _ in range(layers):
        parts += [nn.Conv2d(width, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
        width = 6
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    images = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return net, images, net(images).argmax(1)


@cache
def _searched(method: SMOEA):
    net, images, labels = toy()
    nets: list[nn.Module] = []
    front = walk(net, images[:16], (images[16:], labels[16:]), replace(method, layers=2, population=12, generations=6, tolerance=30), between=nets.append)
    return front, nets


def _of_search(method: SMOEA) -> SMOEA:
    """What a search depends on; methods that agree in it are searched once."""
    return replace(SMOEA(), survivors=method.survivors, progressive=method.progressive, repair=method.repair)


def _dominated(points: np.ndarray) -> np.ndarray:
    """Brute force: is there another point that is nowhere worse and somewhere better?"""
    return np.array([any((q <= p).all() and (q < p).any() for q in points) for p in points])


def sorting(method: SMOEA) -> Outcome:
    """The archive, pymoo's fronts and its crowding distances against plain loops over all pairs, on random sets with ties."""
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    rng, wrong = np.random.default_rng(0), 0
    for n in (1, 2, 5, 20, 40):
        for digits in (1, 6):
            points = rng.random((n, 2)).round(digits)
            wrong += {tuple(p) for p in points[method.survivors(points)]} != {tuple(p) for p in points[~_dominated(points)]}
            rest, fronts = np.arange(n), NonDominatedSorting().do(points)
            for front in fronts:
                best = rest[~_dominated(points[rest])]
                wrong += int(set(best) != set(front))
                rest = np.setdiff1d(rest, best)
            points = rng.random((n, 2))
            by_hand = np.zeros(n)
            for column in points.T:
                order = np.argsort(column)
                for place, row in enumerate(order):
                    inside = 0 < place < n - 1
                    by_hand[row] += (column[order[place + 1]] - column[order[place - 1]]) / np.ptp(column) / 2 if inside else np.inf
            wrong += int(n > 2 and not np.allclose(by_hand, calc_crowding_distance(points)))
    return Outcome(wrong == 0, f"{wrong} sets differ", "0")


def archive_grows(method: SMOEA) -> Outcome:
    """In a search made now, the archive's hypervolume never falls and no point of the final front is dominated."""
    front = _searched(_of_search(method))[0]
    falls = sum(int((np.diff(f.volumes[:, 0]) < -1e-12).sum()) for f in front.fronts)
    beaten = sum(int(_dominated(np.stack([f.share, f.error], 1)).sum()) for f in front.fronts)
    return Outcome(falls == 0 and beaten == 0, f"{falls} falls, {beaten} dominated points", "0 falls, 0 dominated points")


def _hooked(net: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """What the whole network sends through ``layer``, batch norms with the statistics of these images."""
    seen: list[torch.Tensor] = []
    for module in net.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        handle = net.get_submodule(layer).register_forward_hook(lambda _, __, out: seen.append(out))
        net(images)
        handle.remove()
    return seen[0]


@cache
def _objective(own_statistics: bool) -> Outcome:
    rng, worst, images = np.random.default_rng(1), 0.0, vision.calibration()[:16]
    for net, which, ends in (("vgg-small", slice(2, 4), ["features.15"]), ("resnet20", slice(3, 6), [f"blocks.{i}.bn2" for i in (3, 4, 5)])):
        dense = vision.dense(net)
        first = inside_blocks(channel_groups(dense, vision.EXAMPLE))[-1]
        now = remove(dense, {first.name: range(first.size // 3)}, vision.EXAMPLE)  # the walk has pruned a later layer already
        groups = inside_blocks(channel_groups(now, vision.EXAMPLE))[which]
        network = SubNetwork(now, groups, images, own_statistics=own_statistics)
        masks = rng.random((5, network.size)) < 0.6
        whole = [_hooked(now, end, images) for end in ends]
        for bits, error in zip(masks, network.errors(masks), strict=True):
            small = remove(now, {g.name: np.flatnonzero(~bits[where]) for g, where in zip(groups, segments(groups), strict=True)}, vision.EXAMPLE)
            parts = [float((_hooked(small, end, images) - y).square().sum() / y.square().sum()) for end, y in zip(ends, whole, strict=True)]
            worst = max(worst, abs(float(error) - float(np.mean(parts))))
    return Outcome(worst < 1e-5, worst, 1e-5)


def objective(method: SMOEA) -> Outcome:
    """f₂ of masks judged side by side on the sub-network equals the error measured on the whole, really pruned network, one mask at a time."""
    return _objective(method.own_statistics)


def exact_parameters(method: SMOEA) -> Outcome:
    """The parameters that f₁ and the slider reckon with are those of the rebuilt network, as whole numbers."""
    return _exact(replace(_of_search(method), surgery=method.surgery))


@cache
def _exact(method: SMOEA) -> Outcome:
    wrong, rng = 0, np.random.default_rng(2)
    for net in ("mobilenet", "resnet20"):
        model = vision.dense(net)
        every = channel_groups(model, vision.EXAMPLE)
        groups = inside_blocks(every)[-4:]
        bits = rng.random((2, sum(g.size for g in groups))) < 0.5
        bits[:, [where.start for where in segments(groups)]] = True
        count = ParameterCount(groups)
        gone = count(np.ones((1, bits.shape[1]), bool)) - count(bits)
        for row, less in zip(bits, gone, strict=True):
            small = method.surgery(model, {g.name: np.flatnonzero(~row[where]) for g, where in zip(groups, segments(groups), strict=True)}, vision.EXAMPLE, every)
            wrong += parameters(model) - parameters(small) != less
    front = replace(_searched(_of_search(method))[0], surgery=method.surgery)
    total = parameters(front.model)
    for share in (0.3, 0.5, 0.7, 1.0):
        points, small = front.points(params=share), front.export(params=share)
        wrong += parameters(small) != front.parameters(points) or parameters(small) > share * total
    return Outcome(wrong == 0, f"{wrong} of 8 differ", "0 of 8")


def rebuilt(method: SMOEA) -> Outcome:
    """All ones return the dense network's answers bit for bit; zeros and smaller tensors give the same answers."""
    return _rebuilt(method.surgery)


@cache
def _rebuilt(surgery) -> Outcome:
    worst, images = 0.0, vision.calibration()[:8]
    for net in ("resnet20", "mobilenet"):
        model = vision.dense(net)
        every = channel_groups(model, vision.EXAMPLE)
        groups, rng = inside_blocks(every), np.random.default_rng(3)
        drop = {g.name: np.flatnonzero(rng.random(g.size - 1) < 0.5) for g in groups}
        with torch.no_grad():
            if not torch.equal(surgery(model, {}, vision.EXAMPLE, every)(images), model(images)):
                return Outcome(False, f"{net}: all ones differ from the dense network", "equal bit for bit")
            worst = max(worst, float((surgery(model, drop, vision.EXAMPLE, every)(images) - mask(model, drop, vision.EXAMPLE, every)(images)).abs().max()))
    return Outcome(worst < 1e-4, worst, 1e-4)


def one_stays(method: SMOEA) -> Outcome:
    """10,000 random genomes, most of them nearly empty: after repair every layer keeps a filter, and genomes that did are unchanged."""
    groups = channel_groups(vision.dense("vgg-small"), vision.EXAMPLE)
    rng, bits = np.random.default_rng(4), sum(g.size for g in groups)
    masks = rng.random((10_000, bits)) < rng.choice([0.005, 0.02, 0.5], (10_000, 1))
    repaired = method.repair(masks, groups, np.concatenate([1 + np.arange(g.size) for g in groups]))
    empty = sum(int((~repaired[:, where].any(1)).sum()) for where in segments(groups))
    fine = np.all([masks[:, where].any(1) for where in segments(groups)], 0)
    changed = int((masks[fine] != repaired[fine]).any(1).sum())
    return Outcome(empty == 0 and changed == 0, f"{empty} empty layers, {changed} sound genomes changed", "0, 0")


def start(method: SMOEA) -> Outcome:
    """The first population holds the whole group and, at half of each layer, exactly the filters with the largest L1 norms; no two members are equal."""
    model = vision.dense("vgg-small")
    groups = channel_groups(model, vision.EXAMPLE)[-2:]
    seeds = method.start(groups, model, 40, np.random.default_rng(5))
    half = np.concatenate([rank > len(rank) // 2 for rank in ranks(groups, L1(), model)])
    found = [any((row == wanted).all() for row in seeds) for wanted in (np.ones(len(half), bool), half)]
    return Outcome(all(found) and len(np.unique(seeds, axis=0)) == 40, f"whole {found[0]}, largest half {found[1]}, {len(np.unique(seeds, axis=0))} different masks",
                   "whole True, largest half True, 40 different masks")


def flips(method: SMOEA) -> Outcome:
    """One bit a genome flips on average; of the kept filters the smallest goes most often, of the dropped ones the largest comes back most often."""
    from ._smoea_operators import RankedFlips

    groups = channel_groups(vision.dense("vgg-small"), vision.EXAMPLE)[:2]
    by_size = np.concatenate([1 + np.arange(g.size) for g in groups])
    mutate, rng = RankedFlips(*method.flips(by_size, groups)), np.random.default_rng(6)
    shares = []
    for kept in (True, False):
        masks = np.full((20_000, len(by_size)), kept)
        shares.append((mutate._do(None, masks, random_state=rng) != masks).mean(0))
    deleted, inserted = shares
    size = groups[0].size
    ratio = [deleted[0] / deleted[size - 1], inserted[size - 1] / inserted[0]]
    ok = abs(deleted.sum() - 1) < 0.05 and abs(inserted.sum() - 1) < 0.05 and min(ratio) > size / 2
    return Outcome(bool(ok), f"{deleted.sum():.2f} and {inserted.sum():.2f} bits; {ratio[0]:.1f}× and {ratio[1]:.1f}×", f"1 ± 0.05; above {size / 2:g}× (exactly {size}×)")


def progressive(method: SMOEA) -> Outcome:
    """The second group was judged behind, and in front of, what the first decision left: its recorded errors are those on the pruned network."""
    front, nets = _searched(_of_search(method))
    _, images, _ = toy()
    group = {g.name: g for g in channel_groups(nets[0], images[:1])}
    network = SubNetwork(nets[0], [group[name] for name in front.fronts[1].layers], images[:16])
    error = float(np.abs(network.errors(front.fronts[1].masks) - front.fronts[1].error).max())
    sizes = [parameters(net) for net in (front.model, *nets)]
    wanted = front.parameters(front.chosen)
    return Outcome(error < 1e-5 and sizes[0] > sizes[1] >= sizes[2] == wanted, f"errors differ by {error:.1e}; parameters {' → '.join(map(str, sizes))}",
                   f"1e-5; down to {wanted}")

