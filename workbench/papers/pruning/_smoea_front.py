"""What a search of SMOEA leaves: Pareto fronts of filter masks, from which networks of any size are taken without a new search."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ...contracts.files import artifact
from ...contracts.model import inputs_and_labels
from ...contracts.structure.surgery import channel_groups, parameters, reestimate_batchnorm, remove
from ._smoea_subnet import ParameterCount, segments


@dataclass
class GroupFront:
    """The Pareto front of one group of layers, by ascending size. ``masks`` (k, bits); ``share`` (k,): f₁, parameters kept of the sub-network; ``error`` (k,): f₂;
    ``wrong`` (k,): share of validation images that the whole network then gets wrong (the last entry keeps everything); ``volumes``: hypervolume of the archive and of
    the population, one pair a generation."""

    layers: tuple[str, ...]
    masks: np.ndarray
    share: np.ndarray
    error: np.ndarray
    wrong: np.ndarray
    volumes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    evaluations: int = 0
    seconds: float = 0.0

    def smallest(self, error: float | None = None, wrong: float | None = None) -> int:
        """The smallest mask whose f₂ (or whose re-ranked classification error) is at most the number; the whole group if none is."""
        fits = self.error <= error if wrong is None else self.wrong <= wrong + 1e-9
        return int(np.argmax(fits)) if fits.any() else len(self.masks) - 1

    def knee(self) -> int:
        """The point farthest below the line through both ends of the front."""
        x, y = self.share - self.share[0], self.error[0] - self.error
        return int(np.argmax(y * x[-1] - x * y[-1]))


@dataclass
class Front:
    """All fronts of a network, to take networks of any size from, without a new search. ``model`` is the dense network; ``chosen`` the index of each front's mask
    that the walk went on with; ``small`` what the walk ended with."""

    model: nn.Module
    example: Tensor
    fronts: list[GroupFront]
    chosen: list[int]
    before: float = np.nan
    small: nn.Module | None = None
    surgery: Callable = remove

    def __post_init__(self):
        found = {group.name: group for group in channel_groups(self.model, self.example)}
        names = [name for front in self.fronts for name in front.layers]
        if wrong := [name for name in names if name not in found]:
            raise ValueError(f"model: it has no prunable layer {', '.join(wrong)}; it has {', '.join(found)}")
        self.groups = [found[name] for name in names]
        for front in self.fronts:
            size = sum(found[name].size for name in front.layers)
            if front.masks.shape[1] != size:
                raise ValueError(f"model: {', '.join(front.layers)} have {size} filters, the front's masks {front.masks.shape[1]}")
        self.count = ParameterCount(self.groups)
        bits = sum(group.size for group in self.groups)
        self.untouched = parameters(self.model) - int(self.count(np.ones((1, bits), bool))[0])

    def kept(self, points: Sequence[int]) -> np.ndarray:
        """(bits,): the whole network's genome from one point of each front."""
        return np.concatenate([front.masks[point] for front, point in zip(self.fronts, points, strict=True)])

    def parameters(self, points: Sequence[int]) -> int:
        """Parameters of the network that these points leave, exactly."""
        return self.untouched + int(self.count(self.kept(points)[None])[0])

    def choices(self) -> Iterator[list[int]]:
        """The slider: for every error level that occurs, the smallest mask of each front that stays within it, from the smallest network to the whole."""
        for level in np.unique(np.concatenate([front.error for front in self.fronts]))[::-1]:
            yield [front.smallest(error=level) for front in self.fronts]

    def points(self, params: float | None = None, tolerance: float | None = None, knee: bool = False) -> list[int]:
        """One point of each front. ``params``: the largest network of the slider with at most this share of the parameters; ``tolerance``: of each front the
        smallest mask that alone costs at most so many points of classification error; ``knee``: where each front bends most. ValueError: none is as small; a share
        outside (0, 1]."""
        if (params is not None) + (tolerance is not None) + bool(knee) != 1:
            raise ValueError("export: hand in one of params, tolerance and knee")
        if knee:
            return [front.knee() for front in self.fronts]
        if tolerance is not None:
            if not tolerance >= 0:
                raise ValueError(f"tolerance: points of classification error, from 0 on; found {tolerance}")
            return [front.smallest(wrong=self.before + tolerance / 100) for front in self.fronts]
        if not 0 < params <= 1:
            raise ValueError(f"params: the share of the parameters to keep, in (0, 1]; found {params}")
        if params == 1:
            return [len(front.masks) - 1 for front in self.fronts]
        total, sized = parameters(self.model), [(self.parameters(points), points) for points in self.choices()]
        fitting = [entry for entry in sized if entry[0] <= params * total]
        if not fitting:
            raise ValueError(f"params: {params} (1 − ratio) cannot be reached; the smallest network of these fronts keeps {min(sized)[0] / total:.3f}")
        return self.filled(max(fitting)[1], params * total)

    def filled(self, points: Sequence[int], limit: float) -> list[int]:
        """What a network's parameters leave of the ``limit`` goes to the group whose error falls most by it, until nothing fits."""
        points = list(points)
        while True:
            wider = [[*points[:i], p, *points[i + 1:]] for i, front in enumerate(self.fronts) for p in range(points[i] + 1, len(front.masks))]
            wider = [trial for trial in wider if self.parameters(trial) <= limit]
            if not wider:
                return points
            points = min(wider, key=lambda trial: sum(front.error[p] for front, p in zip(self.fronts, trial, strict=True)))

    def drop(self, kept: np.ndarray) -> dict[str, Tensor]:
        """{layer: filters to remove} of a genome; what `contracts.structure.surgery.remove` takes."""
        return {g.name: torch.from_numpy(np.flatnonzero(~kept[where])) for g, where in zip(self.groups, segments(self.groups), strict=True) if not kept[where].all()}

    def export(self, params: float | None = None, tolerance: float | None = None, data: Iterable | Tensor | None = None, knee: bool = False) -> nn.Module:
        """A really smaller copy of the dense network; ``data`` re-estimates its batch-norm statistics (without, fine-tune it before judging it)."""
        small = self.surgery(self.model, self.drop(self.kept(self.points(params, tolerance, knee))), self.example, channel_groups(self.model, self.example))
        if data is not None:
            reestimate_batchnorm(small, data if isinstance(data, Tensor) else (inputs_and_labels(batch)[0] for batch in data))
        return small

    def table(self) -> pd.DataFrame:
        """One row a group, in the order of the walk: size of the front, what was chosen and at which price, evaluations, CPU seconds, hypervolume."""
        rows = [{"layers": ", ".join(f.layers), "filters": f.masks.shape[1], "front": len(f.masks), "chosen": int(f.masks[c].sum()), "parameters kept": f.share[c],
                 "feature error": f.error[c], "wrong": f.wrong[c], "evaluations": f.evaluations, "seconds": f.seconds,
                 "hypervolume": f.volumes[-1, 0] if len(f.volumes) else np.nan} for f, c in zip(self.fronts, self.chosen, strict=True)]
        return pd.DataFrame(rows)

    def save(self, path: str | os.PathLike) -> int:
        """One file with every front, masks packed to bits; returns its bytes."""
        tensors, meta = {}, {"before": None if np.isnan(self.before) else self.before, "chosen": [int(c) for c in self.chosen], "groups": []}
        for i, f in enumerate(self.fronts):
            tensors[f"{i}.masks"] = torch.from_numpy(np.packbits(f.masks, axis=1))
            tensors[f"{i}.points"] = torch.from_numpy(np.stack([f.share, f.error, f.wrong]))
            tensors[f"{i}.volumes"] = torch.from_numpy(f.volumes.reshape(-1, 2).copy())
            meta["groups"].append({"layers": list(f.layers), "bits": f.masks.shape[1], "evaluations": f.evaluations, "seconds": f.seconds})
        return artifact.save(path, tensors, {"smoea": meta})

    @classmethod
    def load(cls, path: str | os.PathLike, model: nn.Module, example: Tensor) -> Front:
        """The fronts of a file, for the network that they were searched on. ArtifactError: damaged or another kind; ValueError: another network."""
        found = artifact.read(path)
        try:
            meta, fronts = found.meta["smoea"], []
            for i, group in enumerate(meta["groups"]):
                share, error, wrong = found.tensors[f"{i}.points"].numpy()
                masks = np.unpackbits(found.tensors[f"{i}.masks"].numpy(), axis=1, count=group["bits"]).astype(bool)
                fronts.append(GroupFront(tuple(group["layers"]), masks, share, error, wrong, found.tensors[f"{i}.volumes"].numpy(), group["evaluations"],
                                         group["seconds"]))
            before = np.nan if meta["before"] is None else meta["before"]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as problem:
            raise artifact.ArtifactError(f"{path}: no fronts of SMOEA: {problem!r}") from problem
        return cls(model, example, fronts, meta["chosen"], before)
