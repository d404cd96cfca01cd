"""The contenders of the entropy study: one schedule, many criteria; fine-tuned versions of equal steps; the VGG with a fully connected head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...benches import vgg_fc, vision
from ...benches.vision import data
from ...benches.vision.recipe import train
from ...contracts.structure.surgery import ChannelGroup, reestimate_batchnorm
from ...core.study import Contender
from . import TUNING_RATE, TUNING_STEPS, Pruned, fine_tuned, seeded
from ._entropy_method import ChannelEntropy, EntropyPruning, LayerByLayer, pooled_responses, prunable, uniform_loss
from .classics import L1, L2, Random
from .classics_of_data import per_unit

NET = "vgg-small"
AT_HALF = {"filters_removed": (0.5,)}
MOST_IMAGES = 4096
SHOWN_BINS = 25


@dataclass(frozen=True)
class Spread:
    """The standard deviation of the pooled response: is entropy more than spread?"""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        responses = pooled_responses(groups, model, data)
        return {group.name: per_unit(group, model, responses[group.name].std(0)) for group in groups}


def images(n: int, subset: int = 0, batch: int = 128) -> list[tuple[Tensor, Tensor]]:
    """``n`` training images with labels in batches; subsets of different numbers share none."""
    x, y = data.split("train").tensors(n, start=subset * MOST_IMAGES)
    return list(zip(x.split(batch), y.split(batch)))


def repaired(net: nn.Module) -> None:
    """New batch-norm statistics: all that an untuned net gets between two layers, and at the end from the bench."""
    reestimate_batchnorm(net, vision.calibration())


def shown(result: LayerByLayer, dense: nn.Module, method: EntropyPruning) -> LayerByLayer:
    """Exhibits: per layer the scores as thousandths of the largest and the channels removed; of an entropy, the first layer's histograms."""
    for name, score in result.scores.items():
        result.exhibits[name] = (1000 * score / score.abs().max().clamp_min(1e-12)).round().numpy().astype(np.int16)
        result.exhibits[f"out {name}"] = result.dropped[name].numpy().astype(np.uint8)
    if isinstance(method.criterion, ChannelEntropy):
        group = prunable(dense, vision.EXAMPLE)[0]
        responses = pooled_responses([group], dense, images(method.images))[group.name]
        result.exhibits["histograms"] = replace(method.criterion, bins=SHOWN_BINS).counts(responses).numpy().astype(np.uint16)
    return result


def cut(method: EntropyPruning, share: float, replica: int, seed: int = 0, after: Callable[[nn.Module], None] = repaired) -> LayerByLayer:
    """``share`` of every layer's filters of the replica removed."""
    dense = vision.dense(NET, replica)
    method = replace(method, criterion=seeded(method.criterion, seed))
    return shown(method.prune(dense, uniform_loss(prunable(dense, vision.EXAMPLE), share), images(method.images), vision.EXAMPLE, after), dense, method)


def entropy(**settings: Any) -> Contender:
    """The paper's: all three knobs."""

    def make(filters_removed: float, bins: int, images: int, replica: int) -> LayerByLayer:
        return cut(EntropyPruning(ChannelEntropy(int(bins)), int(images)), filters_removed, replica)

    return Contender(make, subject=EntropyPruning(), **settings)


def rival(method: EntropyPruning, **settings: Any) -> Contender:
    """Another criterion on the same schedule. Where it looks at weights alone, batch-norm statistics between the layers change nothing: left out."""
    weights_only = isinstance(method.criterion, (L1, L2, Random))

    def make(filters_removed: float, replica: int, seed: int) -> LayerByLayer:
        return cut(method, filters_removed, replica, seed, (lambda net: None) if weights_only else repaired)

    return Contender(make, **settings)


def tuned(method: EntropyPruning, steps: int = TUNING_STEPS, **settings: Any) -> Contender:
    """Half of ``steps`` between the layers, half at the end; without recomputation (all layers at once) all of them at the end."""

    def make(filters_removed: float, replica: int, seed: int) -> Pruned:
        layers = len(prunable(vision.dense(NET, replica), vision.EXAMPLE))
        each = steps // (2 * layers) if method.recompute else 0
        pruned = cut(method, filters_removed, replica, seed, after=between(each, seed))
        return fine_tuned(pruned, seed, steps - each * layers)

    return Contender(make, evidence="recorded", replicas=3, grid=AT_HALF, **settings)


def between(steps: int, seed: int) -> Callable[[nn.Module], None]:
    """What happens after each layer: new batch-norm statistics, then ``steps`` steps, each time on other images."""
    layer = count()

    def after(net: nn.Module) -> None:
        repaired(net)
        if steps:
            train(net, steps, seed=2000 + 100 * seed + next(layer), lr=TUNING_RATE)

    return after


def watched(criterion: Any, n: int) -> Contender:
    """The dense net, with what a criterion says of each layer on one of two sets of ``n`` images (the seed) that share none."""

    def make(replica: int, seed: int) -> Pruned:
        net = vision.dense(NET, replica)
        scores = criterion.scores(prunable(net, vision.EXAMPLE), net, images(n, seed))
        return Pruned(net, series={f"score {name}": score.tolist() for name, score in scores.items()})

    return Contender(make, role="control", evidence="recorded", seeds=2, replicas=3)


# --- the VGG with two large fully connected layers ----------------------------------------------------------------------------------------------


def with_head() -> Contender:
    return Contender(lambda replica: Pruned(vgg_fc.dense(replica)), role="control", replicas=3)


def strategy(method: EntropyPruning, share: float, steps: int, **settings: Any) -> Contender:
    """The whole strategy for VGG on that net: head replaced, ``share`` of the filters removed layer by layer, ``steps`` of tuning in all."""

    def make(replica: int, seed: int) -> Pruned:
        torch.manual_seed(500 + replica)  # the fresh layer
        net = vgg_fc.dense(replica)
        each = steps // (2 * len(prunable(net, vision.EXAMPLE))) if share else 0
        pruned = method.vgg(net, share, images(method.images), vision.EXAMPLE, between(each, seed))
        return fine_tuned(pruned, seed, steps - each * len(pruned.scores))

    return Contender(make, evidence="recorded", replicas=3, **settings)
