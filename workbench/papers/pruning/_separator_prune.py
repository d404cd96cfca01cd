"""Prunes and quantises a separator: channels by sensitivity, single weights by gradual magnitude, 8-bit rounding trained through.

``python -m workbench.papers.pruning._separator_prune 0 both`` makes the shipped nets of one replica and one kind of pruning (a few minutes on one
core): ``data/checkpoints/separator-<replica>-<kind>.safetensors`` holds the packed streams of one net for each target.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from ...benches import CHECKPOINTS
from ...benches.speech import data, recipe
from ...benches.speech.nets import Separator, fold, load
from ...contracts.machine import Machine
from ...core.study import StudyError
from ._phases import lower_by_phase
from ._separator_pack import FORMAT, MACHINE, PackedSeparator

KINDS = ("both", "unstructured", "structured")
TARGETS = (0.5, 0.72, 0.8, 0.9, 0.9544)                              # shares of parameters removed; each net starts from the one before
RATIOS = tuple(i / 10 for i in range(10))
SPLIT, STEPS, RATE = 0.5, 80, 4e-3                                    # see `compress`; fine-tuning steps a target; peak learning rate
CROP = data.RATE // 2                                                 # samples of a training mixture, three times what the net looks back on
PRUNED, ROUNDED = 0.6, 0.8                                           # shares of a target's steps: pruning has ended, 8-bit rounding begins


def parameters(net: Separator) -> int:
    return sum(p.numel() for p in net.parameters())


# ── channels ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def importance(net: Separator) -> dict[str, torch.Tensor]:
    """L1 of what produces each channel, by group. Channels that are added or multiplied together live and die together: the trunk is one group, and
    a filter takes its part of the encoder, of both masks and of the decoder with it."""
    def l1(weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().abs().sum((1, 2))

    scores = {"filters": l1(net.encoder.weight), "trunk": l1(net.bottleneck.weight) + sum(l1(block.reduce.weight) for block in net.blocks)}
    return scores | {f"blocks.{i}": l1(block.expand.weight) + l1(block.depth.weight) for i, block in enumerate(net.blocks)}


def narrow(net: Separator, widths: dict[str, int]) -> Separator:
    """The net rebuilt with the ``widths[group]`` channels of largest importance; groups not named stay whole. Nothing is masked: it is smaller."""
    keep = {group: score.topk(min(widths.get(group, len(score)), len(score))).indices.sort().values for group, score in importance(net).items()}
    filters, trunk, inner = keep["filters"], keep["trunk"], [keep[f"blocks.{i}"] for i in range(len(net.blocks))]
    both = torch.cat([filters, filters + net.encoder.out_channels])
    cuts = {"encoder": (filters, None), "bottleneck": (trunk, filters), "mask": (both, trunk), "decoder": (filters, None)}
    for i, channels in enumerate(inner):
        cuts |= {f"blocks.{i}.expand": (channels, trunk), f"blocks.{i}.depth": (channels, None), f"blocks.{i}.reduce": (trunk, channels)}
    small = Separator(**{**net.config(), "filters": len(filters), "trunk": len(trunk), "inner": [len(channels) for channels in inner]})
    with torch.no_grad():
        for name, layer in small.layers().items():
            rows, columns = cuts[name]
            weight = net.get_submodule(name).weight[rows]
            layer.weight.copy_(weight if columns is None else weight[:, columns])
            if layer.bias is not None:
                layer.bias.copy_(net.get_submodule(name).bias[rows])
    return small.eval()


def kept(score: torch.Tensor, ratio: float) -> int:
    return max(2, round(len(score) * (1 - ratio)))


def sensitivity(net: Separator, mixture: torch.Tensor, voices: torch.Tensor) -> dict[str, np.ndarray]:
    """SI-SDRi lost (dB) when 0, 10 … 90 % of each group's channels are removed, one group at a time."""
    whole = recipe.improvement(net, mixture, voices).mean()
    return {group: np.array([0.0] + [whole - recipe.improvement(narrow(net, {group: kept(score, ratio)}), mixture, voices).mean()
                                     for ratio in RATIOS[1:]]) for group, score in importance(net).items()}


def widths_for(net: Separator, losses: dict[str, np.ndarray], tau: float = 0.3) -> dict[str, int]:
    """For each group the channels left by the largest ratio whose loss is at most ``tau`` dB."""
    scores = importance(net)
    return {group: kept(scores[group], max(r for r, d in zip(RATIOS, loss) if d <= max(tau, 0))) for group, loss in losses.items()}


def tau_for(net: Separator, losses: dict[str, np.ndarray], removed: float) -> float:
    """The smallest tolerance whose widths remove at least this share of the parameters."""
    budget = (1 - removed) * parameters(net)
    for tau in sorted({0.0, *(loss for curve in losses.values() for loss in curve.tolist())}):
        if parameters(narrow(net, widths_for(net, losses, tau))) <= budget:
            return tau
    raise ValueError(f"removing channels leaves at least {100 * (1 - RATIOS[-1]):.0f} % of each layer; target {removed} asks for more")


# ── single weights and 8-bit rounding ─────────────────────────────────────────────────────────────────────────────────────────────────────


def fitted(fmt, x: torch.Tensor) -> float:
    """The shift that fits ``x``; any fits a silent activation or a layer of which nothing is left."""
    return fmt.fit(x.detach() if x.any() else torch.ones(1))


class Rounded(nn.Module):
    """A layer's weight as it will be stored: masked, then (once ``on``) rounded with a straight-through gradient."""

    def __init__(self, weight: torch.Tensor, fmt):
        super().__init__()
        self.register_buffer("mask", (weight.detach() != 0).float())  # what was cut before stays cut
        self.fmt, self.shift, self.on = fmt, fitted(fmt, weight), True

    def forward(self, weight):
        weight = weight * self.mask
        return self.fmt.quantise(weight, self.shift) if self.on else weight


def fit_activations(net: Separator, fmt, mixture: torch.Tensor) -> dict[str, float]:
    """The shift of each activation, from what the net as it is produces for ``mixture``."""
    shifts: dict[str, float] = {}
    handles = [module.register_forward_hook(lambda module, inputs, output, name=name: shifts.update({name: fitted(fmt, output)}))
               for name, module in net.activations().items()]
    try:
        with torch.no_grad():
            net(mixture)
    finally:
        for handle in handles:
            handle.remove()
    return shifts


class Quantised:
    """A folded separator in training with rounded weights and activations; `prune` zeroes weights, `pack` gives what is stored."""

    def __init__(self, net: Separator, fmt, mixture: torch.Tensor):
        self.net, self.fmt, self.activations, self.on = net, fmt, fit_activations(net, fmt, mixture), True
        for layer in net.layers().values():
            parametrize.register_parametrization(layer, "weight", Rounded(layer.weight, fmt))
        for name, module in net.activations().items():
            module.register_forward_hook(lambda module, inputs, output, name=name: fmt.quantise(output, self.activations[name]) if self.on else output)

    def round(self, on: bool) -> None:
        """Switches 8-bit rounding of weights and activations on or off."""
        self.on = on
        for rounded, weight in self._layers():
            rounded.on, rounded.shift = on, fitted(self.fmt, weight * rounded.mask)

    def _layers(self) -> list[tuple[Rounded, torch.Tensor]]:
        return [(layer.parametrizations.weight[0], layer.parametrizations.weight.original) for layer in self.net.layers().values()]

    def biases(self) -> int:
        return sum(layer.bias.numel() for layer in self.net.layers().values() if layer.bias is not None)

    def left(self) -> int:
        """Parameters that are not cut: weights and biases."""
        return int(sum(rounded.mask.sum() for rounded, _ in self._layers())) + self.biases()

    def prune(self, count: int) -> None:
        """Keeps the ``count`` largest weights of the whole net, and in any layer at least one; fits the shifts to what is left. What is gone does not
        return: the optimizer's momentum still moves it, but to no purpose."""
        magnitudes = [weight.detach().abs() * rounded.mask for rounded, weight in self._layers()]
        together = torch.cat([m.ravel() for m in magnitudes])
        threshold = together.kthvalue(max(1, together.numel() - count)).values
        for (rounded, weight), magnitude in zip(self._layers(), magnitudes, strict=True):
            rounded.mask.copy_(magnitude > min(threshold, magnitude.max() * 0.999))
            rounded.shift = fitted(self.fmt, weight * rounded.mask)

    def pack(self) -> PackedSeparator:
        codes, biases, shifts = {}, {}, {}
        for (name, layer), (rounded, weight) in zip(self.net.layers().items(), self._layers(), strict=True):
            shifts[name] = rounded.shift
            codes[name] = self.fmt.encode(weight.detach() * rounded.mask, rounded.shift).numpy()
            if layer.bias is not None:
                biases[name] = layer.bias.detach().numpy().astype(np.float16)
        return PackedSeparator(self.net.config(), codes, shifts | self.activations, biases, self.fmt)

    def plain(self) -> Separator:
        """A copy without rounding and hooks: the weights in training, masked."""
        net = Separator(**self.net.config())
        with torch.no_grad():
            for (name, layer), (rounded, weight) in zip(net.layers().items(), self._layers(), strict=True):
                layer.weight.copy_(weight * rounded.mask)
                if layer.bias is not None:
                    layer.bias.copy_(self.net.get_submodule(name).bias)
        return net.eval()


def loud(net: Separator, mixture: torch.Tensor, voices: torch.Tensor) -> Separator:
    """Makes the voices come out as loud as they went in: a power of two as output gain, the rest (0.7 … 1.4) into the decoder, in place."""
    with torch.no_grad():
        factor = float(voices.norm() / net(mixture).norm())
        shift = 2.0 ** round(math.log2(factor))
        net.gain *= shift
        net.decoder.weight *= factor / shift
    return net


def gradual(start: float, end: float, progress: float) -> float:
    """The cubic schedule (Zhu and Gupta 2017): fast at first, slow towards the ``end`` sparsity."""
    return end + (start - end) * (1 - min(1.0, progress)) ** 3


def compress(net: Separator, calibration: tuple[torch.Tensor, torch.Tensor], targets=TARGETS, kind: str = "both", fmt=FORMAT,
             split: float = SPLIT, tau: float | None = None, steps: int = STEPS, seed: int = 0, source: Iterator | None = None) -> Iterator[tuple[float, PackedSeparator]]:
    """Yields a packed separator for each target share of parameters removed, in rising order.

    ``structured``: channels alone, with a tolerance as large as the target needs; ``unstructured``: single weights alone; ``both``: channels leave the
    share (1 − target)^``split`` of the parameters, single weights the rest — or, with a ``tau`` in dB, channels that cost at most so much a group.
    Every kind gets ``steps`` fine-tuning steps a target.
    """
    if 0 < steps < 10:
        raise ValueError(f"steps must be 0 (no fine-tuning) or at least 10 a target, not {steps}")
    original = fold(net)
    dense, mixture = parameters(original), calibration[0]
    original = loud(original, *calibration)
    losses = sensitivity(original, *calibration) if kind != "unstructured" else {}
    state = Quantised(original, fmt, mixture)

    def tune(number: int, prune=None) -> None:
        """``number`` steps; ``prune(progress)`` is called every fifth until `PRUNED` of them; rounding is on from `ROUNDED` of them."""
        def on_step(step: int, loss: float) -> None:
            if prune and step % 5 == 4 and step < PRUNED * number:
                prune((step + 5) / (PRUNED * number))
            if step == int(ROUNDED * number):
                state.activations = fit_activations(state.plain(), fmt, mixture)
                state.round(True)

        if number:
            state.round(False)
            recipe.train(state.net, number, seed, RATE, on_step, source or recipe.batches(seed, samples=CROP))

    for target in targets:
        seed += 1_000
        if losses:
            share = target if kind == "structured" else 1 - (1 - target) ** split
            tolerance = tau if kind == "both" and tau is not None else tau_for(original, losses, share)
            state = Quantised(narrow(state.plain(), widths_for(original, losses, tolerance)), fmt, mixture)
        start, goal, biases = state.left(), int((1 - target) * dense), state.biases()
        if kind == "structured":
            tune(steps)
        elif goal <= biases:
            raise ValueError(f"target {target} leaves {goal} parameters, and the net has {biases} biases")
        else:
            tune(steps, lambda progress: state.prune(int(gradual(start, goal, progress)) - biases))  # noqa: B023
            state.prune(goal - biases)
        state.activations = fit_activations(state.plain(), fmt, mixture)
        yield target, state.pack()


# ── shipped nets ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=9)
def _streams(replica: int, kind: str) -> tuple[dict, dict]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = CHECKPOINTS / f"separator-{replica}-{kind}.safetensors"
    if not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.papers.pruning._separator_prune {replica} {kind}` makes it")
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["nets"])
    return load_file(path), facts


def shipped(removed: float = TARGETS[-1], replica: int = 0, kind: str = "both", machine: Machine = MACHINE, lower: Callable = lower_by_phase) -> PackedSeparator:
    """A fine-tuned net of the repository."""
    tensors, facts = _streams(replica, kind)
    if str(removed) not in facts:
        raise StudyError(f"no net of this kind with {removed} of the parameters removed; there are {', '.join(facts)}")
    prefix = f"{removed}/"
    packed = PackedSeparator.from_tensors({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, facts[str(removed)])
    return replace(packed, machine=machine, lower=lower)


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    parser.add_argument("kind", choices=KINDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.replica)
    tensors, facts = {}, {}
    for target, packed in compress(load(args.replica), data.split("validation").tensors(6, CROP, 2_000), kind=args.kind, seed=100 + args.replica):
        streams, facts[str(target)] = packed.tensors()
        tensors |= {f"{target}/{name}": stream for name, stream in streams.items()}
        score = recipe.improvement(packed, *data.split("validation").tensors(12, data.RATE), batch=2).mean()
        print(f"{args.kind} {target}: {packed.weights} weights, {len(packed.to_bytes())} bytes, {score:.2f} dB", flush=True)
    path = CHECKPOINTS / f"separator-{args.replica}-{args.kind}.safetensors"
    save_file(tensors, path, metadata={"nets": json.dumps(facts), "data": data.fingerprint()})


if __name__ == "__main__":
    main()
