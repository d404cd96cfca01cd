"""A VGG whose parameters lie in two large fully connected layers, as VGG-16's do, on the `vision` images.

    python -m workbench.benches.vgg_fc 0            (about a minute on one core)

| part | layers | parameters | MMAC |
|---|---|---|---|
| features | 3×3 convolutions 8 8 pool 16 16 pool 32 32 pool | 18 k (10 %) | 2.6 |
| classifier | 512 → 256 → 128 → 10 | 166 k (90 %; VGG-16: 89 %) | 0.2 |

Trained by the recipe of :mod:`.vision.recipe` (six epochs); the replica number is the seed. Written to ``data/checkpoints/vgg-fc-<replica>.safetensors``.
"""

from __future__ import annotations

import argparse
import copy
from functools import lru_cache

import torch
from safetensors.torch import load_file
from torch import nn

from ..core.study import StudyError
from . import CHECKPOINTS
from .vision import recipe
from .vision.data import EXPECTED, SPLITS
from .vision.nets import CLASSES, VGGSmall

EPOCHS = 6


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


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    replica = parser.parse_args().replica
    torch.set_num_threads(1)
    torch.manual_seed(replica)
    model = recipe.train(VGGFC(), EPOCHS * (SPLITS["train"] // 128), replica)
    score = recipe.accuracy(model)
    path = CHECKPOINTS / f"vgg-fc-{replica}.safetensors"
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()},
              path, metadata={"net": "vgg-fc", "recipe": __doc__.strip(), "data": str(EXPECTED), "test_accuracy": f"{score:.2f}"})
    print(f"{path.name}: {score:.2f} % on the test images")


if __name__ == "__main__":
    main()
