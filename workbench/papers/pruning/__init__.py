"""Pruning: take whole filters, or single weights, out of a trained network, and keep its answers.

Every structured method here is a *score* per channel; the dependency graph, the choice of how many channels a MAC budget leaves in each layer, the
surgery, the re-estimation of batch-norm statistics and the fine-tuning are the same for all of them, so that a race compares the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...benches import vision
from ...benches.vision.recipe import train
from ...contracts.structure.surgery import ChannelGroup, channel_groups, reestimate_batchnorm, remove, select
from ...core.study import Contender

TUNING_STEPS, TUNING_RATE = 60, 2e-3


@dataclass
class Pruned:
    """A pruned net with what its picture needs: per group a row of uint8, 0 where the channel went, else 1 + its score's rank (at most 254)."""

    model: nn.Module
    exhibits: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict[str, Sequence[float]] = field(default_factory=dict)


def inside_blocks(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups with one producer: residual streams, which several layers write, keep their channels."""
    return [group for group in groups if not group.coupled]


def score_and_remove(method: Any, model: nn.Module, ratio: float, data=None, example=None, round_to: int = 1) -> Pruned:
    """Prunes ``ratio`` of the MACs by the method's scores. ``data`` is what `method.scores` may look at (see `contracts.model`)."""
    example = vision.EXAMPLE if example is None else example
    groups = inside_blocks(channel_groups(model, example))
    scores = method.scores(groups, model, data)
    drop = select(groups, scores, model, example, ratio, mode=getattr(method, "mode", "global"), round_to=round_to)
    surgery = getattr(method, "surgery", remove)  # only an ablation brings its own
    return Pruned(surgery(model, drop, example, groups), _exhibits(groups, scores, drop))


def _exhibits(groups: Sequence[ChannelGroup], scores: Mapping[str, torch.Tensor], drop: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    rows = {}
    for group in groups:
        rank = scores[group.name].argsort().argsort().double() / max(1, group.size - 1)
        row = (1 + (253 * rank).round()).numpy().astype(np.uint8)
        if group.name in drop:
            row[drop[group.name].numpy()] = 0
        rows[group.name] = row
    return rows


def seeded(method: Any, seed: int) -> Any:
    """The method with this seed, if it has one."""
    return replace(method, seed=seed) if is_dataclass(method) and "seed" in {f.name for f in fields(method)} else method


def prune(method: Any, net: str = "vgg-small", tuned: bool = False, **settings: Any) -> Contender:
    """A contender that prunes the bench's ``net`` by ``method``'s scores; ``tuned`` fine-tunes for 60 steps of 128 images, equally for all.

    ``settings`` go to `Contender` (role, seeds, grid, …). A tuned contender is ``recorded``: it is too long for the quick profile.
    """

    def make(macs_removed: float, round_to: int, replica: int, seed: int) -> Pruned:
        pruned = score_and_remove(seeded(method, seed), vision.dense(net, replica), macs_removed, vision.labelled(), round_to=round_to)
        return fine_tuned(pruned, seed) if tuned else pruned

    return Contender(make, subject=method, **({"evidence": "recorded"} if tuned else {}) | settings)


def fine_tuned(pruned: Pruned, seed: int, steps: int = TUNING_STEPS) -> Pruned:
    """The same net after ``steps`` steps of the bench's recipe at a third of its learning rate; the loss of each step is kept as a series."""
    losses: list[float] = []
    reestimate_batchnorm(pruned.model, vision.calibration())
    train(pruned.model, steps, seed=1000 + seed, lr=TUNING_RATE, on_step=lambda step, loss: losses.append(loss))
    return Pruned(pruned.model, pruned.exhibits, {**pruned.series, "loss": losses})


def untouched(net: str = "vgg-small") -> Contender:
    """Control: the dense net as trained."""
    return Contender(lambda replica: Pruned(vision.dense(net, replica)), role="control")


def from_scratch(widths: Sequence[int], steps: int = TUNING_STEPS) -> Contender:
    """Control: a small VGG trained from nothing for as many steps as the pruned nets are fine-tuned."""

    def make(replica: int, seed: int) -> Pruned:
        torch.manual_seed(replica)
        return fine_tuned(Pruned(vision.NETS["vgg-small"](widths)), seed, steps)

    return Contender(make, role="control", evidence="recorded", replicas=3)
