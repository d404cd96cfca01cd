"""A VGG whose parameters lie in two large fully connected layers, as VGG-16's do, on the `vision` images.

    python -m workbench.benches.vgg_fc 0            (about a minute on one core)

| part | layers | parameters | MMAC |
|---|---|---|---|
| features | 3×3 convolutions 8 8 pool 16 16 pool 32 32 pool | 18 k (10 %) | 2.6 |
| classifier | 512 → 256 → 128 → 10 | 166 k (90 %; VGG-16: 89 %) | 0.2 |

Trained by the recipe of :mod:`.vision.recipe` (six epochs); the replica number is the seed. Written to ``data/checkpoints/vgg-fc-<replica>.safetensors``.
"""

from __future__ import annotations

import copy
from functools import lru_cache

from safetensors.torch import load_file
from torch import nn

from ..core.study import StudyError
from . import CHECKPOINTS, recipes
from .vision import recipe
from .vision.data import EXPECTED, SPLITS
from .vision.nets import CLASSES, VGGSmall

STEPS = 6 * (SPLITS["train"] // 128)


class VGGFC(nn.Module):
    """Six 3×3 convolutions in three stages, each with a pool (32×32 images leave as 4×4), then two hidden fully connected layers; with ``hidden=()``
    global average pooling and one linear layer instead."""

    def __init__(self, widths=(8, 8, 16, 16, 32, 32), hidden=(256, 128)):
        super().__init__()
        self.features = nn.Sequential(*VGGSmall(widths).features, nn.MaxPool2d(2), *([] if hidden else [nn.AdaptiveAvgPool2d(1)]))
        self.classifier = nn.Linear(widths[-1], CLASSES) if not hidden else nn.Sequential(
            nn.Linear(16 * widths[-1], hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU(), nn.Linear(hidden[1], CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))

    def config(self) -> dict:
        return {"widths": [m.out_channels for m in self.features if isinstance(m, nn.Conv2d)],
                "hidden": [] if isinstance(self.classifier, nn.Linear) else [self.classifier[i].out_features for i in (0, 2)]}


@lru_cache(maxsize=3)
def _dense(replica: int) -> nn.Module:
    path = CHECKPOINTS / f"vgg-fc-{replica}.safetensors"
    if not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.benches.vgg_fc {replica}` trains it")
    model = VGGFC()
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()})
    return model.eval()


def dense(replica: int = 0) -> nn.Module:
    """A fresh copy of the trained net (float32, evaluation mode)."""
    return copy.deepcopy(_dense(replica))


if __name__ == "__main__":
    recipes.command(__doc__, ("vgg-fc",), lambda net: STEPS, lambda net, replica, on_step: recipe.train(VGGFC(), STEPS, replica, on_step=on_step),
                    lambda net, model: f"{recipe.accuracy(model):.2f} % of the test images", EXPECTED)
