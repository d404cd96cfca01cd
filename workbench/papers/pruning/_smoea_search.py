"""The search of SMOEA: a Pareto front of filter masks for one group of layers after another."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts.model import inputs_and_labels
from ...contracts.structure.surgery import ChannelGroup, channel_groups, remove
from . import inside_blocks
from ._smoea_front import Front, GroupFront
from ._smoea_pieces import at_least_one, feature_error, hypervolume, informed_start, non_dominated, ranked_flips, ranks, thinned
from ._smoea_subnet import ParameterCount, SubNetwork, segments
from .classics import L1

ORDERS = ("last first", "first first")


# --- one group -----------------------------------------------------------------------------------------------------------------------------------

def evolve(model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor, method, on_generation: Callable[[int, np.ndarray], None] | None = None) -> GroupFront:
    """NSGA-II (pymoo) over the filter masks of ``groups``; the front is the archive's, thinned to the population's size. ``wrong`` is left empty (NaN)."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.duplicate import DefaultDuplicateElimination

    from ._smoea_operators import FilterOrLayer, KeepOne, Masks, RankedFlips

    start, rng = time.process_time(), np.random.default_rng(method.seed)
    network, count = SubNetwork(model, groups, images, own_statistics=method.own_statistics), ParameterCount(groups)
    by_size, whole = np.concatenate(ranks(groups, L1(), model)), count(np.ones((1, sum(g.size for g in groups)), bool))
    archive = {"masks": np.zeros((0, network.size), bool), "points": np.zeros((0, 2))}

    def judge(masks: np.ndarray) -> np.ndarray:
        points = np.stack([count(masks) / whole, method.error(network, masks, rng)], 1)
        masks, both = np.concatenate([archive["masks"], masks]), np.concatenate([archive["points"], points])
        kept = method.survivors(both)
        archive.update(masks=masks[kept], points=both[kept])
        return points

    def repair(masks: np.ndarray) -> np.ndarray:
        return method.repair(masks, groups, by_size)

    settings = {"pop_size": method.population, "sampling": repair(method.start(groups, model, method.population, rng)), "repair": KeepOne(repair),
                "crossover": FilterOrLayer([where.start for where in segments(groups)][1:], method.crossover), "mutation": RankedFlips(*method.flips(by_size, groups)),
                "eliminate_duplicates": DefaultDuplicateElimination()}
    algorithm, problem = (GA if method.weights else NSGA2)(**settings), Masks(network.size, judge, method.weights)
    algorithm.setup(problem, termination=("n_gen", method.generations), seed=method.seed)
    volumes = []
    while algorithm.has_next():
        algorithm.next()
        population = algorithm.pop.get("X").astype(bool)
        volumes.append([hypervolume(archive["points"]), np.nan if method.weights else hypervolume(algorithm.pop.get("F"))])
        if on_generation:
            on_generation(len(volumes), population)
    if not archive["masks"].all(1).any():  # keeping everything is always on offer
        archive = {"masks": np.append(archive["masks"], np.ones((1, network.size), bool), 0), "points": np.append(archive["points"], [[1.0, 0.0]], 0)}
    few = thinned(archive["points"], method.population)
    share, error = archive["points"][few].T
    return GroupFront(tuple(g.name for g in groups), archive["masks"][few], share, error, np.full(len(few), np.nan), np.array(volumes),
                      algorithm.evaluator.n_eval, time.process_time() - start)


# --- the walk through the groups -------------------------------------------------------------------------------------------------------------------

def split_layers(groups: Sequence[ChannelGroup], layers: int, order: str = "last first", named: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
    """Consecutive groups of ``layers`` layers, in the order of the walk; ``named``: the groups by hand. ValueError: a name that cannot be pruned, an empty group."""
    names = [group.name for group in groups]
    if named is not None:
        for group in named:
            if not group:
                raise ValueError("groups: a group without a layer")
            if wrong := [name for name in group if name not in names]:
                raise ValueError(f"groups: {', '.join(wrong)} cannot be pruned alone (coupled with others, or no such layer); there are {', '.join(names)}")
        return [list(group) for group in named]
    parts = [names[i:i + layers] for i in range(0, len(names), layers)]
    return parts[::-1] if order == "last first" else parts


def walk(model: nn.Module, images: Tensor, validation: tuple[Tensor, Tensor | None], method, named: Sequence[Sequence[str]] | None = None,
         between: Callable[[nn.Module], object] | None = None, on_group: Callable[[GroupFront], None] | None = None) -> Front:
    """Search, decide, prune, go on with the pruned network. ``validation``: images and labels that re-rank each front (without labels, the dense network's own
    answers are the truth); ``between(network)`` fine-tunes in place after each group."""
    dense = copy.deepcopy(model).eval()
    example, now = images[:1], copy.deepcopy(dense)
    judged, labels = validation
    fronts, chosen, before = [], [], None
    for names in split_layers(inside_blocks(channel_groups(dense, example)), method.layers, method.order, named):
        stage = now if method.progressive else dense
        found = {group.name: group for group in inside_blocks(channel_groups(stage, example))}
        groups = [found[name] for name in names]
        front = evolve(stage, groups, images, method)
        network = SubNetwork(stage, groups, judged, to_the_end=True)
        if labels is None:
            labels = torch.from_numpy(network.answers(np.ones((1, network.size), bool))[0])
        front.wrong = (network.answers(front.masks) != labels.numpy()).mean(1)
        unpruned = float(front.wrong[-1])
        before = unpruned if before is None else before
        fronts.append(front)
        chosen.append(front.smallest(wrong=unpruned + method.tolerance / 100))
        mask = front.masks[chosen[-1]]
        if mask.all():
            warnings.warn(f"tolerance: within {method.tolerance} points nothing of {', '.join(names)} can go; the group stays whole", stacklevel=2)
        drop = {g.name: np.flatnonzero(~mask[where]) for g, where in zip(groups, segments(groups), strict=True) if not mask[where].all()}
        now = remove(now, drop, example)
        if between:
            between(now)
            now.eval()
        if on_group:
            on_group(front)
    return Front(dense, example, fronts, chosen, before, now, method.surgery)


@dataclass(frozen=True)
class SMOEA:
    """Sub-network multi-objective evolutionary filter pruning.

    ``layers`` of each group, visited in ``order``; ``population``, ``generations``, ``crossover`` probability of NSGA-II; ``images`` on which masks breed;
    ``tolerance``: points of classification error that the walk lets each group cost. ``weights``: one weighted sum instead of a front. The fields after ``seed``
    are the numbered parts, which ablations replace.
    """

    layers: int = 3
    population: int = 40
    generations: int = 20
    tolerance: float = 1.0
    images: int = 32
    crossover: float = 0.9
    order: str = "last first"
    weights: tuple[float, float] | None = None
    seed: int = 0
    error: Callable = feature_error
    repair: Callable = at_least_one
    start: Callable = informed_start
    flips: Callable = ranked_flips
    survivors: Callable = non_dominated
    surgery: Callable = remove
    own_statistics: bool = True
    progressive: bool = True

    def __post_init__(self):
        for name, least in (("layers", 1), ("population", 4), ("generations", 1), ("images", 2)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name}: a whole number from {least} on, found {getattr(self, name)!r}")
        if self.order not in ORDERS:
            raise ValueError(f"order: one of {', '.join(ORDERS)}, found {self.order!r}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance: points of classification error, from 0 on; found {self.tolerance}")

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example=None) -> nn.Module:
        """The model contract: a share ``ratio`` of the *parameters* goes, by masks bred on the first images of ``data`` and re-ranked on the others."""
        if ratio == 0:
            return model
        return smoea_prune(model, data, method=self).export(params=1 - ratio, data=data)


def smoea_prune(model: nn.Module, data: Iterable | None, groups: Sequence[Sequence[str]] | str = "auto", validation: Iterable | None = None,
                pop: int | None = None, gens: int | None = None, seed: int | None = None, method: SMOEA = SMOEA(),
                between: Callable[[nn.Module], object] | None = None) -> Front:
    """Fronts of ``model`` (left as it is). ``data``: batches of images, or of (images, labels); the first ``method.images`` breed, the rest (or ``validation``)
    re-ranks. ``groups``: ``"auto"``, or lists of layer names. ``between``: fine-tunes the pruned network in place after each group.

    ValueError: an empty loader, a group that cannot be pruned, a model that torch.fx cannot follow.
    """
    changes = {name: value for name, value in (("population", pop), ("generations", gens), ("seed", seed)) if value is not None}
    method = replace(method, **changes)
    if isinstance(groups, str) and groups != "auto":
        raise ValueError(f"groups: 'auto' or lists of layer names, found {groups!r}")
    images, labels = _gathered(data, "data")
    if len(images) < 2:
        raise ValueError(f"data: at least 2 images are needed, found {len(images)}")
    judged = _gathered(validation, "validation") if validation is not None else \
        (images[method.images:], None if labels is None else labels[method.images:]) if len(images) > method.images else (images, labels)
    return walk(model, images[:method.images], judged, method, None if isinstance(groups, str) else groups, between)


def _gathered(data: Iterable | None, name: str) -> tuple[Tensor, Tensor | None]:
    pairs = [inputs_and_labels(batch) for batch in data] if data is not None else []
    if any(isinstance(inputs, Mapping) for inputs, _ in pairs):
        raise ValueError(f"{name}: batches of one image tensor are needed, found dicts")
    if not sum(len(inputs) for inputs, _ in pairs):
        raise ValueError(f"{name}: a loader with images is needed, found {'none' if data is None else 'an empty one'}")
    labels = None if any(labels is None for _, labels in pairs) else torch.cat([labels for _, labels in pairs])
    return torch.cat([inputs for inputs, _ in pairs]), labels
