"""What pymoo's NSGA-II is given to evolve filter masks with: crossover by filter and by layer, mutation that knows which filters are small, repair.

Random numbers are those of pymoo's ``random_state``, so that a seed decides a search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair


class Masks(Problem):
    """Minimise (share of parameters kept, error) over bit strings; ``judge(masks) -> (P, 2)``. ``weights``: their weighted sum instead, one objective."""

    def __init__(self, bits: int, judge, weights: Sequence[float] | None = None):
        super().__init__(n_var=bits, n_obj=1 if weights else 2, vtype=bool)
        self.judge, self.weights = judge, weights

    def _evaluate(self, x, out, *args, **kwargs):
        found = self.judge(x.astype(bool))
        out["F"] = found @ np.array(self.weights)[:, None] if self.weights else found


class FilterOrLayer(Crossover):
    """Half of the pairs exchange single filters, each with probability ½; half exchange everything behind a random border between layers."""

    def __init__(self, borders: Sequence[int], prob: float):
        super().__init__(2, 2, prob=prob)
        self.borders = np.array(borders)

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        _, pairs, bits = X.shape
        swap = random_state.random((pairs, bits)) < 0.5
        if len(self.borders):
            border = random_state.choice(self.borders, pairs)
            swap = np.where((random_state.random(pairs) < 0.5)[:, None], np.arange(bits) >= border[:, None], swap)
        return np.where(swap, X[::-1], X)


class RankedFlips(Mutation):
    """Each bit flips with its own probability: ``delete`` (bits,) where a filter is kept, ``insert`` where it is not."""

    def __init__(self, delete: np.ndarray, insert: np.ndarray):
        super().__init__(prob=1.0)
        self.delete, self.insert = delete, insert

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        return X.astype(bool) ^ (random_state.random(X.shape) < np.where(X.astype(bool), self.delete, self.insert))


class KeepOne(Repair):
    """Genomes pass through ``repair(masks) -> masks``."""

    def __init__(self, repair):
        super().__init__()
        self.mend = repair

    def _do(self, problem, X, *args, **kwargs):
        return self.mend(X.astype(bool))
