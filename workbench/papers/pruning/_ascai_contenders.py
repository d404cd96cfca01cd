"""The contenders of the ASCAI study: recorded searches, of which the best sample within a cost is made now and measured on test images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import torch

from ...benches import vision
from ...contracts.structure.surgery import reestimate_batchnorm
from ...core.study import Contender
from . import Pruned, _amc_record, fine_tuned
from ._ascai_record import BENCH, NET, REPLICAS, VALIDATION, amc_counts, recorded
from ._ascai_search import Samples, saving
from ._ascai_space import LAYERS, METHODS, Param, Realised, Space

HALF = 0.5


@lru_cache(maxsize=8)
def space(replica: int, methods: tuple[str, ...]) -> Space:
    return Space(vision.dense(NET, replica), methods, vision.EXAMPLE)


def samples_of(run: dict, iterations: int | None = None) -> Samples:
    """What a recorded search had judged after so many iterations (default: all)."""
    end = run["ends"][min(iterations or len(run["ends"]), len(run["ends"])) - 1]
    return Samples(run["dense"], [], [right / VALIDATION for right in run["right"][:end]], run["cost"][:end], [])


def history(run: dict) -> dict[str, list[float]]:
    """Mean score of each iteration, its standard error, and the best so far, all by the final threshold."""
    accuracy, cost = np.array(run["right"]) / VALIDATION, np.array(run["cost"])
    scores = np.split(saving(accuracy, cost, run["dense"] - BENCH.max_drop / 100, BENCH.tau, None), run["ends"][:-1])
    return {"score": [float(s.mean()) for s in scores], "error": [float(s.std() / np.sqrt(len(s))) for s in scores],
            "best": np.maximum.accumulate([s.max() for s in scores]).tolist()}


def shown(params: Sequence[Param], theta: np.ndarray, run: dict, row: int) -> dict[str, np.ndarray]:
    """For the picture: the vector in per cent, entry by entry, one array a kind; every sample's cost (ten-thousandths) and accuracy (thousandths)."""
    kinds = {kind: np.array([100 * value for p, value in zip(params, theta, strict=True) if p.kind == kind]) for kind in dict.fromkeys(p.kind for p in params)}
    cloud = np.stack([1e4 * np.array(run["cost"]), 1e3 * np.array(run["right"]) / VALIDATION])
    return {f"removed {kind}": np.rint(values).astype(np.uint8) for kind, values in kinds.items()} | {"cloud": np.rint(cloud).astype(np.uint16), "taken": np.array([row], np.int16)}


def made(run: dict, row: int, replica: int, methods: tuple[str, ...]) -> Realised:
    """The sample's network. The bench renews batch-norm statistics where MACs are fewer; a net with zeros only has as many, so they are renewed here."""
    where = space(replica, methods)
    found = where.decode(run["thetas"][str(row)])
    model = copy.deepcopy(found.model)
    if where.cost(found, "macs") == 1:
        reestimate_batchnorm(model, vision.calibration())
    return Realised(model, found.theta, shown(where.params, found.theta, run, row), history(run), found.forms)


def searched(name: str, methods: tuple[str, ...] = METHODS, role: str = "rival", evidence: str = "checkpoint", **settings) -> Contender:
    """A recorded search: the most accurate of its first iterations' samples (on validation images) with at most the wanted bytes."""

    def make(bytes_left: float, iterations: int, replica: int) -> Pruned | Realised:
        if bytes_left >= 1:
            return Pruned(vision.dense(NET, replica))
        run = recorded(name, replica)
        return made(run, samples_of(run, iterations).most_accurate(bytes_left), replica, methods)

    return Contender(make, role, evidence=evidence, replicas=REPLICAS, **settings)


def one_shot(name: str, role: str = "rival", evidence: str = "checkpoint", **settings) -> Contender:
    """Samples that no iteration builds on (a rule's dial, random search), picked from alike."""

    def make(bytes_left: float, replica: int) -> Pruned | Realised:
        return searched(name).make(bytes_left, None, replica)

    return Contender(make, role, evidence=evidence, replicas=REPLICAS, **settings)


def in_amcs_space(**settings) -> Contender:
    """The loop on AMC's problem: the most accurate sample with at most half of the MACs, built by AMC's operator."""

    def make(replica: int) -> Pruned:
        run, problem = recorded("amc-space", replica), _amc_record.problem(replica, HALF)
        counts = amc_counts(problem, run["thetas"][str(samples_of(run).most_accurate(HALF))])
        return Pruned(problem.space.export(counts))

    return Contender(make, evidence="recorded", replicas=REPLICAS, **settings)


def of_amc(**settings) -> Contender:
    """What AMC's agent found on that problem."""

    def make(replica: int) -> Pruned:
        rewards, counts = _amc_record.recorded("amc", HALF, replica)
        return Pruned(_amc_record.problem(replica, HALF).space.export(counts[int(np.argmax(rewards))]))

    return Contender(make, evidence="recorded", replicas=REPLICAS, **settings)


def tuned(of: Contender, at: float, **settings) -> Contender:
    """Fine-tuned as all others are; zeros stay zeros."""

    def make(bytes_left: float, replica: int, seed: int) -> Realised:
        arguments = {"bytes_left": bytes_left, "iterations": None, "replica": replica}
        found = of.make(**{name: value for name, value in arguments.items() if name in of.arguments})
        model = copy.deepcopy(found.model)
        for module in model.modules():
            if isinstance(module, LAYERS):
                module.weight.register_hook(partial(torch.mul, (module.weight != 0).float()))
        result = fine_tuned(Pruned(model), seed)
        model = copy.deepcopy(result.model.to(memory_format=torch.contiguous_format))
        return Realised(model, found.theta, series=result.series)

    return Contender(make, evidence="recorded", replicas=REPLICAS, grid={"bytes_left": (at,)}, **settings)
