"""Trains the shipped `video` nets:  ``python -m workbench.benches.video.recipe 0``  (about half a minute on one core).

AdamW, one-cycle learning rate up to 6e-3, weight decay 1e-3, batch 32, 1,500 steps, float32, one thread; the replica number is the seed of
initialisation and of the order of the clips. Written to ``data/checkpoints/c3d-small-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from .. import recipes
from . import data
from .nets import C3DSmall

STEPS, BATCH = 1_500, 32


def batches(seed: int, size: int = BATCH) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of the training clips without end; the order depends on ``seed`` alone."""
    source = data.split("train")
    for index in recipes.shuffled(len(source), size, seed):
        clips = data.scaled(source.clips[index.numpy()])
        yield clips.contiguous(memory_format=torch.channels_last_3d), torch.from_numpy(source.labels[index.numpy()])


def train(model: nn.Module, steps: int, seed: int, lr: float = 6e-3, on_step: Callable[[int, float], None] | None = None) -> nn.Module:
    """Trains in place. ``on_step(step, loss)`` is called after each step."""
    model.to(memory_format=torch.channels_last_3d)
    losses = (F.cross_entropy(model(clips), labels) for clips, labels in batches(seed))
    return recipes.one_cycle(model, losses, steps, lr, on_step).to(memory_format=torch.contiguous_format)


@torch.no_grad()
def right(model: nn.Module, split: str = "test", n: int | None = None):
    """Right or wrong per clip of a split, bool (n,)."""
    clips, labels = data.split(split).tensors(n)
    return (torch.cat([model(batch).argmax(1) for batch in clips.split(100)]) == labels).numpy()


if __name__ == "__main__":
    recipes.command(__doc__, ["c3d-small"], lambda net: STEPS, lambda net, replica, on_step: train(C3DSmall(), STEPS, replica, on_step=on_step),
                    lambda net, model: f"{100 * right(model).mean():.2f} % of the test clips", data.EXPECTED)
