"""Trains the shipped `skeleton` nets:  ``python -m workbench.benches.skeleton.recipe 0``  (less than a minute on one core).

AdamW, one-cycle learning rate up to 6e-3, weight decay 1e-3, batch 32, 200 steps, sum of both streams' cross-entropies, float32, one thread; the replica
number is the seed of initialisation and of the order of the clips. Written to ``data/checkpoints/agcn-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from .. import recipes
from . import data
from .nets import TwoStream

STEPS, BATCH = 200, 32


def batches(seed: int, size: int = BATCH) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of the training clips without end; the order depends on ``seed`` alone."""
    clips, labels = data.split("train").tensors()
    return ((clips[index], labels[index]) for index in recipes.shuffled(len(labels), size, seed))


def train(model: nn.Module, steps: int, seed: int, lr: float = 6e-3, on_step: Callable[[int, float], None] | None = None) -> nn.Module:
    """Trains in place, both streams at once. ``on_step(step, loss)`` is called after each step."""
    def losses() -> Iterator[torch.Tensor]:
        for clips, labels in batches(seed):
            joints, bones = model.streams(clips)
            yield F.cross_entropy(model.joints(joints), labels) + F.cross_entropy(model.bones(bones), labels)

    return recipes.one_cycle(model, losses(), steps, lr, on_step)


@torch.no_grad()
def right(model: Callable, split: str = "test", n: int | None = None):
    """Right or wrong per clip of a split, bool (n,)."""
    clips, labels = data.split(split).tensors(n)
    return (torch.cat([model(batch).argmax(1) for batch in clips.split(100)]) == labels).numpy()


if __name__ == "__main__":
    recipes.command(__doc__, ["agcn"], lambda net: STEPS, lambda net, replica, on_step: train(TwoStream(), STEPS, replica, on_step=on_step),
                    lambda net, model: f"{100 * right(model).mean():.2f} % of the test clips", data.EXPECTED)
