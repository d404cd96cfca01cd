"""Trains the shipped nets of SlimNets:  ``python -m workbench.papers.pruning._slim_recipe 0``  (one replica, under two minutes on one core).

The teacher is the bench's VGG-small of the same replica. Every student gets 400 steps of 64 images at a peak rate of 6e-3 (AdamW, one cycle), with a teacher or
without; whatever starts from a trained net gets 100 steps at 2e-3. The replica is the seed of initialisation and order. A net that is there is not
trained again. Files: ``slimnets-<what>-<replica>.safetensors``, float16 values in sparse form. What is not shipped (students without a teacher, one-shot
pruning, thin layers from nothing) is trained by the same functions in the full profile.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...benches import CHECKPOINTS, vision
from ...benches.recipes import shuffled
from ...benches.students import PLANS, Student
from ...benches.vision import data
from ...benches.vision.recipe import accuracy
from ...contracts.files.sparse import decode, encode
from ...core.study import StudyError
from ._gradual import GradualPruner, Schedule, train_steps
from ._slim_distil import ALPHA, TEMPERATURE, distillation_loss
from ._slim_lowrank import lowrank, random_basis, ranks_by_share, singular

BATCH, LEARN, TUNE = 64, 6e-3, 2e-3
STUDENT_STEPS, TUNING_STEPS = 400, 100
SPARSITIES = (0.75, 0.875, 0.95)
COMBINED = (0.4, 0.75, 0.875)
RANK = 0.22


@lru_cache(maxsize=1)
def teacher_logits(replica: int) -> Tensor:
    """Of the teacher on all training images, (12 000, 10)."""
    teacher, images = vision.dense("vgg-small", replica).to(memory_format=torch.channels_last), data.split("train")
    with torch.no_grad():
        return torch.cat([teacher(images.tensors(250, start)[0]) for start in range(0, len(images), 250)])


def stream(seed: int, teacher: int | None = None) -> Iterator:
    """Shuffled batches without end: (images, labels), or (images, (labels, logits of the teacher of this replica))."""
    images = data.split("train")
    logits = None if teacher is None else teacher_logits(teacher)
    for index in shuffled(len(images), BATCH, seed):
        x = torch.from_numpy(images.images[index.numpy()].astype("float32")).sub_(100.0).div_(70.0).contiguous(memory_format=torch.channels_last)
        y = torch.from_numpy(images.labels[index.numpy()])
        yield x, y if logits is None else (y, logits[index])


def student(name: str, replica: int, temperature: float = TEMPERATURE, alpha: float = ALPHA) -> nn.Module:
    """A trained student; ``alpha`` 0: without a teacher."""
    torch.manual_seed(replica)
    net = Student(PLANS[name]).to(memory_format=torch.channels_last)
    taught = alpha > 0
    train_steps(net, stream(5000 + replica, replica if taught else None), STUDENT_STEPS, LEARN, loss=(
        lambda model, x, y: distillation_loss(model(x), y[1], y[0], temperature, alpha)) if taught else None)
    return net.to(memory_format=torch.contiguous_format)


def pruned(model: nn.Module, sparsity: float, replica: int, schedule: Callable[..., Schedule] = Schedule) -> nn.Module:
    """The same network after pruning along a schedule (the last quarter of the steps repairs), in place."""
    model.to(memory_format=torch.channels_last)
    pruner = GradualPruner(model, schedule(sparsity, 0.0, 0, 5, 3 * TUNING_STEPS // 4))
    pruner.step(0)
    train_steps(model, stream(6000 + replica), TUNING_STEPS, TUNE, after=lambda step: pruner.step(step + 1))
    return model.to(memory_format=torch.contiguous_format)


def at_once(sparsity: float, initial: float, begin: int, every: int, end: int) -> Schedule:
    """Non-gradual: all zeros before the first step."""
    return Schedule(sparsity, sparsity, begin, every, begin)


def low_rank_tuned(replica: int, share: float = RANK, basis: Callable = singular) -> nn.Module:
    """The teacher in low rank, tuned."""
    teacher = vision.dense("vgg-small", replica)
    small = lowrank(teacher, ranks_by_share(teacher, share), basis).to(memory_format=torch.channels_last)
    train_steps(small, stream(6000 + replica), TUNING_STEPS, TUNE)
    return small.to(memory_format=torch.contiguous_format)


def thin_from_nothing(replica: int) -> nn.Module:
    """Control: layers of the same thin shapes, random weights, as many steps as the factorised net was tuned for."""
    torch.manual_seed(replica)
    net = vision.NETS["vgg-small"]()
    small = lowrank(net, ranks_by_share(net, RANK), random_basis)
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    small.to(memory_format=torch.channels_last)
    train_steps(small, stream(6000 + replica), TUNING_STEPS, LEARN)
    return small.to(memory_format=torch.contiguous_format)


# --- files ----------------------------------------------------------------------------------------------------------------------------------------------

RECIPES: Mapping[str, Callable[[int], nn.Module]] = {
    **{f"distilled-{name}": lambda replica, name=name: student(name, replica) for name in PLANS},
    **{f"gradual-{s:g}": lambda replica, s=s: pruned(vision.dense("vgg-small", replica), s, replica) for s in SPARSITIES},
    "lowrank": low_rank_tuned,
    **{f"distilled-NIN-small-gradual-{s:g}": lambda replica, s=s: pruned(shipped("distilled-NIN-small", replica), s, replica) for s in COMBINED},
}


def blank(what: str) -> nn.Module:
    """A network of the right shapes."""
    if what.startswith("distilled-"):
        return Student(PLANS[next(name for name in PLANS if what.startswith(f"distilled-{name}"))])
    net = vision.NETS["vgg-small"]()
    return lowrank(net, ranks_by_share(net, RANK)) if what == "lowrank" else net


def _path(what: str, replica: int):
    return CHECKPOINTS / f"slimnets-{what}-{replica}.safetensors"


def write(what: str, replica: int, model: nn.Module) -> None:
    tensors, forms = {}, {}
    for name, tensor in model.state_dict().items():
        how, values, index = encode(tensor.contiguous())
        tensors[name] = values.half().contiguous() if values.is_floating_point() else values
        if index is not None:
            forms[name], tensors[f"{name}@"] = how, index
    save_file(tensors, _path(what, replica), metadata={"recipe": __doc__.strip(), "net": what, "forms": json.dumps(forms),
                                                       "test_accuracy": f"{accuracy(model):.2f}"})


def shipped(what: str, replica: int) -> nn.Module:
    """A trained net, float32, evaluation mode. StudyError: none of that name."""
    path = _path(what, replica)
    if what not in RECIPES or not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.papers.pruning._slim_recipe {replica}` trains it. There are {', '.join(RECIPES)}")
    model = blank(what)
    with safe_open(path, "pt") as file:
        forms = json.loads(file.metadata()["forms"])
        names = set(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    float32 = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    model.load_state_dict({name: decode(forms[name], t, float32[f"{name}@"]) if name in forms else t for name, t in float32.items() if not name.endswith("@")})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for what, make in RECIPES.items():
        if not (path := _path(what, args.replica)).exists():
            write(what, args.replica, make(args.replica))
            with safe_open(path, "pt") as file:
                print(f"{path.name}: {path.stat().st_size} bytes, {file.metadata()['test_accuracy']} % on the test images", flush=True)


if __name__ == "__main__":
    main()
