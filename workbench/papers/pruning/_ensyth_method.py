"""EnSyth as a method: from ready-made networks, or from one network, to the ensemble that validation data like best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ...benches import ensembles, vision
from ...contracts.files import sparse
from ...contracts.model import inputs_and_labels, packed_bytes
from ...contracts.structure.trace import forward
from ._ensyth_ensemble import Ensemble, Packed, pack, probabilities, votes
from ._ensyth_pool import GRIDS, STEPS, Setting, ensyth_pool, read_pool
from ._ensyth_select import Selection, accuracy_of, select, stack
from ._gradual import Schedule


def ensyth_select(pool: Sequence[nn.Module], val_loader: Iterable, combine: str = "soft", max_bytes: int | None = None, search: str = "backward",
                  example=None) -> Ensemble:
    """The best ensemble of ready-made networks by their answers to ``val_loader``, batches of (inputs, labels) that no member was trained on.

    ``combine``: soft, hard, weighted or stacked votes; ``max_bytes``: limit on the bytes of the ensemble's file; ``search``: backward, forward, exhaustive
    (up to 15 members) or genetic. The ensemble carries ``path``, the table of the sets that were tried. Probabilities kept in arrays go to
    :func:`workbench.papers.pruning._ensyth_select.select`. ValueError: fewer than two members, members with different numbers of classes, no validation
    data, nothing that fits.
    """
    if len(pool) < 2:
        raise ValueError(f"pool: at least two members are needed, found {len(pool)}")
    data = [inputs_and_labels(batch) for batch in val_loader]
    if not data or any(labels is None for _, labels in data):
        raise ValueError("val_loader: batches of (inputs, labels) are needed, " + ("one has no labels" if data else "it is empty"))
    with torch.no_grad():
        logits = [torch.cat([forward(member.eval(), inputs) for inputs, _ in data]) for member in pool]
    if len(shapes := {tuple(found.shape[1:]) for found in logits}) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"pool: members must answer with equally many classes, (batch, classes); found {', '.join(map(str, sorted(shapes)))} a sample")
    example = data[0][0][:2] if example is None and isinstance(data[0][0], Tensor) else example
    labels = torch.cat([labels for _, labels in data])
    method = EnSyth(combine, search, max_bytes)
    candidates = Pool.of(pool, torch.stack(logits), labels, example)
    return method.build(candidates, method.chosen(candidates))


@dataclass(frozen=True)
class Pool:
    """Members with all that a selection needs: packed, their logits (members, N, classes) and the labels of validation data, bytes of each one's file."""

    members: Sequence[nn.Module]
    packed: Sequence[Packed]
    logits: Tensor
    labels: Tensor
    sizes: Sequence[int]

    @classmethod
    def of(cls, members: Sequence[nn.Module], logits: Tensor, labels: Tensor, example=None, encode: Callable = sparse.encode) -> Pool:
        packed = [pack(member, example, encode) for member in members]
        return cls(members, packed, logits, labels, [packed_bytes(Ensemble.of([one])) for one in packed])

    def ensemble(self, kept: Iterable[int], combine: str = "soft", **extra) -> Ensemble:
        return Ensemble.of([self.packed[m] for m in kept], combine, **extra)

    def bytes(self, kept: Iterable[int]) -> int:
        """Of the file that these members make, shared tensors once."""
        return packed_bytes(self.ensemble(kept))

    def only(self, which: Sequence[int]) -> Pool:
        return Pool([self.members[m] for m in which], [self.packed[m] for m in which], self.logits[which], self.labels, [self.sizes[m] for m in which])


@dataclass(frozen=True)
class EnSyth:
    """``combine``, ``search``, ``max_bytes``: see :func:`ensyth_select`; ``settings``, ``steps``: of the pool that :meth:`compress` makes.

    ``pool``, ``split``, ``labels``, ``ties``, ``ballot``, ``encode``, ``schedule`` and ``together`` exist to be wrong on purpose.
    """

    combine: str = "soft"
    search: str = "backward"
    max_bytes: int | None = None
    settings: tuple[Setting, ...] = GRIDS["lenet5-five"]
    steps: int = STEPS
    pool: Callable[[int], list[nn.Module]] = read_pool
    split: str = "validation"
    labels: Callable[[Tensor], Tensor] = lambda labels: labels
    ties: int = 1
    ballot: Callable = votes
    encode: Callable = sparse.encode
    schedule: type[Schedule] = Schedule
    together: Callable = Ensemble.together

    def choose(self, shares: Tensor, labels: Tensor, sizes: Sequence[int], cost=None) -> Selection:
        """Members by their validation probabilities (members, N, classes); ``cost(set)``: exact bytes, where a limit asks for them."""
        return select(shares, self.labels(labels), [self.ties * size for size in sizes], self.combine, self.search, self.max_bytes, cost, self.ballot)

    def chosen(self, pool: Pool) -> Selection:
        return self.choose(probabilities(pool.logits), pool.labels, pool.sizes, None if self.max_bytes is None else pool.bytes)

    def build(self, pool: Pool, selection: Selection, kept: Sequence[int] = ()) -> Ensemble:
        """The members chosen (or ``kept``, another set on the path) as one network, with the table and what the picture shows of how they were chosen."""
        kept, extra = list(kept or selection.kept), {}
        if self.combine == "weighted":
            extra["accuracies"] = accuracy_of(pool.logits[kept], pool.labels).tolist()
        if self.combine == "stacked":
            extra["stack"] = stack(pool.logits[kept], pool.labels)[:2]
        found = pool.ensemble(kept, self.combine, **extra)
        path = selection.path
        found.path = path
        stays = np.zeros((min(len(path), 2 * len(pool.members)), len(pool.members)), np.uint8)
        for row, members in zip(stays, path.members, strict=False):
            row[list(members)] = 1
        found.exhibits = {"stays": np.packbits(stays, axis=1), "accuracy": (10_000 * path.accuracy.to_numpy()[:len(stays)]).round().astype(np.uint16),
                          "zeros": np.array([round(100 * zeros(member)) for member in pool.members], np.uint8), "kept": np.array(kept, np.uint8)}
        return found

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example) -> Ensemble:
        """Makes a pool from ``model`` and chooses the best ensemble whose file has at most ``1 − ratio`` of the dense file's bytes. The last fifth of the
        batches chooses, the others train. ValueError: no data, fewer than two batches, no ensemble that fits."""
        found = [] if data is None else list(data)
        if len(found) < 2:
            raise ValueError(f"data: at least two batches of (inputs, labels) are needed, to train and to choose; found {len(found)}")
        held = max(1, len(found) // 5)
        pool = ensyth_pool(model, found[:-held], self.settings, self.steps, example, self.schedule)
        limit = int((1 - ratio) * packed_bytes(model, example))
        return ensyth_select(pool, found[-held:], self.combine, limit if self.max_bytes is None else min(limit, self.max_bytes), self.search, example)


def zeros(model: nn.Module) -> float:
    """The share of zeros among the parameters that a member has (of one with fewer filters: about none)."""
    return 1 - sum(int((p != 0).sum()) for p in model.parameters()) / max(sum(p.numel() for p in model.parameters()), 1)


# --- on the bench ---------------------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def bench_pool(source: Callable, replica: int, encode: Callable = sparse.encode, split: str = "validation") -> Pool:
    """A replica's members, judged by the bench's images."""
    members = source(replica)
    net = ensembles.NETS[members[0](vision.EXAMPLE).shape[1]]
    logits = torch.stack([ensembles.logits(member, net, split) for member in members])
    return Pool.of(members, logits, ensembles.images(net, split)[1], encode=encode)


def pool_of(method: EnSyth, replica: int, sparsest: float = 0.0) -> Pool:
    """The pool that the method chooses from: of members with at least ``sparsest`` zeros."""
    pool = bench_pool(method.pool, replica, method.encode, method.split)
    grid = GRIDS[ensembles.NETS[pool.logits.shape[2]]][:len(pool.members)]
    within = [i for i, setting in enumerate(grid) if sparsest == 0 or setting.kind == "weights" and setting.sparsity >= sparsest]
    return pool.only(within)
