"""The `skeleton` bench: which of ten actions does a body of 25 joints perform? A small two-stream graph network, and the track on which its compressed forms race.

Quality is the share of right answers on 300 test clips. What has an accelerator (`counters(clip)`) is asked what the first clips cost there.
"""

from __future__ import annotations

import copy
import hashlib
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file

from ...contracts.files.artifact import pack
from ...core.study import Metric, Result, StudyError, Track
from .. import CHECKPOINTS
from . import data, recipe
from .nets import TwoStream

TEST_CLIPS, REPLICAS = 300, 3

METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "bytes": Metric("file (KB)", False, 1),
    "bytes_share": Metric("file (share of dense 16-bit words)", False, 3),
    "weights_share": Metric("convolution weights left (share)", False, 3),
    "macs": Metric("multiplications a clip (millions)", False, 2),
    "macs_share": Metric("multiplications (share of the dense net's)", False, 3),
    "graph_skipped": Metric("graph products skipped (share)", decimals=3),
    "features_share": Metric("feature memory (share of dense)", False, 3),
    "sparsity": Metric("zeros among stored features (share)", decimals=3),
    "dsp_efficiency": Metric("temporal multipliers busy (share)", decimals=3),
    "interval": Metric("cycles between two clips", False, 0),
}


class Thing(Protocol):
    """What races here: it answers, it is a file, and it may know what a clip costs on its accelerator (metrics without accuracy and bytes, exhibits)."""

    def __call__(self, clips: torch.Tensor) -> torch.Tensor: ...

    def to_bytes(self) -> bytes: ...

    def weights(self) -> int: ...

    def counters(self, clip: torch.Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]: ...


@lru_cache(maxsize=REPLICAS)
def _dense(replica: int) -> TwoStream:
    path = CHECKPOINTS / f"agcn-{replica}.safetensors"
    if not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.benches.skeleton.recipe {replica}` trains it")
    model = TwoStream()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
    return model.eval()


def dense(replica: int = 0) -> TwoStream:
    """A fresh copy of the trained net (float32, evaluation mode)."""
    return copy.deepcopy(_dense(replica))


@lru_cache(maxsize=1)
def whole() -> tuple[int, int, int]:
    """Of the dense net: bytes of the file with 16-bit words, convolution weights, and multiplications of the joints' stream for a clip."""
    net = TwoStream()
    convs = [m.weight for m in net.modules() if hasattr(m, "weight") and m.weight is not None and m.weight.dim() > 2]
    macs = {name: 0 for name, _ in net.joints.named_modules()}

    def hook(name):
        def count(module, inputs, output):
            positions = output[0, 0].numel()
            if hasattr(module, "graph"):
                macs[name] = inputs[0][0].numel() * 3 * data.JOINTS + module.weight.numel() * positions
            elif isinstance(module, torch.nn.Conv2d):
                macs[name] = module.weight.numel() * positions
        return count

    hooks = [m.register_forward_hook(hook(name)) for name, m in net.joints.named_modules()]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, data.FRAMES, data.JOINTS))
    for handle in hooks:
        handle.remove()
    half = {name: t.half() for name, t in net.state_dict().items() if t.is_floating_point()}
    return len(pack(half, {"kind": "agcn"})), sum(w.numel() for w in convs), sum(macs.values())


def measure(thing: Thing) -> Result:
    right = recipe.right(thing, "test", TEST_CLIPS)
    size, (bytes_, weights, macs) = len(thing.to_bytes()), whole()
    spent, exhibits = thing.counters(torch.from_numpy(data.split("test").clips[0].astype(np.float32) / 1000))
    metrics = {"accuracy": 100 * float(right.mean()), "bytes": size / 1e3, "bytes_share": size / bytes_, "weights_share": thing.weights() / weights}
    if "macs" in spent:
        spent = spent | {"macs": spent["macs"] / 1e6, "macs_share": spent["macs"] / macs}
    return Result(metrics | spent, samples={"right": right}, exhibits=exhibits)


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(str(data.EXPECTED).encode())
    for path in sorted(CHECKPOINTS.glob("agcn-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


MACS = Track("agcn/multiplications", "macs", "accuracy", METRICS, measure, _data_key, REPLICAS, title="Skeleton actions, accuracy against multiplications")
