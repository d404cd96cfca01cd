"""The LeNets of LeCun et al. (1998): small, old, mostly fully connected; what papers on pruning single weights start with.

| net | layers | parameters | images |
|---|---|---|---|
| lenet5 | conv 5×5 6, pool, conv 5×5 16, pool, 120, 84, 10 | 62 006 | the bench's, ten digits |
| lenet5-five | the same with five answers | 61 581 | the bench's, digits 0–4 |
| lenet300 | 784, 300, 100, 10 | 266 610 | clean digits, grey; the inner 28×28 of 32×32 pixels |

`source` says which images a net is trained on and judged by. The fully connected net gets digits without photographs, as it got them in the papers
that use it: it has no means to tell a digit from what lies behind.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
from torch import nn

from . import data

CLEAN = {"train": "faa4f952e10d3073", "validation": "d5a0e975aeea9ebd", "test": "bfc517082b2c82f2"}


class LeNet5(nn.Module):
    """Two valid 5×5 convolutions, each with ReLU and 2×2 maximum pooling, then three fully connected layers; 32×32 inputs."""

    def __init__(self, channels=(6, 16), hidden=(120, 84), classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, channels[0], 5), nn.ReLU(), nn.MaxPool2d(2),
                                      nn.Conv2d(channels[0], channels[1], 5), nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(25 * channels[1], hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU(),
                                        nn.Linear(hidden[1], classes))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))

    def config(self) -> dict:
        return {"channels": [self.features[i].out_channels for i in (0, 3)], "hidden": [self.classifier[i].out_features for i in (0, 2)],
                "classes": self.classifier[4].out_features}


class LeNet5Five(LeNet5):
    """LeNet-5 that tells five digits apart."""

    def __init__(self, channels=(6, 16), hidden=(120, 84), classes: int = 5):
        super().__init__(channels, hidden, classes)


class LeNet300(nn.Module):
    """LeNet-300-100: (batch, channels, 32, 32) → mean over channels, inner 28×28 pixels → 300 → 100 → 10."""

    def __init__(self, hidden=(300, 100)):
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(28 * 28, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU(), nn.Linear(hidden[1], 10))

    def forward(self, x):
        return self.classifier(x.mean(1)[:, 2:30, 2:30].flatten(1))

    def config(self) -> dict:
        return {"hidden": [self.classifier[i].out_features for i in (0, 2)]}


LENETS: dict[str, type[nn.Module]] = {"lenet5": LeNet5, "lenet5-five": LeNet5Five, "lenet300": LeNet300}


@lru_cache(maxsize=6)
def source(net: str, split: str) -> data.Split:
    """The images that ``net`` is trained on (``train``), tuned by (``validation``) and judged by (``test``)."""
    if net == "lenet300":
        return clean(split)
    whole = data.split(split)
    if net != "lenet5-five":
        return whole
    few = np.flatnonzero(whole.labels < 5)
    return data.Split(whole.images[few], whole.labels[few])


def clean(split: str) -> data.Split:
    """The digits of a split as they were turned, scaled and shifted, but on black: images uint8 (N, 1, 32, 32)."""
    digits, labels, _ = data.turned_digits(split)
    made = data.Split(digits[:, None], labels)
    if (digest := data.fingerprint(made)) != CLEAN[split]:
        warnings.warn(f"the clean digits ({split}) differ from those the nets were trained on ({digest}, expected {CLEAN[split]}): another version of "
                      f"scikit-learn or numpy than constraints.txt pins; numbers will not match", stacklevel=3)
    return made
