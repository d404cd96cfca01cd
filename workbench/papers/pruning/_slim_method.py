"""SlimNets as a method: steps one after another on one's own network, and a network of a wanted size by low rank alone."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

from ...contracts.structure.channels import check_finite
from ...contracts.structure.macs import parameters
from ...contracts.structure.trace import forward
from ._gradual import GradualPruner, Schedule, endless, train_steps
from ._slim_distil import ALPHA, TEMPERATURE, answers_of, distillation_loss
from ._slim_file import Slim, load_slim, round_to_8_bits, save_slim
from ._slim_lowrank import candidates, lowrank, lowrank_conv, ranks_by_energy, ranks_by_share, saved, singular

STEPS = ("lowrank:energy=0.95", "prune:0.75", "int8")


@dataclass(frozen=True)
class SlimNets:
    """The paper's three ways with their settings; ``tuning_steps`` follow low rank and go along with pruning where there is data.

    The callables are what is replaced to be wrong on purpose.
    """

    temperature: float = TEMPERATURE
    alpha: float = ALPHA
    tuning_steps: int = 100
    rate: float = 2e-3
    basis: Callable = singular
    factorise: Callable = lowrank_conv
    schedule: type[Schedule] = Schedule
    loss: Callable = distillation_loss
    write: Callable = save_slim
    read: Callable = load_slim

    def tune(self, model: nn.Module, loader: Iterable, teacher: nn.Module | None, pruner: GradualPruner | None = None) -> None:
        """In place: cross-entropy, or the distillation loss where there is a teacher."""
        def stream() -> Iterator:
            for inputs, labels in endless(loader):
                yield inputs, (labels, None if teacher is None else answers_of(teacher, inputs))

        def loss(net: nn.Module, inputs: Tensor, told: tuple) -> Tensor:
            answers = forward(net, inputs)
            return nn.functional.cross_entropy(answers, told[0]) if teacher is None else self.loss(answers, told[1], told[0], self.temperature, self.alpha)

        train_steps(model, stream(), self.tuning_steps, self.rate, loss=loss, after=pruner and (lambda step: pruner.step(step + 1)))

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example) -> nn.Module:
        """Low rank alone, which makes really smaller tensors: the largest share of full rank that leaves at most ``1 − ratio`` of the parameters, in the
        convolutions where that is smaller than the kernel; tuned on ``data`` where there is some. ValueError: no convolution to factorise, or not even rank 1 is small enough."""
        if not (found := candidates(model)):
            raise ValueError("model: low rank needs an undilated Conv2d without groups and larger than 1×1; the model has none")
        if ratio == 0:
            return model
        for share in np.arange(0.99, 0, -0.01):
            ranks = {name: rank for name, rank in ranks_by_share(model, share).items() if saved(found[name], rank) > 0}
            left = 1 - sum(saved(found[name], rank) for name, rank in ranks.items()) / parameters(model)
            if left <= 1 - ratio:
                small = lowrank(model, ranks, self.basis)
                if data is not None:
                    self.tune(small, data, None)
                return small.eval()
        raise ValueError(f"ratio: {ratio} is more than low rank can remove; rank 1 everywhere leaves {left:.3f} of the parameters")


def slim(model: nn.Module, loader: Iterable, steps: Sequence[str] = STEPS, teacher: nn.Module | None = None, method: SlimNets = SlimNets(),
         example: Tensor | None = None) -> tuple[Slim, pd.DataFrame]:
    """The steps one after another on a copy of ``model``; returns the result (``save(path)`` writes it, ``load_slim`` reads it) and a table of parameters
    and bytes of the file after each step.

    ``lowrank:energy=E`` or ``lowrank:share=S`` (of full rank), ``prune:S`` (final sparsity of every layer, gradually), ``int8``, ``tune``. With a
    ``teacher`` every tuning distils. ValueError: an unknown step, a step after int8, no data.
    """
    plan = [_step(text) for text in steps]
    if any(kind == "int8" for kind, _, _ in plan[:-1]):
        raise ValueError("steps: int8 comes last: what follows would undo its rounding")
    check_finite(model)
    model, (inputs, _) = copy.deepcopy(model).eval(), next(endless(loader))
    example = inputs[:2] if example is None else example
    teacher = None if teacher is None else copy.deepcopy(teacher).eval()
    found, rows = Slim(model, example=example), []
    for text, (kind, name, value) in zip(("as it was", *steps), (("", "", 0.0), *plan), strict=True):
        if kind == "lowrank":
            found.model = lowrank(found.model, (ranks_by_energy if name == "energy" else ranks_by_share)(found.model, value), method.basis)
            method.tune(found.model, loader, teacher)
        elif kind == "prune":
            pruner = GradualPruner(found.model, method.schedule(value, 0.0, 0, 5, 3 * method.tuning_steps // 4))
            pruner.step(0)
            method.tune(found.model, loader, teacher, pruner)
        elif kind == "tune":
            method.tune(found.model, loader, teacher)
        elif kind == "int8":
            round_to_8_bits(found.model)
            found.bits = 8
        with tempfile.TemporaryDirectory() as folder:
            rows.append((text, parameters(found.model), sum(int((p != 0).sum()) for p in found.model.parameters()), found.save(Path(folder) / "slim")))
    return found, pd.DataFrame(rows, columns=["step", "parameters", "not zero", "bytes"])


def _step(text: str) -> tuple[str, str, float]:
    """(kind, name of its setting, value)."""
    kind, _, setting = text.partition(":")
    name, _, number = setting.rpartition("=")
    allowed = {"lowrank": ("energy", "share"), "prune": ("",), "int8": ("",), "tune": ("",)}
    try:
        if kind not in allowed or name not in allowed[kind] or bool(setting) != (kind in ("lowrank", "prune")):
            raise ValueError
        return kind, name, float(number) if number else 0.0
    except ValueError:
        raise ValueError(f"steps: 'lowrank:energy=E', 'lowrank:share=S', 'prune:S', 'int8' or 'tune', found {text!r}") from None
