"""A compressed cache in a file: the workbench's artefact (safetensors, checked, never unpickled), bit for bit what was held."""

from __future__ import annotations

import importlib
import os
from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from ..files import artifact
from .cache import Block, Held, KVLayer, SharedLayer, new_cache


def save(cache: Cache, path: str | os.PathLike) -> int:
    """Writes the cache, returns the file's bytes. ValueError: a layer that no method has compressed."""
    tensors: dict[str, Tensor] = {}
    layers: list[dict[str, Any]] = []
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, SharedLayer):
            layers.append({"root": cache.layers.index(layer.root)})
            continue
        if not isinstance(layer, KVLayer) or not layer.is_initialized:
            raise ValueError(f"cache: layer {i} is a {type(layer).__name__}, or empty; only what was made inside a method's `with` block can be saved")
        tensors |= {f"{i}.keys": layer.keys, f"{i}.values": layer.values} | {f"{i}.state.{name}": x for name, x in layer.state.items()}
        held = []
        for j, part in enumerate(layer.held):
            named = {f"block.{name}": t for name, t in part.block.tensors().items()} | {"columns": part.columns, "counts": part.counts}
            tensors |= {f"{i}.{j}.{name}": t for name, t in named.items() if t is not None}
            plain = {f.name: value for f in fields(part.block) if not isinstance(value := getattr(part.block, f.name), Tensor)}
            held.append({"class": f"{type(part.block).__module__}:{type(part.block).__qualname__}", "plain": plain, "n": part.n, "first": part.first})
        layers.append({"seen": layer.seen, "held": held})
    return artifact.save(path, tensors, {"kind": "kv cache", "layers": layers})


def load(path: str | os.PathLike) -> Cache:
    """The cache of a file. ArtifactError: damaged, foreign, or of a form that is not known here."""
    file = artifact.read(path)
    if file.meta.get("kind") != "kv cache":
        raise artifact.ArtifactError(f"{path}: holds {file.meta.get('kind', 'a model')!r}, not a cache")
    cache = new_cache()
    try:
        for i, about in enumerate(file.meta["layers"]):
            cache.layers.append(SharedLayer(cache.layers[about["root"]]) if "root" in about else _layer(file.tensors, i, about))
    except (KeyError, TypeError, AttributeError, IndexError, ImportError) as error:
        raise artifact.ArtifactError(f"{path}: malformed cache: {type(error).__name__}: {error}") from error
    return cache


def _layer(tensors: dict[str, Tensor], i: int, about: dict[str, Any]) -> KVLayer:
    layer = KVLayer()
    layer.lazy_initialization(tensors[f"{i}.keys"], tensors[f"{i}.values"])
    layer.keys, layer.values, layer.seen = tensors[f"{i}.keys"], tensors[f"{i}.values"], int(about["seen"])
    start = f"{i}.state."
    layer.state = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
    for j, part in enumerate(about["held"]):
        start = f"{i}.{j}.block."
        of = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        block = _block(part["class"])(**of, **part["plain"])
        layer.held.append(Held(block, int(part["n"]), int(part["first"]), tensors.get(f"{i}.{j}.columns"), tensors.get(f"{i}.{j}.counts")))
    return layer


def _block(name: str) -> type[Block]:
    """The class of this name; only the workbench's own are looked up."""
    module, _, symbol = name.partition(":")
    if module.partition(".")[0] != __name__.partition(".")[0]:
        raise ImportError(f"blocks of {module!r} are not known here")
    found = getattr(importlib.import_module(module), symbol)
    if not (isinstance(found, type) and issubclass(found, Block)):
        raise TypeError(f"{name} is no block")
    return found
