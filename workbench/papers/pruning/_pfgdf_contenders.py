"""The contenders of the PFGDF study: widths, rivals with the same number of filters in every layer, tuned versions, and the search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ...benches import vision
from ...benches.vision.recipe import accuracy, train
from ...contracts.structure.surgery import reestimate_batchnorm
from ...core.study import Contender
from . import TUNING_STEPS, Pruned, fine_tuned, seeded
from ._pfgdf_method import PFGDF, WidthSearch, filter_statistic, normality, standardised

NET = "vgg-small"
NARROW = 0.4  # of an exact Gaussian, 31 % of the filters stay
TUNED = {"alpha": (NARROW,)}
VALIDATION_IMAGES, TRIAL_STEPS, TRIAL_RATE = 500, 12, 5e-4


def shown(model: Pruned, dense: nn.Module, method: PFGDF, drop) -> Pruned:
    """Exhibits: per layer z in hundredths and which filters went; series: per layer the share kept and Shapiro–Wilk's p."""
    groups, _ = method.eligible(dense, vision.EXAMPLE)
    kept, p = [], []
    for group in groups:
        statistic = filter_statistic(group.producers[0].weights(), method.statistic)
        gone = torch.zeros(group.size, dtype=torch.bool)
        gone[torch.as_tensor(drop.get(group.name, []), dtype=torch.long)] = True
        model.exhibits[group.name] = (100 * standardised(statistic)).round().numpy().astype(np.int16)
        model.exhibits[f"out {group.name}"] = gone.nonzero().flatten().numpy().astype(np.uint8)
        kept.append(1 - float(gone.float().mean()))
        p.append(normality(statistic).p)
    model.series |= {"kept": kept, "p": p, "filters": [group.size for group in groups]}
    return model


def gaussian(method: PFGDF, share: bool = False, **settings: Any) -> Contender:
    """The paper's rule at one width for all layers; with ``share``, as many filters in all, but the same share of every layer."""

    def make(alpha: float, replica: int) -> Pruned:
        return at_width(method, alpha, replica, uniform=share)

    return Contender(make, subject=WidthSearch(method), **settings)


def at_width(method: PFGDF, alpha: float, replica: int, criterion: Any = None, uniform: bool = False) -> Pruned:
    """The replica without the filters outside the interval; or, by another ``criterion``, without its lowest ones, as many in every layer."""
    dense = vision.dense(NET, replica)
    groups, _ = method.eligible(dense, vision.EXAMPLE)
    drop = method.drop(groups, alpha)
    if criterion is not None or uniform:
        share = sum(len(units) for units in drop.values()) / sum(group.size for group in groups)
        counts = {g.name: min(g.size - 1, round(share * g.size)) if uniform else len(drop.get(g.name, ())) for g in groups}
        scores = (criterion or method).scores(groups, dense, None)
        drop = {name: scores[name].argsort(stable=True)[:n].sort().values for name, n in counts.items() if n}
    return shown(Pruned(method.cut(dense, drop, vision.EXAMPLE, groups) if drop else dense), dense, method, drop)


def equal_counts(criterion: Any, **settings: Any) -> Contender:
    """Another criterion; only the choice differs, not how many filters a layer loses."""

    def make(alpha: float, replica: int, seed: int) -> Pruned:
        return at_width(PFGDF(), alpha, replica, seeded(criterion, seed))

    return Contender(make, **settings)


def tuned(made: Contender, steps: int = TUNING_STEPS, **settings: Any) -> Contender:
    def make(alpha: float, replica: int, seed: int) -> Pruned:
        arguments = {"alpha": alpha, "replica": replica, "seed": seed}
        return fine_tuned(made.make(**{name: value for name, value in arguments.items() if name in made.arguments}), seed, steps)

    return Contender(make, evidence="recorded", replicas=3, grid=TUNED, **settings)


def tuner(seed: int, steps: int = TRIAL_STEPS) -> Callable[[nn.Module], None]:
    """What follows a trial of the search: new batch-norm statistics, then a few gentle steps on other images each time (at the rate of longer tuning a dozen
    steps cost the dense net itself two to three points)."""
    trials = iter(range(10_000))

    def tune(net: nn.Module) -> None:
        reestimate_batchnorm(net, vision.calibration())
        train(net, steps, seed=3000 + 100 * seed + next(trials), lr=TRIAL_RATE)

    return tune


def searched(search: WidthSearch, **settings: Any) -> Contender:
    """The automatic search, judged on validation images, then the same 60 steps as everyone gets."""

    def make(replica: int, seed: int) -> Pruned:
        found = search.run(vision.dense(NET, replica), vision.EXAMPLE, tuner(seed), lambda net: accuracy(net, "validation", VALIDATION_IMAGES))
        steps, sizes = found.history, vision.dense(NET, replica).config()["widths"]
        found.series |= {"accuracy": [s.accuracy for s in steps], "width": [s.alpha for s in steps], "accepted": [float(s.accepted) for s in steps],
                         "filters": sizes, "kept": [n / size for n, size in zip(found.kept.values(), sizes, strict=True)]}
        tuned = fine_tuned(found, seed)
        layers = list(found.alpha)
        tuned.exhibits |= {"trial accuracy": np.array([round(100 * s.accuracy) for s in steps], np.int16),
                           "trial kept": np.array([s.kept for s in steps], np.int16), "trial accepted": np.array([s.accepted for s in steps], np.uint8),
                           "trial layer": np.array([layers.index(s.layer) for s in steps], np.uint8)}
        return tuned

    return Contender(make, evidence="recorded", replicas=3, **settings)

