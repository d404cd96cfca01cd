"""The `machine` contract: a layer with its real tensors → the same numbers, and the cycles, traffic and energy that a small datapath spends on them.

    tile:  8 output channels × 16 output samples; a lane owns one channel and keeps 16 accumulators
    lane:  each stored weight (value, index) of its channel is read once a tile; for each of the 16 samples the lane looks at the activation's bit
           in the zero map; if it is set, it reads the activation: one cycle, one MAC
    barrier: the tile ends when its slowest lane does

Cycles come from where the zeros of the given weights and activations are; nothing is multiplied by an average sparsity. The walk past zeros (index
deltas, zero map) is taken to run ahead of the multiplier at no cycle of its own; its reads are counted. Sums have the type of the tensors given: in
float64, products of 8-bit floats are summed without any rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from .energy import Counters, Energy


@dataclass(frozen=True)
class Machine:
    """``independent=False``: all lanes take each step together (SIMD). Without a skip every weight or activation, zero or not, costs its cycle."""

    lanes: int = 8
    mhz: float = 150.0
    tile: int = 16
    skip_weights: bool = True
    skip_activations: bool = True
    independent: bool = True
    energy: Energy = field(default_factory=Energy)

    def __post_init__(self):
        if self.lanes < 1 or self.tile < 1 or self.mhz <= 0:
            raise ValueError(f"lanes and tile must be at least 1 and mhz positive, not {self.lanes}, {self.tile} and {self.mhz}")


@dataclass(frozen=True)
class Layer:
    """A plain convolution: ``weight`` (O, I/groups, K), ``x`` (I, T) as padded, groups 1 or I = O (depthwise), bias (O,) or None. ``index_bits``:
    how many bits of indices or bitmap say where the stored weights stand."""

    weight: np.ndarray
    x: np.ndarray
    bias: np.ndarray | None = None
    stride: int = 1
    index_bits: int = 0


def run(machine: Machine, layer: Layer) -> tuple[np.ndarray, Counters]:
    """The layer's output (O, T') and its counters. ValueError: groups other than 1 and depthwise (a dilated layer comes as its phases)."""
    weight, x, (c_out, c_in, taps) = layer.weight, layer.x, layer.weight.shape
    depthwise = c_in == 1 and c_out == x.shape[0] and c_out > 1
    if not depthwise and c_in != x.shape[0]:
        raise ValueError(f"the machine runs groups 1 or one group a channel; weight {weight.shape} on {x.shape[0]} input channels is neither")
    samples = (x.shape[1] - taps) // layer.stride + 1
    reads = np.stack([x[:, k:k + layer.stride * (samples - 1) + 1:layer.stride] for k in range(taps)], 1)   # (I, K, T')
    y = (weight[:, 0, :, None] * reads).sum(1) if depthwise else _product(weight.reshape(c_out, -1), reads.reshape(-1, samples))
    if layer.bias is not None:
        y = y + layer.bias[:, None]

    starts, rows = np.arange(0, samples, machine.tile), -(-c_out // machine.lanes) * machine.lanes
    stored = np.zeros((rows, c_in * taps), np.float32)                                   # lanes without a channel stay idle
    stored[:c_out] = (weight != 0).reshape(c_out, -1) if machine.skip_weights else 1
    live = (reads != 0).reshape(-1, samples) if machine.skip_activations else np.ones((x.shape[0] * taps, samples), bool)
    group = stored.reshape(-1, machine.lanes, c_in * taps)
    if depthwise:                                                                        # a lane reads its own channel
        pairs = np.zeros((rows, taps, samples), bool)
        pairs[:c_out] = live.reshape(c_out, taps, samples) & (stored[:c_out, :, None] > 0)
        steps = np.add.reduceat(pairs.reshape(-1, machine.lanes, taps, samples).any(1).sum(1), starts, 1)
        work = np.add.reduceat(pairs.sum(1), starts, 1)
    else:
        live = np.add.reduceat(live.astype(np.float32), starts, 1)                       # live activations of each tap in each tile
        steps, work = _product(group.max(1), live), _product(stored, live)
    work = work.reshape(-1, machine.lanes, len(starts)).astype(np.int64)                 # (groups, lanes, tiles)
    cycles = work.max(1) if machine.independent else steps.astype(np.int64)
    done, kept = int(work.sum()), int(stored.sum())
    return y, Counters(int(cycles.sum()), done, weight.size * samples, int((weight != 0).sum()) * samples, kept * len(starts),
                       layer.index_bits * len(starts), done, kept * samples * machine.skip_activations, c_out * samples, work.sum((0, 2)))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b by torch, whose number of threads is set, not by numpy's own library."""
    return (torch.from_numpy(np.ascontiguousarray(a)) @ torch.from_numpy(np.ascontiguousarray(b))).numpy()


def simulate(machine: Machine, net, x, lower: Callable) -> tuple[object, dict[str, Counters]]:
    """Runs a torch ``net`` on ``x``, every layer that ``lower`` knows by the machine; the net's output, and counters by layer.

    ``lower(name, module, input without batch)`` → None, or the plain `Layer`s to run and a function that assembles the module's output from theirs
    (None: they are only counted).
    """
    spent: dict[str, Counters] = {}

    def hook(name):
        def replace(module, inputs, output):
            results = []
            for item in inputs[0]:
                layers, assemble = lower(name, module, item) or ((), None)
                parts = [run(machine, layer) for layer in layers]
                if parts:
                    spent[name] = sum((counters for _, counters in parts), start=spent.get(name, Counters()))
                if assemble:
                    results.append(assemble([torch.from_numpy(y) for y, _ in parts]))
            return torch.stack(results) if results else None
        return replace

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules() if not list(module.children())]
    try:
        with torch.no_grad():
            return net(x), spent
    finally:
        for handle in handles:
            handle.remove()
