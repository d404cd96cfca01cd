"""The recorded searches of the SMOEA study, as text:  ``python -m workbench.papers.pruning._smoea_record``  (about six minutes on one core).

Each file in ``data/recorded/2211.01957`` holds the searches of one contender, one replica a line: every front's masks (packed bits as hexadecimal digits) and
what they were judged at. Searches that are there already are kept; delete a file to search again. Masks breed on 32 training images and are re-ranked on 256
validation images; test images are never seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch

from ...benches import vision
from ...benches.vision import data
from ...core.measurements import write_whole
from ...core.study import StudyError
from ._smoea_front import Front, GroupFront
from ._smoea_pieces import noise
from ._smoea_search import SMOEA, walk

FOLDER = Path(__file__).resolve().parents[3] / "data" / "recorded" / "2211.01957"
NET, VALIDATION, REPLICAS = "vgg-small", 256, 4
BENCH = SMOEA(layers=2)  # three groups: with six layers, groups of three would leave little to walk through
DIGEST = "89b8b1ca7a93af77"  # of the recorded searches: part of this module, so that stored points of other searches are not taken for these
SEARCHES = {
    "smoea": BENCH,
    "whole": replace(BENCH, layers=6, generations=3 * BENCH.generations),  # as many evaluations on all filters at once
    "weighted": replace(BENCH, weights=(0.5, 0.5)),
    "noise": replace(BENCH, error=noise),
}


def search(name: str, replica: int) -> Front:
    """The search of a contender on one replica; a replica's number is also the search's seed."""
    images, labels = data.split("validation").tensors(VALIDATION)
    return walk(vision.dense(NET, replica), vision.calibration()[:BENCH.images], (images, labels), replace(SEARCHES[name], seed=replica))


def as_text(front: Front, replica: int) -> dict:
    def numbers(values: np.ndarray) -> list:
        return np.round(values, 5).tolist()

    groups = [{"layers": f.layers, "bits": f.masks.shape[1], "masks": [bits.tobytes().hex() for bits in np.packbits(f.masks, axis=1)], "share": numbers(f.share),
               "error": numbers(f.error), "wrong": numbers(f.wrong), "volumes": [[None if np.isnan(v) else round(float(v), 5) for v in pair] for pair in f.volumes],
               "evaluations": f.evaluations, "seconds": round(f.seconds, 1)} for f in front.fronts]
    return {"replica": replica, "before": front.before, "chosen": [int(c) for c in front.chosen], "groups": groups}


def from_text(run: dict) -> Front:
    fronts = []
    for g in run["groups"]:
        packed = np.array([np.frombuffer(bytes.fromhex(mask), np.uint8) for mask in g["masks"]])
        fronts.append(GroupFront(tuple(g["layers"]), np.unpackbits(packed, axis=1, count=g["bits"]).astype(bool), np.array(g["share"]), np.array(g["error"]),
                                 np.array(g["wrong"]), np.array(g["volumes"], float), g["evaluations"], g["seconds"]))
    return Front(vision.dense(NET, run["replica"]), vision.EXAMPLE, fronts, run["chosen"], run["before"])


def read(name: str) -> list[dict]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf8"))["runs"] if path.exists() else []


@lru_cache(maxsize=16)
def recorded(name: str, replica: int) -> Front:
    """The fronts of a recorded search. StudyError: there are none, or the files are not those that this version ships."""
    if digest() != DIGEST:
        raise StudyError(f"the recorded searches in {FOLDER} have digest {digest()}, not {DIGEST}; restore them, or search again and name the new digest")
    for run in read(name):
        if run["replica"] == replica:
            return from_text(run)
    raise StudyError(f"no recorded search {name} of replica {replica} in {FOLDER}")


@cache
def digest() -> str:
    """Of all recorded searches, 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.json")))).hexdigest()[:16]


def plan() -> Iterable[tuple[str, int]]:
    return ((name, replica) for replica in range(REPLICAS) for name in ("smoea", "noise", "whole", "weighted"))


def main() -> None:
    from tqdm import tqdm

    torch.set_num_threads(1)
    for name, replica in tqdm(list(plan()), mininterval=5):
        runs = read(name)
        if any(run["replica"] == replica for run in runs):
            continue
        runs = sorted([*runs, as_text(search(name, replica), replica)], key=lambda run: run["replica"])
        lines = ",\n".join(json.dumps(run) for run in runs)
        write_whole(FOLDER / f"{name}.json", f'{{"net": "{NET}", "checkpoints": "{vision.VGG_BYTES.data_key()}", "runs": [\n{lines}\n]}}\n'.encode())
    print(f"digest {digest()}")


if __name__ == "__main__":
    main()
