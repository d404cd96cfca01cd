"""Incremental pruning based on less training: plan, surgery on network and optimiser, the trainer. The lesson stands in :mod:`.iplt`."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.files.artifact import ArtifactError, read, save
from ...contracts.files.storage import fit
from ...contracts.structure.channels import ChannelGroup, channel_groups
from ...contracts.structure.macs import macs, parameters
from ...contracts.structure.surgery import mask, remove
from ...contracts.structure.trace import CONV
from . import inside_blocks
from .classics import norms

STATES = {torch.optim.SGD: ("momentum_buffer",), torch.optim.Adam: ("exp_avg", "exp_avg_sq"), torch.optim.AdamW: ("exp_avg", "exp_avg_sq")}
Widths = dict[str, int]
Loader = Iterable | Callable[[int], Iterable]  # batches (inputs, labels), or a function of the epoch's number that gives them


# --- what goes, and when ------------------------------------------------------------------------------------------------------------------------


def convolutional(model: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """The groups that convolutions alone write and that are no residual stream."""
    groups = [g for g in inside_blocks(channel_groups(model, example)) if all(isinstance(m.module, CONV) for m in g.producers)]
    if not groups:
        raise ValueError("model: no convolution whose filters can go (residual streams stay: name blocks with an inner width)")
    return groups


@dataclass(frozen=True)
class FilterNorm:
    """‖filter‖₁ over its fan-in (on purpose the simplest criterion)."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {g.name: norms(g, "producers") / sum(m.weights().shape[1] for m in g.producers) for g in groups}


def progress(step: int, rounds: int, shape: str = "linear") -> float:
    """s(t): the share of the final cut that is done after round ``step`` of ``rounds``; ``cubic`` cuts more at first (reconstructed)."""
    t = step / rounds
    return t if shape == "linear" else 1 - (1 - t) ** 3


def kept(sizes: Mapping[str, int], shares: Mapping[str, float], done: float = 1.0) -> Widths:
    """N_l·(1 − R_l·s), rounded, one filter at least."""
    return {name: max(1, round(size * (1 - shares[name] * done))) for name, size in sizes.items()}


def final_shares(model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor, keep: float, slant: Mapping[str, float] | None = None) -> dict[str, float]:
    """{layer: R_l}: slant·c (uniform: 1·c), at most 0.98, with the smallest c at which the rebuilt net has ``keep`` of the parameters at most.

    ValueError: ``keep`` lies below what one filter a layer leaves.
    """
    slant = slant or {g.name: 1.0 for g in groups}
    sizes, dense = {g.name: g.size for g in groups}, parameters(model)

    def left(c: float) -> float:
        widths = kept(sizes, shares(c))
        return parameters(remove(model, {g.name: range(widths[g.name], g.size) for g in groups if widths[g.name] < g.size}, example, groups)) / dense

    def shares(c: float) -> dict[str, float]:
        return {name: min(0.98, c * slant[name]) for name in sizes}

    highest = 0.98 / min(value for value in slant.values() if value > 0)
    if not 0 < keep <= 1 or left(highest) > keep:
        raise ValueError(f"keep: share of the parameters between {left(highest):.3f} (one filter a layer, or what may not be cut) and 1, found {keep}")
    low, high = 0.0, highest
    if keep == 1:
        return shares(0.0)
    for _ in range(14):  # widths are whole numbers: finer shares change nothing
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= keep else (middle, high)
    return shares(high)


def sensitivity(model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor, accuracy: Callable[[nn.Module], float], delta: float = 2.0,
                steps: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.95)) -> dict[str, float]:
    """{layer: R_l}: the largest of ``steps`` that, cut from this layer alone by filter norm, costs at most ``delta`` points of ``accuracy``.

    Scanned on the partly trained net; a layer that can spare nothing gets half of the first step, so that none stands out of reach.
    """
    scores, before, shares = FilterNorm().scores(groups, model), accuracy(model), {}
    for group in groups:
        order, found = scores[group.name].argsort(), steps[0] / 2
        for share in steps:
            if before - accuracy(mask(model, {group.name: order[: min(group.size - 1, round(share * group.size))]}, example, groups)) > delta:
                break
            found = share
        shares[group.name] = found
    return shares


def lowest(scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """{layer: filters to drop}: the lowest, so that ``widths`` stay (a layer that is narrow enough already loses none)."""
    gone = {name: score.argsort(stable=True)[: max(0, len(score) - widths[name])].sort().values for name, score in scores.items()}
    return {name: units for name, units in gone.items() if len(units)}


# --- surgery on network and optimiser -----------------------------------------------------------------------------------------------------------


def sliced(model: nn.Module, values: Mapping[str, Tensor], drop: Mapping[str, Tensor], example: Tensor, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Tensors that stand beside the parameters (momentum), cut as :func:`remove` cuts those: they take the weights' place in a copy that is then cut."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(values[name])
    return {name: p.detach().clone() for name, p in remove(twin, drop, example, groups).named_parameters()}


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    if type(optimizer) not in STATES:
        raise ValueError(f"optimizer: {', '.join(cls.__name__ for cls in STATES)} can be cut with the network, found {type(optimizer).__name__}")


def shrink(model: nn.Module, optimizer: torch.optim.Optimizer, drop: Mapping[str, Tensor], example: Tensor,
           groups: Sequence[ChannelGroup]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A smaller network and an optimiser of its parameters whose state is the matching part of the old one: training goes on warm."""
    _check_optimizer(optimizer)
    small, names = remove(model, drop, example, groups), {id(p): name for name, p in model.named_parameters()}
    now = dict(small.named_parameters())
    rebuilt = type(optimizer)([{**g, "params": [now[names[id(p)]] for p in g["params"]]} for g in optimizer.param_groups])
    for entry in STATES[type(optimizer)]:
        values = {names[id(p)]: state[entry] for p, state in optimizer.state.items() if state.get(entry) is not None}
        if values:
            cut = sliced(model, {name: values.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()}, drop, example, groups)
            for name in values:
                rebuilt.state[now[name]][entry] = cut[name]
    for p, state in optimizer.state.items():
        if "step" in state:
            rebuilt.state[now[names[id(p)]]]["step"] = copy.deepcopy(state["step"])
    return small, rebuilt


# --- the trainer --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: which phase, each layer's filters, parameters, MACs of one forward pass, MACs that training it took, mean loss."""

    number: int
    phase: str  # "pre-training" | "pruning" | "final"
    widths: Widths
    parameters: int
    macs: int
    training_macs: int
    loss: float


@dataclass(frozen=True)
class IPLT:
    """The schedule: ``pretrain`` epochs (E₀), then ``rounds`` (K) cuts with ``per_round`` epochs (E_i) after each, then whatever epochs are left.

    keep: share of the parameters at the end. shape: ``linear`` or ``cubic``. criterion: what ranks filters (an object with `scores`).
    ``warm``: the optimiser's state is cut with the network, not thrown away.
    """

    pretrain: int = 2
    rounds: int = 4
    per_round: int = 1
    keep: float = 0.12
    shape: str = "linear"
    criterion: Any = field(default_factory=FilterNorm)
    warm: bool = True

    def __post_init__(self):
        for name, least in (("pretrain", 0), ("rounds", 1), ("per_round", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name}: a whole number, {least} at least, found {getattr(self, name)!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: share of the parameters in (0, 1], found {self.keep}")
        if self.shape not in ("linear", "cubic"):
            raise ValueError(f"shape: 'linear' or 'cubic', found {self.shape!r}")

    def shrink(self, model, optimizer, drop, example, groups) -> tuple[nn.Module, torch.optim.Optimizer]:
        return shrink(model, optimizer, drop, example, groups)

    def cut_before(self, number: int) -> list[int]:
        """The rounds (1 … K) whose cut comes right before epoch ``number``."""
        return [t for t in range(1, self.rounds + 1) if self.pretrain + (t - 1) * self.per_round == number]

    def phase(self, number: int) -> str:
        return "pre-training" if number < self.pretrain else "pruning" if number < self.pretrain + self.rounds * self.per_round else "final"

    def compress(self, model: nn.Module, ratio: float, data: Iterable, example: Tensor) -> nn.Module:
        """The model contract, for a network that is trained already: K cuts to 1 − ``ratio`` of its parameters, an epoch of SGD at a rate of 0.01 after each."""
        if data is None:
            raise ValueError("data: pruning while training needs a loader of (inputs, labels)")
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio: share of the parameters to remove must lie in [0, 1), found {ratio}")
        plan = replace(self, pretrain=0, keep=1 - ratio)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        return model if not ratio else Trainer(model, optimizer, data, plan, example).fit(plan.rounds * max(1, plan.per_round))[0]


class Trainer:
    """Trains ``model`` and prunes it meanwhile; :meth:`fit` returns the smaller network and the log.

        tr = Trainer(model, optimizer, loader, IPLT(pretrain=5, rounds=10, keep=0.12))
        small, log = tr.fit(epochs=60, rate=lambda epoch: 0.1 * 0.1 ** (epoch // 20))

    ``example``: one input (default: from the loader). ``shares``: {layer: R_l}, e.g. from :func:`sensitivity` (default: equal shares).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader, plan: IPLT | None = None, example: Tensor | None = None,
                 shares: Mapping[str, float] | None = None):
        _check_optimizer(optimizer)
        owned = {id(p) for p in model.parameters()}
        if any(id(p) not in owned for g in optimizer.param_groups for p in g["params"]):
            raise ValueError("optimizer: it holds parameters that are not the model's")
        self.model, self.optimizer, self.loader, self.plan = model, optimizer, loader, plan or IPLT()
        self.example = next(iter(self._batches(0)))[0][:1] if example is None else example
        groups = convolutional(model, self.example)
        self.sizes = {g.name: g.size for g in groups}
        self.shares = final_shares(model, groups, self.example, self.plan.keep, shares)
        self.log: list[Epoch] = []
        self.ranks: list[dict[str, Tensor]] = []

    def _batches(self, number: int) -> Iterable:
        return self.loader(number) if callable(self.loader) else self.loader

    def _cut(self, step: int) -> None:
        groups = [g for g in convolutional(self.model, self.example) if g.name in self.sizes]
        scores = self.plan.criterion.scores(groups, self.model, None)
        self.ranks.append({name: score.argsort().argsort() for name, score in scores.items()})
        drop = lowest(scores, kept(self.sizes, self.shares, progress(step, self.plan.rounds, self.plan.shape)))
        if drop:
            old = self.optimizer
            self.model, self.optimizer = self.plan.shrink(self.model, old, drop, self.example, groups)
            if not self.plan.warm:
                self.optimizer.state.clear()

    def fit(self, epochs: int, rate: Callable[[int], float] | None = None, until: int | None = None,
            watch: Callable[[int, nn.Module], None] | None = None) -> tuple[nn.Module, list[Epoch]]:
        """Goes on until ``epochs`` are done (``until``: stops earlier, to be resumed). ``rate(epoch)``: learning rate; ``watch(epochs done, model)``.

        ValueError: fewer epochs than pre-training and rounds take, batches without labels, a schedule that is no function of the epoch, a loss that is not finite.
        """
        if epochs < self.plan.pretrain + self.plan.rounds * self.plan.per_round:
            raise ValueError(f"epochs: pre-training and {self.plan.rounds} rounds take {self.plan.pretrain + self.plan.rounds * self.plan.per_round}, found {epochs}")
        if rate is not None and not callable(rate):
            raise ValueError(f"rate: a function of the epoch's number is needed, found {type(rate).__name__} (a scheduler would keep the optimiser that a cut replaces)")
        for number in range(len(self.log), epochs if until is None else min(epochs, until)):
            for step in self.plan.cut_before(number):
                self._cut(step)
            if rate:
                for group in self.optimizer.param_groups:
                    group["lr"] = float(rate(number))
            self._epoch(number)
            if watch:
                watch(number + 1, self.model)
        if len(self.log) == epochs:
            for step in self.plan.cut_before(epochs):  # rounds without epochs of their own after the last one
                self._cut(step)
        return self.model.eval(), self.log

    def _epoch(self, number: int) -> None:
        self.model.train()
        total, images, count = 0.0, 0, 0
        for batch in self._batches(number):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError("loader: batches of (inputs, labels) are needed")
            loss = F.cross_entropy(self.model(batch[0]), batch[1])
            if not math.isfinite(value := loss.item()):
                raise ValueError(f"loader: the loss is {value} in epoch {number}; are the inputs finite, is the rate too high?")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total, images, count = total + value, images + len(batch[1]), count + 1
        if not count:
            raise ValueError("loader: it yields no batch (a generator is empty the second time: hand in a list, a loader or a function of the epoch)")
        self.model.eval()
        cost = macs(self.model, self.example)
        widths = {g.name: g.size for g in convolutional(self.model, self.example) if g.name in self.sizes}
        self.log.append(Epoch(number, self.plan.phase(number), widths, parameters(self.model), cost, 3 * cost * images, total / count))

    # --- stop and go on

    def save(self, path: str | os.PathLike) -> int:
        """Network, optimiser state and log in one file; its bytes."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        steps = {}
        for p, state in self.optimizer.state.items():
            tensors |= {f"{entry}.{names[id(p)]}": state[entry] for entry in STATES[type(self.optimizer)] if state.get(entry) is not None}
            steps |= {names[id(p)]: float(state["step"])} if "step" in state else {}
        return save(Path(path), tensors, {"kind": "iplt", "optimizer": type(self.optimizer).__name__, "shares": self.shares, "sizes": self.sizes, "steps": steps,
                                          "log": json.dumps([asdict(e) for e in self.log])})

    def resume(self, path: str | os.PathLike) -> Trainer:
        """Takes over what :meth:`save` wrote, in place. The trainer is made anew with the original network, optimiser and plan. ArtifactError: another file."""
        found = read(Path(path))
        if found.meta.get("kind") != "iplt" or found.meta.get("optimizer") != type(self.optimizer).__name__ or found.meta.get("sizes") != self.sizes:
            raise ArtifactError(f"{path}: it holds no training of this network with {type(self.optimizer).__name__}")
        names = {id(p): name for name, p in self.model.named_parameters()}
        order = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in self.optimizer.param_groups]
        self.model = fit(self.model, {k.removeprefix("model."): v for k, v in found.tensors.items() if k.startswith("model.")})
        now = dict(self.model.named_parameters())
        self.optimizer = type(self.optimizer)([{**g, "params": [now[name] for name in g["params"]]} for g in order])
        for entry in STATES[type(self.optimizer)]:
            for name, p in now.items():
                if f"{entry}.{name}" in found.tensors:
                    self.optimizer.state[p][entry] = found.tensors[f"{entry}.{name}"]
        for name, step in found.meta["steps"].items():
            self.optimizer.state[now[name]]["step"] = torch.tensor(step)
        self.shares, self.log = dict(found.meta["shares"]), [Epoch(**e) for e in json.loads(found.meta["log"])]
        return self


def training_macs(log: Sequence[Epoch]) -> int:
    """Σ over steps of 3·MACs(current network)·batch: forward, and twice as many backward."""
    return sum(epoch.training_macs for epoch in log)


# --- does the order of filters stand? -----------------------------------------------------------------------------------------------------------


def overlap(young: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float = 0.35) -> float:
    """Share of the best ``share`` of each layer's filters, by the young net's scores, that are the trained net's best too; mean over layers. Chance: ``share``."""
    values = []
    for name, score in trained.items():
        n = max(1, round(share * len(score)))
        a, b = (set(scores.argsort(descending=True)[:n].tolist()) for scores in (young[name], score))
        values.append(len(a & b) / n)
    return sum(values) / len(values)


def rank_correlation(young: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> float:
    """Spearman's correlation of each layer's scores; mean over layers."""
    from scipy import stats

    return float(sum(stats.spearmanr(young[name].numpy(), score.numpy()).statistic for name, score in trained.items()) / len(trained))


__all__ = ["IPLT", "Epoch", "FilterNorm", "Trainer", "overlap", "rank_correlation", "sensitivity", "shrink", "training_macs"]
