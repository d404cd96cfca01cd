"""Measures the race on public nets: every structured score, without tuning, with batch-norm re-estimation, at equal multiply–accumulates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...benches import public, vision
from ...contracts.structure.surgery import channel_groups, macs, parameters, reestimate_batchnorm, remove, select
from ...core import registry
from ...core.golden import environment
from ...core.study import StudyError
from . import boards, inside_blocks, seeded
from ._public_points import BASELINE, Point, accuracy, read, write
from .classics_of_data import criterion
from .granularity import Pruner

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
RATIOS_OF = {"tiny-mobilenet": (0.4, 0.5, 0.6, 0.65, 0.7)}  # half of its multiply–accumulates are dead channels: below that nothing can be told apart
CLASSICS = (BASELINE, "l2", "fpgm", "bn-gamma", "taylor", "thinet", "apoz", "consumer norm", "product of norms")
SEEDS = 3  # of the random control, averaged


@dataclass(frozen=True)
class Course:
    """One net to be cut. ``data``: what scores may look at; ``judge(model)`` re-estimates batch norm, then says right or wrong per split and item."""

    net: str
    model: nn.Module
    example: Tensor
    data: Sequence[tuple[Tensor, Tensor]]
    judge: Callable[[nn.Module], dict[str, np.ndarray]]
    ratios: tuple[float, ...]
    replica: int = 0


def public_course(net: str) -> Course:
    return Course(net, public.load(net), public.net(net).example, public.labelled(net), lambda model: public.judged(model, net),
                  RATIOS_OF.get(net, RATIOS))


def own_course(net: str, replica: int, ratios: Sequence[float] = (0.3, 0.5, 0.7)) -> Course:
    """A net of the `vision` bench (``vgg-small``, ``resnet20``), one of its replicas."""

    def judge(model: nn.Module) -> dict[str, np.ndarray]:
        reestimate_batchnorm(model, vision.calibration())
        return {"test": vision.right(model.to(memory_format=torch.channels_last))}

    return Course(net, vision.dense(net, replica), vision.EXAMPLE, vision.labelled(), judge, tuple(ratios), replica)


def contestants() -> dict[str, tuple[str, object]]:
    """Name → (kind, method): the control, the classics, and every implemented paper with a score of channels. A survey's method is a classic's score with
    other settings, so it is of a kind of its own and wins no race for the papers."""
    found = {name: ("classic", criterion(name)) for name in CLASSICS} | {"random": ("control", criterion("random"))}
    found |= {registry.find(arxiv).name: ("paper", method) for method, arxiv in boards.PAPERS.values()}
    for entry in registry.implemented():
        method = entry.study().method
        if hasattr(method, "scores") and entry.name not in found:
            found[entry.name] = ("survey" if isinstance(method, Pruner) else "paper", method)
    return found


def cuts(course: Course, method) -> Iterator[tuple[float, nn.Module | None, float, str]]:
    """(ratio, pruned net, share of MACs left, reason) for each ratio; the scores are computed once. ``None`` and a reason where it cannot be made."""
    model, example = course.model, course.example
    groups = channel_groups(model, example)
    groups = groups if getattr(method, "coupled", False) else inside_blocks(groups)
    dense = macs(model, example)
    try:
        scores = method.scores(groups, model, course.data)
    except ValueError as error:
        yield from ((ratio, None, float("nan"), str(error)) for ratio in course.ratios)
        return
    for ratio in course.ratios:
        try:
            small = remove(model, select(groups, scores, model, example, ratio, getattr(method, "mode", "global")), example, groups)
        except ValueError as error:
            yield ratio, None, float("nan"), str(error)
        else:
            yield ratio, small, macs(small, example) / dense, ""


def points(course: Course, label: str, kind: str, method) -> list[Point]:
    """One point per ratio of one criterion on one net; a control is averaged over `SEEDS` draws."""
    seeds = SEEDS if kind == "control" else 1
    found = []
    for draws in zip(*(list(cuts(course, seeded(method, seed))) for seed in range(seeds)), strict=True):
        ratio, _, _, reason = draws[0]
        if reason:
            found.append(Point(course.net, label, kind, ratio, replica=course.replica, reason=reason))
            continue
        right = [course.judge(small) for _, small, _, _ in draws]
        found.append(Point(course.net, label, kind, ratio, float(np.mean([share for _, _, share, _ in draws])),
                           {split: np.sum([r[split] for r in right], axis=0, dtype=np.uint8) for split in right[0]}, seeds, course.replica))
    return found


def dense_facts(name: str) -> dict:
    """What the text says of a net before anything is taken out: its accuracy as published and with batch-norm statistics of the calibration items.

    StudyError where an accuracy is not the reference: the loader is wrong then.
    """
    entry, model = public.net(name), public.load(name)
    facts = {"title": entry.title, "source": entry.source, "macs": macs(model, entry.example), "parameters": parameters(model),
             "calibration": len(public.split(name, "calibration")), "accuracy": {}}
    for split in dict.fromkeys((*entry.reference, *entry.tests)):
        measured = round(100 * float(public.right(model, name, split).mean()), 2)
        if abs(measured - entry.reference.get(split, measured)) > 0.06:  # the references are rounded to 0.1
            raise StudyError(f"{name} reaches {measured} % on {split}, not {entry.reference[split]} %: the loader is wrong")
        facts["accuracy"][split] = measured
    facts["reestimated"] = {split: round(100 * float(right.mean()), 2) for split, right in public.judged(model, name).items()}
    return facts


def race(path: Path, names: Iterable[str] = (), nets: Iterable[str] = (), fresh: bool = False, say=print) -> None:
    """Measures what ``path`` lacks (``fresh``: all) of the criteria ``names`` on ``nets`` (default: all), and writes after every criterion."""
    field, nets = contestants(), list(nets) or list(public.NETS)
    names = list(dict.fromkeys([BASELINE, *(names or field)]))
    if unknown := [name for name in names if name not in field]:
        raise StudyError(f"no structured score {', '.join(unknown)}; there are {', '.join(field)}")
    head, stored = read(path)
    known: dict[tuple, Point] = {point.key: point for point in stored}
    head = {"environment": environment(), "data": head.get("data", {}), "nets": head.get("nets", {})}
    for net in nets:
        now, course = public.hashes(net), public_course(net)
        if fresh or head["data"].get(net) != now:
            known = {key: point for key, point in known.items() if net != key[0] or (fresh and key[1] not in names)}
            head["nets"][net], head["data"][net] = dense_facts(net), now
        for label in names:
            if all((net, label, ratio, 0) in known for ratio in course.ratios):
                continue
            start, (kind, method) = time.process_time(), field[label]
            measured = points(course, label, kind, method)
            known |= {point.key: point for point in measured}
            write(path, head, known.values())
            say(described(measured, public.net(net).tests[0], time.process_time() - start), flush=True)


def described(measured: Sequence[Point], split: str, seconds: float) -> str:
    """One line on the points of one criterion, for those who watch."""
    first = measured[0]
    return f"{first.net:16} {first.replica or '':1} {first.criterion:22} {seconds:6.1f} s  " + "  ".join(
        p.reason[:60] or f"{p.ratio:g}: {accuracy(p.share(split))[0]:.1f} %" for p in measured)
