"""The `domains` net: VGG's plan (He-initialised convolutions without batch norm, then a fully connected bottleneck) at a size for a laptop.

    (n, 1, 16, 16) ─► 2 convolutions, pool ─► 2 convolutions, pool ─► 2 convolutions, pool ─► 4·32 ─► bottleneck 256 ─► 10

Without batch norm, as in VGG-16: a batch norm that sees both domains adapts by itself and would hide what the discrepancy term does.
"""

from __future__ import annotations

from torch import nn

WIDTHS = (16, 16, 24, 24, 32, 32)
CLASSES = 10


class DomainVGG(nn.Module):
    """Six 3×3 convolutions in three stages, each closed by 2×2 pooling; ``bottleneck`` gives the features (n, 256) that two domains are compared by."""

    def __init__(self, widths=WIDTHS, bottleneck: int = 256):
        super().__init__()
        layers, c_in = [], 1
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU()] + [nn.MaxPool2d(2)] * (i % 2)
            nn.init.kaiming_normal_(layers[-2 - i % 2].weight, nonlinearity="relu")
            c_in = width
        self.features = nn.Sequential(*layers)
        self.bottleneck = nn.Sequential(nn.Linear(4 * c_in, bottleneck), nn.ReLU())
        self.classifier = nn.Linear(bottleneck, CLASSES)

    def forward(self, x):
        return self.classifier(self.bottleneck(self.features(x).flatten(1)))

    def config(self) -> dict:
        return {"widths": [m.out_channels for m in self.features if isinstance(m, nn.Conv2d)], "bottleneck": self.classifier.in_features}
