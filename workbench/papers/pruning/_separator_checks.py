"""Checks of the speech separator's parts, exact or by hand, parts disabled on purpose to show that the checks can fail, and tests of claims.

A check's ``method`` has the fields of `SparseAccelerator`: ``format``, ``machine``, ``lower``, ``narrow``, ``restore``.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...benches.speech import data
from ...benches.speech.nets import Separator, fold
from ...contracts.machine import Counters, Layer, run
from ...core.study import Outcome
from ._phases import dilated_by_phase, lower_by_phase, lower_with_zeros, transpose_by_phase
from ._separator_pack import MACHINE, PackedSeparator
from ._separator_prune import importance, narrow, shipped
from ._shifted_fp8 import Float8, Int8, sqnr


def _layer(kind, *arguments, seed: int = 0, density: float = 1.0, **options) -> nn.Module:
    """A layer in float64 with small whole numbers as weights, a share of them zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = kind(*arguments, **options).double().requires_grad_(False)
    for tensor in layer.parameters():
        tensor.copy_(torch.randint(1, 9, tensor.shape, generator=generator) * (torch.rand(tensor.shape, generator=generator) < density))
    return layer


def _sound(channels: int, samples: int, density: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    return (torch.randint(-8, 9, (channels, samples), generator=generator) * (torch.rand(channels, samples, generator=generator) < density)).double()


def _lowered(method, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, Counters]:
    layers, assemble = method.lower(module, x)
    parts = [run(method.machine, layer) for layer in layers]
    return assemble([torch.from_numpy(y) for y, _ in parts]), sum((c for _, c in parts), start=Counters())


def decompositions_exact(method) -> Outcome:
    wrong = tried = 0
    for samples in (33, 40):
        layers = [_layer(nn.Conv1d, 6, 6, 3, dilation=d, padding=p, groups=g, seed=d) for d in (1, 2, 4, 8) for p in (0, 3) for g in (1, 6)]
        layers += [_layer(nn.ConvTranspose1d, 6, 2, k, s, p, seed=k) for s, k in ((1, 3), (2, 4), (2, 5), (3, 7), (4, 8)) for p in (0, 1)]
        for layer in layers:
            x = _sound(6, samples)
            alone = dilated_by_phase(layer) if isinstance(layer, nn.Conv1d) else transpose_by_phase(layer)
            want = layer(x[None])
            wrong += not (torch.equal(alone(x[None]), want) and torch.equal(_lowered(method, layer, x)[0], want[0]))
            tried += 1
    return Outcome(wrong == 0, f"{tried - wrong} of {tried} layers equal bit for bit", f"{tried} of {tried}")


def counts_by_brute_force(method) -> Outcome:
    """Every pair of a weight and the activation that it meets, looked at one by one."""
    off = 0
    for layer, x in ((_layer(nn.Conv1d, 5, 11, 2, density=0.4), _sound(5, 40, 0.5)), (_layer(nn.Conv1d, 9, 9, 3, groups=9, density=0.5), _sound(9, 37, 0.6))):
        y, counters = _lowered(method, layer, x)
        weight, pairs = layer.weight.numpy(), 0
        for o, i, k in zip(*np.nonzero(weight)):
            pairs += int((x.numpy()[o if layer.groups > 1 else i, k:k + y.shape[1]] != 0).sum())
        off += abs(pairs - counters.macs) + int(not torch.equal(y, layer(x[None])[0]))
    return Outcome(off == 0, f"{off} MACs off", "0 MACs off, outputs equal")


def machine_equals_model(method) -> Outcome:
    packed, mixture = replace(shipped(), machine=method.machine, lower=method.lower), data.split("test").tensors(1, 800, 2_000)[0]
    voices, counters = packed.simulate(mixture)
    error = float((voices - packed(mixture)).abs().max() / voices.abs().max())
    spare = sum(counters.values(), start=Counters())
    fair = spare.macs <= spare.weight_macs <= spare.slots and spare.cycles * method.machine.lanes >= spare.macs
    return Outcome(error < 1e-5 and fair, error, 1e-5)


def structural_zeros(method) -> Outcome:
    """Multiplications of a machine that skips nothing, against those over inserted zeros: (s − 1)/s and (d − 1)(k − 1)/((k − 1)d + 1) are saved."""
    worst = 0.0
    for layer, saved in ((_layer(nn.ConvTranspose1d, 4, 8, 12, 4), 3 / 4), (_layer(nn.ConvTranspose1d, 4, 8, 6, 3), 2 / 3),
                         (_layer(nn.Conv1d, 8, 8, 3, dilation=8, groups=8), 14 / 17)):
        x = _sound(layer.in_channels, 400)
        ours, textbook = (_lowered(replace(method, lower=lower), layer, x)[1].slots for lower in (method.lower, lower_with_zeros))
        worst = max(worst, abs(1 - ours / textbook - saved))
    return Outcome(worst < 0.01, worst, "0.01 of the share saved (edges)")


def every_code_returns(method) -> Outcome:
    codes, wrong = torch.arange(256, dtype=torch.uint8), 0
    for fmt in (method.format, Float8(5, 2)):
        for shift in (-9, 7, 20):
            values = fmt.decode(codes, shift)
            wrong += int((fmt.encode(values, shift) != codes).sum()) + int((fmt.round(values, shift) != values).sum())
    return Outcome(wrong == 0, f"{wrong} codes change", "0")


def shift_pays(method) -> Outcome:
    """Gaussian weights of at most 2⁻⁵·⁵: at least 6 dB over the standard bias; heavy tails (Student t, ν = 2 and 3): at least INT8."""
    generator = np.random.Generator(np.random.PCG64(4))
    weights = torch.from_numpy(generator.standard_normal(20_000))
    gain = sqnr(weights * 2**-5.5 / weights.abs().max(), method.format) - sqnr(weights * 2**-5.5 / weights.abs().max(), Float8(shifted=False))
    tails = [torch.from_numpy(generator.standard_t(freedom, 20_000)) / 500 for freedom in (2, 3)]
    over = min(sqnr(tail, method.format) - sqnr(tail, Int8()) for tail in tails)
    return Outcome(gain >= 6 and over >= 0, f"+{gain:.1f} dB, heavy tails +{over:.1f} dB over INT8", "+6 dB, +0 dB")


def lanes_run_free(method) -> Outcome:
    """Eight lanes with one weight each, at eight places: one cycle a sample if they run freely, eight in lockstep. And never more than in lockstep."""
    _, hand = run(method.machine, Layer(np.eye(8)[:, :, None], np.ones((8, 32))))
    layer, x = _layer(nn.Conv1d, 24, 20, 1, density=0.2), _sound(24, 50, 0.5)
    _, free = _lowered(method, layer, x)
    _, lockstep = _lowered(replace(method, machine=replace(method.machine, independent=False)), layer, x)
    ok = hand.cycles == 32 and free.macs / 8 <= free.cycles <= lockstep.cycles
    return Outcome(ok, f"{hand.cycles} cycles by hand; {free.cycles} ≤ {lockstep.cycles}", "32 cycles; MACs/8 ≤ free ≤ lockstep")


def removed_for_real(method) -> Outcome:
    """A net whose dropped channels are silent anyway gives the same voices when they are cut out, and is really smaller."""
    torch.manual_seed(3)
    net = Separator(8, 6, (12, 10), 2, norm=False).eval()
    widths = {"filters": 5, "trunk": 4, "blocks.0": 7, "blocks.1": 3}
    silent = silenced(net, widths)
    small, x = method.narrow(silent, widths), torch.randn(1, 400)
    with torch.no_grad():
        error = float((small(x) - silent(x)).abs().max() / silent(x).abs().max())
    shrunk = sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in net.parameters())
    return Outcome(error < 1e-5 and shrunk, f"{error:.1e}, {'smaller' if shrunk else 'as large as before'}", "1e-5, smaller")


def silenced(net: Separator, widths: dict[str, int]) -> Separator:
    """The same shapes with zeros where `narrow` would cut."""
    full, small = fold(net), narrow(net, widths)
    with torch.no_grad():
        keep = {group: score.topk(widths[group]).indices for group, score in importance(net).items()}
        writers = {"filters": ["encoder"], "trunk": ["bottleneck", *(f"blocks.{i}.reduce" for i in range(len(net.blocks)))]}
        writers |= {f"blocks.{i}": [f"blocks.{i}.expand", f"blocks.{i}.depth"] for i in range(len(net.blocks))}
        for group, names in writers.items():
            for name in names:
                layer = full.get_submodule(name)
                gone = torch.ones(len(layer.weight), dtype=torch.bool)
                gone[keep[group]] = False
                layer.weight[gone] = 0
                if layer.bias is not None:
                    layer.bias[gone] = 0
    assert small.config()["filters"] == widths["filters"]
    return full


def file_is_the_net(method) -> Outcome:
    """Written, its size counted, read back: the same int16 samples."""
    packed, sound = shipped(), (data.split("test").voices[0].astype(np.int32).sum(0)[2_000:3_600]).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        size = packed.save(Path(folder) / "net.sep")
        same = size == len(packed.to_bytes()) == (Path(folder) / "net.sep").stat().st_size
        again = method.restore(Path(folder) / "net.sep")
    equal = bool(np.array_equal(again.separate(sound), packed.separate(sound)))
    return Outcome(same and equal, f"{size} bytes, samples {'equal' if equal else 'differ'}", "file size = bytes, samples equal")


def energy_by_hand(method) -> Outcome:
    """150,000 cycles at 150 MHz are a millisecond: leakage × 1 ms + MACs + bytes, from the table; and a calibrated table draws what it was scaled to."""
    spent = Counters(cycles=150_000, macs=1_000_000, weight_bytes=100_000, index_bits=400_000, activation_bytes=1_000_000, map_bits=1_600_000,
                     output_bytes=50_000)
    table = MACHINE.energy
    want = (table.leakage * 1e-6 + 1e6 * table.mac * 1e-12 + 1.4e6 * table.sram * 1e-12) * 1e6     # µJ
    machine = replace(method.machine, mhz=150.0)
    got = spent.report(machine)["microjoules"]
    scaled = replace(machine, energy=table.calibrated(spent, 150.0, 1.6))
    power = spent.report(scaled)["microjoules"] / spent.report(scaled)["seconds"] / 1e3
    return Outcome(abs(got / want - 1) < 1e-9 and abs(power - 1.6) < 1e-9, f"{got:.4f} µJ; {power:.3f} mW", f"{want:.4f} µJ; 1.6 mW")


# ── disabled parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def side_by_side(module, x, index_bits=0):
    """Wrong on purpose: the phases' outputs one after another."""
    lowered = lower_by_phase(module, x, index_bits)
    return lowered and (lowered[0], lambda parts: torch.cat(parts, 1) if len(parts) > 1 else lowered[1](parts))


def without_positions(path) -> PackedSeparator:
    """Wrong on purpose: the values alone, as if where they belong cost nothing."""
    packed = PackedSeparator.load(path)
    codes = {}
    for name, code in packed.codes.items():
        flat = np.zeros(code.size, np.uint8)
        values = code[code & 127 > 0]
        flat[:values.size] = values
        codes[name] = flat.reshape(code.shape)
    return replace(packed, codes=codes)


@dataclass(frozen=True)
class FlushedFloat8(Float8):
    """Wrong on purpose: numbers below the smallest normal one become zero."""

    def round(self, x, bias):
        value = super().round(x, bias)
        return torch.where(value.abs() < 2.0 ** (1 - bias), 0 * value, value)
