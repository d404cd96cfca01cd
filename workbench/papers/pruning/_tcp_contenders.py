"""What races in transfer channel pruning: the method and its rivals in equal rounds, the same cuts without tuning, and nets that are not pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...benches import domains
from ...benches.domains import recipe
from ...benches.domains.discrepancy import endless
from ...core.study import Contender
from . import Pruned, seeded
from ._tcp_checks import ByCriterion
from ._tcp_method import TCP, Transferred

PAIR, HALF = {"macs_removed": (0.26, 0.5)}, {"macs_removed": (0.5,)}
ALL_AT_ONCE = {"per_round": 10**6, "round_steps": 0, "steps": 0}


def exhibits(done: Transferred, method: TCP) -> dict[str, np.ndarray]:
    """``source``, ``target``: the first round's two normalised scores, 255·√(score / largest); ``cut``; ``layer``; ``widths`` (rounds + 1, layers)."""
    if not done.rounds:
        return {}
    rows = torch.cat([torch.nn.functional.normalize(rows.abs(), dim=1) for rows in done.lists.values()], 1)
    cut = torch.cat([torch.zeros(rows.shape[1]).index_fill(0, done.cut.get(name, torch.zeros(0, dtype=torch.long)), 1) for name, rows in done.lists.items()])
    layer = np.repeat(np.arange(len(done.lists)), [rows.shape[1] for rows in done.lists.values()])
    scaled = (255 * (rows / rows.max(1, keepdim=True).values.clamp_min(1e-12)).sqrt()).round().numpy().astype(np.uint8)
    widths = [[rows.shape[1] for rows in done.lists.values()], *([*r.widths.values()] for r in done.rounds)]
    return {"source": scaled[0], "target": scaled[1], "cut": cut.numpy().astype(np.uint8), "layer": layer.astype(np.uint8), "widths": np.array(widths, np.uint8)}


def adapted(replica: int) -> nn.Module:
    return domains.net("adapted", replica)


def pruned(method: TCP, start: Callable[[int], nn.Module] = adapted, finish: Callable[[nn.Module, int], Any] | None = None, **settings: Any) -> Contender:
    """Prunes the net ``start(replica)``; ``finish(model, replica)`` then trains it on. ``recorded`` where anything is tuned: by as many steps for all.

    Series: MMD² and cross-entropy at the end of each round, and the target's test accuracy along the final tuning, which decides nothing.
    """
    tuned = method.steps > 0 or finish is not None

    def make(macs_removed: float, replica: int, seed: int) -> Pruned:
        looked: list[float] = []
        ours = replace(method, criterion=seeded(method.criterion, 10 * seed + replica)) if isinstance(method, ByCriterion) else method
        done = ours.prune(start(replica), macs_removed, domains.Pairs(7 + replica), domains.EXAMPLE,
                          watch=lambda model: looked.append(domains.accuracy(model)))
        if finish:
            finish(done.model, replica)
        series = {"mmd": [r.mmd for r in done.rounds], "entropy": [r.entropy for r in done.rounds], "target accuracy": looked} if tuned and done.rounds else {}
        return Pruned(done.model, exhibits(done, method), series)

    subject = None if isinstance(method, ByCriterion) or finish else method
    return Contender(make, subject=subject, **({"evidence": "recorded"} if tuned else {}) | settings)


def at_once(method: TCP, **settings: Any) -> Contender:
    """One cut by the same scores, nothing tuned."""
    return replace(pruned(replace(method, **ALL_AT_ONCE), **settings), subject=None)


def two_stage(**settings: Any) -> Contender:
    """The source alone first, in the method's rounds, then the recipe's 800 joint steps: as many steps as TCP, in another order (TCP's net was adapted before)."""

    def finish(model: nn.Module, replica: int) -> None:
        recipe.train(model, 100 + replica, recipe.ADAPT_STEPS, recipe.ADAPT_RATE, joint=True)

    return pruned(TCP(merge="source", mmd_weight=0.0), recipe.source_net, finish, **settings)


def shipped(kind: str) -> Contender:
    return Contender(lambda replica: Pruned(domains.net(kind, replica)), role="control", evidence="checkpoint")


def tuned_on() -> Contender:
    """Control: the adapted net, not pruned, tuned for as many steps."""

    def make(replica: int) -> Pruned:
        model = adapted(replica)
        TCP().tune(model, endless(domains.Pairs(7 + replica)), TCP().steps)
        return Pruned(model)

    return Contender(make, role="control", evidence="recorded")
