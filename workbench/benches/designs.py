"""The `designs` bench: networks trained from nothing on digits, judged by what they know and by what they cost to run.

Where a paper proposes an *architecture*, nothing is cut out of a trained net: every contender starts from random weights and gets the same steps of
the same batches (:func:`trained`, the recipe of :mod:`workbench.benches.vision.recipe`). The images are the clean digits of :mod:`workbench.benches.vision.lenet` (turned,
scaled, shifted, on black): nets that shrink a 32×32 picture to a quarter before their first block learn next to nothing of blended photographs in that time
(20–30 % right), and a race at chance says nothing. Costs are counted, not timed, on the net as it would be
deployed (batch norms folded), for one image of 32×32 pixels:

    macs       multiply–accumulates            kernels   operators that compute or copy something (views are free)
    traffic    bytes of activations read and written by those operators; `copied`: the part that only concatenations write

A kernel's traffic is what it would move if nothing stayed in a cache; weights are read once more on top and stand in ``params``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..contracts.structure.macs import macs, parameters
from ..core.study import Metric, Result, StudyError, Track
from . import CHECKPOINTS, vision
from .vision.lenet import CLEAN
from .vision.recipe import accuracy, train

EXAMPLE, DIGITS = vision.EXAMPLE, "lenet300"                         # the net of the vision bench that sees clean digits
TEST_IMAGES, REPLICAS, STEPS = 1000, 3, 188                         # 188 steps of 128 images: two epochs
OPERATORS = ("convolution", "concatenation", "normalisation", "activation", "pooling", "linear", "other")
_NAMES = {"convolution": 0, "cat": 1, "native_batch_norm": 2, "_native_batch_norm_legit_no_training": 2, "relu": 3, "hardtanh": 3, "max_pool2d_with_indices": 4,
          "mean": 4, "addmm": 5}

METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "macs": Metric("MACs (millions)", False, 3),
    "params": Metric("parameters (thousands)", False, 1),
    "bytes": Metric("file (KB)", False, 1),
    "traffic": Metric("activations moved (KB an image)", False, 1),
    "copied": Metric("of these, written by concatenations (KB)", False, 1),
    "kernels": Metric("kernels launched", False, 0),
}


@dataclass(frozen=True)
class Kernel:
    """One operator that ran: index into `OPERATORS`, MACs, bytes of activations read and written."""

    operator: int
    macs: int
    read: int
    written: int


class _Ledger(TorchDispatchMode):
    """Writes down every operator that computes or copies; what only changes a view of memory is left out."""

    def __init__(self, weights: set[int]):
        super().__init__()
        self.weights, self.kernels = weights, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return out
        flat = [t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else (arg,)) if isinstance(t, Tensor)]
        made = [t for t in (out if isinstance(out, (list, tuple)) else (out,)) if isinstance(t, Tensor)][:1]
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
        self.kernels.append(Kernel(_NAMES.get(func._overloadpacket.__name__, len(OPERATORS) - 1), int(flops) // 2,
                                   sum(t.nbytes for t in flat if t.untyped_storage().data_ptr() not in self.weights), sum(t.nbytes for t in made)))
        return out


@torch.no_grad()
def kernels(model: nn.Module, example: Tensor = EXAMPLE) -> list[Kernel]:
    """The operators of one forward pass, in the order in which they run."""
    ledger = _Ledger({t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())})
    with ledger:
        model(example)
    return ledger.kernels


class Grey(nn.Module):
    """Grey images (N, 1, H, W) for a net that takes colours."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.expand(-1, 3, -1, -1))


def deployed(model: nn.Module) -> nn.Module:
    """A copy with every batch norm that follows a convolution folded into it (evaluation mode)."""
    return fuse(model.eval())


def trained(build: Callable[[], nn.Module], replica: int, steps: int = STEPS, on_step: Callable[[int, float], None] | None = None) -> nn.Module:
    """``build()`` with random weights of seed ``replica``, trained for ``steps`` steps (AdamW, one cycle up to 6e-3, batch 128), in evaluation mode."""
    torch.manual_seed(replica)
    model = build()
    train(Grey(model), steps, replica, on_step=on_step, net=DIGITS)
    return model.to(memory_format=torch.contiguous_format)


def _floats(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


def ship(name: str, model: nn.Module, replica: int) -> str:
    """Writes ``data/checkpoints/<name>-<replica>.safetensors`` with its recipe and test accuracy; one line that says so.

    The float16 values of the state stand in one vector, in the order of ``state_dict()``: so many small tensors' names would be a fifth of the file.
    """
    score = accuracy(Grey(model), net=DIGITS)
    state = torch.cat([value.flatten() for value in _floats(model).values()]).half()
    save_file({"state": state}, CHECKPOINTS / f"{name}-{replica}.safetensors",
              metadata={"net": name, "recipe": trained.__doc__, "steps": str(STEPS), "data": str(CLEAN), "test_accuracy": f"{score:.2f}"})
    return f"{name}-{replica}: {score:.2f} % on the test images, {parameters(model)} parameters"


def shipped(name: str, build: Callable[[], nn.Module], replica: int) -> nn.Module:
    """The trained net of a checkpoint (float32, evaluation mode)."""
    path = CHECKPOINTS / f"{name}-{replica}.safetensors"
    if not path.exists():
        raise StudyError(f"no checkpoint {path.name}; the paper's recipe trains it")
    model = build()
    state, own = load_file(path)["state"].float(), _floats(model)
    if len(state) != (size := sum(value.numel() for value in own.values())):
        raise StudyError(f"{path.name} holds {len(state)} values, the net {size}: it was trained with another design")
    for value, part in zip(own.values(), state.split([value.numel() for value in own.values()]), strict=True):
        value.copy_(part.view_as(value))                            # the state's tensors are the model's own
    return model.eval()


def measure(thing) -> Result:
    """Accuracy on the test images, and the counted costs of the deployed net for one image; exhibits: every kernel's operator, MACs and bytes.

    The net is put into evaluation mode: with dropout and the statistics of the batch at hand, two measurements of one net would differ.
    """
    model = (thing if isinstance(thing, nn.Module) else thing.model).eval()
    correct = vision.right(Grey(model).to(memory_format=torch.channels_last), n=TEST_IMAGES, net=DIGITS)
    model.to(memory_format=torch.contiguous_format)
    ran = kernels(deployed(model))
    return Result({"accuracy": 100 * float(correct.mean()), "macs": macs(model, EXAMPLE) / 1e6, "params": parameters(model) / 1e3,
                   "bytes": vision.file_bytes(thing) / 1e3, "traffic": sum(k.read + k.written for k in ran) / 1e3,
                   "copied": sum(k.written for k in ran if k.operator == 1) / 1e3, "kernels": len(ran)},
                  samples={"right": correct}, exhibits={"operator": np.array([k.operator for k in ran], np.uint8)}
                  | {name: np.array([getattr(k, name) for k in ran], np.int32) for name in ("macs", "read", "written")})


def _data_key(prefix: str) -> str:
    digest = hashlib.sha256(str(CLEAN).encode())
    for path in sorted(CHECKPOINTS.glob(f"{prefix}-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def track(prefix: str, title: str, metrics: Mapping[str, Metric] = METRICS) -> Track:
    """Accuracy against MACs for the nets whose checkpoints begin with ``prefix``."""
    return Track(f"designs/{prefix}", "macs", "accuracy", metrics, measure, lru_cache(maxsize=1)(partial(_data_key, prefix)), REPLICAS, title=title)
