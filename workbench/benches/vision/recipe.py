"""Trains the shipped `vision` nets:  ``python -m workbench.benches.vision.recipe vgg-small 0``  (about three minutes on one core).

AdamW, one-cycle learning rate up to 6e-3 (ViT: 3e-3), weight decay 1e-3, batch 128, 6 epochs (MobileNet and ViT: 16, LeNets: 12), float32, one thread; the replica number is
the seed of initialisation and of the order of the images (which images a LeNet sees: :func:`workbench.benches.vision.lenet.source`). Written to ``data/checkpoints/<net>-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..recipes import command, one_cycle, shuffled
from . import data
from .lenet import source as images_of
from .nets import NETS

EPOCHS = {"vgg-small": 6, "resnet20": 6, "mobilenet": 16, "vit-tiny": 16, "lenet5": 12, "lenet5-five": 12, "lenet300": 12}
RATE = {"vit-tiny": 3e-3}


def batches(seed: int, size: int = 128, split: str = "train", net: str = "") -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of the images of ``net`` without end; the order depends on ``seed`` alone."""
    source = images_of(net, split)
    for index in shuffled(len(source), size, seed):
        images = torch.from_numpy(source.images[index.numpy()].astype("float32")).sub_(100.0).div_(70.0)
        yield images.contiguous(memory_format=torch.channels_last), torch.from_numpy(source.labels[index.numpy()])


def train(model: nn.Module, steps: int, seed: int, lr: float = 6e-3, on_step: Callable[[int, float], None] | None = None, net: str = "") -> nn.Module:
    """Trains in place on the images of ``net``. ``on_step(step, loss)`` is called after each step."""
    losses = (F.cross_entropy(model(images), labels) for images, labels in batches(seed, net=net))
    return one_cycle(model.to(memory_format=torch.channels_last), losses, steps, lr, on_step)


def accuracy(model: nn.Module, split: str = "test", n: int | None = None, net: str = "") -> float:
    images, labels = images_of(net, split).tensors(n)
    with torch.no_grad():
        return 100 * sum((model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(250), labels.split(250))) / len(labels)


def steps_of(net: str) -> int:
    return EPOCHS[net] * (len(images_of(net, "train")) // 128)


if __name__ == "__main__":
    command(__doc__, tuple(NETS), steps_of, lambda net, replica, on_step: train(NETS[net](), steps_of(net), replica, RATE.get(net, 6e-3), on_step, net),
            lambda net, model: f"{accuracy(model, net=net):.2f} % of the test images", data.EXPECTED)
