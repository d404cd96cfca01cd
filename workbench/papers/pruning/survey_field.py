"""The field of the survey's race: how each leaf's representative is made on VGG-small, all with equal steps and batch-norm re-estimation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch

from ...benches import vision
from ...contracts.structure.surgery import channel_groups, reestimate_batchnorm
from ...core.study import Contender
from . import Pruned, inside_blocks, procedures
from .classics import Random
from .classics_of_data import SNIP
from .gating import gate
from .granularity import Pruner, keep

NET = "vgg-small"


@lru_cache(maxsize=32)
def _scores(pruner: Pruner, replica: int) -> dict[str, torch.Tensor]:
    """The scores of a net: computed once, used for all ratios."""
    model = vision.dense(NET, replica)
    return pruner.scores(inside_blocks(channel_groups(model, vision.EXAMPLE)), model, vision.labelled())


@lru_cache(maxsize=1)
def _validation() -> list:
    images, labels = vision.data.split("validation").tensors(192)
    return [(images, labels)]


def one_shot(pruner: Pruner, **settings) -> Contender:
    """Prune and re-estimate batch norm; no tuning. Random choices differ between replicas."""

    def make(ratio: float, replica: int):
        method = replace(pruner, criterion=Random(replica)) if pruner.criterion == "random" else pruner
        known = _scores(replace(method, allocation="uniform"), replica) if pruner.granularity == "channel" else None
        pruned = method.apply(vision.dense(NET, replica), ratio, vision.labelled(), vision.EXAMPLE, _validation(), known)
        if ratio and hasattr(pruned, "masks"):
            reestimate_batchnorm(pruned.model, vision.calibration())
        return pruned

    return Contender(make, **settings)


def recorded(pruner: Pruner, *ratios: float, replicas: int = 3) -> Contender:
    """One-shot, in the full profile only."""
    return one_shot(pruner, evidence="recorded", replicas=replicas, grid={"ratio": ratios})


def trained(run: Callable[..., Pruned], *ratios: float, role: str = "rival") -> Contender:
    """``run(ratio, replica, seed)``: all get `procedures.STEPS` steps."""
    return Contender(lambda ratio, replica, seed: run(ratio, replica, seed), role=role, evidence="recorded", replicas=3, grid={"ratio": ratios})


def from_trained(run: Callable[..., Pruned], *ratios: float) -> Contender:
    """``run(model, ratio, seed)`` on the trained net."""
    return trained(lambda ratio, replica, seed: run(vision.dense(NET, replica), ratio, seed), *ratios)


def weights_by(schedule: Callable[[int, int, float], float], *ratios: float) -> Contender:
    return from_trained(lambda model, ratio, seed: procedures.scheduled(model, ratio, seed, schedule), *ratios)


def tuned(name: str) -> Contender:
    return from_trained(lambda model, ratio, seed: procedures.cut_and_tune(model, Pruner(name), ratio, seed), 0.45)


def gated(*ratios: float) -> Contender:
    return Contender(lambda ratio, replica: gate(vision.dense(NET, replica), ratio, vision.EXAMPLE), evidence="recorded", replicas=3,
                     grid={"ratio": ratios}, note="MACs are those of one image; batch norm is folded, so its statistics stay as trained")


def lottery(ratio: float, replica: int, seed: int):
    masks = procedures.magnitude_masks(vision.dense(NET, replica), ratio)
    return procedures.masked_training(procedures.initial(NET, replica), masks, seed)


def before_training(ratio: float, replica: int, seed: int):
    model = procedures.initial(NET, replica)
    return procedures.masked_training(model, keep(SNIP().saliency(model, vision.labelled()), ratio, "weight", "global"), seed)
