"""What races in pruning while training: one budget of ten epochs, or a whole run first and nine epochs after it; and cuts by young ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...benches import training
from ...benches.activations import kept_for_backward
from ...contracts.structure.surgery import remove
from ...core.study import Contender
from . import Pruned, seeded
from ._iplt_surgery import FilterNorm, convolutional, final_shares, kept, lowest, overlap, rank_correlation, sensitivity
from ._iplt_trainer import IPLT, Epoch, Trainer, training_macs
from .classics import Random

AFTER = training.EPOCHS - 1  # epochs behind a whole run: as many as IPLT has behind its first one


@dataclass
class Run(Pruned):
    """A net with what making it cost (``facts``: metrics)."""

    facts: dict[str, float] = field(default_factory=dict)


def step_memory(model) -> float:
    """MB that one batch's forward pass keeps for the backward one."""
    return kept_for_backward(model, training.EXAMPLE.repeat(training.BATCH, 1, 1, 1)) / 1e6


def _run(model, log: list[Epoch], accuracies: list[float], whole_run_first: bool = False) -> Run:
    widths = np.array([list(e.widths.values()) for e in log], np.uint8)
    share = np.array([1000 * e.macs / training.dense()[0] for e in log])
    return Run(model, {"widths": widths, "cost": share.round().astype(np.uint16)}, {"loss": [e.loss for e in log], "accuracy": accuracies},
               {"training_share": whole_run_first + training_macs(log) / training.run_macs(),
                "training_memory": max([step_memory(training.net())] * whole_run_first + [e.memory / 1e6 for e in log])})


def rate(plan: IPLT, number: int) -> float:
    """The dense run's rates, which do not fall before the last round is over: the final training decays on the small net."""
    start = max(training.EPOCHS / 2, plan.pretrain + plan.rounds * plan.per_round)
    return 0.1 * 0.1 ** ((number >= start) + (number >= start + 0.6 * (training.EPOCHS - start)))


def accuracy(model) -> float:
    """On validation images, for choices on the way."""
    return 100 * float(training.right(model, "validation").mean())


def trained(plan: IPLT, scanned: bool = False, **settings: Any) -> Contender:
    """Ten epochs from scratch, pruned meanwhile; ``scanned``: each layer loses what the half-trained net can spare there, by :func:`sensitivity`."""

    def make(pretrain: int, keep: float, rounds: int, replica: int, seed: int) -> Run:
        model, seen = training.fresh(replica), []
        ours = replace(plan, pretrain=int(pretrain), keep=keep, rounds=int(rounds), criterion=seeded(plan.criterion, 10 * seed + replica))
        scan = (lambda net, groups: sensitivity(net, groups, training.EXAMPLE, accuracy)) if scanned else None
        trainer = Trainer(model, training.sgd(model), lambda number: training.epoch(replica, number), ours, training.EXAMPLE, scan)
        small, log = trainer.fit(training.EPOCHS, lambda number: rate(ours, number), watch=lambda done, net: seen.append(100 * float(training.right(net).mean())))
        return _run(small, log, seen)

    return Contender(make, subject=plan, evidence="recorded", **settings)


def trained_first(rounds: int, **settings: Any) -> Contender:
    """The traditional way: the whole run of ten epochs (the shipped net), then ``rounds`` cuts, and as many epochs at the same rates as IPLT has behind a
    single epoch of pre-training."""

    def make(keep: float, replica: int) -> Run:
        model, seen = training.net(replica), []
        trainer = Trainer(model, training.sgd(model), lambda number: training.epoch(replica, training.EPOCHS + number),
                          IPLT(pretrain=0, rounds=rounds, keep=keep), training.EXAMPLE)
        small, log = trainer.fit(AFTER, lambda number: training.rate(number + 1), watch=lambda done, net: seen.append(100 * float(training.right(net).mean())))
        return _run(small, log, seen, whole_run_first=True)

    return Contender(make, evidence="recorded", **settings)


def small_from_scratch(**settings: Any) -> Contender:
    """Control: a net of the final widths, trained from nothing for ten epochs."""

    def make(keep: float, replica: int) -> Run:
        dense = training.fresh(replica).eval()
        groups = convolutional(dense, training.EXAMPLE)
        widths = kept({g.name: g.size for g in groups}, final_shares(dense, groups, training.EXAMPLE, keep))
        model = training.dense_run(replica, widths=tuple(widths.values()))
        return Run(model, facts={"training_share": training.epoch_macs(model) * training.EPOCHS / training.run_macs(), "training_memory": step_memory(model)})

    return Contender(make, role="control", evidence="recorded", **settings)


def ranks(model) -> dict[str, Tensor]:
    return FilterNorm().scores(convolutional(model, training.EXAMPLE), model)


def cut_by(epochs: int | None = None, criterion: Any = None, **settings: Any) -> Contender:
    """The *trained* net, cut once by the ranks its filters had after ``pretrain`` epochs (``epochs``: after so many), or by ``criterion``'s; nothing tuned.

    Metrics: how far those ranks agree with the trained net's own.
    """

    def cut(pretrain: int, keep: float, replica: int, seed: int) -> Run:
        model = training.net(replica)
        groups, own = convolutional(model, training.EXAMPLE), ranks(model)
        young = seeded(criterion, 10 * seed + replica).scores(groups, model, None) if criterion else ranks(training.net(replica, int(pretrain)))
        drop = lowest(young, kept({g.name: g.size for g in groups}, final_shares(model, groups, training.EXAMPLE, keep)))
        places = {name: np.concatenate([(score.argsort().argsort().double() / (len(score) - 1) * 255).round().numpy() for score in scores.values()]).astype(np.uint8)
                  for name, scores in (("young", young), ("trained", own))}
        layer = np.repeat(np.arange(len(own)), [len(score) for score in own.values()]).astype(np.uint8)
        small = training.settle(remove(model, drop, training.EXAMPLE, groups)) if drop else model
        return Run(small, places | {"layer": layer}, facts={"overlap": overlap(young, own), "rank_correlation": rank_correlation(young, own)})

    if criterion or epochs is not None:
        return Contender(lambda keep, replica, seed: cut(epochs or 0, keep, replica, seed), evidence="checkpoint", **settings)
    return Contender(cut, evidence="checkpoint", **settings)


def dense() -> Contender:
    """Control: the whole run, nothing pruned."""
    return Contender(lambda replica: Run(training.net(replica), facts={"training_share": 1.0, "training_memory": step_memory(training.net())}), role="control", evidence="checkpoint")


def chance(**settings: Any) -> Contender:
    return trained(IPLT(criterion=Random()), **settings)


def steps() -> dict:
    """A step of training (64 images, forward and backward) of the dense net and of those with a half and 12 % of its parameters."""
    batch = next(iter(training.epoch(0, 0)))

    def step(model):
        optimizer = training.sgd(model)
        return lambda: training.train_epoch(model, optimizer, iter([batch]), 1e-4)

    def pruned(keep: float):
        model = training.net()
        groups = convolutional(model, training.EXAMPLE)
        widths = kept({g.name: g.size for g in groups}, final_shares(model, groups, training.EXAMPLE, keep))
        return remove(model, lowest(ranks(model), widths), training.EXAMPLE, groups)

    torch.manual_seed(0)
    return {"dense": step(training.net()), "half of the parameters": step(pruned(0.5)), "12 % of the parameters": step(pruned(0.12))}
