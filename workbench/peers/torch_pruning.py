"""torch-pruning's own pruner and criteria on the same nets at equal multiply–accumulates, its speed, and whether it keeps the same channels as ours.

Runs in its environment (see the package). Its pruner knows a share of channels, not of MACs: that share is found by bisection, outside the timing.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.benches import public
from workbench.contracts.structure.surgery import channel_groups, macs, remove
from workbench.core.golden import environment
from workbench.papers.pruning import inside_blocks, score_and_remove
from workbench.papers.pruning._public_points import Point, read, write
from workbench.papers.pruning._public_race import Course, described, own_course, public_course
from workbench.papers.pruning.classics import L1, L2
from workbench.peers.house import OWN

CRITERIA = {"tp magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2), "tp taylor": tp.importance.GroupTaylorImportance,
            "tp bn-scale": tp.importance.BNScaleImportance}
EVERYWHERE = "tp magnitude, streams too"  # as the library prunes by default: residual streams as well
STEPS, TOLERANCE, ROUNDS = 9, 0.004, 17


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def prunable(course: Course, streams: bool = False) -> set[str]:
    groups = channel_groups(course.model, course.example)
    return {member.name for group in (groups if streams else inside_blocks(groups)) for member in group.producers}


def gradients(course: Course) -> dict[str, Tensor]:
    """The loss's gradient over the calibration items, by parameter name."""
    model = copy.deepcopy(course.model).requires_grad_(True)
    for inputs, labels in course.data:
        F.cross_entropy(model(inputs), labels, reduction="sum").backward()
    return {name: p.grad for name, p in model.named_parameters()}


def pruner_of(model: nn.Module, course: Course, importance, ratio: float, names: set[str], everywhere: bool = True):
    ignored = [m for name, m in layers(model).items() if name not in names and getattr(m, "groups", 1) == 1]
    return tp.pruner.BasePruner(model, course.example, importance, global_pruning=everywhere, pruning_ratio=ratio, ignored_layers=ignored)


def cut(course: Course, importance, ratio: float, names: set[str], slopes: Mapping[str, Tensor]) -> nn.Module:
    """A copy from which torch-pruning removed a share ``ratio`` of the channels of the layers ``names``."""
    model = copy.deepcopy(course.model)
    for name, parameter in model.named_parameters():
        parameter.grad = slopes.get(name)
    pruner_of(model, course, importance, ratio, names).step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def at_macs(course: Course, importance, names: set[str], slopes: Mapping[str, Tensor]) -> Iterator[tuple[float, float, float, nn.Module]]:
    """(wanted share of MACs removed, share of channels, share of MACs left, net): the nearest that bisection finds."""
    dense, tried = macs(course.model, course.example), {0.0: (1.0, course.model)}
    for wanted in course.ratios:
        low = max(r for r, (left, _) in tried.items() if left >= 1 - wanted)
        high = min((r for r, (left, _) in tried.items() if left < 1 - wanted), default=0.98)
        for _ in range(STEPS):
            middle = (low + high) / 2
            model = cut(course, importance, middle, names, slopes)
            left = macs(model, course.example) / dense
            tried[middle] = left, model
            if abs(left - (1 - wanted)) < TOLERANCE:
                break
            low, high = (middle, high) if left > 1 - wanted else (low, middle)
        ratio = min(tried, key=lambda r: abs(tried[r][0] - (1 - wanted)))
        yield wanted, ratio, *tried[ratio]


def quality(course: Course) -> Iterator[list[Point]]:
    """All criteria on one course."""
    slopes, streams = gradients(course), {EVERYWHERE: CRITERIA["tp magnitude"]} if course.net == "resnet20" else {}
    for label, make in {**CRITERIA, **streams}.items():
        names, given = prunable(course, label == EVERYWHERE), slopes if "taylor" in label else {}
        found = at_macs(course, make(), names, given)
        yield [Point(course.net, label, "peer", wanted, left, course.judge(copy.deepcopy(model)), replica=course.replica)
               for wanted, _, left, model in found]


def lowest_of_each(method, model: nn.Module, share: float, example) -> nn.Module:
    """A copy without the ``share`` of every layer's channels that scores lowest: what a pruner does that is told a share of channels."""
    groups = inside_blocks(channel_groups(model, example))
    scores = method.scores(groups, model)
    return remove(model, {name: score.argsort()[:round(share * len(score))] for name, score in scores.items()}, example, groups)


def speed(course: Course) -> dict:
    """CPU milliseconds of scoring by the L2 norm and cutting a copy of the net, both told the share of channels that leaves half the MACs, in turns;
    ratio ours / peer. Ours looks for NaN and runs the cut net once within that time.

    ``whole_ms``: ours told the MACs instead; ``search_ms``: what finding the share for these MACs by the peer's own cuts took before.
    """
    importance, names = CRITERIA["tp magnitude"](), prunable(course)
    macs(cut(course, importance, 0.1, names, {}), course.example)  # what is loaded at first use is no part of the timing
    times: list[list[float]] = [[], [], []]
    start = time.process_time()
    _, share, left, _ = next(at_macs(Course(**{**vars(course), "ratios": (0.5,)}), importance, names, {}))
    search = time.process_time() - start
    acts = (lambda: lowest_of_each(L2(), course.model, share, course.example), lambda: pruner_of(copy.deepcopy(course.model), course, importance, share, names).step(),
            lambda: score_and_remove(L2(), course.model, 0.5, example=course.example))
    for _ in range(ROUNDS):
        for act, spent in zip(acts, times):
            start = time.process_time()
            act()
            spent.append(1e3 * (time.process_time() - start))
    ours, theirs, whole = (statistics.median(spent[1:]) for spent in times)
    ratios = sorted(a / b for a, b in zip(times[0][1:], times[1][1:]))
    return {"net": course.net, "ours_ms": round(ours, 1), "peer_ms": round(theirs, 1), "ratio": round(statistics.median(ratios), 3), "low": round(ratios[1], 3),
            "high": round(ratios[-2], 3), "macs_share": round(left, 3), "whole_ms": round(whole, 1), "search_ms": round(1e3 * search, 1), "rounds": ROUNDS - 1}


def kept_alike(course: Course, share: float = 0.4) -> Iterator[dict]:
    """Do our L1 and L2 drop exactly the channels that torch-pruning's magnitude of the same norm drops, per layer and over all layers?

    A layer that a global threshold would empty is left whole by torch-pruning, while ours keeps its best channel: such layers are ``emptied``, and
    named apart. Without a normaliser the norms of small layers lie below those of large ones, so that happens there. Behind a depthwise layer
    torch-pruning's "first" member of a group is that layer (``rooted_elsewhere``): its norm is another criterion there, and the channels are others.
    """
    groups = inside_blocks(channel_groups(course.model, course.example))
    total = sum(g.size for g in groups)
    for p, ours in ((1, L1()), (2, L2())):
        scores = ours.scores(groups, course.model)
        for everywhere, normalizer in ((False, None), (False, "mean"), (True, None), (True, "mean")):
            importance = tp.importance.MagnitudeImportance(p=p, group_reduction="first", normalizer=normalizer)
            model = copy.deepcopy(course.model)
            names, theirs, rooted = {m: name for name, m in layers(model).items()}, {}, 0
            for found in pruner_of(model, course, importance, share, {g.name for g in groups}, everywhere).step(interactive=True):
                written = {names.get(item.dep.target.module) for item in found if item.dep.target.module is not found[0].dep.target.module}
                root = names[found[0].dep.target.module]
                name = root if root in scores else next(g.name for g in groups if g.name in written)
                rooted += name != root
                theirs[name] = {int(i) for i in found[0].idxs}
            ranked = sorted((float(score / (scores[g.name].mean() if normalizer else 1)), g.name, i)
                            for g in groups for i, score in enumerate(scores[g.name]))
            lowest = ranked[:total - int(total * (1 - share))] if everywhere else [
                item for g in groups for item in [r for r in ranked if r[1] == g.name][:g.size - int(g.size * (1 - share))]]
            mine = {g.name: {i for _, name, i in lowest if name == g.name} for g in groups}
            emptied = [g.name for g in groups if len(mine[g.name]) == g.size and g.name not in theirs]
            differ = sum(len(mine[g.name] - theirs.get(g.name, set())) for g in groups if g.name not in emptied)
            yield {"net": course.net, "norm": f"L{p}", "threshold": "global" if everywhere else "per layer", "normalizer": normalizer,
                   "dropped": len(lowest), "emptied": emptied, "rooted_elsewhere": rooted, "differ": differ, "equal": differ == 0}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    head, points = read(out)
    known = {point.key: point for point in points}
    head |= {"peer": "torch-pruning", "environment": environment()}
    ready = [name for name in public.NETS if public.here(name)]
    if not head.get("speed"):
        timed = [*(own_course(net, 0) for net in ("vgg-small", "resnet20")),
                 *(public_course(net) for net in ("cifar-resnet20", "tiny-dscnn") if net in ready)]
        head |= {"speed": [speed(course) for course in timed], "kept": [row for course in timed for row in kept_alike(course)]}
        write(out, head, known.values())
    small_first = sorted(ready, key=lambda net: net.startswith("cifar"))
    courses = [*(lambda net=net, r=r: own_course(net, r) for net, r in OWN), *(lambda net=net: public_course(net) for net in small_first)]
    for make in courses:
        course, start = make(), time.process_time()
        labels = [*CRITERIA, *([EVERYWHERE] if course.net == "resnet20" else [])]
        if all((course.net, label, ratio, course.replica) in known for label in labels for ratio in course.ratios):
            continue
        for measured in quality(course):
            known |= {point.key: point for point in measured}
            write(out, head, known.values())
            print(described(measured, next(iter(measured[0].right)), time.process_time() - start), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
