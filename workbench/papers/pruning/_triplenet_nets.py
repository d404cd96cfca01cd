"""The building blocks of TripleNet (ConvLayer, dense layer, harmonic block, bottleneck) and the net that strings five stages of them together.

A stage is one plain tuple, so that a net is rebuilt from its ``config()``:

    ("dense", layers, growth, inner)      every layer's output is appended to its input
    ("hard", layers, growth)              harmonic links: layer l reads l − 2^i for every 2^i that divides l
    ("residual", inner, inner, …)         one bottleneck each, three times as wide outside as inside

Tensors are (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXPANSION, MULTIPLIER, DROPOUT = 3, 1.7, 0.1
POOLED = (0, 2, 3)                                                  # the map is halved after the first, third and fourth stage, not after the second
LINKS = ("harmonic", "all", "previous")


class ConvLayer(nn.Sequential):
    """Convolution without bias → batch norm → ReLU6."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1):
        super().__init__(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU6())


class DenseLayer(nn.Module):
    """(N, C, H, W) → (N, C + growth, H, W): BN → ReLU → 1×1 to ``inner`` → BN → ReLU → 3×3 to ``growth``, appended to the input."""

    def __init__(self, c_in: int, growth: int, inner: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))], 1)


def links(layer: int, kind: str = "harmonic") -> list[int]:
    """The layers that ``layer`` (from 1; 0 is the block's input) reads: ``layer − 2^i`` for every power of two that divides it, nearest first.

    ``all`` reads every earlier layer (a dense block), ``previous`` only the last one (a plain stack).
    """
    if kind == "harmonic":
        return [layer - (1 << i) for i in range(layer.bit_length()) if layer % (1 << i) == 0]
    return list(range(layer - 1, -1, -1)) if kind == "all" else [layer - 1]


def width_of(layer: int, growth: int, multiplier: float = MULTIPLIER) -> int:
    """Output channels of a harmonic layer: growth · m^(links − 1), rounded to the even number at or below one more than its whole part."""
    return (int(growth * multiplier ** (len(links(layer)) - 1)) + 1) // 2 * 2


class HarDBlock(nn.Module):
    """Harmonic dense block (Chao et al. 2019): few links, and more channels where many meet. Puts out the odd layers and the last one."""

    def __init__(self, c_in: int, layers: int, growth: int, multiplier: float = MULTIPLIER, kind: str = "harmonic"):
        super().__init__()
        self.links = [links(layer, kind) for layer in range(1, layers + 1)]
        self.widths = [c_in, *(width_of(layer, growth, multiplier) for layer in range(1, layers + 1))]
        self.layers = nn.ModuleList(ConvLayer(sum(self.widths[i] for i in read), width) for read, width in zip(self.links, self.widths[1:], strict=True))
        self.out = [layer for layer in range(1, layers + 1) if layer % 2 or layer == layers]

    @property
    def out_channels(self) -> int:
        return sum(self.widths[i] for i in self.out)

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for read, layer in zip(self.links, self.layers, strict=True):
            made.append(layer(torch.cat([made[i] for i in read], 1) if len(read) > 1 else made[read[0]]))
        return torch.cat([made[i] for i in self.out], 1)


class Bottleneck(nn.Module):
    """1×1 → 3×3 → 1×1 to three times ``inner``, plus a shortcut (1×1 with bias and batch norm where the widths differ), then ReLU."""

    def __init__(self, c_in: int, inner: int):
        super().__init__()
        c_out = EXPANSION * inner
        self.body = nn.Sequential(nn.Conv2d(c_in, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                                  nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                                  nn.Conv2d(inner, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1), nn.BatchNorm2d(c_out)) if c_in != c_out else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def stage(c_in: int, plan: Sequence, multiplier: float, kind: str) -> tuple[nn.Module, int]:
    """The module of a stage's tuple, and its output channels."""
    name, *numbers = plan
    if name == "dense":
        layers, growth, inner = numbers
        return nn.Sequential(*(DenseLayer(c_in + i * growth, growth, inner) for i in range(layers))), c_in + layers * growth
    if name == "hard":
        block = HarDBlock(c_in, *numbers, multiplier, kind)
        return block, block.out_channels
    if name == "residual":
        inputs = [c_in, *(EXPANSION * inner for inner in numbers)]
        return nn.Sequential(*map(Bottleneck, inputs, numbers)), inputs[-1]
    raise ValueError(f"stages: a stage is dense, hard or residual, not {name!r}")


class TripleNet(nn.Module):
    """Stem (/4), five stages, each but the last followed by a 1×1 ConvLayer to ``channels`` and some by a 2×2 maximum pooling (/32 in all), then
    global average, dropout and a linear layer. ``forward``: (N, 3, H, W) → (N, classes); H and W from 32 on."""

    def __init__(self, stages: Sequence[Sequence], channels: Sequence[int], stem: Sequence[int] = (32, 64), classes: int = 10,
                 multiplier: float = MULTIPLIER, kind: str = "harmonic", pooled: Sequence[int] = POOLED,
                 stem_pool: bool = True):
        super().__init__()
        self._config = {"stages": [list(plan) for plan in stages], "channels": list(channels), "stem": list(stem), "classes": classes,
                        "multiplier": multiplier, "kind": kind, "pooled": list(pooled), "stem_pool": stem_pool}
        if kind not in LINKS:
            raise ValueError(f"kind must be one of {', '.join(LINKS)}, not {kind!r}")
        if len(channels) != len(stages) - 1:
            raise ValueError(f"channels: {len(stages)} stages have {len(stages) - 1} transitions between them, found {len(channels)}")
        layers: list[nn.Module] = [ConvLayer(3, stem[0], stride=2), ConvLayer(stem[0], stem[1]), *([nn.MaxPool2d(3, 2, 1)] if stem_pool else [])]
        width = stem[1]
        for i, plan in enumerate(stages):
            block, width = stage(width, plan, multiplier, kind)
            layers.append(block)
            if i < len(channels):
                layers.append(ConvLayer(width, channels[i], 1))
                width = channels[i]
                if i in pooled:
                    layers.append(nn.MaxPool2d(2, 2))
        self.features, self.dropout, self.classifier = nn.Sequential(*layers), nn.Dropout(DROPOUT), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(x).mean((2, 3))))

    def config(self) -> dict:
        return self._config
