"""The pool of EnSyth: one trained network, pruned again and again with other hyper-parameters, and how such a pool is kept on disk.

    python -m workbench.papers.pruning._ensyth_pool 0        (LeNet-5 on ten digits, replica 0: 24 members, about a minute on one core)

Every member starts from the *same* weights and sees the *same* batches in the same order (the replica is the seed of the order), 250 steps of 64 images;
only the hyper-parameters differ. The card's begin and frequency (100 and 50 of some thousand steps) are scaled to these. Members are rounded to 8 bits a
weight before they are judged, so that the shipped file (8-bit codes where a weight is, 4-bit gaps between them) holds exactly what was measured.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...benches import CHECKPOINTS, vision
from ...benches.vision.lenet import LeNet5
from ...benches.vision.recipe import accuracy, batches
from ...contracts.files import sparse
from ...core.study import StudyError
from ._gradual import GradualPruner, Schedule, endless, train_steps
from .classics import weights
from .granularity import Pruner

STEPS, BATCH = 250, 64
KINDS = ("weights", "filters")


@dataclass(frozen=True)
class Setting:
    """The hyper-parameters of one member. ``weights``: gradual magnitude pruning with a `Schedule` that ends after two thirds of the steps (the first and
    the last layer stay dense, as Zhu and Gupta leave them); ``filters``: the filters and neurons of smallest L1 norm are really removed, then tuned."""

    sparsity: float
    kind: str = "weights"
    initial: float = 0.0
    begin: int = 0
    every: int = 10
    rate: float = 1e-3

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind: one of {', '.join(KINDS)}, found {self.kind!r}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity: a share of the weights in [0, 1), found {self.sparsity}")

    def __str__(self) -> str:
        return f"{self.kind} {self.sparsity:g}, from {self.initial:g}, begin {self.begin}, every {self.every}, rate {self.rate:g}"


def grid(members: Mapping[float, int], shares: Sequence[float] = (0.3, 0.5, 0.7)) -> tuple[Setting, ...]:
    """For each final sparsity the first so many of five ways to choose initial sparsity, begin, frequency and learning rate; then filter pruning."""
    ways = ({"initial": 0.0, "begin": 0, "every": 5, "rate": 1e-3}, {"initial": 0.3, "begin": 0, "every": 25, "rate": 3e-3},
            {"initial": 0.0, "begin": 50, "every": 25, "rate": 1e-3}, {"initial": 0.3, "begin": 50, "every": 5, "rate": 3e-3},
            {"initial": 0.0, "begin": 0, "every": 25, "rate": 3e-3})
    return (*(Setting(sparsity, **way) for sparsity, count in members.items() for way in ways[:count]), *(Setting(share, "filters") for share in shares))


GRIDS = {"lenet5": grid({0.5: 2, 0.6: 2, 0.7: 3, 0.8: 5, 0.9: 5, 0.95: 4}), "lenet5-five": grid({0.5: 2, 0.7: 2, 0.8: 2}, (0.5,))}


def pruned_member(model: nn.Module, stream: Iterator[tuple[Tensor, Tensor]], setting: Setting, steps: int = STEPS, example=None,
                  plan: type[Schedule] = Schedule) -> nn.Module:
    """A pruned copy of the trained ``model``: pruned and tuned for ``steps`` steps on ``stream``."""
    member = copy.deepcopy(model)
    if setting.kind == "filters":
        member = Pruner("l1", "channel", "uniform").apply(member, setting.sparsity, None, example).model
        train_steps(member, stream, steps, setting.rate)
        return member
    names = list(weights(member))
    end = max(2 * steps // 3, 1)
    schedule = plan(setting.sparsity, min(setting.initial, setting.sparsity), min(setting.begin, end), setting.every, end)
    pruner = GradualPruner(member, schedule, names[1:-1] or names)
    train_steps(member, stream, steps, setting.rate, after=lambda step: pruner.step(step + 1))
    return member


def ensyth_pool(model: nn.Module, train_loader: Iterable, settings: Sequence[Setting] = GRIDS["lenet5"], steps: int = STEPS, example=None,
                plan: type[Schedule] = Schedule) -> list[nn.Module]:
    """One member for each setting, all from the same ``model`` and the same batches. ``train_loader``: batches of (inputs, labels), used in the same
    order for every member as long as it does not shuffle. ValueError: fewer than two settings, a loader without batches or labels."""
    if len(settings) < 2:
        raise ValueError(f"settings: an ensemble needs a pool of at least two members, found {len(settings)}")
    batches = list(train_loader)
    example = next(endless(batches))[0][:2] if example is None else example
    return [pruned_member(model, endless(batches), setting, steps, example, plan) for setting in settings]


# --- the shipped pools --------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def round_weights(model: nn.Module) -> dict[str, float]:
    """Round every tensor, in place, to whole multiples (-127 … 127) of its own step; tensor name -> step."""
    scales = {}
    for name, tensor in model.state_dict().items():
        scales[name] = float(tensor.abs().max().clamp_min(1e-12)) / 127
        tensor.copy_((tensor / scales[name]).round() * scales[name])
    return scales


def pool_tensors(members: Sequence[nn.Module]) -> tuple[dict[str, Tensor], list[dict]]:
    """(tensors, facts) of LeNets already rounded by `round_weights`: per member one run of 8-bit codes and one of gaps over all its tensors."""
    tensors, facts = {}, []
    for i, member in enumerate(members):
        scales = round_weights(member)
        codes = torch.cat([(tensor / scales[name]).round().flatten() for name, tensor in member.state_dict().items()])
        how, values, index = sparse.encode(codes[:, None])
        tensors |= {f"{i}": values.to(torch.int8).flatten(), f"{i}/steps": torch.tensor(list(scales.values()))} | ({f"{i}@": index} if index is not None else {})
        facts.append({"config": member.config(), "form": how})
    return tensors, facts


def make_pool(net: str, replica: int) -> list[nn.Module]:
    """The members of ``GRIDS[net]``, made now from the bench's trained net."""
    model, members = vision.dense(net, replica).to(memory_format=torch.channels_last), []
    for setting in GRIDS[net]:
        member = pruned_member(model, batches(3000 + replica, BATCH, net=net), setting, STEPS, vision.EXAMPLE)
        round_weights(member.to(memory_format=torch.contiguous_format))
        members.append(member)
    return members


def read_pool(replica: int) -> list[nn.Module]:
    """The shipped members of LeNet-5 on ten digits, in the order of ``GRIDS["lenet5"]``. StudyError: no such pool."""
    path = CHECKPOINTS / f"ensyth-{replica}.safetensors"
    if not path.exists():
        raise StudyError(f"no pool {path.name}; `python -m workbench.papers.pruning._ensyth_pool {replica}` makes it")
    members = []
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["members"])
        for i, fact in enumerate(facts):
            values, index = file.get_tensor(f"{i}").float(), file.get_tensor(f"{i}@") if f"{i}@" in file.keys() else None  # noqa: SIM118
            codes = sparse.decode(fact["form"], values if index is None else values[:, None], index).flatten()
            member = LeNet5(**fact["config"])
            state, steps = member.state_dict(), file.get_tensor(f"{i}/steps")
            parts = codes.split([tensor.numel() for tensor in state.values()])
            member.load_state_dict({name: (part * step).view_as(state[name]) for (name, part, step) in zip(state, parts, steps, strict=True)})
            members.append(member.eval())
    return members


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    members = make_pool("lenet5", args.replica)
    tensors, facts = pool_tensors(members)
    scores = [f"{accuracy(member):.1f}" for member in members]
    path = CHECKPOINTS / f"ensyth-{args.replica}.safetensors"
    save_file(tensors, path, metadata={"recipe": __doc__.strip(), "members": json.dumps(facts), "test_accuracy": " ".join(scores),
                                       "settings": json.dumps([asdict(setting) for setting in GRIDS["lenet5"]])})
    print(f"{path.name}: {path.stat().st_size} bytes; test accuracy {' '.join(scores)} %")


if __name__ == "__main__":
    main()
