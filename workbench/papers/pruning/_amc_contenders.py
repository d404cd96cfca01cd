"""The contenders of the AMC study: recorded searches replayed, rules of thumb, and their fine-tuned versions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from ...benches import vision
from ...contracts.structure.trace import forward
from ...core.study import Contender
from . import Pruned, fine_tuned
from ._amc_operators import ChannelOperator
from ._amc_record import BENCH, FULL, NET, problem, recorded
from ._amc_search import hand_rule

AT_HALF = {"macs_removed": (0.5,)}


def _apply(macs_removed: float, replica: int, counts, rewards=(), operator: ChannelOperator | None = None) -> Pruned:
    """A setting applied to a replica: the small network, what its picture shows, the rewards on the way there."""
    space = problem(replica, macs_removed).space
    model = (operator.sequential if operator else space.export)(counts)
    exhibits = {"kept": np.array(counts, np.int16), "of": space.sizes.astype(np.int16), "reward": np.rint(1e3 * np.array(rewards)).astype(np.int16)}
    return Pruned(model, exhibits, {"reward": list(rewards)} if len(rewards) else {})


def _found(name: str, macs_removed: float, episodes: int, replica: int, searched_on: int, **settings) -> Pruned:
    """The best setting among the first ``episodes`` of a recorded search, applied to a replica."""
    if macs_removed == 0:
        return _apply(0, replica, problem(replica, 0).space.sizes)
    rewards, counts = recorded(name, macs_removed, searched_on)
    best = len(rewards) - 1 if name == "greedy" else int(np.argmax(rewards[:episodes]))
    return _apply(macs_removed, replica, counts[best], rewards[:episodes], **settings)


def searcher(name: str, role: str = "rival", evidence: str = "checkpoint", **settings) -> Contender:
    """A recorded search. At budgets of which no claim speaks the agent searched on three replicas only: the fourth and fifth use the first two's policies."""

    def make(macs_removed: float, episodes: int, replica: int) -> Pruned:
        short = name == "amc" and macs_removed not in FULL
        return _found("amc-short" if short else name, macs_removed, episodes, replica, replica % 3 if short else replica)

    return Contender(make, role, evidence=evidence, **settings)


def rule(slope: float, **settings) -> Contender:
    return Contender(lambda macs_removed, replica: _apply(macs_removed, replica, hand_rule(problem(replica, macs_removed), slope)), **settings)


def tuned(made: Contender) -> Contender:
    def make(macs_removed: float, replica: int, seed: int) -> Pruned:
        settings = {"episodes": BENCH.episodes} if "episodes" in made.arguments else {}
        return fine_tuned(made.make(macs_removed=macs_removed, replica=replica, **settings), seed)

    return Contender(make, evidence="recorded", replicas=3, grid=AT_HALF)


def with_operator(kind: type[ChannelOperator], solve) -> Contender:
    """The agent's own policy, applied by another operator."""

    def make(macs_removed: float, replica: int) -> Pruned:
        operator = kind(vision.dense(NET, replica), vision.calibration(), solve=solve)
        return _found("amc", macs_removed, BENCH.episodes, replica, replica, operator=operator)

    return Contender(make, evidence="checkpoint", replicas=3, grid=AT_HALF)


def to_time() -> dict[str, Callable]:
    """What the probe times: a batch of 32 through the dense network and through those with half and 30 % of its MACs."""
    images = vision.calibration()[:32]
    nets = {"dense": vision.dense(NET), **{f"{1 - removed:.0%} of the MACs": _found("amc", removed, BENCH.episodes, 0, 0).model for removed in FULL}}
    return {name: torch.inference_mode()(partial(forward, net, images)) for name, net in nets.items()}
