"""The recorded searches of the ASCAI study, as text:  ``python -m workbench.papers.pruning._ascai_record``  (about seven minutes on one core).

Each file in ``data/recorded/1911.06471`` holds the searches of one contender, one replica a line: accuracy and share of the cost of every sample, and the vectors of
those that were not beaten when they came (no other is ever picked). Searches that are there already are kept; delete a file to search again. Accuracy is that on
160 validation images; test images are never seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from ...benches import vision
from ...benches.vision import data
from ...core.measurements import write_whole
from ...core.study import StudyError
from . import _amc_record as amc
from ._amc_environment import error_rate
from ._ascai_search import Loop, Samples, anyone, at_cost, random_search, rule, sensitivity_box
from ._ascai_space import Param, Space

FOLDER = Path(__file__).resolve().parents[3] / "data" / "recorded" / "1911.06471"
NET, VALIDATION, REPLICAS = "vgg-small", 160, 3
BENCH = Loop(population=14, iterations=8)
EVALUATIONS = BENCH.population * BENCH.iterations  # of every search, rules and luck included
DIGEST = "34f93dcf002051e4"  # of the recorded searches: part of this module, so that stored points of other searches are not taken for these
FAMILIES = {"ascai-filters": ("filters",), "ascai-ranks": ("ranks",), "ascai-weights": ("weights",)}
RULES = {"uniform": lambda depth: np.ones_like(depth), "shallow": lambda depth: 1.2 - depth, "deep": lambda depth: 0.2 + depth}


class Bench:
    """One replica: its spaces, and what is judged on its validation images, each network once."""

    def __init__(self, replica: int):
        self.replica, self.model = replica, vision.dense(NET, replica)
        self.images = data.split("validation").tensors(VALIDATION)
        self.dense = 1 - error_rate(self.model, *self.images)
        self.spaces: dict[tuple[str, ...], Space] = {}
        self.known: dict[tuple, tuple[float, float, np.ndarray]] = {}

    def space(self, methods: tuple[str, ...]) -> Space:
        if methods not in self.spaces:
            self.spaces[methods] = Space(self.model, methods, vision.EXAMPLE)
        return self.spaces[methods]

    def judge(self, methods: tuple[str, ...]) -> Callable[[np.ndarray], tuple[float, float]]:
        space = self.space(methods)

        def judged(theta: np.ndarray) -> tuple[float, float]:
            found = space.decode(theta)
            key = methods, found.theta.tobytes()
            if key not in self.known:
                self.known[key] = 1 - error_rate(found.model, *self.images), space.cost(found, BENCH.objective), found.theta
            return self.known[key][:2]

        return judged

    def box(self, methods: tuple[str, ...]) -> list[Param]:
        """The entries, bounded by the recorded sensitivity scan of all methods together."""
        for run in read("box"):
            if run["replica"] == self.replica:
                break
        else:
            every = self.space(BENCH.methods)
            scanned = sensitivity_box(every.params, self.judge(BENCH.methods), self.dense, BENCH.bearable)
            run = {"replica": self.replica, "high": {param.name: param.high for param in scanned}}
            add("box", run)
        return [replace(param, high=run["high"][param.name]) for param in self.space(methods).params]


def _of_family(method: Loop) -> Callable[[Bench], Samples]:
    return lambda bench: replace(method, seed=bench.replica).run(bench.box(method.methods), bench.judge(method.methods), bench.dense)


def _of_rule(tilt: Callable) -> Callable[[Bench], Samples]:
    return lambda bench: rule(bench.space(BENCH.methods).params, bench.judge(BENCH.methods), bench.dense, tilt, EVALUATIONS)


def _sensitive(bench: Bench) -> Samples:
    high = np.array([param.high for param in bench.box(BENCH.methods)])
    return rule(bench.space(BENCH.methods).params, bench.judge(BENCH.methods), bench.dense, lambda depth: high, EVALUATIONS)


def _in_amcs_space(bench: Bench) -> Samples:
    """The same loop in the space of AMC, by its operator and its judge: shares of channels, half of the multiply–accumulates, as many evaluations (240)."""
    problem = amc.problem(bench.replica, 0.5)
    params = [Param(layer.name, "input channels", high=0.8) for layer in problem.space.layers if layer.choice is not None]

    def judge(theta: np.ndarray) -> tuple[float, float]:
        counts = amc_counts(problem, theta)
        return 1 + problem.reward(counts), problem.cost(counts / problem.space.sizes) / problem.total

    return replace(BENCH, population=20, iterations=12, patience=12, seed=bench.replica, score=partial(at_cost, 0.5), methods=()).run(params, judge, bench.dense)


def amc_counts(problem, theta: np.ndarray) -> np.ndarray:
    """Channels that AMC's space keeps at a vector."""
    return np.array([problem.space.rounded(choice, 1 - gone) for choice, gone in enumerate(theta)])


SEARCHES: dict[str, Callable[[Bench], Samples]] = {
    "ascai": _of_family(BENCH),
    "random": lambda bench: random_search(bench.box(BENCH.methods), bench.judge(BENCH.methods), bench.dense, EVALUATIONS, bench.replica),
    "uniform": _of_rule(RULES["uniform"]),
    "anyone": _of_family(replace(BENCH, select=anyone, elite=0)),
    **{name: _of_family(replace(BENCH, methods=methods)) for name, methods in FAMILIES.items()},
    "shallow": _of_rule(RULES["shallow"]),
    "deep": _of_rule(RULES["deep"]),
    "sensitivity": _sensitive,
    "amc-space": _in_amcs_space,
}


def as_text(samples: Samples, replica: int) -> dict:
    """The run as plain data: ``right`` answers and ``cost`` of every sample, ``thetas`` of those that nothing had beaten by the end of their iteration."""
    ends, wanted = np.cumsum([len(score) for score in samples.scores]).tolist(), set()
    for end in ends:
        wanted |= set(Samples(samples.dense, [], samples.accuracy[:end], samples.cost[:end], []).pareto())
    return {"replica": replica, "dense": samples.dense, "ends": ends, "right": np.rint(VALIDATION * np.array(samples.accuracy)).astype(int).tolist(),
            "cost": np.round(samples.cost, 5).tolist(),
            "thetas": {str(row): np.round(samples.thetas[row], 4).tolist() for row in sorted(wanted)}}


def read(name: str) -> list[dict]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf8"))["runs"] if path.exists() else []


def add(name: str, run: dict) -> None:
    runs = sorted([*read(name), run], key=lambda r: r["replica"])
    lines = ",\n".join(json.dumps(r) for r in runs)
    write_whole(FOLDER / f"{name}.json", f'{{"net": "{NET}", "checkpoints": "{vision.VGG_BYTES.data_key()}", "runs": [\n{lines}\n]}}\n'.encode())


@lru_cache(maxsize=64)
def recorded(name: str, replica: int) -> dict:
    """A recorded search. StudyError: there is none, or the files are not those that this version ships."""
    if digest() != DIGEST:
        raise StudyError(f"the recorded searches in {FOLDER} have digest {digest()}, not {DIGEST}; restore them, or search again and name the new digest")
    for run in read(name):
        if run["replica"] == replica:
            return run
    raise StudyError(f"no recorded search {name} of replica {replica} in {FOLDER}")


@cache
def digest() -> str:
    """Of all recorded searches, 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.json")))).hexdigest()[:16]


def plan() -> Iterable[tuple[str, int]]:
    return ((name, replica) for name in SEARCHES for replica in range(REPLICAS))


def main() -> None:
    from tqdm import tqdm

    torch.set_num_threads(1)
    benches: dict[int, Bench] = {}
    for name, replica in tqdm(list(plan()), mininterval=5):
        if any(run["replica"] == replica for run in read(name)):
            continue
        bench = benches[replica] if replica in benches else benches.setdefault(replica, Bench(replica))
        add(name, as_text(SEARCHES[name](bench), replica))
        for space in bench.spaces.values():
            space.cache.clear()  # the next search meets other settings
    print(f"digest {digest()}")


if __name__ == "__main__":
    main()
