"""What TripleNet is raced against, at equal MACs and trained by one recipe, and the recipe's entry:

    python -m workbench.papers.pruning._triplenet_rivals TripleNet 0        (about half a minute on one core; without arguments: everything)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...benches import CHECKPOINTS, designs
from ...benches.vision.nets import MobileNetSmall
from ._triplenet_nets import TripleNet


class GhostModule(nn.Module):
    """(N, C, H, W) → (N, c_out, H, W): half of the channels by a 1×1 convolution, the other half from those by a 3×3 depthwise one (Han et al. 2020)."""

    def __init__(self, c_in: int, c_out: int, relu: bool = True):
        super().__init__()
        half = c_out // 2
        self.primary = nn.Sequential(nn.Conv2d(c_in, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU() if relu else nn.Identity())
        self.cheap = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half), nn.ReLU() if relu else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)


class GhostBottleneck(nn.Module):
    """Ghost module to ``inner`` → depthwise stride where the map shrinks → ghost module to ``c_out`` without ReLU, plus a shortcut."""

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int):
        super().__init__()
        shrink = [nn.Conv2d(inner, inner, 3, 2, 1, groups=inner, bias=False), nn.BatchNorm2d(inner)] if stride > 1 else []
        self.body = nn.Sequential(GhostModule(c_in, inner), *shrink, GhostModule(inner, c_out, relu=False))
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class GhostNetSmall(nn.Module):
    """A stem that halves the image and ghost bottlenecks ``(inner, out, stride)``; squeeze-and-excitation is left out."""

    def __init__(self, blocks: Sequence[Sequence[int]], stem: int = 8, classes: int = 10):
        super().__init__()
        self._config = {"blocks": [list(block) for block in blocks], "stem": stem, "classes": classes}
        layers, width = [nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()], stem
        for inner, c_out, stride in blocks:
            layers.append(GhostBottleneck(width, inner, c_out, stride))
            width = c_out
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))

    def config(self) -> dict:
        return self._config


CHANNELS, STEM = (16, 24, 32, 40), (4, 8)                           # TripleNet-S at an eighth of its width
DENSE, RESIDUAL = ("dense", 6, 4, 16), ("residual", 20, 30)
HARD = (("hard", 8, 2), ("hard", 8, 2), ("hard", 8, 6))

# Widths and depths of the rivals are those whose MACs lie within 3 % of TripleNet's 0.85 million with the fewest parameters.
NETS: dict[str, Callable[[], nn.Module]] = {
    "TripleNet": lambda: TripleNet((DENSE, *HARD, RESIDUAL), CHANNELS, STEM),
    "MobileNet-like": lambda: MobileNetSmall((8, 12, 16, 16, 22, 22, 30, 30, 30, 30, 30, 30, 46, 60)),
    "GhostNet-small": lambda: GhostNetSmall([(24, 12, 1), (32, 12, 1), (32, 16, 2), (48, 16, 1), (48, 16, 1), (64, 24, 2), (72, 24, 1), (72, 24, 1),
                                             (96, 32, 2), (96, 32, 1)], 12),
    "pure dense": lambda: TripleNet((("dense", 8, 4, 16), ("dense", 4, 4, 16), ("dense", 4, 4, 16), ("dense", 4, 6, 24), ("dense", 2, 8, 32)),
                                    CHANNELS, STEM),
    "pure harmonic": lambda: TripleNet((("hard", 14, 2), *HARD, ("hard", 6, 4)), CHANNELS, STEM),
}


def file_of(name: str) -> str:
    """The checkpoint's name of a net."""
    return "triplenet-" + name.lower().replace(" ", "-")


def main(names: Sequence[str] = (), *replicas: str) -> None:
    torch.set_num_threads(1)
    for replica in map(int, replicas or range(designs.REPLICAS)):
        for name in names or NETS:
            if not (CHECKPOINTS / f"{file_of(name)}-{replica}.safetensors").exists():
                print(designs.ship(file_of(name), designs.trained(NETS[name], replica), replica), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:2], *sys.argv[2:])
