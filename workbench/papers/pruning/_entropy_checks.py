"""The exact checks of the entropy study, and what its ablations put in the method's place. A check examines an `EntropyPruning` instance."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from ...benches import vgg_fc, vision
from ...benches.activations import kept_for_backward, map_bytes
from ...contracts.structure.surgery import ChannelGroup, mask, parameters, remove
from ...core.study import Outcome
from ._entropy_contenders import images, repaired
from ._entropy_method import EntropyPruning, LayerByLayer, leading_layers, prunable, uniform_loss

IMAGES = 64


# --- wrong on purpose ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfWeights:
    """The entropy of a filter's weights: what is easily mistaken for the paper's score."""

    bins: int = 100

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {g.name: sum(g.spread(m, torch.tensor([stats.entropy(np.histogram(row, self.bins)[0]) for row in m.weights().numpy()])) for m in g.producers)
                for g in groups}


class MasksOnly(EntropyPruning):
    """Zeroes instead of smaller tensors, and new batch-norm statistics even where nothing was removed."""

    cut = staticmethod(mask)

    def prune(self, *args, **settings) -> LayerByLayer:
        result = super().prune(*args, **settings)
        repaired(result.model)
        return result


class HeadKept(EntropyPruning):
    """The fully connected layers stay."""

    head = staticmethod(lambda model, example: copy.deepcopy(model))


# --- checks -------------------------------------------------------------------------------------------------------------------------------------


def _as_it_is(net: nn.Module) -> None:
    """Nothing between two layers: for checks that compare bit by bit."""


def _quiet(method: EntropyPruning, model: nn.Module, lose, n: int = IMAGES) -> LayerByLayer:
    return replace(method, images=n).prune(model, lose, images(n), vision.EXAMPLE, _as_it_is)


def equals_scipy(method: EntropyPruning) -> Outcome:
    """Against scipy's entropy of numpy's histogram; a constant channel has 0; a uniform one comes near log(bins)."""
    rng, bins = np.random.default_rng(3), method.criterion.bins
    responses = rng.normal(size=(50 * bins, 5)) ** 2 * np.array([1, 10, 0.1, 3, 0])
    responses[:, 4] = 0.7
    found = method.criterion.entropy(torch.from_numpy(responses))
    wanted = [stats.entropy(np.histogram(column, bins)[0]) for column in responses.T[:4]]
    error = max(float(np.abs(found[:4].numpy() - wanted).max()), float(found[4].abs()))
    even = float(method.criterion.entropy(torch.from_numpy(rng.uniform(size=(50 * bins, 1))))) / np.log(bins)
    return Outcome(error < 1e-10 and even >= 0.98, f"error {error:.1e}, uniform {even:.3f}·log(bins)", "below 1e-10, at least 0.98·log(bins)")


def free_of_scale(method: EntropyPruning) -> Outcome:
    """Powers of two change no bit; any other a·x + b moves at most values that lie on a bin's edge."""
    responses = torch.from_numpy(np.random.default_rng(4).gamma(2, size=(1000, 4)))
    before = method.criterion.entropy(responses)
    exact = float((method.criterion.entropy(responses * torch.tensor([1, 4, 0.25, 64])) - before).abs().max())
    near = float((method.criterion.entropy(responses * torch.tensor([0.3, 3.7, 11, 0.9]) + torch.tensor([5, 1.3, 0, 40])) - before).abs().max())
    return Outcome(exact == 0 and near < 0.01, f"{exact:.1e} under powers of two, {near:.1e} else", "0 and below 0.01")


def planted_constants(method: EntropyPruning) -> Outcome:
    """Constant and dead channels (batch norm's γ is 0) are the lowest; with their mean folded into the next bias, the next layer's maps stay as they were
    but for the border, where zero padding tells a constant from nothing."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    planted = [1, 4, 6]
    with torch.no_grad():
        net[1].weight[planted] = 0
        net[1].bias[planted] = torch.tensor([0.7, -1.0, 2.0])
        net[0].weight[planted] *= 10
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    result = replace(method, images=64, fold=True).prune(net, {"0": 3}, [x], x[:1], _as_it_is)
    with torch.no_grad():
        change = (result.model[:4](x) - net[:4](x))[:, :, 1:-1, 1:-1].abs().max()
    lowest = result.dropped["0"].tolist()
    return Outcome(lowest == planted and float(change) < 1e-4, f"lowest {lowest}, next maps move by {float(change):.1e}", f"lowest {planted}, below 1e-4")


def measured_on_current(method: EntropyPruning) -> Outcome:
    """The scores that decided in each layer are those of the net without the filters removed before, worked out anew; the lowest go."""
    dense = vision.dense("vgg-small")
    groups = prunable(dense, vision.EXAMPLE)
    result = _quiet(method, dense, uniform_loss(groups[:4], 0.5))
    worst, before = 0.0, {}
    for name, score in result.scores.items():
        current = remove(dense, before, vision.EXAMPLE)
        group = next(g for g in prunable(current, vision.EXAMPLE) if g.name == name)
        anew = method.criterion.scores([group], current, images(IMAGES))[name]
        worst = max(worst, float((anew - score).abs().max()))
        units = result.dropped[name]
        kept = torch.ones(len(score), dtype=torch.bool).index_fill(0, units, False)
        if len(units) != round(0.5 * len(score)) or score[units].max() > score[kept].min():
            return Outcome(False, f"{name}: {len(units)} filters removed, not the lowest half", "the lowest half")
        before[name] = units
    return Outcome(worst < 1e-6, worst, 1e-6)


class Bottlenecks(nn.Module):
    """ResNet-50's block (1×1, 3×3, 1×1 and the shortcut), twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                                                  nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)) for _ in range(2))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


def residual_strategy(method: EntropyPruning) -> Outcome:
    """ResNet-20 and bottlenecks: inner convolutions only, and zeroed = rebuilt at the size that the counts promise."""
    torch.manual_seed(1)
    x, worst = vision.calibration()[:8], 0.0
    for net, wanted in ((vision.dense("resnet20"), [f"blocks.{i}.conv1" for i in range(9)]),
                        (Bottlenecks().eval(), [f"blocks.{i}.{j}" for i in range(2) for j in (0, 3)])):
        groups = prunable(net, vision.EXAMPLE)
        if [g.name for g in groups] != wanted:
            return Outcome(False, f"pruned would be {[g.name for g in groups]}", wanted)
        lose = uniform_loss(groups[::4], 0.4)
        result = _quiet(method, net, lose, 16)
        small = parameters(remove(net, {name: range(n) for name, n in lose.items()}, vision.EXAMPLE, groups))
        if parameters(result.model) != small:
            return Outcome(False, f"{parameters(result.model)} parameters left", small)
        with torch.no_grad():
            worst = max(worst, float((result.model(x) - mask(net, result.dropped, vision.EXAMPLE, groups)(x)).abs().max()))
    return Outcome(worst < 1e-4, worst, 1e-4)


def memory_as_predicted(method: EntropyPruning) -> Outcome:
    """The share of maps left by formula is the share of bytes that autograd keeps, on unequal layers."""
    dense, x = vision.dense("vgg-small"), vision.calibration()[:4]
    lose = {g.name: (i + 1) * g.size // 8 for i, g in enumerate(prunable(dense, vision.EXAMPLE))}
    predicted = 1 - sum(n / g.size * share for (g, n), share in zip(((g, lose[g.name]) for g in prunable(dense, vision.EXAMPLE)), _map_shares(), strict=True))
    small = _quiet(method, dense, lose, 16).model
    found = kept_for_backward(small, x) / kept_for_backward(dense, x)
    ok = abs(found - predicted) <= 0.01 and abs(map_bytes(small, x) / map_bytes(dense, x) - predicted) < 1e-9
    return Outcome(ok, f"{found:.4f} of the bytes kept", f"{predicted:.4f} ± 0.01")


def _map_shares() -> list[float]:
    """Each layer's share of Σ c·h·w in VGG-small on 32×32 images."""
    sizes = [c * side**2 for c, side in zip(vision.NETS["vgg-small"]().config()["widths"], (32, 32, 16, 16, 8, 8), strict=True)]
    return [size / sum(sizes) for size in sizes]


@cache
def _vgg16() -> nn.Module:
    """VGG-16 without weights (on the meta device), for arithmetic."""
    layers, c = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(c, width, 3, padding=1, device="meta"), nn.ReLU()]
            c = width
        layers.append(nn.MaxPool2d(2))
    fc = [nn.Flatten(), *(nn.Linear(a, b, device="meta") for a, b in ((25088, 4096), (4096, 4096), (4096, 1000)))]
    return nn.Sequential(*layers, *fc)


def vgg_strategy(method: EntropyPruning) -> Outcome:
    """VGG-16: the leading convolutions are the first ten, and 89 % of its parameters are fully connected. The bench's VGG: at least 80 % of those
    parameters go with the head, while the convolutions stay to the last bit."""
    large = _vgg16()
    leading = leading_layers(large, torch.zeros(1, 3, 224, 224, device="meta"))
    fc = sum(p.numel() for m in large if isinstance(m, nn.Linear) for p in m.parameters()) / parameters(large)
    net = vgg_fc.dense()
    small = method.vgg(net, 0.0, None, vision.EXAMPLE).model
    gone = 1 - parameters(small.classifier) / parameters(net.classifier)
    x = vision.calibration()[:4]
    with torch.no_grad():
        same = torch.equal(net.features(x), small.features[:len(net.features)](x)) and small(x).shape == net(x).shape
    ok = len(leading) == 10 and leading == [str(i) for i, m in enumerate(large) if isinstance(m, nn.Conv2d)][:10] and abs(fc - 0.89) < 0.01
    return Outcome(ok and same and gone >= 0.8, f"{len(leading)} leading layers, {fc:.3f} fully connected; {gone:.3f} of the head gone, maps equal: {same}",
                   "10, 0.89; at least 0.8, equal")


def neutral_is_identity(method: EntropyPruning) -> Outcome:
    model, x = vision.dense("resnet20"), vision.calibration()[:16]
    same = method.prune(model, uniform_loss(prunable(model, vision.EXAMPLE), 0.0), None, vision.EXAMPLE).model
    with torch.no_grad():
        equal = bool(torch.equal(same(x), model(x)))
    return Outcome(equal, "equal bit for bit" if equal else "differs", "equal bit for bit")
