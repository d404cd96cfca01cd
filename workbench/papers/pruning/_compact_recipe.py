"""Trains the nets of the three tasks, every variant by the same recipe:

    python -m workbench.papers.pruning._compact_recipe [images|scenes|events] [replica]          (about ten minutes a replica on one core)

AdamW, one cycle up to 6e-3, batches of 64 digits or 32 clips, as many steps for every variant of a task (`STEPS`), float32, one thread; the replica number is the seed of
initialisation and of the order of the clips. All variants of a task and replica stand in one file, ``data/checkpoints/compact-<task>-<replica>.safetensors``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...benches import CHECKPOINTS, sounds
from ...benches.recipes import one_cycle
from ...benches.vision.lenet import source
from ...core.study import StudyError
from ._compact_nets import CompactNet, loss_of

TASKS = ("images", "scenes", "events")
STEPS, RATE, REPLICAS = {"images": 600, "scenes": 240, "events": 400}, 6e-3, 3
BATCH, TEST = {"images": 64, "scenes": 32, "events": 32}, {"images": 1000, "scenes": 500, "events": 300}
WIDTHS = (16, 24, 32, 48, 48, 64)
# the plain separable net whose MACs lie within 3 % of those of r = 2
NARROWER = {"images": (16, 16, 22, 34, 34, 44), "scenes": (16, 16, 22, 34, 34, 44), "events": (16, 18, 24, 36, 36, 48)}
VARIANTS: dict[str, dict] = {
    "separable": {"r": 1}, **{f"max {r}": {"r": r} for r in (2, 4, 8)}, **{f"drop {r}": {"r": r, "op": "drop"} for r in (2, 4, 8)},
    **{f"{op} 2": {"r": 2, "op": op} for op in ("mean", "lp", "min", "absmax", "median", "product", "diff")}, "narrower": {"r": 1},
}


def build(task: str, variant: str) -> CompactNet:
    return CompactNet(task, **VARIANTS[variant], widths=NARROWER[task] if variant == "narrower" else WIDTHS)


@lru_cache(maxsize=6)
def data(task: str, split: str) -> tuple[Tensor, Tensor]:
    """Inputs (N, 1, H, W) and labels; events are labelled per two frames, (N, 50, 4)."""
    if task == "images":
        return source("lenet300", split).tensors()
    inputs, labels = sounds.clips(task, split).tensors()
    return inputs, labels.unflatten(1, (-1, 2)).amax(2) if task == "events" else labels


def fit(model: nn.Module, task: str, seed: int, steps: int | None = None) -> nn.Module:
    """Trains in place, in evaluation mode afterwards."""
    inputs, labels = data(task, "train")
    steps = steps or STEPS[task]

    def losses() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:  # an epoch's batches from the last one on: the order in which the shipped nets saw them
            for index in reversed([part for part in torch.randperm(len(labels), generator=generator).split(BATCH[task]) if len(part) == BATCH[task]]):
                yield loss_of(task, model(inputs[index].to(memory_format=torch.channels_last)), labels[index])

    one_cycle(model.to(memory_format=torch.channels_last), losses(), steps, RATE)
    return model.to(memory_format=torch.contiguous_format)


def trained(task: str, variant: str, replica: int) -> nn.Module:
    torch.manual_seed(replica)
    return fit(build(task, variant), task, replica)


@torch.no_grad()
def answers(model: nn.Module, task: str, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """What the net says and what is true: classes (n,), or active events per segment, bool (n, 50, 4)."""
    inputs, labels = (part[:TEST[task]] for part in data(task, split))
    outputs = torch.cat([model(part.to(memory_format=torch.channels_last)) for part in inputs.split(100)])
    return (outputs.argmax(1).numpy(), labels.numpy()) if task != "events" else ((outputs > 0).numpy(), labels.bool().numpy())


def f1_and_error_rate(said: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Segment-based F1 and error rate (Mesaros et al. 2016), micro-averaged over (clips, segments, events): per segment, a miss and a false alarm
    make one substitution; what is left over are deletions and insertions."""
    hits, misses, alarms = (said & true).sum(), (~said & true).sum(-1), (said & ~true).sum(-1)
    f1 = 2 * hits / max(1, 2 * hits + misses.sum() + alarms.sum())
    return float(f1), float(np.maximum(misses, alarms).sum() / max(1, true.sum()))


def quality(model: nn.Module, task: str) -> float:
    """Per cent right, or segment-based F1 in per cent."""
    said, true = answers(model, task)
    return 100 * (f1_and_error_rate(said, true)[0] if task == "events" else float((said == true).mean()))


def path_of(task: str, replica: int):
    return CHECKPOINTS / f"compact-{task}-{replica}.safetensors"


def _floats(model: nn.Module) -> list[Tensor]:
    return [value for value in model.state_dict().values() if value.is_floating_point()]


@lru_cache(maxsize=9)
def _file(task: str, replica: int) -> dict[str, Tensor]:
    if not path_of(task, replica).exists():
        raise StudyError(f"no checkpoint {path_of(task, replica).name}; `python -m workbench.papers.pruning._compact_recipe {task} {replica}` trains it")
    return load_file(path_of(task, replica))


def shipped(task: str, variant: str, replica: int) -> nn.Module:
    """A trained net (float32, evaluation mode)."""
    model = build(task, variant)
    own, state = _floats(model), _file(task, replica)[variant].float()
    if len(state) != sum(value.numel() for value in own):
        raise StudyError(f"{path_of(task, replica).name}, {variant}: it was trained with another design")
    for value, part in zip(own, state.split([value.numel() for value in own]), strict=True):
        value.copy_(part.view_as(value))                            # the state's tensors are the model's own
    return model.eval()


def main(task: str = "", replica: str = "") -> None:
    torch.set_num_threads(1)
    for number in [int(replica)] if replica else range(REPLICAS):
        for name in [task] if task else TASKS:
            path = path_of(name, number)
            done = load_file(path) if path.exists() else {}
            for variant in VARIANTS:
                if variant in done:
                    continue
                model = trained(name, variant, number)
                done[variant] = torch.cat([value.flatten() for value in _floats(model)]).half()
                save_file(done, path, metadata={"recipe": __doc__.strip(), "task": name})
                print(f"{name} {variant} {number}: {quality(model, name):.1f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
