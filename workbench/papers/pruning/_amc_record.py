"""The recorded searches of the AMC study, as text:  ``python -m workbench.papers.pruning._amc_record``  (about ten minutes on one core).

Each file in ``data/recorded/1802.03494`` holds the runs of one contender, one run a line: the reward and the channels kept of every evaluation.
Runs that are there already are kept; delete a file to search again. The reward comes from 256 validation images; test images are never seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ...benches import vision
from ...benches.vision import data
from ...core.measurements import write_whole
from ...core.study import StudyError
from ._amc_environment import Environment
from ._amc_search import AMC, evolution, greedy

FOLDER = Path(__file__).resolve().parents[3] / "data" / "recorded" / "1802.03494"
NET, IMAGES, REPLICAS = "vgg-small", 256, 5
BENCH = AMC(episodes=240, round_to=2)  # the bench's layers are narrow: multiples of 8 would leave two choices in some
DIGEST = "1a71b6568ad2cf3a"  # of the recorded searches: part of this module, so that stored points of other searches are not taken for these
SHORT = replace(BENCH, episodes=80, warmup=40)  # at budgets of which no claim speaks
FULL, OTHERS = (0.5, 0.7), (0.3, 0.8, 0.6, 0.4, 0.2, 0.1)


def shuffled(rewards: list[float], rng: np.random.Generator) -> float:
    """Ablation: the reward of some earlier episode, so that nothing can be learnt from it."""
    return rewards[rng.integers(len(rewards))]


@cache
def _problem(replica: int, macs_left: float) -> Environment:
    return BENCH.problem(vision.dense(NET, replica), vision.calibration(), data.split("validation").tensors(IMAGES), ("macs", macs_left))


@cache
def problem(replica: int, macs_removed: float) -> Environment:
    """The environment of the bench's net at a budget; all budgets of a replica share what was judged, and operator 7's sums."""
    first = _problem(replica, 1.0)
    return Environment(first.space, first.cost, (1 - macs_removed) * first.total, first.judge, first.known)


def searched(method: AMC, environment: Environment, seed: int) -> tuple[list[float], list[tuple[int, ...]]]:
    """A search by ``method``: rewards and settings of its episodes."""
    rewards, settings = [], []
    method = replace(method, seed=seed)
    method.run(environment, method.new_agent(environment), rewards, settings)
    return rewards, settings


SEARCHES = {
    "amc": lambda environment, seed: searched(BENCH, environment, seed),
    "random": lambda environment, seed: searched(replace(BENCH, warmup=BENCH.episodes), environment, seed),
    "shuffled": lambda environment, seed: searched(replace(BENCH, told=shuffled), environment, seed),
    "evolution": lambda environment, seed: evolution(environment, BENCH.episodes, seed),
    "greedy": lambda environment, seed: greedy(environment, BENCH.episodes),
    "amc-short": lambda environment, seed: searched(SHORT, environment, seed),
}


def plan() -> Iterable[tuple[str, float, int]]:
    """(contender, share of the MACs removed, replica) of every recorded run; a replica's number is also the seed of its searches."""
    for macs_removed in FULL:
        yield from (("amc", macs_removed, replica) for replica in range(REPLICAS))
    for name in ("random", "shuffled"):
        yield from ((name, 0.5, replica) for replica in range(REPLICAS))
    for name in ("greedy", "evolution"):
        yield from ((name, 0.5, replica) for replica in range(3))
    for macs_removed in OTHERS:
        yield from (("amc-short", macs_removed, replica) for replica in range(3))


def read(name: str) -> list[dict]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf8"))["runs"] if path.exists() else []


@cache
def recorded(name: str, macs_removed: float, replica: int) -> tuple[list[float], list[list[int]]]:
    """Rewards and settings of a recorded run, one an evaluation. StudyError: there is none, or the files are not those that this version ships."""
    if digest() != DIGEST:
        raise StudyError(f"the recorded searches in {FOLDER} have digest {digest()}, not {DIGEST}; restore them, or search again and name the new digest")
    for run in read(name):
        if (run["macs_removed"], run["replica"]) == (macs_removed, replica):
            return run["rewards"], run["settings"]
    raise StudyError(f"no recorded search {name} at {macs_removed} of the MACs removed, replica {replica} in {FOLDER}")


@cache
def digest() -> str:
    """Of all recorded runs, 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.json")))).hexdigest()[:16]


def main() -> None:
    from tqdm import tqdm

    torch.set_num_threads(1)
    for name, macs_removed, replica in tqdm(list(plan()), mininterval=5):
        runs = read(name)
        if any((run["macs_removed"], run["replica"]) == (macs_removed, replica) for run in runs):
            continue
        environment = problem(replica, macs_removed)
        for run in (run for search in SEARCHES for run in read(search) if run["replica"] == replica):  # what was judged once is not judged again
            for setting, reward in zip(run["settings"], run["rewards"], strict=True):
                environment.known.setdefault(tuple(setting), round(reward * IMAGES) / IMAGES)
        rewards, settings = SEARCHES[name](environment, replica)
        runs.append({"macs_removed": macs_removed, "replica": replica, "rewards": [round(reward, 4) for reward in rewards],
                     "settings": [[int(count) for count in setting] for setting in settings]})
        runs.sort(key=lambda run: (run["macs_removed"], run["replica"]))
        lines = ",\n".join(json.dumps(run) for run in runs)
        write_whole(FOLDER / f"{name}.json", f'{{"net": "{NET}", "checkpoints": "{vision.VGG_MACS.data_key()}", "runs": [\n{lines}\n]}}\n'.encode())
    print(f"digest {digest()}")


if __name__ == "__main__":
    main()
