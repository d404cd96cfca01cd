"""The `video` bench: how does a digit move over a panning photograph? A small 3-D net, and the track on which its compressed forms race.

Quality is the share of right answers on 500 test clips. A net whose convolutions were cut is judged with the batch-norm statistics that its maker
gave it; makers that train nothing re-estimate them on `calibration`.
"""

from __future__ import annotations

import copy
import hashlib
from functools import lru_cache

import torch
from safetensors.torch import load_file
from torch import nn

from ...contracts.structure.surgery import macs, parameters
from ...core.study import Result, StudyError, Track
from .. import CHECKPOINTS
from ..vision import METRICS, file_bytes
from . import data, recipe
from .nets import C3DSmall

EXAMPLE = torch.zeros(1, 1, data.FRAMES, data.SIDE, data.SIDE)
TEST_CLIPS = 500
REPLICAS = 3


@lru_cache(maxsize=REPLICAS)
def _dense(replica: int) -> nn.Module:
    path = CHECKPOINTS / f"c3d-small-{replica}.safetensors"
    if not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.benches.video.recipe {replica}` trains it")
    model = C3DSmall()
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()})
    return model.eval()


def dense(replica: int = 0) -> nn.Module:
    """A fresh copy of the trained net (float32, evaluation mode)."""
    return copy.deepcopy(_dense(replica))


@lru_cache(maxsize=1)
def calibration(n: int = 256) -> torch.Tensor:
    """The first ``n`` validation clips (n, 1, 8, 24, 24), for the batch-norm statistics of nets that nobody trains."""
    return data.split("validation").tensors(n)[0]


@lru_cache(maxsize=1)
def _dense_macs() -> int:
    return macs(C3DSmall().eval(), EXAMPLE)


def measure(thing) -> Result:
    """Accuracy with MACs, parameters and the bytes of the file written. ``thing``: a net, or what has a ``model`` (and a ``save(path)`` of its own)."""
    model = thing if isinstance(thing, nn.Module) else thing.model
    right, cost = recipe.right(model, "test", TEST_CLIPS), macs(model, EXAMPLE)
    return Result({"accuracy": 100 * float(right.mean()), "macs": cost / 1e6, "macs_share": cost / _dense_macs(),
                   "params": parameters(model) / 1e3, "bytes": file_bytes(thing) / 1e3}, samples={"right": right})


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(str(data.EXPECTED).encode())
    for path in sorted(CHECKPOINTS.glob("c3d-small-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


MACS = Track("c3d-small/macs", "macs", "accuracy", METRICS, measure, _data_key, REPLICAS,
             title="C3D-small on moving digits, accuracy against multiply-accumulates", reference=lambda replica: dense(replica))
