"""ASCAI on your own network: `ascai` searches, its result exports any sample as a network, saves, and goes on where it stopped."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ...contracts.files import artifact
from ...contracts.model import inputs_and_labels
from ...contracts.structure.surgery import reestimate_batchnorm
from ._amc_environment import error_rate
from ._ascai_search import Loop, Samples, at_cost, sensitivity_box
from ._ascai_space import Param, Realised, Space


@dataclass(frozen=True)
class ASCAI(Loop):
    """Adaptive sampling for compact networks; fields as of :class:`Loop`."""

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example=None) -> nn.Module:
        """The model contract: the most accurate network found with a share ``ratio`` of the ``objective`` (bytes of the file) gone. ``data``: labelled batches."""
        if ratio == 0:
            return model
        found = ascai(model, data, method=replace(self, score=partial(at_cost, 1 - ratio)))
        row = found.samples.most_accurate(1 - ratio)
        if found.samples.cost[row] > 1 - ratio + 1e-9:
            warnings.warn(f"ratio: no sample was as small; the smallest keeps {found.samples.cost[row]:.3f} of the {self.objective}", stacklevel=2)
        return found.export(row)


@dataclass
class Result:
    """A finished search: its ``method``, ``space`` and every sample; ``inputs`` renew the batch-norm statistics of what is exported."""

    method: Loop
    space: Space
    samples: Samples
    inputs: Tensor

    @property
    def best(self) -> int:
        """The cheapest sample within ``max_drop``. ValueError: there is none."""
        row = self.samples.cheapest(self.method.max_drop)
        lost = 100 * (self.samples.dense - self.samples.accuracy[row])
        if lost > self.method.max_drop + 1e-9:
            raise ValueError(f"max_drop: no sample is within {self.method.max_drop} points; the most accurate one loses {lost:.1f}. Search longer or allow more")
        return row

    @property
    def pareto(self) -> pd.DataFrame:
        """The samples that no other beats, the cheapest first: ``sample, cost, accuracy`` and one column an entry (shares removed)."""
        rows = self.samples.pareto()
        entries = pd.DataFrame([self.samples.thetas[row] for row in rows], columns=[p.name for p in self.space.params])
        numbers = pd.DataFrame({"sample": rows, "cost": [self.samples.cost[r] for r in rows], "accuracy": [self.samples.accuracy[r] for r in rows]})
        return pd.concat([numbers, entries], axis=1)

    def realise(self, sample: int | None = None) -> Realised:
        """A sample's network as a file-writing `Realised`, with new batch-norm statistics; default: `best`."""
        found = self.space.decode(self.samples.thetas[self.best if sample is None else sample])
        model = copy.deepcopy(found.model)
        reestimate_batchnorm(model, self.inputs)
        return Realised(model, found.theta, forms=found.forms)

    def export(self, sample: int | None = None) -> nn.Module:
        return self.realise(sample).model

    def save(self, path: str | os.PathLike) -> int:
        """Every judged vector, so that ``ascai(…, resume=path)`` judges none twice; returns the file's bytes."""
        tensors = {"thetas": torch.from_numpy(np.array(self.samples.thetas)), "judged": torch.tensor([self.samples.accuracy, self.samples.cost], dtype=torch.float64)}
        return artifact.save(path, tensors, {"ascai search": {"entries": [p.name for p in self.space.params], "objective": self.method.objective,
                                                              "dense": self.samples.dense, "high": [p.high for p in self.space.params]}})


def _past(path: str | os.PathLike, space: Space, objective: str, dense: float) -> tuple[dict[bytes, tuple[float, float]], list[float]]:
    found = artifact.read(Path(path))
    try:
        meta, thetas, (accuracy, cost) = found.meta["ascai search"], found.tensors["thetas"].numpy(), found.tensors["judged"].numpy()
        known = {theta.tobytes(): (float(a), float(c)) for theta, a, c in zip(thetas, accuracy, cost, strict=True)}
        past = meta["entries"], meta["objective"], meta["dense"]
    except (KeyError, ValueError, TypeError) as problem:
        raise artifact.ArtifactError(f"{path}: no search of ASCAI: {problem!r}") from problem
    if past != ([p.name for p in space.params], objective, dense):
        raise ValueError(f"resume: {path} searched {len(past[0])} entries for {past[1]} from an accuracy of {past[2]:.4f}; "
                         f"now there are {len(space.params)} for {objective} from {dense:.4f}")
    return known, meta["high"]


def ascai(model: nn.Module, data: Iterable | None, methods: Sequence[str] | None = None, objective: str | None = None, max_drop: float | None = None,
          pop: int | None = None, iters: int | None = None, seed: int | None = None, workers: int | None = None, space: Sequence[Param] = (),
          method: Loop = ASCAI(), resume: str | os.PathLike | None = None) -> Result:
    """Searches vectors for ``model`` (left as it is). ``data``: batches of images and labels that are *not* the test data; they score each sample.
    ``space``: entries of your own, ``Param("layer", "kind", low, high, apply=…)``, beside those of ``methods`` (which may then be empty).

    ValueError: no labelled image, an unknown method or layer, a file of another search.
    """
    changes = {"methods": None if methods is None else tuple(methods), "objective": objective, "max_drop": max_drop, "population": pop, "iterations": iters, "seed": seed,
               "workers": workers}
    method = replace(method, **{name: value for name, value in changes.items() if value is not None})
    pairs = [inputs_and_labels(batch) for batch in data] if data is not None else []
    if not sum(0 if labels is None else len(labels) for _, labels in pairs) or any(isinstance(x, Mapping) or y is None for x, y in pairs):
        raise ValueError(f"data: batches of (images, labels) are needed to score samples, found {'none' if not pairs else 'unlabelled ones or dicts'}")
    images, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    where = Space(model, method.methods, images[:1], space, **method.space)
    dense, known, high = 1 - error_rate(copy.deepcopy(where.model), images, labels), {}, None
    if resume is not None:
        known, high = _past(resume, where, method.objective, dense)

    def judge(theta: np.ndarray) -> tuple[float, float]:
        key = np.asarray(theta, float).tobytes()
        if key not in known:
            found = where.decode(theta)
            known[key] = 1 - error_rate(found.model, images, labels), where.cost(found, method.objective)
        return known[key]

    own = {p.name for p in space}
    scanned = sensitivity_box([p for p in where.params], judge, dense, method.bearable) if high is None else [replace(p, high=h) for p, h in zip(where.params, high, strict=True)]
    where.params = [p if p.name in own else s for p, s in zip(where.params, scanned, strict=True)]  # a user's bounds are the user's
    return Result(method, where, method.run(where.params, judge, dense), images)
