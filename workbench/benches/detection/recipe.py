"""Trains the shipped `detection` nets:  ``python -m workbench.benches.detection.recipe detector 0``  (a minute on one core).

AdamW with a one-cycle learning rate, weight decay 1e-3, float32, one thread; the replica number is the seed of initialisation and of the order of the images.
Detector: 10 epochs of the 4 000 training scenes in batches of 32, up to 8e-3. Siamese: 800 batches of 16 pairs from the training clips, up to 4e-3.
Written to ``data/checkpoints/<net>-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .. import recipes
from . import boxes, data, tracking
from .nets import NETS

STEPS, BATCH, RATE = {"detector": 10 * 125, "siamese": 800}, {"detector": 32, "siamese": 16}, {"detector": 8e-3, "siamese": 4e-3}


def detector_losses(model: nn.Module, seed: int) -> Iterator[Tensor]:
    scenes = data.scenes("train")
    labels, offsets = boxes.targets(scenes.objects, len(scenes), data.SIDE // boxes.STRIDE)
    for index in recipes.shuffled(len(scenes), BATCH["detector"], seed):
        images = data.normalised(scenes.images[index.numpy()]).contiguous(memory_format=torch.channels_last)
        yield boxes.loss(model(images), labels[index], offsets[index])


def siamese_losses(model: nn.Module, seed: int) -> Iterator[Tensor]:
    frames, truth = data.clips()
    generator = torch.Generator().manual_seed(seed)
    for index in recipes.shuffled(len(frames), BATCH["siamese"], seed):
        moments = torch.rand(len(index), data.CLIP_FRAMES, generator=generator).argsort(1)[:, :2]
        (one, box), (other, place) = ((data.normalised(frames[index, moments[:, i]]), torch.from_numpy(truth[index, moments[:, i]])) for i in (0, 1))
        exemplar = model.exemplar(tracking.crops(one, *tracking.window(box), tracking.EXEMPLAR))
        search, label = tracking.pairs(other, place, generator)
        yield tracking.logistic(model.response(exemplar, search), label)


LOSSES: dict[str, Callable] = {"detector": detector_losses, "siamese": siamese_losses}


def train(net: str, replica: int, on_step: Callable[[int, float], None] | None = None) -> nn.Module:
    torch.manual_seed(replica)
    model = NETS[net]().to(memory_format=torch.channels_last)
    return recipes.one_cycle(model, LOSSES[net](model, replica), STEPS[net], RATE[net], on_step).to(memory_format=torch.contiguous_format)


def quality(net: str, model: nn.Module) -> str:
    from . import judge, track_all

    if net == "detector":
        return ", ".join(f"{judge(model, scenes)[0]:.1f} AP50 on {what}" for what, scenes in (("test scenes", data.scenes("test")), ("the camera", data.late())))
    return f"{tracking.success(track_all(lambda: tracking.Tracker(model))[1].ravel()):.1f} success on the videos"


if __name__ == "__main__":
    recipes.command(__doc__, list(NETS), STEPS.__getitem__, train, quality, data.EXPECTED)
