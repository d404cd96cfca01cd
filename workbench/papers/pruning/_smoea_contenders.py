"""The contenders of the SMOEA study: fronts of recorded searches, and criteria that choose as many filters without a search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches import vision
from ...contracts.structure.surgery import ChannelGroup, channel_groups, forward, macs, parameters, remove
from ...core.study import Contender
from . import Pruned, fine_tuned, seeded
from ._smoea_front import Front
from ._smoea_pieces import hypervolume
from ._smoea_record import BENCH, NET, REPLICAS, recorded
from ._smoea_subnet import ParameterCount, SubNetwork, segments
from .classics import FPGM, L1
from .classics_of_data import Taylor, batches, per_unit, run_watching

STEPS = 93  # one pass over the training images, for every contender that is tuned


@dataclass(frozen=True)
class FeatureRank:
    """Average matrix rank of a channel's maps behind ReLU (after Lin et al. 2020, HRank, equation 4)."""

    @torch.no_grad()
    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        found = defaultdict(list)
        for inputs, _ in batches(data, "feature rank", labels=False):
            run_watching(groups, model, lambda name, out, dim: found[name].append(torch.linalg.matrix_rank(F.relu(out)).float()),
                         lambda inputs=inputs: forward(model, inputs))
        return {group.name: per_unit(group, model, torch.cat(found[group.name]).mean(0)) for group in groups}


def picked(model: nn.Module, groups: Sequence[ChannelGroup], kept: np.ndarray, **more) -> Pruned:
    """The network without what ``kept`` (bits,) drops; per layer the L1 rank of the filters that stay, for the picture."""
    drop = {g.name: np.flatnonzero(~kept[where]) for g, where in zip(groups, segments(groups), strict=True) if not kept[where].all()}
    scores, rows = L1().scores(groups, model), {}
    for group, where in zip(groups, segments(groups), strict=True):
        rank = scores[group.name].argsort().argsort().numpy() / max(1, group.size - 1)
        rows[group.name] = np.where(kept[where], 1 + np.round(253 * rank), 0).astype(np.uint8)
    order = [name for name, _ in model.named_modules() if name in rows]
    return Pruned(remove(model, drop, vision.EXAMPLE), {name: rows[name] for name in order} | more.get("exhibits", {}), more.get("series", {}))


@cache
def sweep_volume(replica: int) -> tuple[SubNetwork, ParameterCount, float]:
    """The first group of the walk on images that no mask was bred on, and the largest hypervolume that a criterion's ratios 0 … 95 % reach on it (L1, FPGM, Taylor)."""
    model = vision.dense(NET, replica)
    groups = channel_groups(model, vision.EXAMPLE)[-BENCH.layers:]
    network, count = SubNetwork(model, groups, vision.calibration()[BENCH.images:2 * BENCH.images]), ParameterCount(groups)
    best = 0.0
    for criterion in (L1(), FPGM(), Taylor()):
        scores = criterion.scores(groups, model, vision.labelled())
        orders = [scores[g.name].argsort(descending=True, stable=True).argsort().numpy() for g in groups]
        masks = np.array([np.concatenate([order < max(1, round((1 - gone) * len(order))) for order in orders]) for gone in np.arange(20) / 20])
        best = max(best, volume_of(network, count, masks))
    return network, count, best


def volume_of(network: SubNetwork, count: ParameterCount, masks: np.ndarray) -> float:
    whole = count(np.ones((1, network.size), bool))
    return hypervolume(np.stack([count(masks) / whole, network.errors(masks)], 1))


@cache
def history(name: str, replica: int) -> dict[str, list[float]]:
    """``volume``: hypervolume of the archive after each generation, group after group; ``gain``: the first group's front, judged now on other images, against the best sweep."""
    front = recorded(name, replica)
    series = {"volume": [float(v) for f in front.fronts for v in f.volumes[:, 0]]}
    if len(front.fronts) > 1:
        network, count, best = sweep_volume(replica)
        series["gain"] = [volume_of(network, count, front.fronts[0].masks) / best]
    return series


def _from_front(front: Front, points: Sequence[int], series: Mapping[str, Sequence[float]]) -> Pruned:
    fronts = {f"front {i}": np.rint(1e4 * np.stack([f.share, np.minimum(f.error, 3), np.arange(len(f.masks)) == p])).astype(np.int16)
              for i, (f, p) in enumerate(zip(front.fronts, points, strict=True))}
    return picked(front.model, front.groups, front.kept(points), exhibits=fronts, series=series)


def searched(name: str, role: str = "rival", evidence: str = "checkpoint", **settings) -> Contender:
    """A recorded search: the largest network of its slider with at most the wanted share of the parameters."""

    def make(params_left: float, replica: int) -> Pruned:
        front = recorded(name, replica)
        return _from_front(front, front.points(params=params_left), history(name, replica))

    return Contender(make, role, evidence=evidence, replicas=REPLICAS, **settings)


def by_tolerance(name: str, **settings) -> Contender:
    """A recorded search: of each front the smallest mask that alone costs at most so many points on the validation images."""

    def make(tolerance: float, replica: int) -> Pruned:
        front = recorded(name, replica)
        return _from_front(front, front.points(tolerance=tolerance), history(name, replica))

    return Contender(make, evidence="checkpoint", replicas=REPLICAS, **settings)


def _by_counts(criterion, groups: Sequence[ChannelGroup], model: nn.Module, counts: Sequence[int]) -> np.ndarray:
    scores = criterion.scores(groups, model, vision.labelled())
    return np.concatenate([scores[g.name].argsort(descending=True, stable=True).argsort().numpy() < n for g, n in zip(groups, counts, strict=True)])


def same_counts(criterion, **settings) -> Contender:
    """As many filters a layer as SMOEA keeps, chosen by a criterion: does it matter *which*?"""

    def make(params_left: float, replica: int, seed: int) -> Pruned:
        front = recorded("smoea", replica)
        kept = front.kept(front.points(params=params_left))
        counts = [int(kept[where].sum()) for where in segments(front.groups)]
        return picked(front.model, front.groups, _by_counts(seeded(criterion, 100 * replica + seed), front.groups, front.model, counts))

    return Contender(make, replicas=REPLICAS, **settings)


def _equal_shares(groups: Sequence[ChannelGroup], fits: Callable[[list[int]], bool]) -> list[int]:
    """The largest equal share of every layer that ``fits``, as numbers of filters (more never fits where less does not)."""
    low, high = 0, 257
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits([max(1, round(middle / 256 * g.size)) for g in groups]) else (low, middle)
    return [max(1, round(low / 256 * g.size)) for g in groups]


def uniform(criterion, same_macs: bool = False, **settings) -> Contender:
    """The same share of every layer, chosen by a criterion: the largest network with at most the wanted share of the parameters, or with at most the
    multiply-accumulates of SMOEA's."""

    def make(params_left: float, replica: int) -> Pruned:
        model, front = vision.dense(NET, replica), recorded("smoea", replica)
        groups = channel_groups(model, vision.EXAMPLE)

        def network(counts: Sequence[int]) -> nn.Module:
            return remove(model, {g.name: range(n, g.size) for g, n in zip(groups, counts, strict=True) if n < g.size}, vision.EXAMPLE, groups)

        cost, limit = parameters, params_left * parameters(model)
        if same_macs:
            cost, limit = partial(macs, example=vision.EXAMPLE), macs(front.export(params=params_left), vision.EXAMPLE)
        counts = _equal_shares(groups, lambda counts: cost(network(counts)) <= limit)
        return picked(model, groups, _by_counts(criterion, groups, model, counts))

    return Contender(make, replicas=REPLICAS, **settings)


def tuned(made: Contender, at: float, **settings) -> Contender:
    def make(params_left: float, replica: int, seed: int) -> Pruned:
        arguments = {"params_left": params_left, "replica": replica, "seed": seed}
        return fine_tuned(made.make(**{name: value for name, value in arguments.items() if name in made.arguments}), seed, STEPS)

    return Contender(make, evidence="recorded", replicas=3, grid={"params_left": (at,)}, **settings)
