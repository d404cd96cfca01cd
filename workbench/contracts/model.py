"""The model contract: an `nn.Module` and calibration data in, a smaller `nn.Module`, an honest report and one file out.

    result = compress(model, L1(), ratio=.5, data=loader, evaluate=accuracy, finetune_steps=200)
    print(result.report)            # quality, parameters, bytes, MACs, latency, before and after
    result.save("small.wb"); net = load("small.wb")         # in another process, without the class; result.export("small.onnx"): without torch

A method is any object with one of two functions (:class:`StructuredMethod`, :class:`GeneralMethod`); a paper implements the one that fits.

    scores(groups, model, data) ──► select ──► remove ──┐
    compress(model, ratio, data, example) ──────────────┴──► fine-tune ──► batch-norm statistics ──► measure
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from ..core.claims import Estimate, estimate
from .files import onnx
from .files.storage import load, packed_bytes, save_model
from .structure.channels import ChannelGroup, channel_groups, check_finite
from .structure.macs import check_runs, macs, parameters
from .structure.surgery import reestimate_batchnorm, remove, select
from .structure.trace import forward
from .structure.tuning import batches, finetune, first, inputs_and_labels

__all__ = ["Compressed", "GeneralMethod", "Report", "StructuredMethod", "compress", "finetune", "inputs_and_labels", "load", "packed_bytes", "save_model"]


class StructuredMethod(Protocol):
    """Scores channels; the contract does the rest. May set ``mode`` (see ``select``) and ``coupled`` (True: residual streams are pruned too)."""

    def scores(self, groups: list[ChannelGroup], model: nn.Module, data: Iterable | None) -> Mapping[str, Tensor]:
        """Group name -> (size,), higher is kept. ``data``: the loader handed to :func:`compress`; ``model`` must stay as it was."""


class GeneralMethod(Protocol):
    """Does everything itself: quantization, factorisation, …"""

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example: Any) -> nn.Module:
        """The compressed model; ``model`` is a copy that may be changed."""


@dataclass(frozen=True)
class Report:
    """Before and after, as measured. ``gain`` in quality has a 90 % interval where ``evaluate`` gives a value per sample; ``latency``: ``probe``'s."""

    parameters: tuple[int, int]
    bytes: tuple[int, int]
    macs: tuple[int, int]
    quality: tuple[float, float] | None
    gain: Estimate | None
    latency: Any
    seconds: float

    def __str__(self) -> str:
        rows = [("parameters", *self.parameters, ",d"), ("bytes on disk", *self.bytes, ",d"), ("MACs per sample", *self.macs, ",d")]
        if self.quality:
            rows.append(("quality", *self.quality, ".4g"))
        lines = [f"{'':16}{'before':>14}{'after':>14}{'ratio':>8}"]
        lines += [f"{name:16}{format(a, kind):>14}{format(b, kind):>14}{b / a if a else float('nan'):8.3f}" for name, a, b, kind in rows]
        if self.gain and self.gain.units > 1:
            lines.append(f"gain in quality {self.gain.value:+.4g}, 90 % interval {self.gain.low:+.4g} … {self.gain.high:+.4g} ({self.gain.units} samples)")
        return "\n".join([*lines, f"{self.seconds:.1f} s" + (f"; latency: {self.latency}" if self.latency is not None else "; latency not measured")])


@dataclass(frozen=True)
class Compressed:
    """The smaller network with its report; ``dropped``: group name -> units taken out (structured methods)."""
    model: nn.Module
    report: Report
    example: Any = field(repr=False)
    dropped: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def save(self, path: str | os.PathLike) -> int:
        """Write the artefact, return its bytes."""
        return save_model(path, self.model, self.example)

    def export(self, path: str | os.PathLike) -> int:
        """Write an ONNX file, checked against the model, return its bytes; see `contracts.files.onnx.export`."""
        return onnx.export(path, self.model, self.example)


def _judge(evaluate: Callable, model: nn.Module, when: str) -> np.ndarray:
    try:
        value = np.atleast_1d(np.asarray(evaluate(model), dtype=float))
    except Exception as error:
        raise ValueError(f"evaluate: it failed on the model {when} compression: {type(error).__name__}: {error}") from error
    if value.ndim != 1 or not value.size or not np.isfinite(value).all():
        raise ValueError(f"evaluate: one finite number, or one per sample, is needed; found {value!r} {when} compression")
    return value


def compress(model: nn.Module, method: StructuredMethod | GeneralMethod, ratio: float, data: Iterable | None = None,
             evaluate: Callable[[nn.Module], Any] | None = None, finetune_steps: int = 0, example: Any = None, round_to: int = 1,
             probe: Callable[[Mapping[str, Callable]], Any] | None = None, ignore: Iterable = ()) -> Compressed:
    """Compress a copy of ``model``: ``ratio`` of its MACs (structured methods; others define it themselves) go.

    data: loader of inputs, (inputs, labels) or Hugging Face dicts; for scores, fine-tuning and batch-norm statistics. ignore: layers whose channels stay.
    evaluate: model -> a number (more is better), or one per sample, which gives a paired interval. example: one batch of inputs (default: from ``data``).
    round_to: channel counts become multiples of it. probe: times {"before": f, "after": f}, e.g. ``workbench.core.probe.compare``.
    ValueError names the argument that is wrong.
    """
    start = time.perf_counter()
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio: must lie in [0, 1), found {ratio}")
    if not hasattr(method, "scores") and not hasattr(method, "compress"):
        raise ValueError(f"method: {type(method).__name__} has neither `scores` nor `compress`")
    if finetune_steps and data is None:
        raise ValueError("data: fine-tuning needs a loader")
    check_finite(model)
    model = copy.deepcopy(model).eval()
    if data is not None:
        inputs, _ = next(batches(data))
        check_runs(model, first(inputs), "data")
        example = first(inputs) if example is None else example
    if example is None:
        raise ValueError("example: hand in a batch of inputs, or data")
    cost = macs(model, example)
    before = _judge(evaluate, model, "before") if evaluate else None
    dropped: Mapping[str, Tensor] = {}
    if hasattr(method, "scores"):
        groups = [g for g in channel_groups(model, example, ignore) if getattr(method, "coupled", False) or not g.coupled]
        if not groups:
            raise ValueError("model: every prunable group is a residual stream; a method with `coupled = True` prunes those")
        dropped = select(groups, method.scores(groups, model, data), model, example, ratio, getattr(method, "mode", "global"), round_to)
        small = remove(model, dropped, example, groups)
    else:
        small = method.compress(copy.deepcopy(model), ratio, data, example)
    if finetune_steps:
        finetune(small, data, finetune_steps)
    if data is not None and (finetune_steps or dropped):
        reestimate_batchnorm(small, (inputs for inputs, _ in batches(data)))
    small.eval()
    after = _judge(evaluate, small, "after") if evaluate else None
    if evaluate and len(before) != len(after):
        raise ValueError(f"evaluate: {len(before)} values before compression, {len(after)} after")
    gain = estimate(after - before, 0.0, unit="samples") if evaluate else None
    latency = probe({"before": lambda: forward(model, example), "after": lambda: forward(small, example)}) if probe else None
    report = Report((parameters(model), parameters(small)), (packed_bytes(model, example), packed_bytes(small, example)), (cost, macs(small, example)),
                    (float(before.mean()), float(after.mean())) if evaluate else None, gain, latency, time.perf_counter() - start)
    return Compressed(small, report, example, dropped)
