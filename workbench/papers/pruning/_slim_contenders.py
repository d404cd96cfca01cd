"""What races on SlimNets' track: each of the three ways alone, their combinations, and the plain alternatives."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
from torch import nn

from ...benches import CHECKPOINTS, vision
from ...contracts.structure.macs import macs_by_layer
from ...core.study import Contender
from ._slim_file import Slim, round_to_8_bits
from ._slim_lowrank import lowrank, random_basis, ranks_by_share, singular
from ._slim_recipe import at_once, low_rank_tuned, pruned, shipped, student, thin_from_nothing

NET = "vgg-small"


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(vision.VGG_BYTES.data_key().encode())
    for path in sorted(CHECKPOINTS.glob("slimnets-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


TRACK = replace(vision.VGG_BYTES, data_key=_data_key, replicas=3)


def seen(model: nn.Module, bits: int = 32) -> Slim:
    """With what the picture shows: per layer the weights that are not zero, all weights, and the multiply–accumulates."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = np.array([[int((m.weight != 0).sum()), m.weight.numel()] for m in layers], np.int32)
    return Slim(model, bits, {"weights": weights, "macs": np.array(list(macs_by_layer(model, vision.EXAMPLE).values()), np.int32),
                              "bits": np.array([bits], np.uint8)}, example=vision.EXAMPLE)


def trained(what: str, **settings) -> Contender:
    """A shipped net."""
    return Contender(lambda replica: seen(shipped(what, replica)), **{"evidence": "checkpoint"} | settings)


def at_sparsity(what: str, sparsities: tuple[float, ...], bits: int = 32, **settings) -> Contender:
    """The shipped nets of several sparsities; with ``bits`` 8, rounded."""
    def make(sparsity: float, replica: int) -> Slim:
        model = shipped(f"{what}gradual-{sparsity:g}", replica)
        return seen(round_to_8_bits(model) if bits == 8 else model, bits)

    return Contender(make, **{"evidence": "checkpoint", "grid": {"sparsity": sparsities}} | settings)


def by_rank(basis=singular, **settings) -> Contender:
    """The teacher in low rank, not tuned."""
    def make(rank: float, replica: int) -> Slim:
        teacher = vision.dense(NET, replica)
        return seen(lowrank(teacher, ranks_by_share(teacher, rank), basis).eval())

    return Contender(make, **settings)


def untaught(name: str) -> Contender:
    return Contender(lambda replica: seen(student(name, replica, alpha=0.0)), evidence="recorded")


def non_gradual(*sparsities: float) -> Contender:
    """All zeros before the first of as many steps."""
    return Contender(lambda sparsity, replica: seen(pruned(vision.dense(NET, replica), sparsity, replica, at_once)), evidence="recorded",
                     grid={"sparsity": sparsities})


def eight_bits(replica: int) -> Slim:
    return seen(round_to_8_bits(vision.dense(NET, replica)), 8)


def dense(replica: int) -> nn.Module:
    return vision.dense(NET, replica)


def low_rank_then_pruned(replica: int) -> Slim:
    """The factorised, tuned net, three quarters of its weights pruned."""
    return seen(pruned(shipped("lowrank", replica), 0.75, replica))


def thin(replica: int) -> Slim:
    return seen(thin_from_nothing(replica))


def random_tuned(replica: int) -> Slim:
    return seen(low_rank_tuned(replica, basis=random_basis))


def to_time() -> dict:
    """What `workbench probe` times: 32 images through the dense net, the same with 87.5 % zeros (a mask saves no time), low rank, and the student."""
    images = vision.calibration()[:32]
    nets = {"dense": vision.dense(NET), "87.5 % zeros": shipped("gradual-0.875", 0), "low rank": shipped("lowrank", 0),
            "distilled NIN": shipped("distilled-NIN-small", 0), "distilled CNN": shipped("distilled-CNN", 0)}
    return {name: lambda net=net: net(images) for name, net in nets.items()}
