"""Transfer channel pruning itself: the two lists, their merging, the rounds. The lesson stands in :mod:`.tcp`."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches.domains.discrepancy import adapt, endless, joint_loss, mmd, rising
from ...contracts.structure.channels import ChannelGroup, channel_groups
from ...contracts.structure.macs import macs
from ...contracts.structure.surgery import remove
from ...contracts.structure.trace import CONV
from . import inside_blocks
from .classics_of_data import per_unit, run_watching


def _over_norm(rows: Tensor) -> Tensor:
    return F.normalize(rows.abs(), dim=1)


MERGES = {  # (2, size) -> (size,): the released code's, the paper's text, and for comparison
    "min": lambda rows: _over_norm(rows).min(0).values,
    "sum": lambda rows: F.normalize(rows.sum(0).abs(), dim=0),
    "max": lambda rows: _over_norm(rows).max(0).values,
    "source": lambda rows: _over_norm(rows)[0],
    "target": lambda rows: _over_norm(rows)[1],
}


@dataclass(frozen=True)
class Round:
    """One round: each layer's channels after its cut, the share of the MACs left, and cross-entropy and MMD² at the last tuning step (NaN: not tuned)."""

    widths: dict[str, int]
    macs_share: float
    entropy: float
    mmd: float


@dataclass(frozen=True)
class Transferred:
    """The smaller network, what each round did, and the first round's two lists: {layer: (2, channels)}, with the channels it cut."""

    model: nn.Module
    rounds: list[Round] = field(default_factory=list)
    lists: dict[str, Tensor] = field(default_factory=dict)
    cut: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TCP:
    """Transfer channel pruning. ``data`` is always an iterable of (source inputs, source labels, target inputs); :class:`Joined` makes it of two loaders.

    feature: layer whose outputs the domains are compared by (default: what the last linear layer reads). merge: one of `MERGES`. per_round: channels cut a
    round. least: channels that every layer keeps. batches: scored a round. progress: p of β while scoring (0.1: β = 0.462, as in the code). mmd_weight
    multiplies β. steps: of SGD in all, ``round_steps`` after each round's cut and the rest after the last one (momentum 0.9, decay 5e-4, rate/(1 + 10p)^0.75, a fifth of
    it outside linear layers; the paper's rate is 0.01, for a network that was pretrained on ImageNet).
    """

    feature: str = ""
    merge: str = "min"
    per_round: int = 8
    least: int = 2
    batches: int = 8
    progress: float = 0.1
    mmd_weight: float = 1.0
    round_steps: int = 20
    steps: int = 260
    rate: float = 0.03
    discrepancy: Callable[[Tensor, Tensor], Tensor] = mmd

    def __post_init__(self):
        if self.merge not in MERGES:
            raise ValueError(f"merge must be one of {', '.join(MERGES)}, not {self.merge!r}")
        for name, lowest in (("per_round", 1), ("least", 1), ("batches", 1), ("round_steps", 0), ("steps", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, not {getattr(self, name)}")

    @staticmethod
    def join(source: Iterable, target: Iterable) -> Iterable:
        """Two loaders as ``data``: see :class:`Joined`."""
        return Joined(source, target)

    # --- scores

    def beta(self, progress: float) -> float:
        return self.mmd_weight * rising(progress)

    @torch.enable_grad()
    def products(self, groups: Sequence[ChannelGroup], model: nn.Module, source: Tensor, labels: Tensor, target: Tensor) -> dict[str, Tensor]:
        """{group: (2, size)}: Σ a·∂L/∂a over the source images and over the target images, of one joint backward pass.

        A gate of ones is multiplied into every map; the gradient that reaches an image's gate is its Σ_hw a·∂L/∂a.
        """
        gates: dict[str, Tensor] = {}

        def see(name, out, dim):
            gates[name] = out.new_ones([out.shape[0], *(out.shape[i] if i == dim else 1 for i in range(1, out.dim()))]).requires_grad_()
            return out * gates[name]

        loss = run_watching(groups, model, see, lambda: joint_loss(model, source, labels, target, self.beta(self.progress), self.feature, self.discrepancy))[0]
        found = dict(zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True))
        halves = {name: g.flatten(1).unflatten(0, (2, -1)).sum(1) for name, g in found.items()}
        return {g.name: torch.stack([per_unit(g, model, row) for row in halves[g.name]]) for g in groups}

    def lists(self, groups: Sequence[ChannelGroup], model: nn.Module, data: Iterable) -> dict[str, Tensor]:
        """{group: (2, size)}: the products of ``batches`` batches, summed with their signs."""
        total = defaultdict(float)
        for source, labels, target in islice(endless(data), self.batches):
            for name, rows in self.products(groups, model, source, labels, target).items():
                total[name] = total[name] + rows
        return dict(total)

    def merged(self, lists: dict[str, Tensor]) -> dict[str, Tensor]:
        """{group: (size,)}: each row's magnitude over its layer's ℓ2 norm (a row of zeros stays zero), merged into one list."""
        return {name: MERGES[self.merge](rows) for name, rows in lists.items()}

    def lowest(self, scores: dict[str, Tensor], n: int) -> dict[str, Tensor]:
        """The ``n`` lowest units over all layers (fewer where every layer is down to ``least``): {group: indices}."""
        ranked = [(float(score[unit]), i, int(unit)) for i, score in enumerate(scores.values())
                  for unit in score.argsort(stable=True)[:max(0, len(score) - self.least)]]
        gone = defaultdict(list)
        for _, i, unit in sorted(ranked)[:n]:
            gone[list(scores)[i]].append(unit)
        return {name: torch.tensor(sorted(units)) for name, units in gone.items()}

    # --- rounds

    def surgery(self, model: nn.Module, drop: dict[str, Tensor], example: Tensor, groups: Sequence[ChannelGroup]) -> nn.Module:
        return remove(model, drop, example, groups)

    def prune(self, model: nn.Module, ratio: float, data: Iterable, example: Tensor | None = None,
              watch: Callable[[nn.Module], None] | None = None) -> Transferred:
        """Removes ``ratio`` of the MACs of a copy, round by round. ``watch(model)`` is called every ``round_steps`` steps of the final tuning.

        ValueError: ratio outside [0, 1) or beyond the floor, batches of another form, target labels, an unknown ``feature``.
        """
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio: share of the MACs to remove must lie in [0, 1), found {ratio}")
        data, small, done = checked(data), copy.deepcopy(model).eval(), Transferred(model)
        example = next(iter(data))[0][:1] if example is None else example
        groups, dense = convolutional(small, example), macs(small, example)
        floor = remove(small, {g.name: range(self.least, g.size) for g in groups if g.size > self.least}, example, groups)
        if (left := macs(floor, example)) > (1 - ratio) * dense:
            raise ValueError(f"ratio: {ratio} of {dense} MACs cannot be removed; with least = {self.least} channels in each layer, {1 - left / dense:.3f} are")
        feed, rounds = endless(data), []
        while (before := macs(small, example)) > (1 - ratio) * dense:
            groups = convolutional(small, example)
            lists = self.lists(groups, small, data)
            drop = self.next_cut(self.merged(lists), small, (1 - ratio) * dense, example, groups)
            done = done if rounds else replace(done, lists=lists, cut=drop)
            small = self.surgery(small, drop, example, groups)
            if (now := macs(small, example)) >= before:
                raise ValueError("surgery: the network has not become smaller")
            losses = self.tune(small, feed, self.round_steps)
            rounds.append(Round({g.name: g.size - len(drop.get(g.name, ())) for g in groups}, now / dense, *losses))
        if rounds:
            self.tune(small, feed, max(0, self.steps - self.round_steps * len(rounds)), watch)
        return replace(done, model=small, rounds=rounds)

    def next_cut(self, scores: dict[str, Tensor], model: nn.Module, goal: float, example: Tensor, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        """``per_round`` channels, or as many as reach ``goal`` MACs: the smallest such number, by bisection."""
        low, high = 0, min(self.per_round, sum(len(score) for score in scores.values()))
        if macs(remove(model, self.lowest(scores, high), example, groups), example) >= goal:
            return self.lowest(scores, high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if macs(remove(model, self.lowest(scores, middle), example, groups), example) <= goal else (middle, high)
        return self.lowest(scores, high)

    def learning_rate(self, progress: float) -> float:
        return self.rate / (1 + 10 * progress) ** 0.75

    def tune(self, model: nn.Module, feed: Iterator, steps: int, watch: Callable[[nn.Module], None] | None = None) -> tuple[float, float]:
        """``steps`` steps on the joint loss, in place; cross-entropy and MMD² of the last one."""
        head = {id(p) for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
        groups = [{"params": [p for p in model.parameters() if (id(p) in head) == linear], "share": 1.0 if linear else 0.2} for linear in (True, False)]
        optimizer = torch.optim.SGD([g for g in groups if g["params"]], self.rate, momentum=0.9, weight_decay=5e-4)
        losses = [(float("nan"), float("nan"))]

        def schedule(progress: float) -> None:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(progress) * group["share"]

        def on_step(*loss: float) -> None:
            losses.append(loss)
            if watch and (len(losses) - 1) % max(1, self.round_steps) == 0:
                model.eval()
                watch(model)
                model.train()

        adapt(model, feed, steps, optimizer, schedule, self.beta, self.feature, self.discrepancy, on_step)
        return losses[-1]

    def compress(self, model: nn.Module, ratio: float, data: Iterable, example: Tensor | None = None) -> nn.Module:
        """The model contract: ``workbench.compress(net, "tcp", ratio=0.26, data=Joined(source_loader, target_loader))``."""
        return self.prune(model, ratio, data, example).model


def convolutional(model: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """The groups that convolutions write and that are no residual stream; fully connected layers keep their width."""
    groups = [g for g in inside_blocks(channel_groups(model, example)) if all(isinstance(m.module, CONV) for m in g.producers)]
    if not groups:
        raise ValueError("model: no convolution whose channels can go")
    return groups


def checked(data: Iterable) -> Iterable:
    """``data`` itself, once its first batch has the form that is needed."""
    if data is None:
        raise ValueError("data: TCP looks at two domains; hand in Joined(source_loader, target_loader)")
    batch = next(iter(data), None)
    if batch is None:
        raise ValueError("data: the loader yields no batch")
    if not isinstance(batch, (tuple, list)) or len(batch) != 3 or len(batch[0]) != len(batch[2]):
        shape = [tuple(getattr(item, "shape", ())) for item in batch] if isinstance(batch, (tuple, list)) else tuple(batch.shape)
        raise ValueError(f"data: batches of (source inputs, source labels, target inputs), equally many, are needed; found {shape}. "
                         "Joined(source_loader, target_loader) makes them")
    return data


@dataclass(frozen=True)
class Joined:
    """One pass over ``source`` (inputs, labels) beside ``target`` (inputs alone), which is repeated as needed; the longer batch of two is cut.

    ValueError: source without labels, target *with* labels (they must stay out of training, pruning and the choice of a checkpoint), an empty loader.
    """

    source: Iterable
    target: Iterable

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for ours, theirs in zip(self.source, endless(self.target)):
            if not isinstance(ours, (tuple, list)) or len(ours) != 2:
                raise ValueError("source: batches of (inputs, labels) are needed; found inputs alone")
            found = list(theirs) if isinstance(theirs, Mapping) else [type(item).__name__ for item in theirs] if isinstance(theirs, (tuple, list)) else []
            if isinstance(theirs, Mapping) or len(found) > 1:
                raise ValueError(f"target: a tensor of inputs alone is needed, found {', '.join(found)}; target labels must not be seen: take them out of the loader")
            theirs = theirs[0] if found else theirs
            (inputs, labels), n = ours, min(len(ours[0]), len(theirs))
            if len(inputs) != len(theirs):
                warnings.warn(f"source and target batches differ ({len(inputs)} and {len(theirs)}): cut to {n}", stacklevel=2)
            yield inputs[:n], labels[:n], theirs[:n]
