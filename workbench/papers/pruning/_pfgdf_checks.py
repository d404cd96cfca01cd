"""The exact checks of the PFGDF study. A check examines a `WidthSearch`, whose ``method`` is the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...benches import vision
from ...contracts.structure.surgery import macs, mask, reestimate_batchnorm, remove
from ...core.study import Outcome
from ._pfgdf_method import PFGDF, WIDEST, WidthSearch, filter_statistic, normality, pfgdf_mask, predicted_share

# --- wrong on purpose ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SortedByNorm(PFGDF):
    """The largest norms, as many as a Gaussian would keep: magnitude pruning under another name."""

    def stays(self, distance: Tensor, alpha: float) -> Tensor:
        return distance.argsort().argsort() >= len(distance) * (1 - predicted_share(alpha))

    def of_layer(self, member) -> Tensor:
        return member.weights().double().abs().mean(1)


@dataclass(frozen=True)
class MasksOnly(PFGDF):
    """Zeroes instead of smaller tensors, and new batch-norm statistics even where nothing was removed."""

    @staticmethod
    def cut(model: nn.Module, drop, example, groups=None) -> nn.Module:
        net = mask(model, drop, example, groups)
        reestimate_batchnorm(net, vision.calibration())
        return net


# --- checks -------------------------------------------------------------------------------------------------------------------------------------


def interval_by_hand(search: WidthSearch) -> Outcome:
    """Every width: what stays in each layer is exactly {i : |s_i − μ| ≤ ασ}, worked out in numpy, and a wider interval never holds less."""
    method, net = search.method, vision.dense("vgg-small")
    groups, _ = method.eligible(net, vision.EXAMPLE)
    before, wrong = {}, []
    for alpha in (0.3, 0.43, 0.8, 1.2, 2.0, 3.0):
        drop = method.drop(groups, alpha)
        for group in groups:
            weight = net.get_submodule(group.name).weight.detach().double().numpy().reshape(group.size, -1)
            s = {"sum": weight.mean(1), "l1": np.abs(weight).mean(1), "l2": np.sqrt((weight**2).mean(1))}[method.statistic]
            inside = np.abs(s - s.mean()) <= alpha * s.std(ddof=1)
            kept = sorted(set(range(group.size)) - set(drop.get(group.name, torch.tensor([])).tolist()))
            if kept != np.flatnonzero(inside).tolist() or len(kept) < before.get(group.name, 0):
                wrong.append(f"{group.name} at {alpha}")
            before[group.name] = len(kept)
    return Outcome(not wrong, f"{len(wrong)} of {6 * len(groups)} layers and widths differ", "none")


def gaussian_share(search: WidthSearch) -> Outcome:
    """4,096 filters with Gaussian weights: the share that stays is erf(α/√2), within 0.03 (its standard error is 0.007)."""
    method, worst = search.method, 0.0
    layer = nn.Conv2d(4, 4096, 3, bias=False)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(6))
    for alpha in (0.43, 1.0, 2.0):
        share = pfgdf_mask(layer.weight, alpha, method.statistic, method.keep).double().mean()
        worst = max(worst, abs(float(share) - predicted_share(alpha)))
    return Outcome(worst <= 0.03, worst, 0.03)


def normality_seen(search: WidthSearch) -> Outcome:
    """Of planted layers the Gaussian one passes Shapiro–Wilk and the skewed one does not; the layer's statistic, not some other, is looked at."""
    generator = torch.Generator().manual_seed(7)
    gaussian, skewed = (torch.randn(64, generator=generator), torch.empty(64).exponential_(generator=generator))
    found = [normality(filter_statistic_of(search, values)) for values in (gaussian, skewed)]
    ok = found[0].p > 0.05 and found[1].p < 0.01 and found[1].skewness > 1 > abs(found[0].skewness)
    return Outcome(ok, f"p {found[0].p:.2f} and {found[1].p:.1e}; skewness {found[0].skewness:.2f} and {found[1].skewness:.2f}", "p > 0.05 and < 0.01")


def filter_statistic_of(search: WidthSearch, means: Tensor) -> Tensor:
    """The statistic of filters whose signed means are ``means``, with noise that only a magnitude sees."""
    noise = torch.randn(len(means), 36, generator=torch.Generator().manual_seed(8)) * 0.05
    return filter_statistic(noise - noise.mean(1, keepdim=True) + means[:, None], search.method.statistic)


def dead_filters_stay(search: WidthSearch) -> Outcome:
    """The rule's weakness: filters scaled to nothing have s ≈ 0 ≈ μ, so they lie in the middle of the interval. The tails, or a norm, delete them."""
    net, dead = vision.dense("vgg-small"), [2, 7, 11, 20]
    with torch.no_grad():
        net.features[7].weight[dead] *= 1e-4
        net.features[8].weight[dead] *= 1e-4
    groups, _ = search.method.eligible(net, vision.EXAMPLE)
    gone = set(search.method.drop(groups, 0.8).get("features.7", torch.tensor([])).tolist())
    return Outcome(not gone & set(dead) and bool(gone), f"dead filters deleted: {sorted(gone & set(dead))} of {dead}", "none")


class Landscape:
    """A net with three layers of twelve filters, and an accuracy that counts them: 90, less 0.2 a filter of the first, 0.1 of the second, 5 of the third."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2)).eval()
        self.example, self.judged = torch.zeros(1, 1, 8, 8), []

    def accuracy(self, net: nn.Module) -> float:
        self.judged.append(90 - sum(cost * (12 - net[i].out_channels) for cost, i in ((0.2, 0), (0.1, 2), (5, 4))))
        return self.judged[-1]

    @staticmethod
    def tune(net: nn.Module) -> None:
        with torch.no_grad():
            for p in net.parameters():
                p += 1e-3  # a trace of every tuning, so that a lost or repeated one shows


def search_keeps_the_floor(search: WidthSearch) -> Outcome:
    """On a landscape known in advance: no accepted step lies below the floor, the last layer stays whole, refused trials leave no trace, the result is the
    narrowest that walking down every width finds; and the same search again gives the same log and the same weights."""
    runs = []
    for bisect in (True, True, False):
        ground = Landscape()
        result = replace(search, tolerance=2.0, bisect=bisect).run(ground.net, ground.example, ground.tune, ground.accuracy)
        runs.append((result, ground))
    (found, ground), (again, _), (walked, _) = runs
    accepted = [step for step in found.history if step.accepted]
    sizes = [found.model[i].out_channels for i in (0, 2, 4)]
    lowest = min((step.accuracy for step in accepted), default=math.nan)
    ok = lowest >= 88 and ground.accuracy(found.model) >= 88 and list(found.kept.values()) == sizes and sizes[2] == 12
    same = found.history == again.history and all(torch.equal(a, b) for a, b in zip(found.model.state_dict().values(), again.model.state_dict().values()))
    tuned = round(float((found.model[8].bias - ground.net[8].bias).detach()[0]) * 1e3)
    return Outcome(ok and same and walked.kept == found.kept and tuned == len(accepted),
                   f"lowest accepted {lowest:.1f}, filters left {sizes}, walked {list(walked.kept.values())}, tuned {tuned} times, replay equal: {same}",
                   f"at least 88.0, equal, tuned {len(accepted)} times")


def masked_equals_rebuilt(search: WidthSearch) -> Outcome:
    """VGG-small with its classifier's columns, ResNet-20 with its streams (deleted where all writers agree): zeroed and rebuilt give the same logits."""
    x, worst = vision.calibration()[:8], 0.0
    for name, coupled in (("vgg-small", False), ("resnet20", True)):
        net, method = vision.dense(name), replace(search.method, coupled=coupled)
        groups, _ = method.eligible(net, vision.EXAMPLE)
        drop = method.drop(groups, 0.8)
        small = method.prune(net, 0.8, vision.EXAMPLE).model
        if macs(small, vision.EXAMPLE) != macs(remove(net, drop, vision.EXAMPLE, groups), vision.EXAMPLE):
            return Outcome(False, f"{name}: {macs(small, vision.EXAMPLE)} MACs", "those of the smaller tensors")
        with torch.no_grad():
            worst = max(worst, float((small(x) - mask(net, drop, vision.EXAMPLE, groups)(x)).abs().max()))
    return Outcome(worst < 1e-4, worst, 1e-4)


def widest_is_identity(search: WidthSearch) -> Outcome:
    """No filter of N lies further out than (N − 1)/√N standard deviations, so that a width of 8 keeps all of up to 65: the same logits bit for bit."""
    net, x = vision.dense("vgg-small"), vision.calibration()[:16]
    with torch.no_grad():
        equal = bool(torch.equal(search.method.prune(net, WIDEST, vision.EXAMPLE).model(x), net(x)))
    return Outcome(equal, "equal bit for bit" if equal else "differs", "equal bit for bit")
