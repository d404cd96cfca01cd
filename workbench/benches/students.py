"""Small networks of other shapes than VGG-small, for the same images: the students that distillation is tried on.

| net | plan | parameters |
|---|---|---|
| SNN | two 5×5 convolutions, one hidden layer | 16 k |
| CNN | the same with two hidden layers | 24 k |
| AlexNet-small | a strided 5×5 and two 3×3 convolutions, one hidden layer | 22 k |
| NIN-small | three spatial convolutions, each followed by two 1×1 ones, global average | 16 k |

A plan is a list of words, from which a file rebuilds the network: ``conv W K`` (valid, bias, ReLU), ``block W K [S]`` (same padding, batch norm, ReLU,
stride S), ``pool`` (2×2 maximum), ``flat``, ``fc W`` (ReLU), ``map W`` (1×1, no activation), ``mean`` (over positions), ``out W``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .vision.data import SIDE

PLANS = {
    "SNN": ("conv 6 5", "pool", "conv 16 5", "pool", "flat", "fc 32", "out 10"),
    "CNN": ("conv 6 5", "pool", "conv 16 5", "pool", "flat", "fc 48", "fc 32", "out 10"),
    "AlexNet-small": ("block 12 5 2", "pool", "block 24 3", "block 24 3", "pool", "flat", "fc 32", "out 10"),
    "NIN-small": ("block 16 5", "block 16 1", "block 12 1", "pool", "block 24 5", "block 24 1", "block 24 1", "pool", "block 24 3", "block 24 1", "map 10",
                  "mean"),
}


class Student(nn.Module):
    """The network of a plan: images (B, 3, 32, 32) → (B, classes). ValueError: a word that no plan has."""

    def __init__(self, plan: Sequence[str]):
        super().__init__()
        self.plan = list(plan)
        layers, width, side = [], 3, SIDE
        for word in self.plan:
            kind, *numbers = word.split()
            size = int(numbers[0]) if numbers else width
            if kind == "conv":
                layers += [nn.Conv2d(width, size, int(numbers[1])), nn.ReLU()]
                side -= int(numbers[1]) - 1
            elif kind == "block":
                kernel, stride = int(numbers[1]), int(numbers[2]) if len(numbers) > 2 else 1
                layers += [nn.Conv2d(width, size, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
                side //= stride
            elif kind == "pool":
                layers.append(nn.MaxPool2d(2))
                side //= 2
            elif kind == "flat":
                layers.append(nn.Flatten())
                size *= side * side
            elif kind == "fc":
                layers += [nn.Linear(width, size), nn.ReLU()]
            elif kind == "out":
                layers.append(nn.Linear(width, size))
            elif kind == "map":
                layers.append(nn.Conv2d(width, size, 1))
            elif kind == "mean":
                layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            else:
                raise ValueError(f"plan: words begin with conv, block, pool, flat, fc, map, mean or out; found {word!r}")
            width = size
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)

    def config(self) -> dict:
        return {"plan": self.plan}
