"""The model contract: an `nn.Module` and calibration data in, a smaller `nn.Module`, an honest report and one file out.

    result = compress(model, L1(), ratio=.5, data=loader, evaluate=accuracy, finetune_steps=200)
    print(result.report)            # quality, parameters, bytes, MACs, latency, before and after
    result.save("small.wb")
    net = load("small.wb")          # in another process, without the class

A method is any object with one of two functions (:class:`StructuredMethod`, :class:`GeneralMethod`); a paper implements the one that fits.

    scores(groups, model, data) ──► select ──► remove ──┐
    compress(model, ratio, data, example) ──────────────┴──► fine-tune ──► batch-norm statistics ──► measure

A file restores itself in one of three ways, the first whose outputs on ``example`` equal the model's to the last bit: from a class of the
workbench, from a class of `transformers` (weights cut to the stored shapes), from a captured graph. Otherwise it holds weights only.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..core.claims import Estimate, estimate
from .artifact import Artifact, ArtifactError, read, save
from .channels import ChannelGroup, channel_groups, check_finite
from .graph import GraphNet, NotCapturable, capture
from .surgery import macs, parameters, reestimate_batchnorm, remove, select
from .trace import CONV, forward


class StructuredMethod(Protocol):
    """Scores channels; the contract does the rest. May also set ``mode`` ("global", "uniform"; see ``select``) and ``coupled`` (True: residual
    streams are pruned too)."""

    def scores(self, groups: list[ChannelGroup], model: nn.Module, data: Iterable | None) -> Mapping[str, Tensor]:
        """Group name -> (size,), higher is kept. ``data``: the loader handed to :func:`compress`; ``model`` must be left as it was."""


class GeneralMethod(Protocol):
    """Does everything itself: quantization, factorisation, …"""

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example: Any) -> nn.Module:
        """The compressed model; ``model`` is a copy that may be changed."""


# ---------------------------------------------------------------------------------------------------------------- on disk

def _parent(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _recount(module: nn.Module) -> None:
    """Set the attributes that count channels from the shapes of the weights."""
    weight = getattr(module, "weight", None)
    if isinstance(module, CONV):
        depthwise = module.groups == module.out_channels == module.in_channels > 1
        module.groups = weight.shape[0] if depthwise else module.groups
        outer, inner = weight.shape[0], weight.shape[1] * module.groups
        module.out_channels, module.in_channels = (weight.shape[1] * module.groups, outer) if module.transposed else (outer, inner)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)
    else:
        stored = next(module.buffers(recurse=False), weight) if weight is None else weight
        for attribute in ("num_features", "num_channels", "num_parameters"):
            if hasattr(module, attribute):
                setattr(module, attribute, stored.shape[0])


def fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put ``tensors`` in the place of the model's, in place; a layer whose tensors are smaller shrinks with them. ValueError: other names."""
    state = model.state_dict()
    if wrong := sorted(state.keys() ^ tensors.keys()):
        raise ValueError(f"model: its tensors are not those of the file; found in one of the two only: {', '.join(wrong[:5])}")
    changed = {}
    for name, tensor in tensors.items():
        owner, leaf = _parent(model, name)
        old = getattr(owner, leaf)
        if old.dim() != tensor.dim():
            raise ValueError(f"model: {name!r} has shape {tuple(old.shape)}, the file {tuple(tensor.shape)}")
        if old.shape != tensor.shape:
            changed[owner] = True
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor)
    for owner in changed:
        _recount(owner)
    return model.eval()


def _describe_class(model: nn.Module) -> dict | None:
    cls = type(model)
    if not cls.__module__.startswith("workbench.") or not callable(getattr(model, "config", None)):
        return None
    return {"kind": "class", "class": f"{cls.__module__}:{cls.__qualname__}", "config": model.config()}


def _describe_transformers(model: nn.Module) -> dict | None:
    cls = type(model)
    if not cls.__module__.startswith("transformers."):
        return None
    return {"kind": "transformers", "class": cls.__name__, "config_class": type(model.config).__name__, "attention": model.config._attn_implementation,
            "config": json.loads(model.config.to_json_string(use_diff=False))}


def _from_class(meta: Mapping) -> nn.Module:
    if not re.fullmatch(r"workbench(\.\w+)+:\w+", meta["class"]):
        raise ArtifactError(f"class {meta['class']!r} is not one of the workbench")
    module, _, name = meta["class"].partition(":")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module and hasattr(cls, "config")):
        raise ArtifactError(f"class {meta['class']!r} is not a network of the workbench")
    return cls(**meta["config"])


def _from_transformers(meta: Mapping) -> nn.Module:
    import transformers  # heavy, and only needed for its own models

    cls, config = getattr(transformers, meta["class"], None), getattr(transformers, meta["config_class"], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel) and isinstance(config, type)
            and issubclass(config, transformers.PretrainedConfig)):
        raise ArtifactError(f"{meta['class']!r} is no model of transformers {transformers.__version__}")
    settings = config.from_dict(dict(meta["config"]))
    settings._attn_implementation = meta["attention"]
    return cls(settings)


def _restore(artifact: Artifact, model: nn.Module | None = None) -> nn.Module:
    meta = artifact.meta
    tensors = dict(artifact.tensors) | {name: artifact.tensors[of] for name, of in meta.get("aliases", {}).items()}
    kind = meta.get("kind")
    if model is not None:
        return fit(copy.deepcopy(model), {name: t for name, t in tensors.items() if name not in meta.get("extra", ())})
    if kind == "class":
        return fit(_from_class(meta), tensors)
    if kind == "transformers":
        return fit(_from_transformers(meta), tensors)
    if kind == "graph" and artifact.graph is not None:
        return GraphNet(artifact.graph, tensors).eval()
    if kind == "weights":
        raise ArtifactError(f"the file holds weights only ({meta.get('reason', 'no class, no graph')}): "
                            f"hand in the original network, load(path, model=…); its class was {meta.get('was', 'unknown')}")
    raise ArtifactError(f"unknown kind {kind!r}")


def _stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state's tensors, each once, and the names that share one (tied embeddings)."""
    tensors, aliases, seen = {}, {}, {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if key in seen:
            aliases[name] = seen[key]
        else:
            seen[key], tensors[name] = name, tensor
    return tensors, aliases


def _same(a: nn.Module, b: nn.Module, example) -> bool:
    with torch.no_grad():
        return torch.equal(forward(a, example), forward(b, example))


def describe(model: nn.Module, example=None) -> Artifact:
    """What :func:`save_model` writes: tensors, meta and graph, in the first form that restores the outputs exactly."""
    tensors, aliases = _stored(model)
    shared = {"aliases": aliases} if aliases else {}
    model = copy.deepcopy(model).eval()
    reason = "no example to capture its graph with"
    for meta in filter(None, (_describe_class(model), _describe_transformers(model))):
        candidate = Artifact(tensors, meta | shared)
        try:
            if example is None or _same(_restore(candidate), model, example):
                return candidate
            reason = f"its class, rebuilt from {meta['class']}, gives other outputs"
        except Exception as error:  # a pruned shape that the class cannot take, in whatever way: the graph is tried next
            reason = f"its class cannot be rebuilt: {error}"
    if example is not None:
        try:
            graph, extra = capture(model, example)
            candidate = Artifact(tensors | extra, {"kind": "graph", "extra": sorted(extra)} | shared, graph)
            if _same(_restore(candidate), model, example):
                return candidate
            reason = "its captured graph gives other outputs"
        except (NotCapturable, ArtifactError) as error:
            reason = str(error)
    return Artifact(tensors, {"kind": "weights", "reason": reason, "was": type(model).__name__} | shared)


def save_model(path: str | os.PathLike, model: nn.Module, example=None) -> int:
    """Write one file, return its bytes. With ``example`` the file is checked to restore the same outputs; see the module's docstring."""
    artifact = describe(model, example)
    return save(path, artifact.tensors, artifact.meta, artifact.graph)


def load(path: str | os.PathLike, model: nn.Module | None = None) -> nn.Module:
    """The network of a file, in evaluation mode; its outputs are those of the saved one, bit for bit (same machine, same number of threads).

    ``model``: the network before compression; a copy takes the file's weights and shapes. ArtifactError: a damaged file, or one that needs it.
    """
    artifact = read(path)
    try:
        return _restore(artifact, model)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except Exception as error:
        if model is not None:
            raise
        raise ArtifactError(f"{path}: the network cannot be rebuilt: {error}") from error


def packed_bytes(model: nn.Module, example=None) -> int:
    """Bytes of the file really written: weights as they are, the class and its configuration (a graph only if ``example`` is given and needed)."""
    with tempfile.TemporaryDirectory() as folder:
        return save_model(Path(folder) / "packed", model, example)


# ---------------------------------------------------------------------------------------------------------------- compressing

@dataclass(frozen=True)
class Report:
    """Before and after, as measured. ``quality``: what ``evaluate`` returned (its mean); ``gain``: after − before, with a 90 % interval where
    ``evaluate`` gives one value per sample; ``latency``: what ``probe`` returned."""

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


def inputs_and_labels(batch: Any) -> tuple[Any, Tensor | None]:
    """What a loader yields — a tensor, (inputs, labels), or a Hugging Face dict with "labels" — as (inputs for ``forward``, labels or None)."""
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != "labels"}, batch.get("labels")
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def _first(inputs: Any, n: int = 2) -> Any:
    return {k: v[:n] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[:n]


def _batches(data: Iterable) -> Iterator[tuple[Any, Tensor | None]]:
    empty = True
    for batch in data:
        empty = False
        yield inputs_and_labels(batch)
    if empty:
        raise ValueError("data: the loader yields no batch")


def finetune(model: nn.Module, data: Iterable, steps: int, learning_rate: float = 1e-3) -> None:
    """``steps`` steps of AdamW with a cosine schedule on the loader's labels (cross-entropy), in place; the loader is repeated as needed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    done = 0
    while done < steps:
        for inputs, labels in _batches(data):
            if labels is None:
                raise ValueError("data: fine-tuning needs batches of (inputs, labels)")
            loss = nn.functional.cross_entropy(forward(model, inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (done := done + 1) == steps:
                break
    model.eval()


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

    data: loader of inputs, (inputs, labels) or Hugging Face dicts; for scores, fine-tuning and batch-norm statistics.
    evaluate: model -> a number (more is better), or one per sample, which gives a paired interval.
    example: one batch of inputs (default: from ``data``). round_to: channel counts become multiples of it.
    probe: times {"before": f, "after": f}, e.g. ``workbench.core.probe.compare``. ignore: layers whose channels stay.
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
        inputs, _ = next(_batches(data))
        example = _first(inputs) if example is None else example
    if example is None:
        raise ValueError("example: hand in a batch of inputs, or data")
    cost = macs(model, example)  # also the first look at whether the example fits
    before = _judge(evaluate, model, "before") if evaluate else None
    dropped: Mapping[str, Tensor] = {}
    if hasattr(method, "scores"):
        groups = [g for g in channel_groups(model, example, ignore) if getattr(method, "coupled", False) or not g.coupled]
        dropped = select(groups, method.scores(groups, model, data), model, example, ratio, getattr(method, "mode", "global"), round_to)
        small = remove(model, dropped, example, groups)
    else:
        small = method.compress(copy.deepcopy(model), ratio, data, example)
    if finetune_steps:
        finetune(small, data, finetune_steps)
    if data is not None and (finetune_steps or dropped):
        reestimate_batchnorm(small, (inputs for inputs, _ in _batches(data)))
    small.eval()
    after = _judge(evaluate, small, "after") if evaluate else None
    gain = None
    if evaluate:
        if len(before) != len(after):
            raise ValueError(f"evaluate: {len(before)} values before compression, {len(after)} after")
        gain = estimate(after - before, 0.0, unit="samples")
    latency = probe({"before": lambda: forward(model, example), "after": lambda: forward(small, example)}) if probe else None
    report = Report((parameters(model), parameters(small)), (packed_bytes(model, example), packed_bytes(small, example)), (cost, macs(small, example)),
                    (float(before.mean()), float(after.mean())) if evaluate else None, gain, latency, time.perf_counter() - start)
    return Compressed(small, report, example, dropped)
