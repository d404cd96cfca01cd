"""What races on EnSyth's track: its ensembles, other choices from the same pool, and dense nets of as many steps or bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import nn

from ...benches import ensembles, vision
from ...benches.vision.recipe import batches
from ...core.study import Contender
from ._ensyth_checks import shuffled
from ._ensyth_ensemble import Ensemble
from ._ensyth_method import EnSyth, pool_of
from ._ensyth_pool import BATCH, STEPS, make_pool, read_pool
from ._ensyth_select import Selection, accuracy_of
from ._gradual import train_steps

NET, CLEAN, DRAWS = "lenet5", 0.10, 9


def _of_size(selection: Selection, members: int) -> tuple[int, ...]:
    path = selection.path[selection.path["size"] == members] if members else ()
    return tuple(path.sort_values("accuracy", kind="stable").iloc[-1].members) if len(path) else selection.kept


def synthesis(method: EnSyth, **settings) -> Contender:
    """EnSyth's ensemble: the best on the path (``members`` 0), or the one of so many members."""
    def make(members: int, sparsest: float, replica: int) -> Ensemble:
        pool = pool_of(method, replica, sparsest)
        selection = method.chosen(pool)
        return method.build(pool, selection, _of_size(selection, int(members)))

    return Contender(make, **{"evidence": "checkpoint", "subject": method} | settings)


def at_default(method: EnSyth, **settings) -> Contender:
    """A variant, at its best only."""
    def make(replica: int) -> Ensemble:
        pool = pool_of(method, replica)
        return method.build(pool, method.chosen(pool))

    return Contender(make, **{"evidence": "checkpoint"} | settings)


def within_dense_bytes(replica: int) -> Ensemble:
    """The best set on the path whose file is no larger than the dense net's."""
    pool, method = pool_of(EnSyth(), replica), EnSyth(max_bytes=ensembles.dense_cost(NET)[0])
    return method.build(pool, method.chosen(pool))


def most_accurate(count: int | None = None, source: Callable = read_pool, **settings) -> Contender:
    """The members that are best alone on validation images: ``count``, or as many as EnSyth's ensemble has."""
    def make(replica: int) -> Ensemble:
        method = EnSyth(pool=source)
        pool = pool_of(method, replica)
        order = accuracy_of(pool.logits, pool.labels).argsort(descending=True, stable=True).tolist()
        return pool.ensemble(order[:count or len(method.chosen(pool).kept)])

    return Contender(make, **{"evidence": "checkpoint"} | settings)


@dataclass(frozen=True)
class Draws:
    """Several ensembles; the track takes the median of what it measures."""

    draws: tuple[Ensemble, ...]


def random_sets(replica: int) -> Draws:
    """Nine random sets of as many members as EnSyth's, from the pool without members that are over 10 points below the dense net on validation images."""
    pool = pool_of(EnSyth(), replica)
    dense = accuracy_of(ensembles.logits(vision.dense(NET, replica), NET, "validation"), pool.labels)
    clean = np.flatnonzero(accuracy_of(pool.logits, pool.labels).numpy() >= float(dense) - CLEAN)
    rng, size = np.random.default_rng(replica), min(len(EnSyth().chosen(pool).kept), len(clean))
    return Draws(tuple(pool.ensemble(sorted(rng.choice(clean, size, replace=False).tolist())) for _ in range(DRAWS)))


def luckless_sets(replica: int) -> Draws:
    """As many sets that labels of other images chose, shuffled anew for each."""
    pool = pool_of(EnSyth(), replica)
    return Draws(tuple(pool.ensemble(EnSyth(labels=partial(shuffled, seed=seed)).chosen(pool).kept) for seed in range(DRAWS)))


def dense_net(replica: int) -> nn.Module:
    return vision.dense(NET, replica)


def tuned_dense(replica: int) -> nn.Module:
    """The dense net after as many steps as each member got, at the members' learning rates; validation images choose between these."""
    tuned = [train_more(vision.dense(NET, replica), 3000 + replica, rate) for rate in (1e-3, 3e-3)]
    labels = ensembles.images(NET, "validation")[1]
    return max(tuned, key=lambda net: float(accuracy_of(ensembles.logits(net, NET, "validation"), labels)))


def train_more(model: nn.Module, seed: int, rate: float) -> nn.Module:
    train_steps(model.to(memory_format=torch.channels_last), batches(seed, BATCH), STEPS, rate)
    return model.to(memory_format=torch.contiguous_format)


def snapshots(replica: int) -> Ensemble:
    """The dense net and what it is after one more cycle of the recipe's learning rate: two dense nets."""
    return Ensemble.of([vision.dense(NET, replica), train_more(vision.dense(NET, replica), 4000 + replica, 6e-3)])


def two_trainings(replica: int) -> Ensemble:
    """Two dense nets that were trained apart."""
    return Ensemble.of([vision.dense(NET, replica), vision.dense(NET, (replica + 1) % 3)])


@lru_cache(maxsize=3)
def five_digits(replica: int) -> list[nn.Module]:
    return make_pool("lenet5-five", replica)


def to_time() -> dict:
    """What `workbench probe` times: 32 images through the dense net and through EnSyth's ensemble, its members one after another, as one batch, in two
    threads, and the slowest of them alone (what the ensemble takes where each member has a processor of its own)."""
    inputs = vision.calibration()[:32].contiguous()
    pool = pool_of(EnSyth(), 0)
    found, dense = pool.ensemble(EnSyth().chosen(pool).kept), vision.dense(NET)
    largest = max(found.members, key=lambda member: sum(int((p != 0).sum()) for p in member.parameters()))
    return {"dense": lambda: dense(inputs), "one after another": lambda: found(inputs), "as one batch": lambda: found.together(inputs),
            "two threads": lambda: found.threaded(inputs), "the largest member": lambda: largest(inputs)}
