"""C3D-small: the shape of C3D (Tran et al. 2015), 3×3×3 convolutions and nothing else, at a size that a laptop trains in half a minute.

| layer | output channels × frames × height × width | MMAC |
|---|---|---|
| input | 1 × 8 × 24 × 24 | |
| conv1, stride (1, 2, 2) | 8 × 8 × 12 × 12 | 0.25 |
| conv2, stride (1, 2, 2) | 16 × 8 × 6 × 6 | 1.00 |
| conv3, stride (2, 1, 1) | 24 × 4 × 6 × 6 | 1.49 |
| conv4 | 32 × 4 × 6 × 6 | 2.99 |
| conv5, stride 2 | 32 × 2 × 3 × 3 | 0.50 |
| mean, linear | 8 classes | |

Strides stand where C3D pools. 62,904 weights in convolutions.
"""

from __future__ import annotations

from torch import nn

from .data import MOTIONS

STRIDES = ((1, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1), (2, 2, 2))


class C3DSmall(nn.Module):
    """(batch, 1, 8, 24, 24) → (batch, 8): five 3×3×3 convolutions with batch norm, the mean over time and space, one linear layer."""

    def __init__(self, widths=(8, 16, 24, 32, 32)):
        super().__init__()
        layers, c_in = [], 1
        for width, stride in zip(widths, STRIDES, strict=True):
            layers += [nn.Conv3d(c_in, width, 3, stride, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU()]
            c_in = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(c_in, len(MOTIONS))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3, 4)))

    def config(self) -> dict:
        return {"widths": [m.out_channels for m in self.features if isinstance(m, nn.Conv3d)]}
