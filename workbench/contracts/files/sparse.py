"""A network with many zeros on disk: values, and where they stand, in whichever of these forms is smallest for each tensor.

    dense      every value
    bitmap     1 bit a block, then the values of the blocks that are not zero
    4/8 bits   how many zero blocks to skip, then a block; a gap too long for the counter gets a filler block of zeros (Han et al. 2016, section 3)

A *block* is one weight, a kernel row, a two-dimensional kernel or a whole filter (the trailing 0, 1, 2, … dimensions), or a column: what all filters
read from one position of one input channel. A structure in the zeros is found and paid for once. All bytes are those of a file really written
(:mod:`workbench.contracts.files.artifact`), and reading it gives the same tensors bit for bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .artifact import Artifact, ArtifactError, read, save
from .storage import describe, restore

KINDS = ("bitmap", "gaps4", "gaps8")
SAVING = 100  # bytes of file header that a second tensor costs: below that, sparse storage does not pay


def blocks(shape: tuple[int, ...]) -> list[tuple[bool, int]]:
    """(columns?, values a block) of the layouts that are tried for a weight of this shape."""
    return [(False, math.prod(shape[len(shape) - n:])) for n in range(len(shape))] + [(True, shape[0])]


def _gaps(occupied: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(zero blocks skipped before each entry, entry is a real block?); trailing zeros end in fillers, so that less than one counter remains."""
    reach = 1 << bits
    positions = np.flatnonzero(occupied)
    gap = np.diff(positions, prepend=-1) - 1
    fillers = np.append(gap // reach, (len(occupied) - 1 - (positions[-1] if len(positions) else -1)) // reach)
    ends = np.cumsum(fillers[:-1] + 1) - 1  # where the real entries stand
    skips = np.full(int(fillers.sum()) + len(positions), reach - 1, np.uint8)
    real = np.zeros(len(skips), bool)
    skips[ends], real[ends] = gap % reach, True
    return skips, real


def encode(tensor: Tensor) -> tuple[dict, Tensor, Tensor | None]:
    """(how, values, index) of the smallest form; ``how`` is plain JSON, the index is uint8 (None: dense)."""
    array = tensor.detach().cpu().contiguous().numpy()
    best = (array.nbytes - SAVING, {"kind": "dense"}, None, None)
    for columns, width in blocks(array.shape) if array.ndim > 1 and array.dtype == np.float32 else ():
        flat = (np.moveaxis(array, 0, -1) if columns else array).reshape(-1, width)
        occupied = (flat != 0).any(1)
        how = {"shape": list(array.shape), "columns": columns, "block": width}
        size = (len(occupied) + 7) // 8 + int(occupied.sum()) * width * 4
        if size < best[0]:
            best = (size, {"kind": "bitmap", **how}, flat[occupied], np.packbits(occupied))
        for bits in (4, 8):
            skips, real = _gaps(occupied, bits)
            index = skips if bits == 8 else np.append(skips, np.zeros(len(skips) % 2, np.uint8)).reshape(-1, 2) @ np.array([16, 1], np.uint8)
            if (size := index.nbytes + len(skips) * width * 4) < best[0]:
                values = np.zeros((len(skips), width), np.float32)
                values[real] = flat[occupied]
                best = (size, {"kind": f"gaps{bits}", **how}, values, index)
    _, how, values, index = best
    return (how, tensor, None) if index is None else (how, torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(np.ascontiguousarray(index)))


def decode(how: Mapping, values: Tensor, index: Tensor | None) -> Tensor:
    """The tensor again. ArtifactError: form, shape and lengths do not fit together."""
    if how.get("kind") == "dense":
        return values
    try:
        shape, width = tuple(how["shape"]), how["block"]
        if how["kind"] not in KINDS or (how["columns"], width) not in blocks(shape) or values.dtype != torch.float32 or index.dtype != torch.uint8:
            raise ValueError(f"form {dict(how)}")
        content, skips, count = values.numpy().reshape(-1, width), index.numpy(), math.prod(shape) // width
        if how["kind"] == "bitmap":
            if len(skips) != (count + 7) // 8:
                raise ValueError(f"a bitmap of {len(skips)} bytes for {count} blocks")
            places = np.flatnonzero(np.unpackbits(skips, count=count))
        else:
            reach = 16 if how["kind"] == "gaps4" else 256
            skips = np.stack([skips >> 4, skips & 15], 1).ravel()[:len(content)] if reach == 16 else skips
            places = np.cumsum(skips.astype(np.int64) + 1) - 1
            if not 0 <= count - 1 - (places[-1] if len(places) else -1) < reach:
                raise ValueError(f"{count} blocks do not end where the index does")
        if len(places) != len(content):
            raise ValueError(f"{len(content)} blocks for {len(places)} places")
        flat = np.zeros((count, width), np.float32)
        flat[places] = content
        array = np.moveaxis(flat.reshape(*shape[1:], shape[0]), -1, 0) if how["columns"] else flat.reshape(shape)
        return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ArtifactError(f"malformed sparse tensor: {error}") from error


def save_sparse(path: str | os.PathLike, model: nn.Module, example=None) -> int:
    """Write the network to one file and return its bytes; see :func:`workbench.contracts.model.save_model` for ``example``."""
    whole = describe(model, example)
    tensors, forms = {}, {}
    for name, tensor in whole.tensors.items():
        how, values, index = encode(tensor)
        tensors[name] = values
        if index is not None:
            forms[name], tensors[f"{name}@"] = how, index
    return save(path, tensors, {"sparse": forms, "network": whole.meta}, whole.graph)


def load_sparse(path: str | os.PathLike, model: nn.Module | None = None) -> nn.Module:
    """The network of a file that :func:`save_sparse` wrote, its zeros in place. ArtifactError: damaged, or not sparse."""
    artifact = read(path)
    forms = artifact.meta.get("sparse")
    if not isinstance(forms, dict):
        raise ArtifactError(f"{path}: no sparse network; load it with workbench.contracts.model.load")
    try:
        tensors = {name: decode(forms[name], tensor, artifact.tensors.get(f"{name}@")) if name in forms else tensor
                   for name, tensor in artifact.tensors.items() if not name.endswith("@")}
        return restore(Artifact(tensors, artifact.meta["network"], artifact.graph), model)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: the network cannot be rebuilt: {error}") from error
