"""BSGC itself: a student that is specialised, kept general and shrunk at once (`Student`), and the loop around it (`specialize`)."""

from __future__ import annotations

import copy
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.files.storage import save_model
from ...contracts.structure.channels import ChannelGroup, check_finite
from ...contracts.structure.macs import macs, parameters
from ...contracts.structure.surgery import remove
from ...contracts.structure.trace import forward
from ...contracts.structure.tuning import inputs_and_labels
from ._bsgc_shrink import Counter, alive, fold, prunable, scales, shrink, soft_threshold, strength, take_out
from ._bsgc_tasks import Classification, Task


@dataclass(frozen=True)
class BSGC:
    """L = L_s + α·L_g + β·L_c by SGD with momentum, the last term by its proximal operator.

    ``alpha``: weight of the general domain; ``temperature`` of its distillation. ``beta`` grows by ``growth`` at each step while the network is larger than it should be by then, and falls
    by it otherwise. ``currency``: what a channel's cost and the wanted size are counted in, ``parameters`` or ``macs``. Channels are taken out every ``every`` steps, but for those whose constant would jump by more than ``outgoing`` standard deviations at a border. Of
    ``steps``, the last ``tuning`` share goes without L_c. ``rate``: learning rate at the start (it falls to 0 along a cosine);
    ``clip``: largest norm of the gradient.
    """

    alpha: float = 1.0
    temperature: float = 2.0
    beta: float = 2.0
    growth: float = 1.01
    currency: str = "parameters"
    steps: int = 360
    tuning: float = 0.5
    every: int = 20
    outgoing: float = 1.0
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = float("inf")

    def __post_init__(self):
        for name in ("alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: a weight of at least 0, found {getattr(self, name)}")
        for name in ("steps", "every"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) > 0):
                raise ValueError(f"{name}: a whole number above 0, found {getattr(self, name)!r}")
        if self.currency not in ("parameters", "macs"):
            raise ValueError(f"currency: parameters or macs, found {self.currency!r}")
        if not self.growth > 1 or not 0 <= self.tuning < 1 or not self.temperature > 0:
            raise ValueError(f"growth > 1, 0 ≤ tuning < 1 and temperature > 0 are allowed, found {self.growth}, {self.tuning} and {self.temperature}")

    # What ablations replace:

    def costs(self, counter: Counter, live: Mapping[str, Tensor]) -> dict[str, float]:
        """c_l of each group, Σ = 1 (part 4)."""
        return counter.costs(live, self.currency)

    def threshold(self, values: Tensor, by: float) -> Tensor:
        """The proximal operator (part 4)."""
        return soft_threshold(values, by)

    def balance(self, beta: float, cost: float, target: float) -> float:
        """β ← β·``growth`` while the cost is above its target, ÷ ``growth`` otherwise (part 5, reconstructed)."""
        return beta * self.growth if cost > target else beta / self.growth

    def wanted(self, whole: int, target: int, progress: float) -> float:
        """The size wanted at ``progress`` (0 … 1) of the shrinking: it falls by equal factors, so that channels go one after the other (part 5, reconstructed)."""
        return whole * (target / whole) ** progress

    def total(self, specialise: Tensor, general: Tensor | float) -> Tensor:
        """L_s + α·L_g (part 5)."""
        return specialise + self.alpha * general

    def fold(self, read) -> None:
        """Part 6."""
        fold(read)

    def surgery(self, model: nn.Module, drop, example, groups: Sequence[ChannelGroup]) -> nn.Module:
        """Part 6."""
        return remove(model, drop, example, groups)

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example: Any) -> nn.Module:
        """The model contract, for classifiers: ``ratio`` of the *parameters* go. ``data`` (labelled or not) is both domains: what there is to specialise to is what must be kept."""
        if ratio == 0:
            return model
        if data is None:
            raise ValueError("data: the domain's frames are needed, as batches of images or of images and labels")
        seen = list(data)
        return specialize(model, seen, [inputs_and_labels(batch)[0] for batch in seen], 1 - ratio, method=self, example=example).model


class Student:
    """A copy of a network that learns and shrinks. ``target``: the size wanted, in the method's currency; ``shrinking``: the steps that it may take. Batch norms learn with the batch's statistics, or (``frozen``) keep theirs."""

    def __init__(self, method: BSGC, net: nn.Module, example, target: int, shrinking: int, frozen: bool = False):
        self.method, self.net, self.example, self.target, self.shrinking, self.frozen = method, copy.deepcopy(net), example, target, shrinking, frozen
        self.step, self.beta, self.jump = 0, method.beta, 0.0
        self.history: dict[str, list[float]] = {"loss": [], "size": [], "beta": []}
        self.renew()
        self.whole = self.size

    def renew(self) -> None:
        """After a change of shape: groups, counts and momentum anew."""
        self.groups = prunable(self.net, self.example)
        self.counter = Counter(self.net, self.groups, self.example)
        self.optimizer = torch.optim.SGD(self.net.parameters(), self.method.rate, self.method.momentum, weight_decay=self.method.weight_decay)

    @property
    def size(self) -> int:
        """Parameters or MACs of the network that the live channels make."""
        return self.counter.total(alive(self.groups), self.method.currency)

    def learn(self, loss: Tensor, rate: float) -> None:
        """One SGD step on ``loss``; while the network is larger than it should be by now, one proximal step of β·L_c; every so often what is off is taken out."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.method.clip < math.inf:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.method.clip)
        self.optimizer.step()
        self.step += 1
        if self.step <= self.shrinking:
            wanted, live = self.method.wanted(self.whole, self.target, self.step / self.shrinking), alive(self.groups)
            size = self.counter.total(live, self.method.currency)
            if size > wanted:
                costs = self.method.costs(self.counter, live)
                shrink(self.groups, {name: rate * self.beta * cost for name, cost in costs.items()}, self.method.threshold)
            self.beta = self.method.balance(self.beta, size, wanted)
            if self.step == self.shrinking or self.step % self.method.every == 0:
                self.prune(finish=self.step == self.shrinking)
        self.history["loss"].append(float(loss.detach()))
        self.history["size"].append(self.size)
        self.history["beta"].append(self.beta)

    @torch.no_grad()
    def prune(self, finish: bool = False) -> None:
        """Takes out the channels that are off. ``finish``: first switches off what the penalty would have reached next, the smallest |γ|/c_l, until the size is right."""
        if finish:
            live = alive(self.groups)
            costs = self.method.costs(self.counter, live)
            order = sorted(((float(value) / costs[g.name], g.name, i) for g in self.groups for i, value in enumerate(strength(g)) if live[g.name][i]))
            for _, name, i in order:
                if self.counter.total(live, self.method.currency) <= self.target:
                    break
                if int(live[name].sum()) > 1:
                    live[name][i] = False
            for group in self.groups:
                self.switch_off(group, ~live[group.name])
        else:
            live = alive(self.groups)
        off = {name: (~mask).nonzero().flatten() for name, mask in live.items() if not mask.all()}
        if off:
            outgoing = float("inf") if finish else self.method.outgoing
            self.net, jump = take_out(self.net, off, self.example, outgoing, self.method.fold, self.method.surgery)
            self.jump = max(self.jump, jump)
            self.renew()

    def switch_off(self, group: ChannelGroup, off: Tensor) -> None:
        gamma = scales(group)
        if gamma is not None:
            gamma[off] = 0
            return
        for member in group.producers:
            rows = member.index[off[member.units]].flatten()
            member.module.weight[rows] = 0
            if member.module.bias is not None:
                member.module.bias[rows] = 0

    def mode(self) -> nn.Module:
        """The network as it learns."""
        self.net.train()
        if self.frozen:
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self.net


@dataclass(frozen=True)
class Specialized:
    """The small network; ``report``: parameters and MACs before and after, the largest jump at a border that folding made; ``history``: loss, size and β of each step."""

    model: nn.Module
    report: Mapping[str, Any]
    history: Mapping[str, Sequence[float]] = field(repr=False)
    example: Any = field(repr=False, default=None)

    def save(self, path: str | os.PathLike) -> int:
        """Write the network, return the bytes; `workbench.load` brings it back."""
        return save_model(path, self.model, self.example)


def specialize(model: nn.Module, domain: Iterable, general: Iterable | None = None, size: float = 0.1, alpha: float | None = None, task: Task | None = None,
               method: BSGC = BSGC(), student: nn.Module | None = None, example: Any = None) -> Specialized:
    """Specialises a copy of ``model`` to a domain, at a share ``size`` of its parameters (1: no compression).

    domain: batches (images, labels, …) of the target camera, or images alone, which the model labels itself. general: batches of images of what the model was trained on
    (labels are ignored). Both are repeated as needed. task: how outputs, labels and the teacher compare (default: classification). student: what learns, where it is not
    a copy of ``model``. ValueError names the argument that is wrong.
    """
    method = method if alpha is None else replace(method, alpha=alpha)
    if not 0 < size <= 1:
        raise ValueError(f"size: the share of the parameters to keep lies in (0, 1], found {size}")
    task = task or Classification()
    check_finite(model)
    teacher = copy.deepcopy(model).eval()
    batches = _labelled(domain, teacher, task)
    if method.alpha > 0 and general is None:
        raise ValueError(f"general: with alpha = {method.alpha} batches of the general domain are needed; alpha=0 goes without, and forgets")
    memory = _remembered(general, teacher) if method.alpha > 0 else []
    example = batches[0][0][:2] if example is None else example
    whole = parameters(model) if method.currency == "parameters" else macs(model, example)
    target, shrinking = round(size * whole), round(method.steps * (1 - method.tuning)) if size < 1 else 0
    learner = Student(method, teacher if student is None else student, example, target, shrinking)
    if size < 1 and (smallest := learner.counter.total(_least(learner.groups), method.currency)) > target:
        raise ValueError(f"size: {size} of {whole} {method.currency} are {target}; with one channel left in each layer there are still {smallest}")
    if size < 1 and any(scales(group) is None for group in learner.groups):
        warnings.warn("some layers have no batch norm behind them: their filters' lengths are shrunk instead of its scales", stacklevel=2)
    repeated, kept = itertools.cycle(batches), itertools.cycle(memory)
    for step in range(method.steps):
        images, *targets = next(repeated)
        if method.alpha > 0:  # one batch of both, so that batch norm learns the statistics with which it will be judged
            others, answers = next(kept)
            outputs = forward(learner.mode(), torch.cat([images, others]))
            loss = method.total(task.loss(outputs[:len(images)], *targets), task.keep(outputs[len(images):], answers, method.temperature))
        else:
            loss = method.total(task.loss(forward(learner.mode(), images), *targets), 0.0)
        if not torch.isfinite(loss):
            raise ValueError(f"method: the loss is {loss.item()} at step {step}; are the images finite, is rate = {method.rate} too high?")
        learner.learn(loss, method.rate * 0.5 * (1 + math.cos(math.pi * step / method.steps)))
    small = learner.net.eval()
    report = {"parameters": (parameters(model), parameters(small)), "macs": (macs(model, example), macs(small, example)), "border jump": learner.jump}
    return Specialized(small, report, learner.history, example)


def _least(groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    return {group.name: torch.arange(group.size) == 0 for group in groups}


@torch.no_grad()
def _labelled(domain: Iterable, teacher: nn.Module, task: Task) -> list[tuple[Tensor, ...]]:
    """The domain's batches; those without labels get the teacher's confident answers."""
    batches = []
    for batch in domain:
        images, *targets = batch if isinstance(batch, (tuple, list)) else (batch,)
        batches.append((images, *(targets or task.label(forward(teacher, images)))))
    if not batches:
        raise ValueError("domain: the loader yields no batch")
    return batches


@torch.no_grad()
def _remembered(general: Iterable, teacher: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The general domain's images with the teacher's answers to them."""
    images = [inputs_and_labels(batch)[0] for batch in general]
    if not images:
        raise ValueError("general: the loader yields no batch")
    return [(batch, forward(teacher, batch)) for batch in images]
