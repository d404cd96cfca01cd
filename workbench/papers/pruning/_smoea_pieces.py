"""The pieces of SMOEA that its ablations replace: how a search starts, varies, repairs, judges and remembers masks; each a plain function.

A mask is a row of bits, one a filter of the group's layers, 1 = keep; ``by_size`` (bits,) is each filter's L1 rank within its layer, 1 the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from ...contracts.structure.channels import ChannelGroup
from ._smoea_subnet import SubNetwork, segments
from .classics import FPGM, L1, Random


def ranks(groups: Sequence[ChannelGroup], criterion, model: nn.Module) -> list[np.ndarray]:
    """Per layer, the rank of each filter by the criterion: 1 is the lowest score."""
    scores = criterion.scores(groups, model)
    return [1 + scores[group.name].argsort(stable=True).argsort().numpy() for group in groups]


def at_least_one(masks: np.ndarray, groups: Sequence[ChannelGroup], by_size: np.ndarray) -> np.ndarray:
    """Repair: where a genome keeps no filter of a layer, the layer's largest comes back. ``by_size`` (bits,): L1 rank within the layer."""
    repaired = masks.copy()
    for where in segments(groups):
        empty = ~repaired[:, where].any(1)
        repaired[empty, where.start + int(by_size[where].argmax())] = True
    return repaired


def unrepaired(masks: np.ndarray, groups: Sequence[ChannelGroup], by_size: np.ndarray) -> np.ndarray:
    """Wrong on purpose: genomes as they come."""
    return masks


def informed_start(groups: Sequence[ChannelGroup], model: nn.Module, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, bits): all ones; the largest 90 … 10 % of every layer by L1, by FPGM and by chance; the rest random masks of random densities."""
    seeds = [np.ones(sum(group.size for group in groups), bool)]
    for criterion in (L1(), FPGM(), Random(int(rng.integers(1 << 20)))):
        order = ranks(groups, criterion, model)
        seeds += [np.concatenate([rank > round(gone * len(rank)) for rank in order]) for gone in np.arange(1, 10) / 10]
    seeds += list(random_start(groups, model, max(0, count - len(seeds)), rng))
    return np.array(seeds[:count])


def random_start(groups: Sequence[ChannelGroup], model: nn.Module, count: int, rng: np.random.Generator) -> np.ndarray:
    """Masks of random densities, nothing known beforehand."""
    bits = sum(group.size for group in groups)
    return rng.random((count, bits)) < rng.uniform(0.1, 0.9, (count, 1))


def ranked_flips(by_size: np.ndarray, groups: Sequence[ChannelGroup]) -> tuple[np.ndarray, np.ndarray]:
    """(delete, insert), each (bits,) with mean 1/bits over a layer: a kept filter is deleted with probability ∝ 1/rank (the small ones), a dropped one comes back
    with probability ∝ rank (the large ones)."""
    delete, insert = (1 / by_size), by_size.astype(float)
    for where in segments(groups):
        for odds in (delete, insert):
            odds[where] *= 1 / (len(by_size) * odds[where].mean())
    return delete, insert


def blind_flips(by_size: np.ndarray, groups: Sequence[ChannelGroup]) -> tuple[np.ndarray, np.ndarray]:
    """Every bit alike: 1/bits."""
    return (np.full(len(by_size), 1 / len(by_size)),) * 2


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Rows (n,) of the points (n, 2) that no other point beats in one objective without losing in the other, by ascending first objective; of equal
    points the first."""
    best, kept = np.inf, []
    for row in np.lexsort((points[:, 1], points[:, 0])):
        if points[row, 1] < best:
            best = points[row, 1]
            kept.append(row)
    return np.array(kept, int)


def everything(points: np.ndarray) -> np.ndarray:
    """Wrong on purpose: dominated points stay."""
    return np.argsort(points[:, 0], kind="stable")


def hypervolume(points: np.ndarray) -> float:
    """Area that the points (n, 2) dominate below (1, 1): everything kept, and an output as wrong as zeros."""
    from pymoo.indicators.hv import HV

    inside = points[(points < 1).all(1)]
    return float(HV(ref_point=np.ones(2))(inside)) if len(inside) else 0.0


def thinned(points: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` rows of a front: those with the largest crowding distance, both ends included, in order."""
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    if len(points) <= count:
        return np.arange(len(points))
    return np.sort(np.argsort(-calc_crowding_distance(points), kind="stable")[:count])


def feature_error(network: SubNetwork, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return network.errors(masks)


def noise(network: SubNetwork, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Wrong on purpose: nothing is looked at. (Keeping everything is known to cost nothing.)"""
    return np.where(np.asarray(masks).all(1), 0.0, rng.random(len(masks)))
