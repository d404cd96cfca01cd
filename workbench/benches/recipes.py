"""What training recipes share: batches without end, AdamW on one cycle of the learning rate, and the file that is shipped."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from . import CHECKPOINTS


def shuffled(n: int, size: int, seed: int) -> Iterator[Tensor]:
    """Batches of ``size`` numbers below ``n`` without end; the order depends on ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (index for index in torch.randperm(n, generator=generator).split(size) if len(index) == size)


def one_cycle(model: nn.Module, losses: Iterable[Tensor], steps: int, lr: float, on_step: Callable[[int, float], None] | None = None,
              before: Callable[[], None] | None = None, after: Callable[[int, float], None] | None = None) -> nn.Module:
    """Trains in place, one step a loss: AdamW with weight decay 1e-3, the rate up to ``lr`` and down. ``on_step(step, loss)`` is called after each.

    ``before()`` may change gradients, ``after(step, rate now)`` weights.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step, loss in zip(range(steps), losses):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if before:
            before()
        optimizer.step()
        if after:
            with torch.no_grad():
                after(step, schedule.get_last_lr()[0])
        schedule.step()
        if on_step:
            on_step(step, loss.item())
    return model.eval()


def ship(model: nn.Module, net: str, replica: int, recipe: str, data: object, test: str) -> Path:
    """Writes ``data/checkpoints/<net>-<replica>.safetensors``, floats as float16, with the recipe, the data's digests and the test quality beside them."""
    from safetensors.torch import save_file

    path = CHECKPOINTS / f"{net}-{replica}.safetensors"
    state = {name: value.half().contiguous() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file(state, path, metadata={"net": net, "recipe": recipe.strip(), "data": str(data), "test": test})
    return path


def command(recipe: str, nets: Sequence[str], steps: Callable[[str], int], made: Callable[..., nn.Module], quality: Callable[[str, nn.Module], str], data: object) -> None:
    """The recipe as a command: ``[net] replica`` trains one replica on one thread (``made(net, replica, on_step)``) and ships it."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=recipe.splitlines()[0])
    if len(nets) > 1:
        parser.add_argument("net", choices=nets)
    parser.add_argument("replica", type=int)
    args = parser.parse_args()
    net = getattr(args, "net", nets[0])
    torch.set_num_threads(1)
    torch.manual_seed(args.replica)
    with tqdm(total=steps(net), desc=f"{net}-{args.replica}", mininterval=5) as bar:
        model = made(net, args.replica, lambda step, loss: bar.update())
    said = quality(net, model)
    print(f"{ship(model, net, args.replica, recipe, data, said).name}: {said}")
