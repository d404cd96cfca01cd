"""The `vision` bench: small image nets that compression visibly hurts, and the tracks on which model methods race.

Quality is the share of right answers on test images that no method sees. Before it is judged, a pruned net's batch-norm statistics are
re-estimated on 256 training images, for every contender alike: without that, un-tuned pruned nets all lie near chance.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from ...contracts.model import packed_bytes
from ...contracts.structure.surgery import macs, parameters, reestimate_batchnorm
from ...core.study import Metric, Result, StudyError, Track
from .. import CHECKPOINTS
from . import data
from .lenet import source as images_of
from .nets import NETS

EXAMPLE = torch.zeros(1, 3, data.SIDE, data.SIDE)
TEST_IMAGES = 500
BATCHNORM_IMAGES = 256
REPLICAS = {"vgg-small": 5, "resnet20": 3, "mobilenet": 3, "vit-tiny": 3, "lenet5": 3, "lenet5-five": 3, "lenet300": 3}

METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "macs": Metric("MACs (millions)", False, 2),
    "macs_share": Metric("MACs left (share)", False, 3),
    "params": Metric("parameters (thousands)", False, 1),
    "bytes": Metric("file (KB)", False, 1),
}


@lru_cache(maxsize=8)
def _dense(net: str, replica: int) -> nn.Module:
    path = CHECKPOINTS / f"{net}-{replica}.safetensors"
    if net not in NETS or not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.benches.vision.recipe {net} {replica}` trains it. Nets: {', '.join(NETS)}")
    model = NETS[net]()
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()})
    return model.eval()


def dense(net: str, replica: int = 0) -> nn.Module:
    """A fresh copy of the trained net (float32, evaluation mode)."""
    return copy.deepcopy(_dense(net, replica))


@lru_cache(maxsize=2)
def calibration(n: int = BATCHNORM_IMAGES, net: str = "") -> torch.Tensor:
    """The first ``n`` training images of ``net`` (n, 3, 32, 32), for batch-norm statistics and data-driven scores."""
    return images_of(net, "train").tensors(n)[0]


def labelled(n: int = BATCHNORM_IMAGES, batch: int = 64, net: str = "") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The first ``n`` training images of ``net`` with labels, in batches: what a data-driven score may look at."""
    images, labels = images_of(net, "train").tensors(n)
    return list(zip(images.split(batch), labels.split(batch)))


@torch.no_grad()
def right(model: nn.Module, split: str = "test", n: int | None = TEST_IMAGES, net: str = "") -> np.ndarray:
    """Right or wrong per image of ``net``'s split, bool (n,)."""
    images, labels = images_of(net, split).tensors(n)
    answers = torch.cat([model(batch).argmax(1) for batch in images.split(125)])
    return (answers == labels).numpy()


@lru_cache(maxsize=8)
def _dense_macs(net: str) -> int:
    return macs(NETS[net]().eval(), EXAMPLE)


def file_bytes(thing) -> int:
    """Bytes of the file really written: by the thing's own ``save(path) -> bytes`` where it has one (sparse, coded, … forms), else of its model."""
    if not hasattr(thing, "save"):
        return packed_bytes(thing if isinstance(thing, nn.Module) else thing.model)
    with tempfile.TemporaryDirectory() as folder:
        thing.save(path := Path(folder) / "packed")
        return path.stat().st_size


def measure(thing, net: str) -> Result:
    """Accuracy after batch-norm re-estimation (the unpruned net is judged as it is), with MACs, parameters and the bytes of the file written."""
    model = thing if isinstance(thing, nn.Module) else thing.model
    cost = macs(model, EXAMPLE)
    judged = copy.deepcopy(model).to(memory_format=torch.channels_last)
    if cost < _dense_macs(net):
        reestimate_batchnorm(judged, calibration(net=net))
    correct = right(judged, net=net)
    return Result({"accuracy": 100 * float(correct.mean()), "macs": cost / 1e6, "macs_share": cost / _dense_macs(net),
                   "params": parameters(model) / 1e3, "bytes": file_bytes(thing) / 1e3}, samples={"right": correct})


def _data_key(net: str) -> str:
    digest = hashlib.sha256(str(data.EXPECTED).encode())
    for path in sorted(CHECKPOINTS.glob(f"{net}-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _track(net: str, cost: str, title: str) -> Track:
    return Track(f"{net}/{cost}", cost, "accuracy", METRICS, lambda thing: measure(thing, net), lru_cache(maxsize=1)(lambda: _data_key(net)),
                 REPLICAS[net], title=title, reference=lambda replica: dense(net, replica))


VGG_MACS = _track("vgg-small", "macs", "VGG-small, accuracy against multiply-accumulates")
VGG_BYTES = _track("vgg-small", "bytes", "VGG-small, accuracy against bytes of the file")
RESNET_MACS = _track("resnet20", "macs", "ResNet-20, accuracy against multiply-accumulates")
MOBILENET_MACS = _track("mobilenet", "macs", "MobileNet, accuracy against multiply-accumulates")
VIT_MACS = _track("vit-tiny", "macs", "ViT-Tiny (width 48), accuracy against multiply-accumulates")
LENET5_BYTES = _track("lenet5", "bytes", "LeNet-5, accuracy against bytes of the file")
LENET5_FIVE_BYTES = _track("lenet5-five", "bytes", "LeNet-5 on five digits, accuracy against bytes of the file")
LENET300_BYTES = _track("lenet300", "bytes", "LeNet-300-100 on clean digits, accuracy against bytes of the file")
