r"""# A speech separator that runs on eight multipliers

**A 1.6-mW Sparse Deep Learning Accelerator for Speech Separation** (2023; arXiv 2312.09580).

Two people talk into one microphone; a small causal network gives each a track of their own. To run it on a milliwatt, network and machine are made for
each other: most weights are removed, the rest become 8-bit floats, and eight slow multipliers only ever meet pairs in which neither number is zero.

```text
 dense net ─► channels whose loss ≤ τ ─► smallest weights, ─► 8-bit floats, ─► packed file: values | positions | biases | shifts
   float32      cut out (physically)      s(t) cubic          exponent shifted        │
                                                                                      ▼
 sound ─► encoder ─► R·X dilated blocks ─► masks × encoder ─► decoder     8 lanes ─ barrier ─ 8 lanes ─ barrier …
                     d phases, dense kernels                  s sub-kernels    a tile takes as long as its slowest lane
```

**Who removes what?** By default channels leave the square root of the share that is to be left, and single weights the rest: of 100 parameters that
shall become 9, channels leave 30, weights 9. A channel takes its positions, its biases and its activations along; single weights are the finer chisel.

**Which zeros?** There are three kinds, and they are skipped in three ways. *Structural* zeros stand between the taps of a dilated kernel and between the
samples of a transposed convolution; with $y[qs+r]=\sum_j w[r+js]\,x[q-j]$ each output phase $r$ has its own small kernel, and the zeros are never read.
*Weight* zeros are made by pruning; a lane walks its channel's list of (index delta, value). *Activation* zeros come from ReLU and change with the
sound; one bit each tells a lane to move on. In a tile of 8 channels × 16 samples

$$\text{cycles}=\max_{\text{lanes }\ell}\;\sum_{i,k}\sum_{t}\,[w_{\ell ik}\neq0]\,[x_{i,t+k}\neq0]\;\geq\;\frac{\text{MACs}}{8}$$

so the speed-up is not one over the density: lanes with less to do wait at the barrier. If all lanes take every step together (SIMD), the sum runs over
the positions at which *any* of the eight weights is there, which is worse.

**The number format.** $(-1)^s\,2^{E-b}(1+M/8)$ with 4 exponent bits spans 18 octaves, wherever the integer $b$ puts them. A net whose weights are all below
1/32 wastes half of the standard range ($b=7$); shifting costs one signed byte a tensor and no hardware but an adder. Products of such numbers have 8-bit
significands, so sums in a wide register are exact: the separated sound does not depend on the order of summation.

**What to look for.** Drag the knob and see which layers the cycles are in; switch lanes to lockstep. Bytes, parameters, MACs and cycles all shrink by
different factors. Milliwatts are *modelled* from counted operations with an editable table that is scaled to the paper's figure; nothing here is silicon.

Known from the abstract: structured and unstructured pruning, shifted 8-bit floats, both decompositions, eight units, 150 MHz, zero skipping. The
network's shape, the tolerance τ, the split, the schedule, tiles, list formats and the energy table are reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...benches import speech
from ...benches.speech import data, wav
from ...benches.speech.nets import Separator, fold
from ...contracts.machine import Counters, Energy, Machine, run
from ...core.claims import better, bound
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Part, Study
from . import _separator_checks as checks
from ._phases import dilated_by_phase, lower_by_phase, lower_with_zeros, transpose_by_phase
from ._separator_lesson import SOLUTION, STUB, check_exercise, lanes_and_cycles
from ._separator_pack import FORMAT, MACHINE, PackedSeparator
from ._separator_prune import SPLIT, TARGETS, Quantised, compress, gradual, loud, narrow, sensitivity, shipped
from ._shifted_fp8 import Float8, Int8

DEFAULT, PAPER = 0.72, 0.9544                                        # shares of the parameters removed: a tenth of the bits; the paper's figure


@dataclass(frozen=True)
class SparseAccelerator:
    """The paper's choices; each can be replaced. ``lower``: how convolutions become dense kernels; ``narrow``: how channels are removed; ``restore``:
    what a written file gives back."""

    format: Float8 | Int8 = FORMAT
    machine: Machine = MACHINE
    lower: Callable = lower_by_phase
    narrow: Callable = narrow
    restore: Callable = PackedSeparator.load


# ── on your own ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def compress_separator(model: nn.Module, wav_loader: Iterable, target: float = 0.95, kind: str = "both", fmt: Float8 | Int8 = FORMAT,
                       split: float = SPLIT, tau: float | None = None, steps: int = 300, seed: int = 0) -> PackedSeparator:
    """Removes ``target`` (0 … 0.97) of the parameters of a trained `Separator`, fine-tunes, and packs it.

    ``wav_loader`` gives ``(mixture (b, samples), voices (b, 2, samples))`` in ±1, or ``(mixture.wav, first.wav, second.wav)`` paths. Errors: a norm over
    time (it looks into the future), layers with groups that the machine has no lanes for, all-zero layers — each listed by name —; another sample
    rate than 8 kHz; an empty loader; a target out of range.
    """
    if not 0 <= target <= 0.97:
        raise ValueError(f"target is the share of parameters to remove, 0 to 0.97, not {target}")
    check_model(model)
    batches = [_batch(item) for item in wav_loader]
    if not batches:
        raise ValueError("wav_loader is empty; at least one mixture with its voices is needed")

    def again() -> Iterator:
        while True:
            yield from batches

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return next(compress(model, batches[0], (target,), kind, fmt, split, tau, steps, seed, again()))[1]


def check_model(model: nn.Module) -> None:
    """TypeError or ValueError where a separator cannot be compressed or run here; the message lists the layers."""
    named = list(model.named_modules())
    norms = [f"{name} ({type(m).__name__})" for name, m in named if isinstance(m, (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d))]
    if norms:
        raise ValueError(f"norms over time are not causal and do not fold into a convolution: {', '.join(norms)}; use BatchNorm1d")
    convs = [(name, m) for name, m in named if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    grouped = [f"{name} (groups={m.groups}, channels={m.in_channels})" for name, m in convs if m.groups not in (1, m.in_channels)]
    if grouped:
        raise ValueError(f"groups must be 1 or the number of channels: {', '.join(grouped)}")
    dead = [name for name, m in convs if not m.weight.detach().abs().max() > 0]
    if dead:
        raise ValueError(f"layers without any weight (all zero or NaN): {', '.join(dead)}")
    if not isinstance(model, Separator):
        raise TypeError(f"model must be a workbench.benches.speech.nets.Separator, not {type(model).__name__}; "
                        f"for single layers of other nets see dilated_by_phase and transpose_by_phase")


def _batch(item) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(item[0], (str, Path)):
        sounds = [wav.read(path) for path in item]
        rates, lengths = {rate for rate, _ in sounds}, {len(sound) for _, sound in sounds}
        if rates != {data.RATE} or len(lengths) != 1 or len(sounds) != 3:
            raise ValueError(f"{item[0]}: three files of one length at {data.RATE} Hz are needed; found rates {sorted(rates)}, lengths {sorted(lengths)}")
        mixture, *voices = (torch.from_numpy(sound.astype(np.float32) / 32_768) for _, sound in sounds)
        return mixture[None], torch.stack(voices)[None]
    mixture, voices = item
    if mixture.ndim != 2 or voices.shape != (mixture.shape[0], 2, mixture.shape[1]):
        raise ValueError(f"a batch is a mixture (b, samples) and voices (b, 2, samples), not {tuple(mixture.shape)} and {tuple(voices.shape)}")
    return mixture, voices


def simulate(sep: PackedSeparator, sound: str | Path | np.ndarray, lanes: int = 8, mhz: float = 150.0, rate: int = data.RATE) -> dict:
    """Runs a packed separator on the machine: ``voices`` int16 (2, samples), ``total`` and ``layers`` (counters, utilisation, seconds, modelled µJ),
    ``real_time`` (seconds of computing a second of sound) and ``milliwatts`` (modelled, averaged over the sound). Errors as `separate`."""
    rate, sound = (rate, sound) if isinstance(sound, np.ndarray) else wav.read(sound)
    machine = replace(sep.machine, lanes=lanes, mhz=mhz)
    voices, counters = replace(sep, machine=machine).simulate(sep.mixture(sound, rate))
    total = sum(counters.values(), start=Counters()).report(machine)
    seconds = len(sound) / rate
    return {"voices": sep.samples(voices), "total": total, "layers": {name: c.report(machine) for name, c in counters.items()},
            "real_time": total["seconds"] / seconds, "milliwatts": total["microjoules"] / 1e3 / seconds}


# ── contenders ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def stored(kind: str, **settings) -> Contender:
    """The fine-tuned nets of one kind of pruning."""
    return Contender(lambda removed, replica: shipped(removed, replica, kind), evidence="checkpoint", **settings)


def on(machine: Machine, lower: Callable = lower_by_phase, **settings) -> Contender:
    """The default net of one replica on another machine."""
    return Contender(lambda replica: shipped(DEFAULT, replica, machine=machine, lower=lower), evidence="checkpoint", **settings)


def _calibrated(replica: int) -> tuple[Separator, torch.Tensor]:
    mixture, voices = data.split("validation").tensors(4, data.RATE // 2, 2_000)
    return loud(fold(speech.load(replica)), mixture, voices), mixture


def unpruned(fmt, **settings) -> Contender:
    """The dense net rounded to a format, without any fine-tuning."""
    def make(replica):
        net, mixture = _calibrated(replica)
        return Quantised(net, fmt, mixture).pack()

    return Contender(make, evidence="checkpoint", **settings)


def untuned(removed, replica) -> PackedSeparator:
    """As many channels and weights as the shipped net has, the largest of the dense net, and no fine-tuning."""
    net, mixture = _calibrated(replica)
    like = shipped(removed, replica)
    widths = {"filters": like.config["filters"], "trunk": like.config["trunk"]} | {f"blocks.{i}": w for i, w in enumerate(like.config["inner"])}
    state = Quantised(narrow(net, widths), Float8(), mixture)
    state.prune(like.weights)
    return state.pack()


def unshifted(removed, replica) -> PackedSeparator:
    """The shipped net's weights and activations in 8-bit floats with the standard exponent bias."""
    packed, fmt = shipped(removed, replica), Float8(shifted=False)
    codes = {name: fmt.encode(packed.format.decode(torch.from_numpy(code), packed.shifts[name]), 7).numpy() for name, code in packed.codes.items()}
    return replace(packed, codes=codes, shifts=dict.fromkeys(packed.shifts, 7), format=fmt)


# ── the study ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

LOCKSTEP, NO_MAP = replace(MACHINE, independent=False), replace(MACHINE, skip_activations=False)
ARRAY, AT_DEFAULT = replace(NO_MAP, skip_weights=False), {"removed": (DEFAULT,)}

STUDY = Study(
    paper="2312.09580",
    name="speech-separator",
    track=speech.BYTES,
    method=SparseAccelerator(),
    knobs=(Knob("removed", TARGETS, DEFAULT, quick=(DEFAULT, 0.8, 0.9), label="share of the parameters removed", slides=False),),
    contenders={
        "separator": stored("both", role="paper", subject=SparseAccelerator()),
        "unstructured only": stored("unstructured"),
        "structured only": stored("structured"),
        "dense, shifted FP8": unpruned(Float8(), role="control"),
        "dense, FP8 without shift": unpruned(Float8(shifted=False)),
        "dense, INT8": unpruned(Int8()),
        "dense, shifted FP8 E5M2": unpruned(Float8(5, 2), replicas=1),
        "dense float32": Contender(lambda replica: speech.dense(replica), "control", evidence="checkpoint"),
        "separator at the paper's size": Contender(lambda replica: shipped(PAPER, replica), "paper", evidence="checkpoint"),
        "dense array": on(ARRAY),
        "zeros inserted": on(MACHINE, lower_with_zeros),
    },
    ablations={
        "channels zeroed, not removed": Ablation("2 structured pruning", subject=SparseAccelerator(narrow=checks.silenced)),
        "no fine-tuning": Ablation("3 unstructured pruning", Contender(untuned, evidence="checkpoint", grid=AT_DEFAULT)),
        "positions not stored": Ablation("3 unstructured pruning", subject=SparseAccelerator(restore=checks.without_positions)),
        "exponents not shifted": Ablation("4 shifted FP8", Contender(unshifted, evidence="checkpoint", grid=AT_DEFAULT),
                                          SparseAccelerator(format=Float8(shifted=False))),
        "subnormals flushed to zero": Ablation("4 shifted FP8", subject=SparseAccelerator(format=checks.FlushedFloat8())),
        "phases side by side": Ablation("5 dilated", subject=SparseAccelerator(lower=checks.side_by_side)),
        "zeros inserted everywhere": Ablation("6 transposed", subject=SparseAccelerator(lower=lower_with_zeros)),
        "all lanes in step": Ablation("7 datapath", on(LOCKSTEP), SparseAccelerator(machine=LOCKSTEP)),
        "memory for free": Ablation("8 energy", subject=SparseAccelerator(machine=replace(MACHINE, energy=Energy(sram=0)))),
        "zero activations not skipped": Ablation("7 datapath", on(NO_MAP), SparseAccelerator(machine=NO_MAP)),
    },
    checks=(
        Check("decompositions", "Phases give what torch's dilated and transposed convolutions give, bit for bit on whole numbers", checks.decompositions_exact),
        Check("MACs by brute force", "MACs counted = pairs in which neither number is zero, counted one by one; outputs equal torch's", checks.counts_by_brute_force),
        Check("machine = model", "The separator run by the machine gives the model's voices; MACs ≤ 8 · cycles", checks.machine_equals_model),
        Check("structural zeros", "The decompositions save the share of multiplications that the inserted zeros are", checks.structural_zeros),
        Check("256 codes", "encode(decode(code)) is the code, for all 256, E4M3 and E5M2", checks.every_code_returns),
        Check("shift", "Shifted FP8 is 6 dB better than unshifted on small Gaussian weights, and at least INT8 on heavy tails", checks.shift_pays),
        Check("free lanes", "Independent lanes take the cycles worked out by hand, and never more than lanes in lockstep", checks.lanes_run_free),
        Check("really removed", "Cutting silent channels out changes no voice and leaves less than half of the parameters", checks.removed_for_real),
        Check("file = net", "The bytes counted are the file's, and what is read back sounds the same to the last bit", checks.file_is_the_net),
        Check("energy by hand", "A millisecond's energy is what the table gives by hand; a table calibrated to 1.6 mW draws 1.6 mW", checks.energy_by_hand),
    ),
    claims=(
        Claim("a tenth of the bits", "With 72 % of the parameters removed the file is at most a tenth of the dense float32 file",
              bound("bytes_share", at_most=0.1, removed=DEFAULT)),
        Claim("quality at a tenth of the bits", "… and SI-SDRi is at most 1.5 dB lower", better("si_sdri", "dense float32", by=-1.5, removed=DEFAULT),
              reason="pruned nets get 80 fine-tuning steps a target here, and this net is 46 times smaller than the published Conv-TasNet (5.1 million)"),
        Claim("quality at the paper's size", "With 95.44 % of the parameters removed SI-SDRi is at most 1.5 dB lower",
              better("si_sdri", "dense float32", by=-1.5, of="separator at the paper's size"), paper="−95.44 % model size (abstract)",
              reason="4.56 % of this net are 5,000 parameters; the paper starts from a far larger net"),
        Claim("the paper's computation", "At that size MACs with non-zero weights are at most 6.12 % of the dense net's",
              bound("complexity_share", at_most=0.0612, of="separator at the paper's size"), paper="−93.88 % computation (abstract)"),
        Claim("both kinds against channels alone", "At equal bytes, channels and weights together are at most 0.2 dB below channels alone",
              better("si_sdri", "structured only", by=-0.2, at_equal="bytes")),
        Claim("both kinds against weights alone", "At equal bytes, channels and weights together are at most 0.2 dB below weights alone",
              better("si_sdri", "unstructured only", by=-0.2, at_equal="bytes")),
        Claim("still separates", "At a tenth of the bits the voices are still at least 5 dB nearer to the truth than the mixture",
              bound("si_sdri", at_least=5, removed=DEFAULT)),
        Claim("shifting helps this net", "Rounded without fine-tuning, shifted FP8 is at least 0.1 dB better than unshifted",
              better("si_sdri", "dense, FP8 without shift", by=0.1, of="dense, shifted FP8"),
              reason="after folding, this net's weights and activations lie within the standard range"),
        Claim("FP8 or INT8", "Rounded without fine-tuning, shifted FP8 is at least as good as INT8",
              better("si_sdri", "dense, INT8", by=0, of="dense, shifted FP8"),
              reason="this net's weights have light tails, on which evenly spaced codes are finer; on heavy tails FP8 wins (check `shift`)"),
        Claim("free lanes save cycles", "Lanes that run freely need at most 0.9 of the cycles of lanes in lockstep",
              bound("cycles", at_most=0.9, relative_to="all lanes in step", removed=DEFAULT)),
        Claim("skipping saves cycles", "Skipping zeros needs at most half of the cycles of a dense 8-lane array that runs the same pruned net",
              bound("cycles", at_most=0.5, relative_to="dense array", removed=DEFAULT)),
        Claim("real time", "At 150 MHz the machine computes for at most 3 % of the time that the sound lasts",
              bound("real_time", at_most=0.03, removed=DEFAULT), paper="real-time at 150 MHz (abstract)"),
        Claim("1.6 mW", "1.6 mW at 150 MHz, 2.344 TOPS/W, 14.42 GOPS/mm² in 40 nm", None, paper="abstract",
              needs="the 40 nm chip; counted operations and a calibrated table are shown instead"),
    ),
    parts={
        "1 network": Part(Separator.forward, "machine = model", reconstructed=True),
        "2 structured pruning": Part(sensitivity, "really removed", "channels zeroed, not removed", reconstructed=True),
        "3 unstructured pruning": Part(gradual, "still separates", "no fine-tuning", reconstructed=True),
        "4 shifted FP8": Part(Float8.fit, "shift", "exponents not shifted"),
        "5 dilated": Part(dilated_by_phase, "decompositions", "phases side by side"),
        "6 transposed": Part(transpose_by_phase, "structural zeros", "zeros inserted everywhere"),
        "7 datapath": Part(run, "free lanes", "all lanes in step"),
        "8 energy": Part(Counters.microjoules, "energy by hand", "memory for free", reconstructed=True),
    },
    picture=lanes_and_cycles,
    exercise=Exercise("How many cycles does one tile take on eight lanes that skip zeros and wait for each other at its end?", STUB,
                      ["A lane works once for every pair of one of its non-zero weights with a non-zero activation.",
                       "The number of live activations of each weight is a row sum of `live`.", "The tile ends when the slowest lane does: max, not mean."],
                      check_exercise, SOLUTION),
)
