"""Trains the shipped `video` nets:  ``python -m workbench.benches.video.recipe 0``  (about half a minute on one core).

AdamW, one-cycle learning rate up to 6e-3, weight decay 1e-3, batch 32, 1,500 steps, float32, one thread; the replica number is the seed of
initialisation and of the order of the clips. Written to ``data/checkpoints/c3d-small-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from . import data
from .nets import C3DSmall

STEPS, BATCH = 1_500, 32


def batches(seed: int, size: int = BATCH) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of the training clips without end; the order depends on ``seed`` alone."""
    source, generator = data.split("train"), torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(source), generator=generator).split(size):
            if len(index) == size:
                clips = data.scaled(source.clips[index.numpy()])
                yield clips.contiguous(memory_format=torch.channels_last_3d), torch.from_numpy(source.labels[index.numpy()])


def train(model: nn.Module, steps: int, seed: int, lr: float = 6e-3, on_step: Callable[[int, float], None] | None = None) -> nn.Module:
    """Trains in place. ``on_step(step, loss)`` is called after each step."""
    model.to(memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step, (clips, labels) in zip(range(steps), batches(seed)):
        loss = F.cross_entropy(model(clips), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step:
            on_step(step, loss.item())
    return model.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def right(model: nn.Module, split: str = "test", n: int | None = None):
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
    with tqdm(total=STEPS, desc=f"c3d-small-{args.replica}", mininterval=5) as bar:
        model = train(C3DSmall(), STEPS, args.replica, on_step=lambda step, loss: bar.update())
    score = 100 * right(model).mean()
    path = CHECKPOINTS / f"c3d-small-{args.replica}.safetensors"
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}, path,
              metadata={"net": "c3d-small", "recipe": __doc__.strip(), "data": str(data.EXPECTED), "test_accuracy": f"{score:.2f}"})
    print(f"{path.name}: {score:.2f} % of the test clips")


if __name__ == "__main__":
    main()
