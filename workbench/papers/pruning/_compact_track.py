"""The track of compact convolution: three nets at once, one per task, what they know, what they cost, and how much their channels repeat each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ...benches import sounds
from ...benches.vision.lenet import CLEAN
from ...contracts.model import packed_bytes
from ...contracts.structure.macs import macs, parameters
from ...core.study import Metric, Result, Track
from ._compact_nets import CompactConv2d, Squeeze
from ._compact_recipe import REPLICAS, TASKS, answers, data, f1_and_error_rate, path_of, shipped


@dataclass
class Trio:
    """One net per task, built with the same squeeze."""

    nets: Mapping[str, nn.Module]
    exhibits: dict[str, np.ndarray] = field(default_factory=dict)


def effective_rank(maps: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of the channels' covariance, as a share of the channels; ``maps``: (N, C, H, W)."""
    flat = maps.transpose(0, 1).flatten(1).double()
    values = torch.linalg.eigvalsh(torch.cov(flat)).clamp_min(0)
    shares = values / values.sum().clamp_min(1e-30)
    return float(torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum())) / len(flat)


def correlation(maps: Tensor) -> float:
    """Mean magnitude of the correlation between two channels that vary; ``maps``: (N, C, H, W)."""
    flat = maps.transpose(0, 1).flatten(1).double()
    flat = flat[flat.std(1) > 1e-9]
    table = torch.corrcoef(flat).abs()
    return float((table.sum() - len(flat)) / max(1, len(flat) * (len(flat) - 1)))


@torch.no_grad()
def redundancy(net: nn.Module, inputs: Tensor) -> np.ndarray:
    """(layers, 4): effective rank and mean |correlation| of the channels before the squeeze, then the same after it."""
    found: list[list[float]] = []
    hooks = [module.squeezer.register_forward_hook(lambda module, given, made: found.append([f(m) for m in (given[0], made) for f in (effective_rank, correlation)]))
             for module in net.modules() if isinstance(module, CompactConv2d)]
    net(inputs)
    for hook in hooks:
        hook.remove()
    return np.array(found)


METRICS = {
    "quality": Metric("mean of the three tasks (%)"), "images": Metric("digits right (%)"), "scenes": Metric("scenes right (%)"),
    "events": Metric("events, segment-based F1 (%)"), "error_rate": Metric("events, segment-based error rate", False, 3),
    "macs": Metric("MACs of the three nets (millions)", False, 3), "layer_params": Metric("weights in the exchanged layers (thousands)", False, 2),
    "params": Metric("parameters (thousands)", False, 2), "bytes": Metric("files (KB)", False, 1), "activations": Metric("activations of the layers (KB)", False, 1),
    "rank_before": Metric("effective rank before the squeeze (share)", True, 3), "rank_after": Metric("effective rank after it (share)", True, 3),
    "correlation_before": Metric("mean |correlation| before", False, 3), "correlation_after": Metric("mean |correlation| after", False, 3),
}


def measure(thing: Trio) -> Result:
    """Quality on the test split of every task, counted costs of the three nets together, and the redundancy of their channels on training inputs."""
    metrics: dict[str, float] = dict.fromkeys(("macs", "layer_params", "params", "bytes", "activations"), 0.0)
    samples, probes = {}, []
    for task, net in thing.nets.items():
        example = data(task, "train")[0][:1]
        said, true = answers(net, task)
        if task == "events":
            metrics["events"], metrics["error_rate"] = (scale * value for scale, value in zip((100, 1), f1_and_error_rate(said, true), strict=True))
        else:
            samples[task], metrics[task] = said == true, 100 * float((said == true).mean())
        layers = [module for module in net.modules() if isinstance(module, CompactConv2d)]
        metrics["macs"] += macs(net, example) / 1e6
        metrics["layer_params"] += sum(m.depthwise.weight.numel() + m.pointwise.weight.numel() + parameters(m.squeezer) for m in layers) / 1e3
        metrics["params"] += parameters(net) / 1e3
        metrics["bytes"] += packed_bytes(net) / 1e3
        metrics["activations"] += _activations(net, example) / 1e3
        probes.append(redundancy(net, data(task, "train")[0][:64]))
    table = np.concatenate(probes)
    names = ("rank_before", "correlation_before", "rank_after", "correlation_after")
    metrics |= dict(zip(names, table.mean(0).tolist(), strict=True)) | {"quality": float(np.mean([metrics[task] for task in TASKS]))}
    return Result(metrics, samples, exhibits={"redundancy": np.rint(1000 * np.array(probes)).astype(np.int16)})


@torch.no_grad()
def _activations(net: nn.Module, example: Tensor) -> int:
    """Bytes that convolutions and squeezes write for one input."""
    total: list[int] = []
    hooks = [m.register_forward_hook(lambda m, i, o: total.append(o.nbytes)) for m in net.modules() if isinstance(m, (nn.Conv2d, Squeeze))]
    net(example)
    for hook in hooks:
        hook.remove()
    return sum(total)


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256((str(sounds.EXPECTED) + str(CLEAN)).encode())
    for task in TASKS:
        for replica in range(REPLICAS):
            digest.update(path_of(task, replica).read_bytes())
    return digest.hexdigest()[:16]


def trio(variant: str, replica: int) -> Trio:
    return Trio({task: shipped(task, variant, replica) for task in TASKS})


TRACK = Track("three tasks/macs", "macs", "quality", METRICS, measure, _data_key, REPLICAS,
              title="Digits, acoustic scenes and sound events: quality against multiply–accumulates", reference=lambda replica: trio("separable", replica))
