"""The vector space of ASCAI: every point is one compressed network, whatever the methods, and every network is one point.

    θ = [ filters removed a layer group │ rank removed a layer (k×k: inputs, outputs) │ weights removed a layer ]   each in [0, 0.99], 0 = untouched
          1. smaller layers              2. factors of what is left                     3. zeros in what is left

`decode` walks through the three families in this order; `encode` reads the vector back from the network's own tensors. What a layer becomes at a setting is
computed once and kept (`cache`), so that a sample is mostly put together from known pieces.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts.files import artifact
from ...contracts.files.sparse import decode as sparse_decode
from ...contracts.files.sparse import encode as sparse_encode
from ...contracts.files.storage import fit
from ...contracts.structure.surgery import ChannelGroup, channel_groups, macs, remove
from ._ascai_factors import Factored, bases, factor, is_factorable, ranks_of
from .classics import L1, LAYERS

METHODS = ("filters", "ranks", "weights")
TOP = 0.99
GRID = 100  # steps of a layer's density where it has at least as many weights


@dataclass(frozen=True)
class Param:
    """One entry of the vector: what it removes from ``layer``, between ``low`` and ``high``. ``steps``: how many shares the dense layer can realise; ``apply``: a
    user's own, ``apply(model, value)`` in place, done last."""

    layer: str
    kind: str
    low: float = 0.0
    high: float = TOP
    steps: int = GRID
    apply: Callable[[nn.Module, float], object] | None = None

    @property
    def name(self) -> str:
        return f"{self.layer} {self.kind}"


def nearest(share: float, units: int) -> int:
    """How many of ``units`` a share removes: the nearest whole number, and at least one unit stays."""
    return min(round(share * units), units - 1)


def rounded_down(share: float, units: int) -> int:
    """Wrong on purpose: 0.29 · 100 is 28.999… in floating point."""
    return min(math.floor(share * units), units - 1)


@dataclass
class Realised:
    """A compressed network: the vector that it realises exactly, its MACs, and the file that it is."""

    model: nn.Module
    theta: np.ndarray
    exhibits: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict[str, Sequence[float]] = field(default_factory=dict)
    forms: Mapping[str, tuple] = field(default_factory=dict, repr=False)  # tensors whose sparse form is known

    def packed(self) -> bytes:
        """The file's bytes: each tensor dense or sparse, whichever is smaller; factors as they are."""
        tensors, sparse = {}, {}
        for name, tensor in self.model.state_dict().items():
            how, values, index = self.forms.get(name) or (sparse_encode(tensor) if tensor.dim() > 1 and bool((tensor == 0).any()) else ({}, tensor, None))
            tensors[name] = values
            if index is not None:
                sparse[name], tensors[f"{name}@"] = how, index
        factored = {name: [part is not None for part in (m.first, m.core, m.last)] for name, m in self.model.named_modules() if isinstance(m, Factored)}
        return artifact.pack(tensors, {"ascai": {"sparse": sparse, "factored": factored}})

    def save(self, path: str | os.PathLike) -> int:
        from ...core.measurements import write_whole

        write_whole(Path(path), data := self.packed())
        return len(data)


def load(path: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The compressed network of a file; ``model``: the network before compression, for its code. ArtifactError: damaged, another kind, another network."""
    found = artifact.read(path)
    try:
        meta, net = found.meta["ascai"], copy.deepcopy(model)
        tensors = {name: sparse_decode(meta["sparse"][name], tensor, found.tensors.get(f"{name}@")) if name in meta["sparse"] else tensor
                   for name, tensor in found.tensors.items() if not name.endswith("@")}
        for name, parts in meta["factored"].items():
            layer, shapes = net.get_submodule(name), {}
            for part, there in zip(("first", "core", "last"), parts, strict=True):
                if there:
                    shapes[part] = _empty(layer, part, tensors[f"{name}.{part}.weight"].shape, f"{name}.{part}.bias" in tensors, "core" if parts[1] else "first")
            _put(net, name, Factored(*(shapes.get(part) for part in ("first", "core", "last"))))
        return fit(net, tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise artifact.ArtifactError(f"{path}: no network of ASCAI, or not one made of this model: {problem!r}") from problem


def _empty(layer: nn.Module, part: str, shape: Sequence[int], bias: bool, main: str) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(shape[1], shape[0], bias)
    if part != main:
        return nn.Conv2d(shape[1], shape[0], 1, bias=bias)
    return nn.Conv2d(shape[1], shape[0], layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=bias, padding_mode=layer.padding_mode)


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)


class Space:
    """The settings of ``model``: which entries a vector has, and the network of each vector.

    ``methods``: some of filters (L1 order, coupled layers share an entry), ranks (SVD, Tucker-2) and weights (by magnitude); ``extra``: a user's own entries.
    ValueError: an unknown method, nothing to compress.
    """

    def __init__(self, model: nn.Module, methods: Sequence[str], example: Tensor, extra: Sequence[Param] = (), count: Callable[[float, int], int] = nearest,
                 split: Callable = factor, key: Callable[[Sequence[int], int, object], object] | None = None):
        if wrong := [name for name in methods if name not in METHODS]:
            raise ValueError(f"methods: some of {', '.join(METHODS)}; found {', '.join(map(str, wrong))}")
        self.model, self.methods, self.example = copy.deepcopy(model).eval(), tuple(methods), example
        self.count, self.split, self.key = count, split, key or whole_key
        self.cache: dict[object, object] = {}
        self.groups: list[ChannelGroup] = channel_groups(self.model, example) if "filters" in methods else []
        scores = L1().scores(self.groups, self.model)
        self.order = {group.name: scores[group.name].argsort(stable=True) for group in self.groups}
        self.layers = [name for name, m in self.model.named_modules() if isinstance(m, LAYERS)] if set(methods) & {"ranks", "weights"} else []
        params = [Param(g.name, "filters", steps=g.size) for g in self.groups]
        for name in self.layers:
            layer = self.model.get_submodule(name)
            if "ranks" in methods and is_factorable(layer):
                whole = ranks_of(layer)
                params += [Param(name, kind, steps=rank) for kind, rank in zip(("rank",) if len(whole) == 1 else ("rank in", "rank out"), whole, strict=True)]
        params += [Param(name, "weights", steps=min(GRID, self.model.get_submodule(name).weight.numel())) for name in self.layers if "weights" in methods]
        names = {name for name, _ in self.model.named_modules()}
        if unknown := [p.layer for p in extra if p.layer not in names]:
            raise ValueError(f"space: the model has no layer {', '.join(unknown)}; it has {', '.join(sorted(names - {''}))}")
        self.params = [*params, *extra]
        if not self.params:
            raise ValueError("methods: nothing to compress; name a method, or hand in a space")
        self.place = {(p.layer, p.kind): i for i, p in enumerate(self.params)}
        self.total = {"macs": macs(self.model, example), "bytes": len(Realised(self.model, np.zeros(len(self.params))).packed())}

    # ------------------------------------------------------------------------------------------------------------- vector -> network

    def decode(self, theta: Sequence[float]) -> Realised:
        """The network of a vector (entries are clipped to [0, 0.99]). Its ``theta`` is the vector that its layers realise exactly."""
        theta = np.clip(np.asarray(theta, float), 0, TOP)
        if theta.shape != (len(self.params),) or not np.isfinite(theta).all():
            raise ValueError(f"theta: {len(self.params)} finite shares are needed ({self.params[0].name}, …), found shape {theta.shape}")
        gone = tuple(self.count(theta[self.place[g.name, "filters"]], g.size) for g in self.groups)
        if ("filters", gone) not in self.cache:
            drop = {g.name: self.order[g.name][:n] for g, n in zip(self.groups, gone, strict=True) if n}
            self.cache["filters", gone] = remove(self.model, drop, self.example, self.groups)
        pruned = self.cache["filters", gone]
        net = _shallow(pruned)
        forms: dict[str, tuple] = {}
        for name in self.layers:
            layer = pruned.get_submodule(name)
            small, known = self._layer(name, layer, theta, gone)
            if small is not layer:
                _put(net, name, small)
                forms |= known
        own = [(param.apply, theta[i]) for i, param in enumerate(self.params) if param.apply is not None]
        if own:
            net, forms = copy.deepcopy(net), {}
        for apply, value in own:
            apply(net, float(value))
        found = Realised(net.eval(), theta, forms=forms)
        found.theta = self.encode(net, theta)
        return found

    def _layer(self, name: str, layer: nn.Module, theta: np.ndarray, gone: tuple[int, ...]) -> tuple[nn.Module, dict[str, tuple]]:
        """The layer at a setting, and the sparse forms of its tensors; from the cache where it was made before."""
        ranks = density = None
        if "ranks" in self.methods and is_factorable(layer):
            whole, kinds = ranks_of(layer), self._kinds(name)
            ranks = tuple(rank - self.count(theta[self.place[name, kind]], rank) for rank, kind in zip(whole, kinds, strict=True))
        if "weights" in self.methods:
            density = self.count(theta[self.place[name, "weights"]], min(GRID, self.model.get_submodule(name).weight.numel()))
        at = self.key(gone, self.layers.index(name), (ranks, density))
        if at not in self.cache:
            self.cache[at] = self._make(name, layer, ranks, density, gone)
        return self.cache[at]

    def _make(self, name: str, layer: nn.Module, ranks: tuple[int, ...] | None, density: int | None, gone: tuple[int, ...]) -> tuple[nn.Module, dict]:
        small = layer
        if ranks and ranks != ranks_of(layer):
            at = "bases", whole_key(gone, self.layers.index(name), None)
            if at not in self.cache:
                self.cache[at] = bases(layer.weight)
            small = self.split(layer, ranks, self.cache[at])
        if not density:
            return small, {}
        small, forms = copy.deepcopy(small), {}
        steps = min(GRID, self.model.get_submodule(name).weight.numel())
        parts = {f"{part}.weight": m for part, m in small.named_children()} if isinstance(small, Factored) else {"weight": small}
        with torch.no_grad():  # of all factors together; each measured by its own spread
            size = torch.cat([(m.weight.abs() / m.weight.square().mean().sqrt().clamp_min(1e-30)).flatten() for m in parts.values()])
            size[size.argsort(stable=True)[:min(round(density / steps * len(size)), len(size) - 1)]] = 0
            for (part, module), kept in zip(parts.items(), size.split([m.weight.numel() for m in parts.values()]), strict=True):
                module.weight.mul_((kept > 0).view_as(module.weight))
                forms[f"{name}.{part}"] = sparse_encode(module.weight)
        return small, forms

    def _kinds(self, name: str) -> tuple[str, ...]:
        return ("rank",) if (name, "rank") in self.place else ("rank in", "rank out")

    # ------------------------------------------------------------------------------------------------------------- network -> vector

    def encode(self, net: nn.Module, theta: Sequence[float] | None = None) -> np.ndarray:
        """The vector of a network, read from its layers' shapes and zeros; entries of a user's own are taken from ``theta``."""
        found = np.zeros(len(self.params)) if theta is None else np.array(theta, float)
        for group in self.groups:
            found[self.place[group.name, "filters"]] = 1 - outputs(net.get_submodule(group.name)) / group.size
        for name in self.layers:
            layer, dense = net.get_submodule(name), self.model.get_submodule(name)
            if "ranks" in self.methods and is_factorable(dense):
                for kind, (rank, whole) in zip(self._kinds(name), _ranks(layer, dense), strict=True):
                    found[self.place[name, kind]] = 1 - rank / whole
            if "weights" in self.methods:
                steps, weights = min(GRID, dense.weight.numel()), [part.weight for part in (layer.parts() if isinstance(layer, Factored) else [layer])]
                zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
                found[self.place[name, "weights"]] = round(zeros * steps) / steps
        return found

    def cost(self, found: Realised, of: str) -> float:
        """Share of the dense network's ``macs`` or ``bytes`` (of the file) that is left."""
        return (macs(found.model, self.example) if of == "macs" else len(found.packed())) / self.total[of]


def whole_key(gone: Sequence[int], layer: int, setting: object) -> object:
    """What a layer at a setting depends on: itself, what was removed before it and after it, its own entries."""
    return tuple(gone), layer, setting


def own_key(gone: Sequence[int], layer: int, setting: object) -> object:
    """Wrong on purpose: forgets that filters removed elsewhere change the layer."""
    return layer, setting


def outputs(layer: nn.Module) -> int:
    last = layer.parts()[-1] if isinstance(layer, Factored) else layer
    return last.weight.shape[0]


def _ranks(layer: nn.Module, dense: nn.Module) -> list[tuple[int, int]]:
    """(rank, whole rank) of the layer as it is now; the whole ones are those of the pruned layer that was factored."""
    if not isinstance(layer, Factored):
        return [(rank, rank) for rank in ranks_of(layer)]
    parts, kernel = layer.parts(), dense.weight.shape[2:]
    into, out = parts[0].weight.shape[1], parts[-1].weight.shape[0]
    if layer.core is None:
        return [(parts[0].weight.shape[0], min(into, out))]
    area = math.prod(kernel)
    return list(zip((layer.core.weight.shape[1], layer.core.weight.shape[0]), (min(into, out * area), min(out, into * area)), strict=True))


def _shallow(net: nn.Module) -> nn.Module:
    """A copy that shares only the layers with weights: what is put in the place of one, or a norm's mode, does not touch the other."""
    shared = {id(m): m for m in net.modules() if isinstance(m, LAYERS)}
    return copy.deepcopy(net, shared)

