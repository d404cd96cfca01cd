"""The `detection` nets, built from plain numbers (`config()`), so that a pruned one is rebuilt from the shapes of its tensors.

| net | layers | parameters | MMAC |
|---|---|---|---|
| detector | seven 3×3 convolutions with batch norm to an 8×8 grid (stride 8), a 1×1 head of 11 classes and 4 box numbers | 76 k | 8.4 at 64×64 |
| siamese | four 3×3 convolutions with batch norm (stride 4); exemplar's map correlated with the search map | 33 k | 8.7 at 64×64 |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import CLASSES


def _conv(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]


class Detector(nn.Module):
    """A one-stage, anchor-free detector: (n, 3, h, w) → (n, 15, h/8, w/8); per cell the logits of ten classes and background, and where the box lies."""

    STRIDES = (2, 1, 2, 1, 2, 1, 1)

    def __init__(self, widths=(10, 16, 24, 32, 48, 48, 64)):
        super().__init__()
        layers, c_in = [], 3
        for width, stride in zip(widths, self.STRIDES, strict=True):
            layers += _conv(c_in, width, stride)
            c_in = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(c_in, CLASSES + 1 + 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def config(self) -> dict:
        return {"widths": [m.out_channels for m in self.features if isinstance(m, nn.Conv2d)]}


class Siamese(nn.Module):
    """An embedding for tracking by correlation (after Bertinetto et al. 2016): (n, 3, h, w) → (n, c, h/4, w/4)."""

    STRIDES = (2, 2, 1, 1)

    def __init__(self, widths=(16, 32, 48, 32)):
        super().__init__()
        layers, c_in = [], 3
        for width, stride in zip(widths, self.STRIDES, strict=True):
            layers += _conv(c_in, width, stride)
            c_in = width
        self.features = nn.Sequential(*layers[:-1])                # no ReLU at the end: an embedding may be negative
        self.scale, self.bias = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.tensor(-2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def exemplar(self, crop: Tensor) -> Tensor:
        """(n, 3, 32, 32) → (n, c, 6, 6): the embedding without the ring that zero padding has touched."""
        return self(crop)[:, :, 1:-1, 1:-1]

    def response(self, exemplar: Tensor, search: Tensor) -> Tensor:
        """Logits (n, 11, 11) of where in the search crops (n, 3, 64, 64) the exemplars (n, c, 6, 6) lie; a step is 4 pixels."""
        found = self(search)
        n, c = found.shape[:2]
        likeness = F.conv2d(found.reshape(1, n * c, *found.shape[2:]), exemplar, groups=n)[0]
        return self.scale * likeness / exemplar[0].numel() + self.bias

    def config(self) -> dict:
        return {"widths": [m.out_channels for m in self.features if isinstance(m, nn.Conv2d)]}


NETS: dict[str, type[nn.Module]] = {"detector": Detector, "siamese": Siamese}
