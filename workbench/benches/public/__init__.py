"""The `public` bench: nets and test data that nobody here made, trained elsewhere and published with their accuracy.

    net = load("cifar-resnet20")                  # torch, float32, evaluation mode; the weights are fetched or read from a mirror, by hash
    right(net, "cifar-resnet20", "true").mean()   # the share of right answers on true CIFAR-10 pixels

Six nets: CIFAR-10 ResNet-20, 32, 56 and MLPerf Tiny's ResNet-8, MobileNetV1-0.25 (person or not) and DS-CNN (keywords). ``NETS[name].reference`` holds
the accuracies that were measured with the original float32 nets on the same items: a loader that misses one is wrong, and nothing may be compressed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...contracts.structure.surgery import reestimate_batchnorm
from ...core import datasets
from ...core.study import StudyError
from . import data
from .nets import CifarResNet, TinyResNet, as_published, ds_cnn, from_keras, mobilenet

# The mean and deviation per channel with which the CIFAR ResNets were trained (those of ImageNet), for values 0…1.
MEAN, DEVIATION = (torch.tensor(v).view(1, 3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))


@dataclass(frozen=True)
class PublicNet:
    """One net: where its weights and data are, how inputs are scaled, and the accuracy (%) that a right loader must reach per split."""

    title: str
    weights: str
    source: str
    build: Callable[[Mapping[str, Tensor]], nn.Module]
    splits: Callable[[], dict[str, data.Split]]
    data: tuple[str, ...]
    shape: tuple[int, int, int]
    scale: Callable[[Tensor], Tensor]
    reference: Mapping[str, float] = field(default_factory=dict)
    tests: tuple[str, ...] = ("true",)

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, *self.shape)


def _cifar(blocks: int, published: float, **reference: float) -> PublicNet:
    depth = 6 * blocks + 2
    return PublicNet(f"CIFAR-10 ResNet-{depth} (published: {published} %)", f"cifar10-resnet{depth}", "akamaster/pytorch_resnet_cifar10",
                     lambda tensors: as_published(CifarResNet.of_depth(blocks), tensors), data.cifar, ("cifar10-lossless", "cifar10-jpeg"), (3, 32, 32),
                     lambda x: (x / 255 - MEAN) / DEVIATION, reference, ("true", "jpeg"))


def _numbered(names: list[str]) -> list[str]:
    """``layer_with_weights-0``, ``-1``, … as a TensorFlow checkpoint numbers the layers of a net."""
    return sorted(names, key=lambda name: int(name.rpartition("-")[2]))


def _interleaved(pattern: str) -> Callable[[list[str]], list[str]]:
    """Keras numbers the layers of each kind (conv2d, conv2d_1, …); ``pattern`` spells the kinds in the net's order: c conv2d, b batch_normalization,
    w depthwise_conv2d, d dense."""
    kinds = {"c": "conv2d", "b": "batch_normalization", "w": "depthwise_conv2d", "d": "dense"}

    def order(names: list[str]) -> list[str]:
        counts = dict.fromkeys(pattern, 0)
        found = []
        for kind in pattern:
            found.append(kinds[kind] + (f"_{counts[kind]}" if counts[kind] else ""))
            counts[kind] += 1
        if sorted(found) != sorted(names):
            raise ValueError(f"tensors: layers {', '.join(sorted(set(names) ^ set(found)))} are missing or unexpected")
        return found
    return order


NETS: dict[str, PublicNet] = {
    "cifar-resnet20": _cifar(3, 91.78, true=89.9, easy=97.0),
    "cifar-resnet32": _cifar(5, 92.78, true=94.5, easy=95.0),
    "cifar-resnet56": _cifar(9, 93.62, true=91.5, easy=97.0),
    "tiny-resnet8": PublicNet("MLPerf Tiny ResNet-8 (CIFAR-10)", "mlperf-ic-resnet8", "mlcommons/tiny",
                              lambda tensors: from_keras(TinyResNet(), tensors, _interleaved("cb" "cbcb" "cbcbc" "cbcbc" "d")), data.cifar,
                              ("cifar10-lossless", "cifar10-jpeg"), (3, 32, 32), lambda x: x, {"true": 85.9, "easy": 93.0}, ("true", "jpeg")),
    "tiny-mobilenet": PublicNet("MLPerf Tiny MobileNetV1-0.25 (person or not)", "mlperf-vww-mobilenetv1-025", "mlcommons/tiny",
                                lambda tensors: from_keras(mobilenet(), tensors, _interleaved("cb" + "wbcb" * 13 + "d")), data.person,
                                ("mlperf-vww-stimuli",), (3, 96, 96), lambda x: x / 255, {"all": 87.0}),
    "tiny-dscnn": PublicNet("MLPerf Tiny DS-CNN (12 keywords)", "mlperf-kws-dscnn", "mlcommons/tiny",
                            lambda tensors: from_keras(ds_cnn(), tensors, _numbered), data.keywords, ("mlperf-kws-stimuli",), (1, 49, 10), lambda x: x,
                            {"all": 91.3}),
}


def net(name: str) -> PublicNet:
    if name not in NETS:
        raise StudyError(f"no public net {name!r}; there are {', '.join(NETS)}")
    return NETS[name]


@lru_cache(maxsize=len(NETS))
def _loaded(name: str) -> nn.Module:
    public = net(name)
    path, = datasets.get(public.weights)
    return read_weights(public, path)


def read_weights(public: PublicNet, path: Path) -> nn.Module:
    """The net with the weights of a safetensors file. `datasets.DataError`: the file is damaged, or holds another net."""
    try:
        return public.build(load_file(path)).eval()
    except (SafetensorError, OSError, ValueError) as error:
        raise datasets.DataError(f"{path} does not hold {public.weights}: {error}") from None


def load(name: str) -> nn.Module:
    """A fresh copy of a public net (float32, evaluation mode). `datasets.DataError`: its weights are nowhere or damaged; the message says what to do."""
    return copy.deepcopy(_loaded(name))


def split(name: str, which: str) -> data.Split:
    """A net's items and labels as the net takes them (scaled)."""
    public = net(name)
    splits = public.splits()
    if which not in splits:
        raise StudyError(f"{name} has no split {which!r}; it has {', '.join(splits)}")
    return data.Split(public.scale(splits[which].items), splits[which].labels)


def labelled(name: str, batch: int = 64) -> list[tuple[Tensor, Tensor]]:
    """The net's calibration items with labels, in batches: what a score that looks at data may look at."""
    found = split(name, "calibration")
    return list(zip(found.items.split(batch), found.labels.split(batch), strict=True))


@torch.no_grad()
def right(model: nn.Module, name: str, which: str = "true") -> np.ndarray:
    """Right or wrong per item of the split, bool (n,)."""
    found = split(name, which)
    model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    return (torch.cat([model(batch).argmax(1) for batch in found.items.split(100)]) == found.labels).numpy()


def judged(model: nn.Module, name: str) -> dict[str, np.ndarray]:
    """Right or wrong per test item of every test split, after batch-norm re-estimation on the calibration items (in place)."""
    reestimate_batchnorm(model, split(name, "calibration").items)
    return {which: right(model, name, which) for which in net(name).tests}


def hashes(name: str) -> dict[str, str]:
    """File → sha256 of all that a result on this net rests on."""
    public = net(name)
    return {item.file: item.sha256 for dataset in (public.weights, *public.data) for item in datasets.items(dataset)}


def here(name: str) -> bool:
    """Whether weights and data of the net are at hand (mirror or cache) without a download."""
    public = net(name)
    return all(datasets.path_of(item) for dataset in (public.weights, *public.data) for item in datasets.items(dataset))
