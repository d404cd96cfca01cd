"""The `speech` bench: two synthetic voices in one microphone, a small causal separator, and the track on which compressed separators race.

Quality is SI-SDRi: by how many dB the separated voices are nearer to the true ones than the mixture was, whatever their loudness.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Protocol

import torch

from ...contracts.files.artifact import pack
from ...contracts.machine import Counters, Machine
from ...core.study import Metric, Result, Track
from .. import CHECKPOINTS
from . import data, recipe
from .nets import Separator, fold, load

CLIPS, SECONDS, SIMULATED = 8, 1.0, 0.5                             # test clips and seconds of each; seconds of the first that the machine runs
REPLICAS = 3

METRICS = {
    "si_sdri": Metric("SI-SDRi (dB)", decimals=2),
    "bytes": Metric("file (KB)", False),
    "bytes_share": Metric("file (share of dense float32)", False, 3),
    "params_removed": Metric("parameters removed (share)", decimals=4),
    "complexity_share": Metric("MACs with weights not zero (share of dense)", False, 4),
    "macs": Metric("MACs done (millions a second of sound)", False, 2),
    "cycles": Metric("cycles (millions a second of sound)", False, 2),
    "utilisation": Metric("lanes busy (share)", decimals=2),
    "real_time": Metric("real-time factor at the machine's clock", False, 4),
    "microjoules": Metric("modelled energy (µJ a second of sound)", False),
    "busy_milliwatts": Metric("modelled power while busy (mW)", False, 2),
}


class Thing(Protocol):
    """What races here: it separates, it is a file, and, where it has a machine, it says what each layer spends."""

    machine: Machine | None
    weights: int

    def __call__(self, mixture: torch.Tensor) -> torch.Tensor: ...

    def to_bytes(self) -> bytes: ...

    def simulate(self, mixture: torch.Tensor) -> tuple[torch.Tensor, dict[str, Counters]]: ...


class Dense:
    """The trained net as it is, batch norms folded: float32, no machine."""

    machine = None

    def __init__(self, net: Separator):
        self.net = fold(net)
        self.weights = sum(layer.weight.numel() for layer in self.net.layers().values())

    def __call__(self, mixture):
        return self.net(mixture)

    def to_bytes(self) -> bytes:
        return pack(self.net.state_dict(), {"kind": "separator", "config": self.net.config()})


def dense(replica: int = 0) -> Dense:
    return Dense(load(replica))


@lru_cache(maxsize=1)
def _whole() -> tuple[int, int, int]:
    """Bytes, parameters and multiplications a second of the dense net (the mask's products included)."""
    thing = Dense(Separator())
    frames, net = data.RATE / thing.net.stride, thing.net
    macs = sum(layer.weight.numel() for name, layer in net.layers().items() if name != "decoder") + 2 * net.decoder.weight.numel()
    return len(thing.to_bytes()), sum(p.numel() for p in net.parameters()), int((macs + 2 * net.encoder.out_channels) * frames)


def measure(thing: Thing) -> Result:
    """SI-SDRi on test clips, the size of the file, and the machine's counters on half a second of the first clip, scaled to one second."""
    gains = recipe.improvement(thing, *data.split("test").tensors(CLIPS, int(SECONDS * data.RATE), 2_000), batch=2)
    size, (whole, params, macs) = len(thing.to_bytes()), _whole()
    biases = sum(layer.bias.numel() for layer in thing.net.layers().values() if layer.bias is not None)
    metrics = {"si_sdri": float(gains.mean()), "bytes": size / 1e3, "bytes_share": size / whole,
               "params_removed": 1 - (thing.weights + biases) / params}
    exhibits = {}
    if thing.machine is not None:
        _, counters = thing.simulate(data.split("test").tensors(1, int(SIMULATED * data.RATE), 2_000)[0])
        total = sum(counters.values(), start=Counters())
        report = total.report(thing.machine)
        metrics |= {"complexity_share": total.weight_macs / SIMULATED / macs, "macs": total.macs / SIMULATED / 1e6,
                    "cycles": total.cycles / SIMULATED / 1e6, "utilisation": report["utilisation"], "real_time": report["seconds"] / SIMULATED,
                    "microjoules": report["microjoules"] / SIMULATED, "busy_milliwatts": report["microjoules"] / report["seconds"] / 1e3}
        exhibits = {"cycles": _integers(counters, lambda c: [c.cycles]), "dense cycles": _integers(counters, lambda c: [c.slots // thing.machine.lanes]),
                    "lane work": _integers(counters, lambda c: c.lane_work)}
    return Result(metrics, samples={"si_sdri": gains.astype("float32")}, exhibits=exhibits)


def _integers(counters: dict[str, Counters], read) -> object:
    import numpy as np

    return np.array([read(c) for c in counters.values()], np.int32)


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(str(data.EXPECTED).encode())
    for path in sorted(CHECKPOINTS.glob("separator-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


BYTES = Track("speech/bytes", "bytes", "si_sdri", METRICS, measure, _data_key, REPLICAS, title="Two voices, SI-SDRi against bytes of the file",
              reference=lambda replica: dense(replica))
