"""What SlimNets writes: any mix of low rank, zeros and 8-bit weights in one file, and the network again from it.

    tensor ──► (8 bits a value, one step a tensor) ──► sparse form, whichever is smallest ──► file        the base network's class, ranks of its convolutions
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts.files.artifact import Artifact, ArtifactError, read, save
from ...contracts.files.sparse import decode, encode
from ...contracts.files.storage import describe, restore
from ._slim_lowrank import LowRank, candidates, lowrank, put


@dataclass
class Slim:
    """A slim network. ``bits``: 32, or 8 for weights rounded to 8 bits (they are in ``model`` too). ``exhibits``: what the picture shows."""

    model: nn.Module
    bits: int = 32
    exhibits: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict = field(default_factory=dict)
    example: Tensor | None = None

    def save(self, path: str | os.PathLike) -> int:
        """Write one file and return its bytes."""
        return save_slim(path, self.model, self.bits, self.example)


def _steps(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(t.abs().max().clamp_min(1e-12)) / 127 for name, t in tensors.items() if t.is_floating_point() and t.dim() > 1}


@torch.no_grad()
def round_to_8_bits(model: nn.Module) -> nn.Module:
    """Round, in place, every tensor of two or more dimensions to whole multiples (−127 … 127) of its own step."""
    state = model.state_dict()
    for name, step in _steps(state).items():
        state[name].copy_((state[name] / step).round() * step)
    return model


def merged(model: nn.Module) -> tuple[nn.Module, dict[str, int]]:
    """The network with whole convolutions in the place of pairs, and their ranks."""
    import copy

    whole, ranks = copy.deepcopy(model), {}
    for name, pair in [(name, m) for name, m in model.named_modules() if isinstance(m, LowRank)]:
        column, row = pair
        conv = nn.Conv2d(column.in_channels, row.out_channels, (column.kernel_size[0], row.kernel_size[1]), (column.stride[0], row.stride[1]),
                         (column.padding[0], row.padding[1]), bias=row.bias is not None)
        with torch.no_grad():
            conv.weight.copy_(pair.merged())
            if row.bias is not None:
                conv.bias.copy_(row.bias)
        put(whole, name, conv)
        ranks[name] = pair.rank
    return whole, ranks


def save_slim(path: str | os.PathLike, model: nn.Module, bits: int = 32, example=None) -> int:
    """Write the network and return the file's bytes. ``bits`` 8: one byte a value of the tensors that `round_to_8_bits` rounded."""
    whole, ranks = merged(model)
    found = describe(whole, example)
    if ranks and found.meta["kind"] in ("class", "transformers"):
        tensors, graph = dict(model.state_dict()), None
    else:  # a captured graph holds the pairs as they are
        ranks, found = {}, describe(model, example) if ranks else found
        tensors, graph = found.tensors, found.graph
    steps, forms, stored = _steps(tensors) if bits == 8 else {}, {}, {}
    for name, tensor in tensors.items():
        how, values, index = encode(tensor.detach().contiguous())
        stored[name] = (values / steps[name]).round().to(torch.int8) if name in steps else values
        if index is not None:
            forms[name], stored[f"{name}@"] = how, index
    return save(path, stored, {"slim": forms, "steps": steps, "ranks": ranks, "network": found.meta}, graph)


def load_slim(path: str | os.PathLike) -> nn.Module:
    """The network of a file that `save_slim` wrote, bit for bit. ArtifactError: damaged, or another kind of file."""
    artifact = read(Path(path))
    forms, steps, ranks = (artifact.meta.get(name) for name in ("slim", "steps", "ranks"))
    if not isinstance(forms, dict) or not isinstance(steps, dict) or not isinstance(ranks, dict):
        raise ArtifactError(f"{path}: no slim network; workbench.contracts.model.load reads others")
    try:
        values = {name: t.float() * steps[name] if name in steps else t for name, t in artifact.tensors.items() if not name.endswith("@")}
        tensors = {name: decode(forms[name], t, artifact.tensors.get(f"{name}@")) if name in forms else t for name, t in values.items()}
        if not ranks:
            return restore(Artifact(tensors, artifact.meta["network"], artifact.graph))
        whole = dict(tensors)
        for name in ranks:
            column, row = whole.pop(f"{name}.0.weight"), whole.pop(f"{name}.1.weight")
            whole[f"{name}.weight"] = torch.einsum("kch,nkw->nchw", column[..., 0], row[:, :, 0])
            if f"{name}.1.bias" in whole:
                whole[f"{name}.bias"] = whole.pop(f"{name}.1.bias")
        base = restore(Artifact(whole, artifact.meta["network"]))
        if set(ranks) - set(candidates(base)):
            raise ArtifactError(f"ranks of {', '.join(sorted(set(ranks) - set(candidates(base))))}, which the network does not have")
        slim = lowrank(base, ranks)
        slim.load_state_dict(tensors)
        return slim.eval()
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"{path}: the network cannot be rebuilt: {error}") from error
