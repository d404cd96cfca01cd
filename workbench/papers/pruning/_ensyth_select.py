"""Which members stay: backward elimination and its alternatives, on outputs that were computed once.

    votes (P, N, classes), int64 ──► total = Σ members ──► try total − votes[m] for every m ──► take out the best ──► … one is left ──► best set on the path

A try costs N·classes additions, a whole elimination O(P²·N·classes): milliseconds. Nothing here sees an image or a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ._ensyth_ensemble import COMBINERS, votes

SEARCHES = ("backward", "forward", "exhaustive", "genetic")
MOST = 15


@dataclass(frozen=True)
class Selection:
    """``kept``: numbers of the members chosen, ascending. ``path``: one row a set that was tried, in order: ``size, members, accuracy, bytes``."""

    kept: tuple[int, ...]
    path: pd.DataFrame = field(repr=False)


def accuracy_of(total: Tensor, labels: Tensor) -> Tensor:
    """The share of right answers, over the last but one dimension of ``total`` (…, N, classes)."""
    return (total.argmax(-1) == labels).double().mean(-1)


def backward(given: Tensor, labels: Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The whole pool, then one member fewer each time: the one without which the rest is most often right; of several, the largest."""
    kept, total = list(range(len(given))), given.sum(0)
    yield tuple(kept)
    while len(kept) > 1:
        left = [float(accuracy_of(total - given[m], labels)) for m in kept]
        gone = max(range(len(kept)), key=lambda i: (left[i], sizes[kept[i]], kept[i]))
        total = total - given[kept.pop(gone)]
        yield tuple(kept)


def forward(given: Tensor, labels: Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """One member, then one more each time: the one with which the set is most often right; of several, the smallest."""
    kept: list[int] = []
    total = torch.zeros_like(given[0])
    while len(kept) < len(given):
        rest = [m for m in range(len(given)) if m not in kept]
        best = max(rest, key=lambda m: (float(accuracy_of(total + given[m], labels)), -sizes[m], -m))
        kept, total = [*kept, best], total + given[best]
        yield tuple(sorted(kept))


def exhaustive(given: Tensor, labels: Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every subset, in the order of a Gray code, so that each differs from the one before by one member. ValueError: more than 15 members."""
    if len(given) > MOST:
        raise ValueError(f"search: 'exhaustive' tries every subset, so at most {MOST} members, found {len(given)}")
    for code in range(1, 1 << len(given)):
        gray = code ^ code >> 1
        yield tuple(m for m in range(len(given)) if gray >> m & 1)


def genetic(given: Tensor, labels: Tensor, sizes: Sequence[int], generations: int = 25, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """A genetic algorithm (pymoo) over one bit a member."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.operators.sampling.rnd import BinaryRandomSampling
    from pymoo.optimize import minimize

    tried: list[tuple[int, ...]] = []

    class Subsets(ElementwiseProblem):
        def _evaluate(self, x, out, *args, **kwargs):
            kept = tuple(np.flatnonzero(x).tolist()) or (0,)
            tried.append(kept)
            out["F"] = -float(accuracy_of(given[list(kept)].sum(0), labels))

    minimize(Subsets(n_var=len(given), n_obj=1, xl=0, xu=1, vtype=bool), seed=seed, termination=("n_gen", generations), algorithm=GA(
        pop_size=20, sampling=BinaryRandomSampling(), crossover=TwoPointCrossover(), mutation=BitflipMutation(), eliminate_duplicates=True))
    yield from dict.fromkeys(tried)


def walk(given: Tensor, labels: Tensor, sizes: Sequence[int], search: str) -> Iterator[tuple[tuple[int, ...], float]]:
    """(set, accuracy) for every set that ``search`` goes through."""
    how: Callable = {"backward": backward, "forward": forward, "exhaustive": exhaustive, "genetic": genetic}[search]
    total, last = torch.zeros_like(given[0]), frozenset()
    for kept in how(given, labels, sizes):
        for m in last.symmetric_difference(kept):  # the running sum again, a step at a time
            total = total + given[m] if m in kept else total - given[m]
        last = frozenset(kept)
        yield kept, float(accuracy_of(total, labels))


def select(shares: Tensor, labels: Tensor, sizes: Sequence[int], combine: str = "soft", search: str = "backward", max_bytes: int | None = None,
           cost: Callable[[tuple[int, ...]], int] | None = None, ballot: Callable = votes) -> Selection:
    """The most accurate set that ``search`` meets; of several, the smallest; with ``max_bytes``, of those that fit.

    ``shares``: probabilities of each member, (members, N, classes), float or in whole units (:func:`_ensyth_ensemble.probabilities`); ``sizes``: bytes of
    each member; ``cost(set) -> bytes`` where members share tensors (default: the sum). ``stacked`` searches by soft votes; ``ballot``: how a member votes. ValueError names what is wrong.
    """
    if shares.dim() != 3 or len(shares) < 2:
        raise ValueError(f"shares: probabilities of at least two members are needed, (members, N, classes); found shape {tuple(shares.shape)}")
    if not len(labels) or shares.shape[1] != len(labels):
        raise ValueError(f"labels: validation needs a label for each of the {shares.shape[1]} outputs and at least one, found {len(labels)}")
    for name, found, allowed in (("combine", combine, COMBINERS), ("search", search, SEARCHES)):
        if found not in allowed:
            raise ValueError(f"{name}: one of {', '.join(allowed)}, found {found!r}")
    if len(sizes) != len(shares):
        raise ValueError(f"sizes: one for each of the {len(shares)} members, found {len(sizes)}")
    if shares.is_floating_point():
        shares = (shares.double() * (1 << 24)).round().long()
    given = ballot(shares, combine, accuracy_of(shares, labels).tolist())
    cost = cost or (lambda kept: sum(sizes[m] for m in kept))
    path = pd.DataFrame([(len(kept), kept, accuracy, cost(kept)) for kept, accuracy in walk(given, labels, sizes, search)],
                        columns=["size", "members", "accuracy", "bytes"])
    fits = path if max_bytes is None else path[path.bytes <= max_bytes]
    if not len(fits):
        raise ValueError(f"max_bytes: {max_bytes}; the smallest set that the search met has {path.bytes.min()} bytes")
    best = fits.sort_values(["accuracy", "bytes"], ascending=[False, True], kind="stable").iloc[0]
    return Selection(tuple(best.members), path)


def stack(logits: Tensor, labels: Tensor, folds: int = 5) -> tuple[np.ndarray, np.ndarray, float]:
    """Multinomial logistic regression on the members' logits (members, N, classes): matrix (members · classes, classes), offset (classes,), and the
    cross-fitted accuracy: every image judged by a regression that did not see it. Class c must occur for every c."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.preprocessing import StandardScaler

    inputs, classes = logits.transpose(0, 1).flatten(1).double().numpy(), logits.shape[-1]
    if set(labels.tolist()) != set(range(classes)):
        raise ValueError(f"labels: stacking learns each of the {classes} classes, so each must occur; found {sorted(set(labels.tolist()))}")
    scaler = StandardScaler().fit(inputs)
    regression, scaled = LogisticRegression(C=0.01, max_iter=200), scaler.transform(inputs)
    score = cross_val_score(regression, scaled, labels.numpy(), cv=KFold(folds, shuffle=True, random_state=0)).mean()
    fitted = regression.fit(scaled, labels.numpy())
    weight, offset = fitted.coef_, fitted.intercept_
    if classes == 2:  # one score tells two classes apart
        weight, offset = np.concatenate([-weight, weight]), np.concatenate([-offset, offset])
    matrix = (weight / scaler.scale_).T
    return matrix, offset - scaler.mean_ @ matrix, float(score)
