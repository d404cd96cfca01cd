"""The loop of ASCAI: sample vectors, score them, let good ones breed; and the rivals that spend as many evaluations otherwise.

A *problem* is a list of entries and ``judge(theta) -> (accuracy, cost)``, both in [0, 1]; nothing here knows what a network is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

import numpy as np

from ._ascai_space import TOP, Param

Judge = Callable[[np.ndarray], tuple[float, float]]


# --- pieces, each a numbered part of the paper, each replaced by an ablation ---------------------------------------------------------------------

def in_order(judge: Judge, thetas: Sequence[np.ndarray], pool: ThreadPoolExecutor) -> list[tuple[float, float]]:
    """Judged by however many workers, in the order of the vectors."""
    return list(pool.map(judge, thetas))


def as_they_come(judge: Judge, thetas: Sequence[np.ndarray], pool: ThreadPoolExecutor) -> list[tuple[float, float]]:
    """Wrong on purpose: whoever is finished first takes the first place."""
    return [future.result() for future in as_completed([pool.submit(judge, theta) for theta in thetas])]


def saving(accuracy: np.ndarray, cost: np.ndarray, threshold: float, tau: float, rng: np.random.Generator) -> np.ndarray:
    """(1 − c) where a ≥ threshold, else (1 − c)·exp(−(threshold − a)/τ): what is saved, fading where too much accuracy went."""
    return (1 - cost) * np.exp(-np.maximum(0, threshold - accuracy) / tau)


def at_cost(target: float, accuracy: np.ndarray, cost: np.ndarray, threshold: float, tau: float, rng: np.random.Generator) -> np.ndarray:
    """For a wanted cost instead of a wanted accuracy: accuracy, fading where the cost is above the target. (Bind ``target`` with `functools.partial`.)"""
    return accuracy * np.exp(-np.maximum(0, cost - target) / tau)


def noise(accuracy: np.ndarray, cost: np.ndarray, threshold: float, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Wrong on purpose: any number."""
    return rng.random(len(cost))


def proportional(score: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` rows, drawn with replacement, with probability ∝ score − lowest score."""
    weight = score - score.min()
    return rng.choice(len(score), count, p=weight / weight.sum() if weight.sum() > 0 else None)


def anyone(score: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Wrong on purpose: drawn without regard to the score."""
    return rng.choice(len(score), count)


# --- the method --------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Loop:
    """Adaptive sampling of compression vectors.

    ``methods``: filters, ranks, weights, or several; ``objective``: ``bytes`` of the file or ``macs``. ``max_drop``: points of accuracy that may go, ``loose`` at the
    start and tightening to it until half of the ``iterations`` are over. ``swap``/``tune``: probability per entry of a pair that is crossed (``cross``), of an individual that is
    mutated (``mutate``); ``sigma`` shrinks by ``decay`` an iteration. Stops early where the mean score gains less than 0.001 for ``patience`` iterations.
    The fields after ``workers`` are the parts that ablations replace.
    """

    methods: tuple[str, ...] = ("filters", "ranks", "weights")
    objective: str = "bytes"
    max_drop: float = 5.0
    loose: float = 20.0
    population: int = 24
    iterations: int = 12
    cross: float = 0.8
    swap: float = 0.2
    mutate: float = 0.8
    tune: float = 0.1
    sigma: float = 0.2
    decay: float = 0.98
    tau: float = 0.02
    patience: int = 5
    bearable: float = 1.0  # points that one entry alone may cost: bounds the box
    seed: int = 0
    workers: int = 1
    elite: int = 1
    score: Callable = saving
    select: Callable = proportional
    gather: Callable = in_order
    space: dict = field(default_factory=dict, hash=False)  # other pieces of `Space`, replaced by ablations

    def __post_init__(self):
        for name, least in (("population", 2), ("iterations", 1), ("workers", 1), ("elite", 0), ("patience", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name}: a whole number from {least} on, found {getattr(self, name)!r}")
        for name in ("cross", "swap", "mutate", "tune"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: a probability, found {getattr(self, name)}")
        if self.objective not in ("bytes", "macs"):
            raise ValueError(f"objective: bytes or macs, found {self.objective!r}")
        if not 0 <= self.max_drop <= 100:
            raise ValueError(f"max_drop: points of accuracy, from 0 to 100; found {self.max_drop}")

    def threshold(self, iteration: int, dense: float) -> float:
        """Least accuracy at an iteration: tightens linearly during the first half, then stands."""
        share = min(1.0, iteration / max(1, self.iterations // 2))
        return dense - (self.loose + (self.max_drop - self.loose) * share) / 100 if self.loose > self.max_drop else dense - self.max_drop / 100

    def first(self, params: Sequence[Param], rng: np.random.Generator) -> np.ndarray:
        """(population, entries): uniform in each entry's box, then perturbed by N(0, σ²) and clipped to what an entry may be."""
        low, high = np.array([p.low for p in params]), np.array([p.high for p in params])
        drawn = rng.uniform(low, high, (self.population, len(params)))
        return np.clip(drawn + rng.normal(0, self.sigma, drawn.shape) * (rng.random(drawn.shape) < self.tune), 0, TOP)

    def crossed(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Neighbours exchange entries: a pair with probability ``cross``, each of its entries with probability ``swap``."""
        children = parents.copy()
        for i in range(0, len(parents) - 1, 2):
            swap = (rng.random() < self.cross) & (rng.random(parents.shape[1]) < self.swap)
            children[i, swap], children[i + 1, swap] = parents[i + 1, swap], parents[i, swap]
        return children

    def mutated(self, thetas: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
        """An individual with probability ``mutate``, each of its entries with probability ``tune``: + N(0, σ²), clipped."""
        moved = (rng.random((len(thetas), 1)) < self.mutate) & (rng.random(thetas.shape) < self.tune)
        return np.clip(thetas + moved * rng.normal(0, sigma, thetas.shape), 0, TOP)

    def run(self, params: Sequence[Param], judge: Judge, dense: float, on_iteration: Callable[[int, float], None] | None = None) -> Samples:
        """The whole loop. ``dense``: accuracy of the uncompressed network."""
        rng, samples = np.random.default_rng(self.seed), Samples(dense, [], [], [], [])
        thetas, still, before, sigma = self.first(params, rng), 0, -np.inf, self.sigma
        with ThreadPoolExecutor(self.workers) as pool:  # threads: torch computes outside of Python's lock, and nothing need be pickled
            for iteration in range(self.iterations):
                accuracy, cost = np.array(self.gather(judge, list(thetas), pool), float).T
                score = self.score(accuracy, cost, self.threshold(iteration, dense), self.tau, rng)
                samples.add(thetas, accuracy, cost, score)
                if on_iteration:
                    on_iteration(iteration, float(score.max()))
                still = still + 1 if score.mean() - before < 1e-3 and iteration > self.iterations // 2 else 0
                before = score.mean()
                if still >= self.patience:
                    break
                best = thetas[np.argsort(-score, kind="stable")[:self.elite]]
                children = self.mutated(self.crossed(thetas[self.select(score, len(thetas), rng)], rng), rng, sigma)
                thetas = np.concatenate([best, children])[:len(thetas)]
                sigma *= self.decay
        return samples


@dataclass
class Samples:
    """Everything that a search judged, one row a sample: vectors, accuracies, costs, and each iteration's scores."""

    dense: float
    thetas: list[np.ndarray]
    accuracy: list[float]
    cost: list[float]
    scores: list[np.ndarray]

    def add(self, thetas: np.ndarray, accuracy: np.ndarray, cost: np.ndarray, score: np.ndarray) -> None:
        self.thetas += list(thetas)
        self.accuracy += accuracy.tolist()
        self.cost += cost.tolist()
        self.scores.append(score)

    def cheapest(self, max_drop: float) -> int:
        """The cheapest sample whose accuracy is at most ``max_drop`` points below the dense network's; the most accurate one where none is."""
        accuracy, cost = np.array(self.accuracy), np.array(self.cost)
        fits = accuracy >= self.dense - max_drop / 100 - 1e-9
        return int(np.where(fits, cost, np.inf).argmin()) if fits.any() else int(accuracy.argmax())

    def most_accurate(self, cost: float) -> int:
        """The most accurate sample that costs at most so much (of equals the cheaper); the cheapest one where none does."""
        fits = np.array(self.cost) <= cost + 1e-9
        order = np.lexsort((self.cost, -np.array(self.accuracy)))
        return int(order[fits[order]][0]) if fits.any() else int(np.lexsort((-np.array(self.accuracy), self.cost))[0])

    def pareto(self) -> list[int]:
        """Samples that no other beats in accuracy and cost, the cheapest first."""
        best, rows = -np.inf, []
        for row in np.lexsort((-np.array(self.accuracy), self.cost)):
            if self.accuracy[row] > best:
                best = self.accuracy[row]
                rows.append(int(row))
        return rows


def sensitivity_box(params: Sequence[Param], judge: Judge, dense: float, bearable: float, levels: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.95)) -> list[Param]:
    """The entries, each bounded by the largest level that, alone, costs at most ``bearable`` points (found by bisection; half of the first level where none does)."""
    bounded = []
    for i, param in enumerate(params):
        low, high = -1, len(levels)
        while high - low > 1:
            middle = (low + high) // 2
            theta = np.zeros(len(params))
            theta[i] = levels[middle]
            low, high = (middle, high) if judge(theta)[0] >= dense - bearable / 100 else (low, middle)
        bounded.append(replace(param, high=min(param.high, levels[low] if low >= 0 else levels[0] / 2)))
    return bounded


# --- rivals ---------------------------------------------------------------------------------------------------------------------------------------

def random_search(params: Sequence[Param], judge: Judge, dense: float, evaluations: int, seed: int) -> Samples:
    """Uniform in the same box."""
    rng, samples = np.random.default_rng(seed), Samples(dense, [], [], [], [])
    low, high = np.array([p.low for p in params]), np.array([p.high for p in params])
    thetas = rng.uniform(low, high, (evaluations, len(params)))
    accuracy, cost = np.array([judge(theta) for theta in thetas]).T
    samples.add(thetas, accuracy, cost, saving(accuracy, cost, dense - 0.05, 0.02, rng))
    return samples


def rule(params: Sequence[Param], judge: Judge, dense: float, tilt: Callable[[np.ndarray], np.ndarray], evaluations: int) -> Samples:
    """One dial for all entries: ``tilt(depth) · s`` for growing s, depth from 0 (shallow) to 1 within each kind of entry."""
    samples, depth = Samples(dense, [], [], [], []), np.zeros(len(params))
    for kind in {p.kind for p in params}:
        rows = [i for i, p in enumerate(params) if p.kind == kind]
        depth[rows] = np.linspace(0, 1, len(rows)) if len(rows) > 1 else 0.5
    shape = tilt(depth)
    thetas = np.clip(np.linspace(0, 1, evaluations)[:, None] * shape / shape.max(), 0, 0.95)
    accuracy, cost = np.array([judge(theta) for theta in thetas]).T
    samples.add(thetas, accuracy, cost, 1 - cost)
    return samples
