"""The `vision` nets. Each is built from plain numbers (`config()`), so that a pruned one is rebuilt from its own tensors' shapes.

| net | channels | parameters | MMAC at 32×32 |
|---|---|---|---|
| vgg-small | 16 16 32 32 64 64, global average, linear | 73 k | 9.9 |
| resnet20 | CIFAR's ResNet-20 with a stride-2 stem | 270 k | 10.3 |
| mobilenet | stem 16, 13 depthwise-separable blocks up to 128 | 79 k | 3.9 |
| vit-tiny | 64 patches, width 48, 4 blocks of 3 heads, in :mod:`.vit` | 83 k | 6.6 |
| lenet5, lenet5-five, lenet300 | the LeNets of 1998, in :mod:`.lenet` | 62–267 k | 0.3–0.7 |

VGG-small and ResNet-20 are sized for a laptop: one replica trains in about three minutes on one core.
"""

from __future__ import annotations

from torch import nn

from .lenet import LENETS
from .vit import ViTTiny

CLASSES = 10


def _conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]


class VGGSmall(nn.Module):
    """Six 3×3 convolutions in three stages, global average, one linear layer."""

    def __init__(self, widths=(16, 16, 32, 32, 64, 64)):
        super().__init__()
        layers, c_in = [], 3
        for i, width in enumerate(widths):
            layers += _conv(c_in, width)
            if i in (1, 3):
                layers.append(nn.MaxPool2d(2))
            c_in = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(c_in, CLASSES)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

    def config(self) -> dict:
        return {"widths": [m.out_channels for m in self.features if isinstance(m, nn.Conv2d)]}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (a strided 1×1 convolution where the shape changes)."""

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = _conv(c_in, inner, stride=stride)
        self.conv2, self.bn2, self.relu2 = _conv(inner, c_out)
        self.shortcut = nn.Sequential(*_conv(c_in, c_out, 1, stride)[:2]) if stride > 1 or c_in != c_out else nn.Identity()

    def forward(self, x):
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet20(nn.Module):
    """Three stages of three basic blocks (He et al. 2015, section 4.2); the stem halves the image. ``inner[i]``: width inside block i,
    0 for a block that was dropped."""

    def __init__(self, stages=(16, 32, 64), inner=(16,) * 3 + (32,) * 3 + (64,) * 3):
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, stages[0], stride=2))
        blocks, c_in = [], stages[0]
        for i, width in enumerate(inner):
            c_out = stages[i // 3]
            blocks.append(BasicBlock(c_in, width, c_out, stride=2 if i in (3, 6) else 1) if width else nn.Identity())
            c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(c_in, CLASSES)

    def forward(self, x):
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))

    def config(self) -> dict:
        return {"stages": [self.stem[0].out_channels, *(self.blocks[i].conv2.out_channels for i in (3, 6))],
                "inner": [block.conv1.out_channels if isinstance(block, BasicBlock) else 0 for block in self.blocks]}


class MobileNetSmall(nn.Module):
    """A stem and 13 depthwise-separable blocks (Howard et al. 2017, table 1) at an eighth of the published widths, on
    half-size maps (the stem halves the image)."""

    STRIDES = (1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self, widths=(16, 24, 32, 32, 48, 48, 64, 64, 64, 64, 64, 64, 96, 128)):
        super().__init__()
        layers = [nn.Sequential(*_conv(3, widths[0], stride=2))]
        for c_in, c_out, stride in zip(widths[:-1], widths[1:], self.STRIDES, strict=True):
            layers.append(nn.Sequential(*_conv(c_in, c_in, 3, stride, groups=c_in), *_conv(c_in, c_out, 1)))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], CLASSES)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

    def config(self) -> dict:
        return {"widths": [self.features[0][0].out_channels] + [block[3].out_channels for block in self.features[1:]]}


NETS: dict[str, type[nn.Module]] = {"vgg-small": VGGSmall, "resnet20": ResNet20, "mobilenet": MobileNetSmall, "vit-tiny": ViTTiny, **LENETS}
