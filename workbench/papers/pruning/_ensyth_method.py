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
from ._ensyth_ensemble import Ensemble, probabilities, votes
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
    return EnSyth(combine, search, max_bytes).synthesise(pool, torch.stack(logits), labels, example)


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

    def synthesise(self, pool: Sequence[nn.Module], logits: Tensor, labels: Tensor, example=None) -> Ensemble:
        """The chosen ensemble with its ``path``; ``logits``: the pool's on validation data, (members, N, classes)."""
        alone = [packed_bytes(Ensemble.of([member], example=example, encode=self.encode)) for member in pool]

        def written(kept: Sequence[int]) -> int:
            return packed_bytes(Ensemble.of([pool[m] for m in kept], example=example, encode=self.encode))

        chosen = self.choose(probabilities(logits), labels, alone, written if self.max_bytes is not None else None)
        return self.packed(pool, chosen.kept, chosen, logits, labels, example)

    def packed(self, pool: Sequence[nn.Module], kept: Sequence[int], chosen: Selection, logits: Tensor, labels: Tensor, example=None) -> Ensemble:
        """The members ``kept`` as one network, with the table and what the picture shows of how they were chosen."""
        kept, extra = list(kept), {}
        if self.combine == "weighted":
            extra["accuracies"] = accuracy_of(logits[kept], labels).tolist()
        if self.combine == "stacked":
            extra["stack"] = stack(logits[kept], labels)[:2]
        found = Ensemble.of([pool[m] for m in kept], self.combine, example=example, encode=self.encode, **extra)
        found.path = chosen.path
        stays = np.zeros((min(len(chosen.path), 2 * len(pool)), len(pool)), np.uint8)
        for row, members in zip(stays, chosen.path.members, strict=False):
            row[list(members)] = 1
        found.exhibits = {"stays": np.packbits(stays, axis=1), "accuracy": (10_000 * chosen.path.accuracy.to_numpy()[:len(stays)]).round().astype(np.uint16),
                          "zeros": np.array([round(100 * zeros(member)) for member in pool], np.uint8), "kept": np.array(kept, np.uint8)}
        return found

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example) -> Ensemble:
        """Makes a pool from ``model`` and chooses the best ensemble whose file has at most ``1 − ratio`` of the dense file's bytes. The last fifth of the
        batches chooses, the others train. ValueError: no data, fewer than two batches, no ensemble that fits."""
        found = [] if data is None else list(data)
        if len(found) < 2:
            raise ValueError(f"data: at least two batches of (inputs, labels) are needed, to train and to choose; found {len(found)}")
        held = max(1, len(found) // 5)
        pool = ensyth_pool(model, found[:-held], self.settings, self.steps, example)
        limit = int((1 - ratio) * packed_bytes(model, example))
        return ensyth_select(pool, found[-held:], self.combine, limit if self.max_bytes is None else min(limit, self.max_bytes), self.search, example)


def zeros(model: nn.Module) -> float:
    """The share of zeros among the weights of the net that LeNet-5 has: what was removed counts as zero for filters too."""
    return 1 - sum(int((p != 0).sum()) for p in model.parameters()) / max(sum(p.numel() for p in model.parameters()), 1)


# --- on the bench ---------------------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def bench_pool(source: Callable, replica: int) -> tuple[list[nn.Module], Tensor, list[int]]:
    """A replica's members, their validation logits, and the bytes of each one's file."""
    members = source(replica)
    net = ensembles.NETS[members[0](vision.EXAMPLE).shape[1]]
    logits = torch.stack([ensembles.logits(member, net, "validation") for member in members])
    return members, logits, [packed_bytes(Ensemble.of([member])) for member in members]


def chosen(method: EnSyth, replica: int, sparsest: float = 0.0) -> tuple[list[nn.Module], Tensor, Tensor, Selection]:
    """The pool of a replica (of members with at least ``sparsest`` zeros), its logits and labels, and what the method chooses."""
    members, logits, sizes = bench_pool(method.pool, replica)
    net = ensembles.NETS[logits.shape[2]]
    within = [i for i, setting in enumerate(GRIDS[net][:len(members)]) if sparsest == 0 or setting.kind == "weights" and setting.sparsity >= sparsest]
    if method.split != "validation":
        logits = torch.stack([ensembles.logits(member, net, method.split) for member in members])
    members, logits, sizes = [members[i] for i in within], logits[within], [sizes[i] for i in within]
    labels = ensembles.images(net, method.split)[1]
    if method.max_bytes is None:
        return members, logits, labels, method.choose(probabilities(logits), labels, sizes)
    return members, logits, labels, method.choose(probabilities(logits), labels, sizes, lambda kept: packed_bytes(Ensemble.of([members[m] for m in kept])))
