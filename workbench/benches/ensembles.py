"""Networks that answer together: the track on which ensembles of LeNet-5 race, against single nets too.

A thing is a network (an ensemble is one, with its ``members`` and ``vote``), or several things of which the median counts (``draws``: random choices). Ten
or five digits, as many as it answers. Judged by the first 1,000 test images; what chooses members sees the first 600 validation images.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ..contracts.structure.macs import macs, parameters
from ..core.study import Metric, Result, Track
from . import CHECKPOINTS, vision
from .vision.lenet import source

IMAGES = {"validation": 600, "test": 1_000}
NETS = {10: "lenet5", 5: "lenet5-five"}

METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "bytes": Metric("file (KB)", False, 1),
    "bytes_share": Metric("file (share of the dense net's)", False, 2),
    "macs_share": Metric("MACs (share of the dense net's)", False, 2),
    "params": Metric("values stored (thousands)", False, 1),
    "networks": Metric("networks in the ensemble", False, 0),
    "gain": Metric("gain over the mean member (points)", True, 2),
    "optimism": Metric("validation minus test accuracy (points)", False, 1),
    "disagreement": Metric("pairs of members that disagree (% of images)", True, 1),
    "q": Metric("Yule's Q of pairs being right", False, 2),
    "kappa": Metric("Cohen's kappa of pairs of answers", False, 2),
}


@lru_cache(maxsize=4)
def images(net: str, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels of a split, as many as are looked at."""
    return source(net, split).tensors(IMAGES[split])


@torch.no_grad()
def logits(model: nn.Module, net: str, split: str) -> Tensor:
    """(N, classes) of one network on the first images of a split; a network with the same weights is not run twice in one process."""
    digest = hashlib.sha256(f"{net} {split} {type(model).__name__}".encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    if (key := digest.digest()) not in _known:
        if len(_known) >= 500:
            _known.clear()
        _known[key] = torch.cat([model(batch) for batch in images(net, split)[0].split(125)])
    return _known[key]


_known: dict[bytes, Tensor] = {}


@lru_cache(maxsize=2)
def dense_cost(net: str) -> tuple[int, int]:
    """(bytes of the file, MACs) of the dense net."""
    model = vision.dense(net)
    return vision.file_bytes(model), macs(model, vision.EXAMPLE)


def measure(thing) -> Result:
    """Accuracy, what the file and one image cost, and how much the members differ. Of ``draws`` every metric is the median."""
    if not hasattr(thing, "draws"):
        return _measure(thing)
    found = [_measure(draw).metrics for draw in thing.draws]
    return Result({name: float(np.median([metrics[name] for metrics in found])) for name in METRICS})


def _measure(model: nn.Module) -> Result:
    members = list(getattr(model, "members", [model]))
    net = NETS[members[0](vision.EXAMPLE).shape[1]]
    outputs = {split: torch.stack([logits(member, net, split) for member in members]) for split in ("test", "validation")}
    right = {split: ((model.vote(found) if hasattr(model, "vote") else found[0]).argmax(1) == images(net, split)[1]).numpy()
             for split, found in outputs.items()}
    answers, labels = outputs["test"].argmax(2).numpy(), images(net, "test")[1].numpy()
    spread = diversity(answers, labels)
    size, work = vision.file_bytes(model), macs(model, vision.EXAMPLE)
    accuracy = 100 * float(right["test"].mean())
    return Result({"accuracy": accuracy, "bytes": size / 1e3, "bytes_share": size / dense_cost(net)[0], "macs_share": work / dense_cost(net)[1],
                   "params": parameters(model) / 1e3, "networks": float(len(members)), "gain": accuracy - 100 * float((answers == labels).mean()),
                   "optimism": 100 * float(right["validation"].mean()) - accuracy, "disagreement": 100 * spread["disagreement"], "q": spread["q"],
                   "kappa": spread["kappa"]}, samples={"right": right["test"]})


def diversity(answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Means over all pairs of members, from answers (members, N): share of images on which two ``disagreement``; Yule's ``q`` of being right; Cohen's
    ``kappa`` of the answers. One member: 0, 1, 1."""
    right = answers == labels
    classes = np.arange(max(int(answers.max()), int(labels.max())) + 1)
    rows = []
    for i in range(len(answers)):
        for j in range(i):
            both, neither = (right[i] & right[j]).sum(), (~right[i] & ~right[j]).sum()
            one, other = (right[i] & ~right[j]).sum(), (~right[i] & right[j]).sum()
            same = (answers[i] == answers[j]).mean()
            chance = sum((answers[i] == c).mean() * (answers[j] == c).mean() for c in classes)
            bottom = both * neither + one * other
            rows.append((1 - same, (both * neither - one * other) / bottom if bottom else 1.0, (same - chance) / (1 - chance) if chance < 1 else 1.0))
    means = np.mean(rows, 0) if rows else (0.0, 1.0, 1.0)
    return dict(zip(("disagreement", "q", "kappa"), map(float, means), strict=True))


@lru_cache(maxsize=1)
def data_key() -> str:
    """Of the images, the dense nets and the shipped pools."""
    digest = hashlib.sha256(str(vision.data.EXPECTED).encode())
    for path in sorted([*CHECKPOINTS.glob("lenet5-*.safetensors"), *CHECKPOINTS.glob("ensyth-*.safetensors")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


TRACK = Track("lenet5/ensembles", "bytes", "accuracy", METRICS, measure, data_key, title="Ensembles of LeNet-5, accuracy against bytes of the file",
              reference=lambda replica: vision.dense("lenet5", replica))
