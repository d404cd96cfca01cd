"""The specialised detectors of the BSGC study:  ``python -m workbench.papers.pruning._bsgc_record``  (seven minutes on one core; nets that are there are kept).

All learn for equally many steps, at one rate, from the same 240 early frames of the camera and the same 512 training scenes. Settings were chosen on replica 0 with frames 240 … 299,
which neither specialise nor judge (nine runs). Written as float16 to ``data/checkpoints/bsgc/<kind>-<size>-<alpha>-<replica>.safetensors``, with loss, size and β of every fourth step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ...benches import CHECKPOINTS, detection
from ...benches.detection import boxes, data, recipe
from ...contracts.structure.macs import parameters
from ...core.measurements import write_whole
from ...core.study import StudyError
from . import Pruned
from ._bsgc_method import BSGC, Specialized, specialize
from ._bsgc_shrink import Counter, prunable
from ._bsgc_tasks import Detection
from .classics import L1

FOLDER = CHECKPOINTS / "bsgc"
BATCH, MEMORY = 16, 512                                             # images a step of each domain; scenes of the general domain that are remembered
METHOD = BSGC()
SIZES, ALPHAS = (0.05, 0.1, 0.2), (0.0, 0.3, 1.0, 3.0)
SIZE, ALPHA = 0.1, 1.0


def domain(replica: int) -> list[tuple[torch.Tensor, ...]]:
    """The camera's early frames with labels, in shuffled batches."""
    seen = data.early()
    labels, offsets = boxes.targets(seen.objects, len(seen), data.SIDE // boxes.STRIDE)
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(replica))
    return [(data.normalised(seen.images[index.numpy()]), labels[index], offsets[index]) for index in order.split(BATCH)]


def memory(replica: int) -> list[torch.Tensor]:
    """Scenes of the training set, in batches."""
    scenes = data.scenes("train")
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(100 + replica))[:MEMORY]
    return [data.normalised(scenes.images[index.numpy()]) for index in order.split(BATCH)]


def joint(replica: int, size: float, alpha: float) -> Specialized:
    """The paper's: all three terms at once."""
    return specialize(detection.dense("detector", replica), domain(replica), memory(replica) if alpha else None, size, alpha, Detection(), METHOD)


def unlabelled(replica: int, size: float, alpha: float) -> Specialized:
    """The same from frames without labels: the general detector's boxes above 0.5 take their place."""
    frames = [batch[0] for batch in domain(replica)]
    return specialize(detection.dense("detector", replica), frames, memory(replica), size, alpha, Detection(), METHOD)


def by_l1(model: nn.Module, size: float) -> nn.Module:
    """One-shot: filters of the smallest L1 norm, by their layer's mean, go until a share ``size`` of the parameters is left. (Equal shares of all layers did worse: 27 against 43 on the
    frames between the periods.)"""
    groups = prunable(model, detection.EXAMPLE)
    scores, counter, target = L1().scores(groups, model), Counter(model, groups, detection.EXAMPLE), size * parameters(model)
    live = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    for _, name, i in sorted((float(value / scores[g.name].mean()), g.name, i) for g in groups for i, value in enumerate(scores[g.name])):
        if counter.total(live, "parameters") <= target:
            break
        live[name][i] = int(live[name].sum()) == 1  # a layer keeps one
    return METHOD.surgery(model, {name: (~mask).nonzero().flatten().tolist() for name, mask in live.items()}, detection.EXAMPLE, groups)


def prune_only(replica: int, size: float, alpha: float) -> Specialized:
    """L1 pruning, then repair on the general domain alone: it never sees the camera."""
    net, scenes = detection.dense("detector", replica), memory(replica)
    return specialize(net, scenes, scenes[1:] + scenes[:1], 1.0, alpha, Detection(), METHOD, student=by_l1(net, size))


def _then(replica: int, alpha: float, second: Callable[[nn.Module, BSGC], Specialized]) -> Specialized:
    """First specialise, without compression; then ``second``, each with half of the steps."""
    half = replace(METHOD, steps=METHOD.steps // 2)
    first = specialize(detection.dense("detector", replica), domain(replica), memory(replica), 1.0, alpha, Detection(), half)
    then = second(first.model, half)
    return replace(then, history={name: [*first.history[name], *values] for name, values in then.history.items()})


def sequential(replica: int, size: float, alpha: float) -> Specialized:
    """First specialise, then prune by L1 and repair with the same loss."""
    net = detection.dense("detector", replica)
    return _then(replica, alpha, lambda model, half: specialize(net, domain(replica), memory(replica), 1.0, alpha, Detection(), half, student=by_l1(model, size)))


def sequential_proximal(replica: int, size: float, alpha: float) -> Specialized:
    """First specialise, then shrink by the same proximal steps, in half of the time."""
    net = detection.dense("detector", replica)
    return _then(replica, alpha, lambda model, half: specialize(net, domain(replica), memory(replica), size, alpha, Detection(), half, student=model))


def small(replica: int, size: float, alpha: float) -> Specialized:
    """A net of the very widths that BSGC ended with, from nothing, with the same loss for as many steps as the general detector and BSGC took together."""
    torch.manual_seed(replica)
    net = detection.dense("detector", replica)
    student = type(net)(**shipped("joint", size, alpha, replica).model.config())
    longer = replace(METHOD, steps=METHOD.steps + recipe.STEPS["detector"])
    return specialize(net, domain(replica), memory(replica), 1.0, alpha, Detection(), longer, student=student)


KINDS: dict[str, Callable[[int, float, float], Specialized]] = {
    "joint": joint, "unlabelled": unlabelled, "prune-only": prune_only, "sequential": sequential, "sequential-proximal": sequential_proximal,
    "small": small}


def plan() -> Iterable[tuple[str, float, float, int]]:
    """(kind, size, alpha, replica) of every shipped net: those that claims need first."""
    settings = [("joint", SIZE, ALPHA), ("joint", SIZE, 0.0), *((kind, SIZE, ALPHA) for kind in KINDS if kind != "joint"),
                *(("joint", SIZE, alpha) for alpha in ALPHAS), *(("joint", size, ALPHA) for size in SIZES)]
    return [(*setting, replica) for setting in dict.fromkeys(settings) for replica in range(detection.REPLICAS)]


def path_of(kind: str, size: float, alpha: float, replica: int) -> Path:
    return FOLDER / f"{kind}-{size:g}-{alpha:g}-{replica}.safetensors"


@lru_cache(maxsize=64)
def shipped(kind: str, size: float, alpha: float, replica: int) -> Pruned:
    """A specialised detector as it was recorded, with the history of its making."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = path_of(kind, size, alpha, replica)
    if not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.papers.pruning._bsgc_record` trains it")
    with safe_open(path, "pt") as file:
        history = json.loads(file.metadata()["history"])
    tensors = load_file(path)
    widths = {int(name.split(".")[1]): len(tensor) for name, tensor in tensors.items() if name.startswith("features") and tensor.dim() == 4}
    model = detection.NETS["detector"]([widths[i] for i in sorted(widths)])
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in tensors.items()})
    return Pruned(model.eval(), {}, history)


def keep(made: Specialized, path: Path) -> None:
    from safetensors.torch import save

    history = {name: [int(value) if name == "size" else round(float(value), 2) for value in values[::4]] for name, values in made.history.items()}
    tensors = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in made.model.state_dict().items()}
    write_whole(path, save(tensors, metadata={"history": json.dumps(history, separators=(",", ":")), "report": json.dumps(made.report), "recipe": __doc__.strip()}))


def main(seconds: float = 480) -> None:
    torch.set_num_threads(1)
    start = time.monotonic()
    for kind, size, alpha, replica in plan():
        path = path_of(kind, size, alpha, replica)
        if not path.exists() and time.monotonic() - start < seconds:
            keep(KINDS[kind](replica, size, alpha), path)
            print(path.name, flush=True)
    print(f"{sum(not path_of(*run).exists() for run in plan())} to go")


if __name__ == "__main__":
    main()
