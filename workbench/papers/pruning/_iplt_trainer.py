"""Incremental pruning based on less training: the plan, and the trainer that carries it out. The lesson stands in :mod:`.iplt`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches.activations import kept_for_backward
from ...contracts.files.artifact import ArtifactError, read, save
from ...contracts.files.storage import fit
from ...contracts.structure.channels import ChannelGroup
from ...contracts.structure.macs import macs, parameters
from ._iplt_surgery import FilterNorm, Widths, check_optimizer, convolutional, entries, final_shares, kept, lowest, progress, shrink

Loader = Iterable | Callable[[int], Iterable]  # batches (inputs, labels), or a function of the epoch's number that gives them
Scan = Callable[[nn.Module, Sequence[ChannelGroup]], Mapping[str, float]]


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: which phase, each layer's filters, parameters, MACs of one forward pass; what the epoch took: MACs, bytes that a batch's forward
    pass keeps for the backward one, seconds; its mean loss."""

    number: int
    phase: str  # "pre-training" | "pruning" | "final"
    widths: Widths
    parameters: int
    macs: int
    training_macs: int
    memory: int
    loss: float
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class IPLT:
    """The schedule: ``pretrain`` epochs (E₀), then ``rounds`` (K) cuts with ``per_round`` epochs (E_i) after each, then whatever epochs are left.

    keep: share of the parameters at the end (in :meth:`compress`, 1 − ratio). shape: ``linear`` or ``cubic``. criterion: what ranks filters (an object with `scores`).
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

    ``example``: one input (default: from the loader). ``shares``: {layer: R_l}, or a function of (model, groups) that finds them right before the first cut,
    e.g. :func:`sensitivity` (default: equal shares); they are scaled until ``keep`` is met.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader, plan: IPLT | None = None, example: Tensor | None = None,
                 shares: Mapping[str, float] | Scan | None = None):
        check_optimizer(optimizer)
        owned = {id(p) for p in model.parameters()}
        if any(id(p) not in owned for g in optimizer.param_groups for p in g["params"]):
            raise ValueError("optimizer: it holds parameters that are not the model's")
        self.model, self.optimizer, self.loader, self.plan = model, optimizer, loader, plan or IPLT()
        self.example = next(iter(self._batches(0)))[0][:1] if example is None else example
        groups = convolutional(model, self.example)
        self.sizes = {g.name: g.size for g in groups}
        self.scan = shares if callable(shares) else None
        self.shares = final_shares(model, groups, self.example, self.plan.keep, None if self.scan else shares)
        self.log: list[Epoch] = []

    def _batches(self, number: int) -> Iterable:
        return self.loader(number) if callable(self.loader) else self.loader

    def _cut(self, step: int) -> None:
        groups = [g for g in convolutional(self.model, self.example) if g.name in self.sizes]
        if self.scan and step == 1:
            self.shares = final_shares(self.model.eval(), groups, self.example, self.plan.keep, self.scan(self.model, groups))
        scores = self.plan.criterion.scores(groups, self.model, None)
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
        total, images, count, first, start = 0.0, 0, 0, None, time.perf_counter()
        for batch in self._batches(number):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError("loader: batches of (inputs, labels) are needed")
            first = first if count else batch[0]
            loss = F.cross_entropy(self.model(batch[0]), batch[1])
            if not math.isfinite(value := loss.item()):
                raise ValueError(f"loader: the loss is {value} in epoch {number}; are the inputs finite, is the rate too high?")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total, images, count = total + value, images + len(batch[1]), count + 1
        if not count:
            raise ValueError("loader: it yields no batch (a generator is empty the second time: hand in a list, a loader or a function of the epoch)")
        seconds = time.perf_counter() - start
        self.model.eval()
        cost, memory = macs(self.model, self.example), kept_for_backward(self.model, first)
        left = {g.name: g.size for g in convolutional(self.model, self.example)}
        widths = {name: left.get(name, 1) for name in self.sizes}  # a layer with one filter is no group any more
        self.log.append(Epoch(number, self.plan.phase(number), widths, parameters(self.model), cost, 3 * cost * images, memory, total / count, seconds))

    # --- stop and go on

    def save(self, path: str | os.PathLike) -> int:
        """Network, optimiser state and log in one file; its bytes."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        steps = {}
        for p, state in self.optimizer.state.items():
            tensors |= {f"{entry}.{names[id(p)]}": state[entry] for entry in entries(self.optimizer) if state.get(entry) is not None}
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
        for full, value in found.tensors.items():
            entry, _, name = full.partition(".")
            if entry != "model":
                self.optimizer.state[now[name]][entry] = value
        for name, step in found.meta["steps"].items():
            self.optimizer.state[now[name]]["step"] = torch.tensor(step)
        self.shares, self.log = dict(found.meta["shares"]), [Epoch(**e) for e in json.loads(found.meta["log"])]
        return self


def training_macs(log: Sequence[Epoch]) -> int:
    """Σ over steps of 3·MACs(current network)·batch: forward, and twice as many backward."""
    return sum(epoch.training_macs for epoch in log)
