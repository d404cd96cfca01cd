"""Trains the shipped `skeleton` nets:  ``python -m workbench.benches.skeleton.recipe 0``  (less than a minute on one core).

AdamW, one-cycle learning rate up to 6e-3, weight decay 1e-3, batch 32, 200 steps, sum of both streams' cross-entropies, float32, one thread; the replica
number is the seed of initialisation and of the order of the clips. Written to ``data/checkpoints/agcn-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from . import data
from .nets import TwoStream

STEPS, BATCH = 200, 32


def batches(seed: int, size: int = BATCH) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of the training clips without end; the order depends on ``seed`` alone."""
    clips, labels = data.split("train").tensors()
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(labels), generator=generator).split(size):
            if len(index) == size:
                yield clips[index], labels[index]


def train(model: nn.Module, steps: int, seed: int, lr: float = 6e-3, on_step: Callable[[int, float], None] | None = None) -> nn.Module:
    """Trains in place, both streams at once. ``on_step(step, loss)`` is called after each step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step, (clips, labels) in zip(range(steps), batches(seed)):
        joints, bones = model.streams(clips)
        loss = F.cross_entropy(model.joints(joints), labels) + F.cross_entropy(model.bones(bones), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step:
            on_step(step, loss.item())
    return model.eval()


@torch.no_grad()
def right(model: Callable, split: str = "test", n: int | None = None):
    """Right or wrong per clip of a split, bool (n,)."""
    clips, labels = data.split(split).tensors(n)
    return (torch.cat([model(batch).argmax(1) for batch in clips.split(100)]) == labels).numpy()


def main() -> None:
    from safetensors.torch import save_file
    from tqdm import tqdm

    from .. import CHECKPOINTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.replica)
    with tqdm(total=STEPS, desc=f"agcn-{args.replica}", mininterval=5) as bar:
        model = train(TwoStream(), STEPS, args.replica, on_step=lambda step, loss: bar.update())
    score = 100 * right(model).mean()
    path = CHECKPOINTS / f"agcn-{args.replica}.safetensors"
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    save_file(state, path, metadata={"net": "agcn", "recipe": __doc__.strip(), "data": str(data.EXPECTED), "test_accuracy": f"{score:.2f}"})
    print(f"{path.name}: {score:.2f} % of the test clips")


if __name__ == "__main__":
    main()
