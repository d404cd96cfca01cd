"""The exact checks of the BSGC study, and the variants that are wrong on purpose: each leaves out one numbered part."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...benches import detection
from ...benches.detection import data, tracking
from ...benches.detection.nets import Detector
from ...contracts.structure.macs import macs, parameters
from ...contracts.structure.surgery import mask, remove
from ...core.study import Outcome
from ._bsgc_method import BSGC, Student, specialize
from ._bsgc_shrink import Counter, alive, prunable, take_out
from ._bsgc_tasks import Classification, Detection
from ._bsgc_tracker import ONLINE, OnlineTracker, stored

# ---------------------------------------------------------------------------------------------------------------- wrong on purpose


@dataclass(frozen=True)
class NoSpecialisation(BSGC):
    def total(self, specialise, general):
        return self.alpha * general + 0 * specialise


@dataclass(frozen=True)
class EqualCosts(BSGC):
    def costs(self, counter, live):
        return dict.fromkeys(live, 1 / len(live))


@dataclass(frozen=True)
class Subgradient(BSGC):
    """The penalty's slope instead of its proximal operator: scales swing around zero and never stay there."""

    def threshold(self, values, by):
        return values - by * values.sign()


@dataclass(frozen=True)
class NoFolding(BSGC):
    def fold(self, read):
        pass


@dataclass(frozen=True)
class MasksOnly(BSGC):
    def surgery(self, model, drop, example, groups):
        return mask(model, drop, example, groups)


@dataclass(frozen=True)
class FixedBeta(BSGC):
    def balance(self, beta, cost, target):
        return beta


@dataclass(frozen=True)
class LearnsFromLater(BSGC):
    def frames(self):
        return data.camera().part(data.SPLIT, data.FRAMES)


class _LooksAhead(OnlineTracker):
    """Answers for frame t with what frame t + 1 shows."""

    def run(self, frames, box0):
        stream = frames if isinstance(frames, data.Stream) else data.Stream(frames)
        self.start(data.normalised(stream[0]), box0)
        return np.stack([np.asarray(box0, np.float32), *(self.step(data.normalised(stream[min(t + 1, len(stream) - 1)])) for t in range(1, len(stream)))])


@dataclass(frozen=True)
class LooksAhead(BSGC):
    tracker: ClassVar = _LooksAhead


class _NeverBack(OnlineTracker):
    def restore(self, frame, before):
        return self.box[0].numpy().copy()


@dataclass(frozen=True)
class NeverBack(BSGC):
    tracker: ClassVar = _NeverBack


# ---------------------------------------------------------------------------------------------------------------- checks

EXAMPLE = torch.zeros(1, 3, 32, 32)


def _toy() -> Detector:
    """An untrained detector with scales, shifts and statistics that are not those of a beginner."""
    torch.manual_seed(3)
    net = Detector((4, 5, 6, 6, 6, 5, 8)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -1, 1), (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2)):
                nn.init.uniform_(tensor, low, high)
    return net.requires_grad_(True)


def _some(groups, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator).argsort() >= g.size // 3 for g in groups}


def starts_as_teacher(method: BSGC) -> Outcome:
    """At step 0 the student answers as the teacher does, bit for bit: L_g is exactly 0, so that L = L_s even for α = 10⁶."""
    net, images = _toy(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    student = Student(replace(method, alpha=1e6, beta=0.0), net, EXAMPLE, parameters(net), 0, frozen=True)
    with torch.no_grad():
        ours, theirs = student.mode()(images), net(images)
        general, special = Detection().keep(ours, theirs, method.temperature), ours.square().mean()
        same = torch.equal(ours, theirs) and float(general) == 0 and float(student.method.total(special, general)) == float(special)
    return Outcome(same, f"L_g = {float(general)}, L − L_s = {float(student.method.total(special, general) - special):.3g}", "0, and 0")


def both_domains_count(method: BSGC) -> Outcome:
    """A toy with two kinds of images: it learns new answers for one kind and keeps the old ones for the other."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    here, there = torch.randn(32, 1, 6, 6) * 0.5 + 1, torch.randn(32, 1, 6, 6) * 0.5 - 1
    with torch.no_grad():
        before = net(there)
        new = (net(here).argmax(1) + 1) % 3
    made = specialize(net, [(here, new)], [there] if method.alpha else None, 1.0, method=replace(method, steps=30, rate=0.1)).model
    with torch.no_grad():
        learnt, moved = float((made(here).argmax(1) == new).float().mean()), float(Classification().keep(made(there), before, method.temperature))
    return Outcome(learnt >= 0.9 and moved <= 0.1, f"new answers learnt {learnt:.2f}, old ones moved by L_g = {moved:.3f}", "at least 0.9, at most 0.1")


def zeros_are_exact(method: BSGC) -> Outcome:
    """By hand; and repeated steps end at zero exactly and stay there."""
    values = torch.tensor([0.5, -0.5, 0.25, -0.1, 0.0])
    once = method.threshold(values, 0.25)
    for _ in range(7):
        values = method.threshold(values, 0.1)
    return Outcome(torch.equal(once, torch.tensor([0.25, -0.25, 0, 0, 0])) and not values.any(),
                   f"{[round(v, 3) + 0.0 for v in once.tolist()]}, after seven steps of 0.1 {[round(v, 3) + 0.0 for v in values.tolist()]}", "[0.25, −0.25, 0, 0, 0], all 0")


def costs_are_macs(method: BSGC) -> Outcome:
    """c_l is in the ratio of what the *rebuilt* network saves with one channel less, with some neighbours gone; in MACs and in parameters."""
    worst, net = 0.0, _toy()
    groups = prunable(net, EXAMPLE)
    counter, live = Counter(net, groups, EXAMPLE), _some(groups)

    def rebuilt(live):
        return remove(net, {name: (~m).nonzero().flatten().tolist() for name, m in live.items()}, EXAMPLE, groups)

    for currency, count in (("macs", lambda small: macs(small, EXAMPLE)), ("parameters", parameters)):
        costs, ratio = replace(method, currency=currency).costs(counter, live), []
        for group in groups[::3]:
            less = {**live, group.name: live[group.name] & (torch.arange(group.size) != int(live[group.name].nonzero()[0]))}
            ratio.append((count(rebuilt(live)) - count(rebuilt(less))) / costs[group.name])
        worst = max(worst, (max(ratio) - min(ratio)) / max(ratio))
    return Outcome(worst < 1e-6, worst, 1e-6)


def counted_is_rebuilt(method: BSGC) -> Outcome:
    """Parameters and MACs reckoned from live channels are those of the smaller network, as integers."""
    net = _toy()
    groups = prunable(net, EXAMPLE)
    counter, live = Counter(net, groups, EXAMPLE), _some(groups)
    small = method.surgery(net, {name: (~m).nonzero().flatten().tolist() for name, m in live.items()}, EXAMPLE, groups)
    reckoned, real = [counter.total(live, c) for c in ("parameters", "macs")], [parameters(small), macs(small, EXAMPLE)]
    return Outcome(reckoned == real, f"{real}", f"{reckoned}")


def masked_is_rebuilt(method: BSGC) -> Outcome:
    """γ = 0 and taken out, with constants folded: equal away from the border of a large image; where no constant is positive, equal everywhere."""
    net, images = _toy(), torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    found = []
    for shift in (None, -0.5):
        masked = copy.deepcopy(net)
        groups = prunable(masked, EXAMPLE)
        live = _some(groups)
        with torch.no_grad():
            for group in groups:
                norm = group.norms[0].module
                norm.weight[~live[group.name]] = 0
                if shift is not None:
                    norm.bias[~live[group.name]] = shift
            off = {name: (~m).nonzero().flatten() for name, m in alive(groups).items()}
            small, jump = take_out(masked, off, EXAMPLE, float("inf"), method.fold, method.surgery)
            found.append(((small(images) - masked(images)).abs().amax((0, 1)), jump))
    (some, jump), (none, _) = found
    inside = float(some[5:-5, 5:-5].max())
    good = inside < 1e-4 and float(none.max()) < 1e-4 and jump > 0
    return Outcome(good, f"inside {inside:.1e}, at the border {float(some.max()):.2f}; without positive constants {float(none.max()):.1e}", "1e-4, reported; 1e-4")


def controller_by_hand(method: BSGC) -> Outcome:
    """β grows while the network is too large and falls afterwards; the size wanted starts at the whole and ends at the target."""
    grown, fallen = method.balance(2.0, 11, 10), method.balance(2.0, 9, 10)
    path = [method.wanted(800, 200, progress) for progress in (0, 0.5, 1)]
    good = np.allclose([grown, fallen], [2 * method.growth, 2 / method.growth]) and np.allclose(path, [800, 400, 200])
    return Outcome(bool(good), f"{grown:.4f}, {fallen:.4f}; {[round(p) for p in path]}", f"{2 * method.growth:.4f}, {2 / method.growth:.4f}; [800, 400, 200]")


def never_from_the_future(method: BSGC) -> Outcome:
    """No frame that a specialised detector is judged by is among those it learns from, and the reader refuses a frame of the other period."""
    seen, judged = getattr(method, "frames", data.early)(), data.late()
    known = {image.tobytes() for image in seen.images}
    shared = sum(image.tobytes() in known for image in judged.images)
    stream = data.Stream(data.camera().images, data.SPLIT - 1)
    try:
        stream[data.SPLIT]
        refused = False
    except data.LookAhead:
        refused = True
    return Outcome(shared == 0 and refused and len(seen) == data.SPLIT, f"{shared} judged frames among {len(seen)} learnt from, reader refuses: {refused}", "0, True")


QUICKLY = replace(ONLINE, steps=2)


@lru_cache(maxsize=16)  # of all the method's parts, these two checks see the tracker alone
def _tracks(kind: type[OnlineTracker], lost: float, videos: tuple[int, ...]) -> list[np.ndarray]:
    """Tracks of four frames of a video; of video −1 the last two are noise."""
    frames, boxes = data.videos()
    noisy = frames[3, :4].copy()
    noisy[2:] = np.random.default_rng(0).integers(0, 256, noisy[2:].shape)
    general = tuple(part[:4] for part in stored())
    return [kind(detection.dense("siamese"), general, method=QUICKLY, batch=2, every=1, lost=lost).run(noisy if i < 0 else frames[i, :4], boxes[max(i, 3), 0])
            for i in videos]


def causal(method: BSGC) -> Outcome:
    """The reader hands out frame t + 1 only after the box of frame t; noise in the place of later frames changes no earlier box."""
    one, other = _tracks(getattr(method, "tracker", OnlineTracker), 0.0, (3, -1))
    same = bool((one[:2] == other[:2]).all()) and not (one == other).all()
    return Outcome(same, "boxes 0 and 1 equal, later ones differ" if same else "earlier boxes moved", "boxes 0 and 1 equal, later ones differ")


def comes_back(method: BSGC) -> Outcome:
    """When confidence falls below the threshold (here: any does), the uncompressed net judges the same frame, as a tracker that never adapted would."""
    frames, boxes = data.videos()
    ours = _tracks(getattr(method, "tracker", OnlineTracker), 1.1, (3,))[0]
    plain = tracking.follow(tracking.Tracker(detection.dense("siamese")), frames[3, :4], boxes[3, 0])
    return Outcome(bool((ours == plain).all()), float(np.abs(ours - plain).max()), 0.0)
