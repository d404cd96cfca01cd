"""The runs of the 3D-Reg study: every contender gets the same dense net, the same 120 steps of the same clips, and really smaller networks are measured.

``python -m workbench.papers.pruning._reg3d_runs 0`` makes the shipped nets of a replica (data/checkpoints/c3d-small-columns-<replica>.safetensors) anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches import CHECKPOINTS, video
from ...benches.video.recipe import batches, train
from ...contracts.files.sparse import save_sparse
from ...contracts.model import inputs_and_labels
from ...contracts.structure.surgery import reestimate_batchnorm
from ...core.study import Contender
from . import Pruned
from ._reg3d_columns import gather, kept_columns
from ._reg3d_pruner import Pruner, RegPruner
from ._reg3d_rivals import OneShot, randomly, taylor

STEPS, RATE, DECAY = 120, 0.02, 2.5e-4
PRUNED_BY = 0.7                        # share of the steps at which whatever prunes has pruned
C3D_WEIGHTS = [name for name in video.C3DSmall().state_dict() if name.endswith(".weight")]
SHIPPED = {"reg": (2.0, 3.0, 5.0), "random": (5.0,)}


def prune_while_training(pruner: Pruner, source: Iterable, steps: int = STEPS, rate: float = RATE) -> list[float]:
    """Trains the pruner's model in place: SGD, momentum 0.9, a constant rate while groups go and half a cosine down to zero behind the deadline. Losses."""
    model, losses, calm = pruner.model, [], int(PRUNED_BY * steps)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=DECAY)
    pruner.attach(optimizer)
    model.train()
    for step, batch in zip(range(steps), source):
        inputs, labels = inputs_and_labels(batch)
        if labels is None:
            raise ValueError("data: batches of (inputs, labels) are needed; pruning goes on while the network is trained")
        optimizer.param_groups[0]["lr"] = rate * (1 if step < calm else (1 + np.cos(np.pi * (step - calm) / (steps - calm))) / 2)
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        pruner.step()
        losses.append(loss.item())
    model.eval()
    return losses


@dataclass
class Columns(Pruned):
    """A net without some of its columns: ``model`` computes what is left; ``masked`` has ordinary convolutions with zeros, which is what the file holds
    (values and one bit a column)."""

    masked: nn.Module | None = None

    def save(self, path: Path) -> int:
        return save_sparse(path, self.masked)


def shown(masked: nn.Module) -> dict[str, np.ndarray]:
    """Exhibits: per convolution how many filters read each (channel, kernel position), uint8 (channels, positions); 0 where the column is gone."""
    return {name: (m.weight.detach() != 0).sum(0).flatten(1).numpy().astype(np.uint8) for name, m in masked.named_modules() if isinstance(m, nn.Conv3d)}


def faded(pruner: RegPruner, layer: str = "features.3", moments: int = 24) -> np.ndarray:
    """Exhibit: λ as a share of its target, uint8 (moments, columns of a layer), 255 where a column is gone."""
    state = next(item for item in pruner.layers if item.name == layer)
    gone, rows = torch.zeros(state.size, dtype=torch.bool), []
    for values in pruner.trail:
        gone |= values[layer] >= pruner.target
        rows.append(torch.where(gone, 255.0, (200 * values[layer] / pruner.target).round().double()))
    return torch.stack(rows).numpy().astype(np.uint8)[np.linspace(0, len(rows) - 1, moments).astype(int)]


def probe_loss(model: nn.Module) -> Callable[[], float]:
    """A function that gives the loss of a net being trained on 32 fixed clips (with the statistics of these clips, which are not kept)."""
    clips, labels = next(batches(7, 32))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]

    def loss() -> float:
        kept, was = [m.momentum for m in norms], model.training
        for m in norms:
            m.momentum = 0.0
        model.train()
        with torch.no_grad():
            value = F.cross_entropy(model(clips), labels).item()
        model.train(was)
        for m, momentum in zip(norms, kept, strict=True):
            m.momentum = momentum
        return value

    return loss


def finished(pruner: Pruner, losses: list[float], untrained: bool = False) -> Columns:
    masked = pruner.masked()
    if untrained:
        reestimate_batchnorm(masked, video.calibration())
    exhibits = shown(masked) | ({"lambda": faded(pruner)} if isinstance(pruner, RegPruner) and pruner.trail else {})
    return Columns(gather(masked), exhibits, {"loss": losses, "damage": pruner.damage}, masked=masked)


def run(make: Callable[..., Pruner], replica: int, speedup: float, steps: int = STEPS) -> Columns:
    """A dense net, pruned by ``make(model, example, speedup, measure=…)`` and trained. ``steps=0``: only its batch-norm statistics are put right."""
    model = video.dense(replica)
    pruner = make(model, video.EXAMPLE, speedup, measure=probe_loss(model) if steps else None)
    losses = prune_while_training(pruner, batches(50 + replica), steps) if steps else []
    return finished(pruner, losses, untrained=not steps and speedup > 1)


def contender(make: Callable[..., Pruner], at: tuple[float, ...], **settings) -> Contender:
    """Trained now, which only the full profile does."""
    return Contender(lambda speedup, replica: run(make, replica, speedup), evidence="recorded", grid={"speedup": at}, **settings)


def at_once(score: Callable[[int], Callable] | None = None, **settings) -> Contender:
    """Pruned and not trained at all: cheap enough to slide. ``score(seed)``: see `OneShot` (default: the L1 norm)."""
    def make(speedup: float, replica: int, seed: int) -> Columns:
        return run(partial(OneShot, score=score(seed)) if score else OneShot, replica, speedup, steps=0)
    return Contender(make, **settings)


def taylor_run(model: nn.Module, example: Tensor, speedup: float, **settings) -> Pruner:
    source = batches(900)
    return OneShot(model, example, speedup, taylor([next(source) for _ in range(8)], model), **settings)


def random_run(seed: int) -> Callable[..., Pruner]:
    return partial(OneShot, score=randomly(seed))


def from_scratch(widths: tuple[int, ...]) -> Contender:
    """Control: a small dense net trained from nothing by the recipe of the dense nets, for as many steps as theirs and the pruning's together."""
    def make(replica: int) -> Pruned:
        torch.manual_seed(replica)
        return Pruned(train(video.C3DSmall(widths), video.recipe.STEPS + STEPS, 50 + replica))
    return Contender(make, role="control", evidence="recorded")


# --- shipped nets -----------------------------------------------------------------------------------------------------------------------------------


def stored(prefix: str, result: Columns) -> dict[str, Tensor]:
    """float16 tensors of the masked net; of each convolution its kept columns (N, K) and a bitmap of all."""
    tensors = {}
    for name, value in result.masked.state_dict().items():
        conv = result.masked.get_submodule(name.rpartition(".")[0])
        if isinstance(conv, nn.Conv3d):
            kept = kept_columns(conv)
            tensors[f"{prefix}/{name}"] = value.flatten(1)[:, kept].half()
            tensors[f"{prefix}/{name}@"] = torch.from_numpy(np.packbits(kept.numpy()))
        elif value.is_floating_point():
            tensors[f"{prefix}/{name}"] = value.half()
    return {**tensors, **({f"{prefix}/lambda": torch.from_numpy(result.exhibits["lambda"])} if "lambda" in result.exhibits else {})}


@lru_cache(maxsize=3)
def _file(replica: int) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(CHECKPOINTS / f"c3d-small-columns-{replica}.safetensors")


def shipped(method: str, speedup: float, replica: int) -> Columns:
    """A shipped net as it was when its training ended (its weights rounded to float16)."""
    if speedup == 1:
        return Columns(video.dense(replica), masked=video.dense(replica))
    prefix = f"{method}-{speedup:g}/"
    parts = {name.removeprefix(prefix): t for name, t in _file(replica).items() if name.startswith(prefix)}
    convs = [name for name in C3D_WEIGHTS if f"{name}@" in parts]                 # in the network's order, which a file does not keep
    masked, state = video.C3DSmall([len(parts[name]) for name in convs]), {}
    for name, value in parts.items():
        if name in convs:
            shape = masked.state_dict()[name].shape
            kept = torch.from_numpy(np.unpackbits(parts[f"{name}@"].numpy(), count=shape[1:].numel()).astype(bool))
            state[name] = torch.zeros(shape[0], len(kept))
            state[name][:, kept] = value.float()
            state[name] = state[name].view(shape)
        elif not name.endswith("@") and name != "lambda":
            state[name] = value.float()
    masked.load_state_dict(state, strict=False)
    masked.eval()
    return Columns(gather(masked), shown(masked) | ({"lambda": parts["lambda"].numpy()} if "lambda" in parts else {}), masked=masked)


def main() -> None:
    from safetensors.torch import save_file

    from .reg3d import Reg3D

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tensors, scores = {}, {}
    for method, speedups in SHIPPED.items():
        for speedup in speedups:
            result = run(Reg3D().pruner if method == "reg" else random_run(args.replica), args.replica, speedup)
            key = f"{method}-{speedup:g}"
            tensors |= stored(key, result)
            scores[key] = round(100 * float(video.recipe.right(result.model).mean()), 2)
            print(key, scores[key], result.model)
    path = CHECKPOINTS / f"c3d-small-columns-{args.replica}.safetensors"
    save_file(tensors, path, metadata={"recipe": __doc__.strip(), "data": str(video.data.EXPECTED), "test_accuracy": json.dumps(scores)})
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
