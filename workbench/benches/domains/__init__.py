"""The `domains` bench: digits with labels, the same digits over photographs without, and nets that must serve the second.

Quality is the share of right answers on *target* test images; their labels are read here and nowhere else. The distance of the two domains in the
bottleneck's features is measured on test images too.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...contracts.model import packed_bytes
from ...contracts.structure.macs import macs, parameters
from ...core.study import Metric, Result, StudyError, Track
from .. import CHECKPOINTS
from . import data
from .discrepancy import features, mmd
from .nets import DomainVGG

EXAMPLE = torch.zeros(1, 1, data.SIDE, data.SIDE)
KINDS = ("adapted", "source")
REPLICAS = 5
MMD_IMAGES = 250

METRICS = {
    "accuracy": Metric("accuracy on the target (%)"),
    "source_accuracy": Metric("accuracy on the source (%)"),
    "mmd": Metric("MMD² of the domains, test images", False, 3),
    "macs": Metric("MACs (millions)", False, 2),
    "macs_share": Metric("MACs left (share)", False, 3),
    "params": Metric("parameters (thousands)", False, 1),
    "bytes": Metric("file (KB)", False, 1),
}


@dataclass(frozen=True)
class Pairs:
    """One pass over shuffled batches (source images, source labels, target images), ``batch`` of each; the order depends on ``seed`` alone."""

    seed: int
    batch: int = 32

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        source, target = data.domain("source", "train"), data.domain("target", "train")
        draw = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(len(part), generator=draw).numpy() for part in (source, target)]
        for start in range(0, len(source) - self.batch + 1, self.batch):
            ours, theirs = (order[start:start + self.batch] for order in orders)
            yield *data.tensors(source, ours), data.tensors(target, theirs)[0]


@lru_cache(maxsize=10)
def _net(kind: str, replica: int) -> nn.Module:
    path = CHECKPOINTS / f"domains-{kind}-{replica}.safetensors"
    if kind not in KINDS or not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.benches.domains.recipe {replica}` trains it. Kinds: {', '.join(KINDS)}")
    model = DomainVGG()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval()


def net(kind: str = "adapted", replica: int = 0) -> nn.Module:
    """A fresh copy of a trained net: ``adapted`` to the target, or ``source``, which never saw it (float32, evaluation mode)."""
    return copy.deepcopy(_net(kind, replica))


@torch.no_grad()
def right(model: nn.Module, domain: str = "target", n: int | None = None) -> np.ndarray:
    """Right or wrong per test image of a domain, bool (n,)."""
    images, labels = data.tensors(data.domain(domain, "test"), n)
    return (torch.cat([model(batch).argmax(1) for batch in images.split(250)]) == labels).numpy()


def accuracy(model: nn.Module, domain: str = "target") -> float:
    return 100 * float(right(model, domain).mean())


@torch.no_grad()
def apart(model: nn.Module, n: int = MMD_IMAGES) -> float:
    """MMD² between the features of the first ``n`` test images of each domain."""
    with features(model) as seen:
        for domain in ("source", "target"):
            model(data.tensors(data.domain(domain, "test"), n)[0])
    return float(mmd(*seen))


@lru_cache(maxsize=1)
def _dense_macs() -> int:
    return macs(DomainVGG().eval(), EXAMPLE)


def measure(thing) -> Result:
    """Accuracies, discrepancy and costs of ``thing`` (a net, or what holds one as ``model``), judged as it is."""
    model = (thing if isinstance(thing, nn.Module) else thing.model).eval()
    correct, cost = right(model), macs(model, EXAMPLE)
    return Result({"accuracy": 100 * float(correct.mean()), "source_accuracy": 100 * float(right(model, "source", 500).mean()), "mmd": apart(model),
                   "macs": cost / 1e6, "macs_share": cost / _dense_macs(), "params": parameters(model) / 1e3, "bytes": packed_bytes(model) / 1e3},
                  samples={"right": correct})


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(str(data.EXPECTED).encode())
    for path in sorted(CHECKPOINTS.glob("domains-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


MACS = Track("domains/macs", "macs", "accuracy", METRICS, measure, _data_key, REPLICAS, title="Adapted nets, accuracy on the target against multiply-accumulates",
             reference=lambda replica: net("adapted", replica))
