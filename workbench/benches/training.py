"""The `training` bench: networks watched *while* they are trained, and judged by what the training cost as much as by how good they became.

Images are the digits over dimmed photographs of the `domains` bench (16×16, grey, here with labels): the first 4,000 training images in an order that depends
on replica and epoch alone, 500 validation images for choices made on the way, and 1,000 test images. The net is the `vision` bench's VGG plan with 12 12 24 24 48 48 channels and batch norm. A dense run is 10
epochs of SGD (rate 0.1, momentum 0.9, decay 5e-4, batch 64; a tenth of the rate from epoch 5 on, a hundredth from 8 on).

    python -m workbench.benches.training 0          trains replica 0 and writes its state after 1, 2, 3, 5 and 10 epochs (about 20 s on one core)

Every file says in its metadata after how many epochs it was written, and :func:`net` asserts it: a finished net cannot pass for a young one.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ..contracts.model import packed_bytes
from ..contracts.structure.macs import macs, parameters
from ..contracts.structure.surgery import reestimate_batchnorm
from ..core.study import Metric, Result, StudyError, Track
from . import CHECKPOINTS
from .domains import data
from .vision.nets import VGGSmall

WIDTHS, SIDE = (12, 12, 24, 24, 48, 48), 16
EPOCHS, SAVED, REPLICAS = 10, (1, 2, 3, 5, 10), 3
TRAIN, VALIDATION, TEST, BATCH = 4_000, 500, 1_000, 64
EXAMPLE = torch.zeros(1, 3, SIDE, SIDE)

METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "training_share": Metric("MACs of training (share of a dense run's)", False, 3),
    "training_memory": Metric("kept for backward at most, a batch of training (MB)", False, 2),
    "macs_share": Metric("MACs left (share)", False, 3),
    "params_share": Metric("parameters left (share)", False, 3),
    "bytes": Metric("file (KB)", False, 1),
    "overlap": Metric("overlap of the best 35 % of filters with the trained net's (share)", decimals=2),
    "rank_correlation": Metric("rank correlation of filters with the trained net's", decimals=2),
}


@lru_cache(maxsize=3)
def images(split: str) -> tuple[Tensor, Tensor]:
    """The split's images as float32 (n, 3, 16, 16), the grey values in each channel, and labels."""
    pixels, labels = data.tensors(data.domain("target", split), {"train": TRAIN, "validation": VALIDATION, "test": TEST}[split])
    return pixels.repeat(1, 3, 1, 1), labels


def epoch(replica: int, number: int, batch: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch, whole ones only; the order depends on replica and epoch number alone."""
    pixels, labels = images("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 * replica + number))
    for index in order[: len(order) // batch * batch].split(batch):
        yield pixels[index], labels[index]


def fresh(replica: int, widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """An untrained net; the replica seeds its weights."""
    torch.manual_seed(replica)
    return VGGSmall(widths)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)


def rate(number: int, epochs: int = EPOCHS) -> float:
    """The rate of epoch ``number`` of ``epochs``: 0.1, a tenth of it in the second half, a hundredth in the last fifth."""
    return 0.1 * 0.1 ** ((number >= epochs / 2) + (number >= 0.8 * epochs))


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator, lr: float) -> float:
    """One epoch in place; the mean cross-entropy."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    total, count = 0.0, 0
    for pixels, labels in batches:
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total, count = total + loss.item(), count + 1
    model.eval()
    return total / count


def dense_run(replica: int, epochs: int = EPOCHS, after: Callable[[int, nn.Module], None] | None = None, widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """A whole run; ``after(epochs done, model)``."""
    model = fresh(replica, widths)
    optimizer = sgd(model)
    for number in range(epochs):
        if after:
            after(number, model)
        train_epoch(model, optimizer, epoch(replica, number), rate(number, epochs))
    if after:
        after(epochs, model)
    return model


@lru_cache(maxsize=15)
def _net(replica: int, epochs: int) -> nn.Module:
    path = CHECKPOINTS / f"training-{replica}-{epochs:02d}.safetensors"
    if epochs not in SAVED or not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.benches.training {replica}` trains it. Epochs: {', '.join(map(str, SAVED))}")
    with safe_open(path, "pt") as file:
        found = file.metadata().get("epochs")
        if found != str(epochs):
            raise StudyError(f"{path.name} was written after {found} epochs, not {epochs}")
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    model = VGGSmall(WIDTHS)
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
    return model.eval()


def net(replica: int = 0, epochs: int = EPOCHS) -> nn.Module:
    """A fresh copy of the dense net as it was after so many epochs (float32, evaluation mode); after none, :func:`fresh`."""
    return fresh(replica).eval() if epochs == 0 else copy.deepcopy(_net(replica, epochs))


@torch.no_grad()
def right(model: nn.Module, split: str = "test") -> np.ndarray:
    """Right or wrong per image, bool (1000,), or (500,) of ``validation``."""
    pixels, labels = images(split)
    return (torch.cat([model(batch).argmax(1) for batch in pixels.split(250)]) == labels).numpy()


def settle(model: nn.Module) -> nn.Module:
    """Batch-norm statistics anew from 256 training images: what an untuned pruned net needs before it is judged."""
    reestimate_batchnorm(model, images("train")[0][:256])
    return model


@lru_cache(maxsize=1)
def dense() -> tuple[int, int]:
    """MACs and parameters of the net that is not pruned."""
    model = VGGSmall(WIDTHS).eval()
    return macs(model, EXAMPLE), parameters(model)


def epoch_macs(model: nn.Module) -> int:
    """MACs of one epoch of training: forward, and twice as many backward, for every image of its whole batches."""
    return 3 * macs(model, EXAMPLE) * (TRAIN // BATCH * BATCH)


def run_macs() -> int:
    """MACs of a whole dense run."""
    return EPOCHS * 3 * dense()[0] * (TRAIN // BATCH * BATCH)


def measure(thing) -> Result:
    """Quality and cost of ``thing.model``; ``thing.facts`` are further metrics that the thing itself counted (``training_share``, ``overlap``, …)."""
    model = (thing if isinstance(thing, nn.Module) else thing.model).eval()
    correct, whole = right(model), dense()
    facts = {"training_share": np.nan, "training_memory": np.nan, "overlap": np.nan, "rank_correlation": np.nan} | getattr(thing, "facts", {})
    return Result({"accuracy": 100 * float(correct.mean()), "macs_share": macs(model, EXAMPLE) / whole[0], "params_share": parameters(model) / whole[1],
                   "bytes": packed_bytes(model) / 1e3} | facts, samples={"right": correct})


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(str(data.EXPECTED).encode())
    for path in sorted(CHECKPOINTS.glob("training-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


PARAMS = Track("training/params", "params_share", "accuracy", METRICS, measure, _data_key, REPLICAS,
               title="Nets pruned while they are trained, accuracy against parameters", reference=lambda replica: net(replica))


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    replica = parser.parse_args().replica
    torch.set_num_threads(1)

    def after(epochs: int, model: nn.Module) -> None:
        if epochs not in SAVED:
            return
        score = 100 * right(model.eval()).mean()
        path = CHECKPOINTS / f"training-{replica}-{epochs:02d}.safetensors"
        save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}, path,
                  metadata={"net": "training", "epochs": str(epochs), "recipe": __doc__.strip(), "data": str(data.EXPECTED), "test_accuracy": f"{score:.2f}"})
        print(f"{path.name}: {score:.2f} % on the test images", flush=True)

    dense_run(replica, after=after)


if __name__ == "__main__":
    main()
