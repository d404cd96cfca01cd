"""The packed separator: 8-bit codes of the non-zero weights, where they stand, biases, shifts — and the sound that comes out of exactly those bytes.

A layer's positions are stored in the shortest of three ways: none (all weights stored), a bitmap, or index deltas of k bits, where k is chosen for
the layer and a gap too long for one delta gets filler weights of value zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ...benches.speech import data, wav
from ...benches.speech.nets import Separator
from ...contracts.files import artifact
from ...contracts.files.artifact import ArtifactError
from ...contracts.machine import Counters, Energy, Layer, Machine, simulate
from ._phases import lower_by_phase
from ._shifted_fp8 import Float8, Int8

FORMAT = Float8()
# The energy table times 0.959: the shipped net with 95.44 % of its parameters removed then draws the paper's 1.6 mW while the machine is busy.
MACHINE = Machine(energy=Energy(mac=0.288, sram=1.199, leakage=0.15))
LARGEST_NET = 1 << 24                                                # weights; more than that in a file is taken for damage


def _bits(values: np.ndarray, width: int) -> np.ndarray:
    return np.packbits(np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - width:])


def pack_positions(present: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Flat booleans → (mode, positions stored, bytes). Mode 0: all present; 9: bitmap; 1 … 8: deltas of that many bits (fillers get positions too)."""
    if present.all():
        return 0, np.arange(present.size), np.zeros(0, np.uint8)
    where = np.flatnonzero(present)
    gaps = np.diff(where, prepend=-1) - 1                            # zeros before each
    fillers = {width: int((gaps >> width).sum()) for width in range(1, 9)}
    costs = {width: width * (where.size + extra) + 8 * extra for width, extra in fillers.items()}
    width = min(costs, key=costs.get)
    if costs[width] >= present.size:
        return 9, where, np.packbits(present)
    extra, full = gaps >> width, (1 << width) - 1
    deltas = np.full(where.size + extra.sum(), full)
    deltas[np.cumsum(extra + 1) - 1] = gaps & full
    return width, np.cumsum(deltas + 1) - 1, _bits(deltas, width)


def unpack_positions(mode: int, entries: int, raw: np.ndarray, size: int) -> np.ndarray:
    """The positions of ``entries`` stored weights among ``size``; ArtifactError where the bytes cannot be right."""
    if mode == 0:
        where = np.arange(size)
    elif mode == 9:
        where = np.flatnonzero(np.unpackbits(raw, count=size))
    else:
        bits = np.unpackbits(raw, count=entries * mode).reshape(entries, mode)
        where = np.cumsum(bits.astype(np.int64) @ (1 << np.arange(mode)[::-1]) + 1) - 1
    if where.size != entries or (entries and where[-1] >= size):
        raise ArtifactError(f"{where.size} weights up to position {where[-1] if entries else -1}; {entries} below {size} were announced")
    return where


def position_bytes(mode: int, entries: int, size: int) -> int:
    return 0 if mode == 0 else (size if mode == 9 else entries * mode) + 7 >> 3


@dataclass
class PackedSeparator:
    """``config`` rebuilds the net; ``codes``: uint8 of each layer's shape; ``shifts``: of each layer and each activation; ``biases``: float16.

    Calling it separates (batch, samples) mixtures in ±1. It runs in float64, where sums of 8-bit float products are exact (E4M3: below 2^53 steps):
    the result depends on no order of summation, hence on no processor.
    """

    config: dict
    codes: dict[str, np.ndarray]
    shifts: dict[str, float]
    biases: dict[str, np.ndarray]
    format: Float8 | Int8 = FORMAT
    machine: Machine = MACHINE
    lower: Callable = lower_by_phase

    @cached_property
    def net(self) -> Separator:
        """The separator in float64 with the decoded weights, rounding each activation to 8 bits."""
        net = Separator(**self.config).double().eval()
        with torch.no_grad():
            for name, layer in net.layers().items():
                layer.weight.copy_(self.format.decode(torch.from_numpy(self.codes[name]), self.shifts[name]))
                if layer.bias is not None:
                    layer.bias.copy_(torch.from_numpy(self.biases[name].astype(np.float64)))
        for name, module in net.activations().items():
            module.register_forward_hook(lambda module, inputs, output, shift=self.shifts[name]: self.format.round(output, shift))
        return net.requires_grad_(False)

    def __call__(self, mixture: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.net(mixture.double()).float()

    @property
    def weights(self) -> int:
        """How many weights are not zero."""
        return sum(int((codes & 127 if isinstance(self.format, Float8) else codes).astype(bool).sum()) for codes in self.codes.values())

    def separate(self, sound: str | Path | np.ndarray, rate: int = data.RATE) -> np.ndarray:
        """A WAV file, or int16 samples at ``rate`` → the two voices, int16 (2, samples). ValueError: another sample rate than the net's."""
        rate, sound = (rate, sound) if isinstance(sound, np.ndarray) else wav.read(sound)
        return self.samples(self(self.mixture(sound, rate)))

    def mixture(self, sound: np.ndarray, rate: int) -> torch.Tensor:
        """int16 samples as the net takes them, (1, samples) in ±1."""
        if rate != data.RATE:
            raise ValueError(f"the sound has {rate} samples a second; the separator was trained on {data.RATE}: resample it first")
        if sound.dtype != np.int16 or sound.ndim != 1 or sound.size < self.config["window"]:
            raise ValueError(f"sound must be int16 of shape (samples,), at least {self.config['window']} of them; found {sound.dtype} {sound.shape}")
        return torch.from_numpy(sound.astype(np.float64) / 32_768)[None]

    def samples(self, voices: torch.Tensor) -> np.ndarray:
        """(1, 2, samples) in ±1 → int16 (2, samples)."""
        return np.clip(np.rint(voices[0].double().numpy() * 32_768), -32_768, 32_767).astype(np.int16)

    def simulate(self, mixture: torch.Tensor) -> tuple[torch.Tensor, dict[str, Counters]]:
        """The same voices, computed by ``machine`` layer by layer on the mixture's real activations, and what each layer spent."""
        bits = self.index_bits()

        def lower(name, module, x):
            if name == "product":                                    # mask times encoder: a multiplication wherever both are not zero
                x = x.flatten(0, 1).numpy()
                return [Layer(np.ones((len(x), 1, 1)), x)], None
            return self.lower(module, x, bits.get(name, 0))

        voices, counters = simulate(self.machine, self.net, mixture.double(), lower)
        return voices.float(), counters

    def index_bits(self) -> dict[str, int]:
        """Bits of indices or bitmap of each layer as packed."""
        sizes = {}
        for name, codes in self.codes.items():
            mode, where, _ = pack_positions(self._present(codes))
            sizes[name] = {0: 0, 9: codes.size}.get(mode, mode * where.size)
        return sizes

    def _present(self, codes: np.ndarray) -> np.ndarray:
        return (codes & 127 if isinstance(self.format, Float8) else codes).ravel() != 0

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict]:
        """All that has to be stored: the streams of all layers end to end, and the facts needed to cut and read them."""
        values, positions, table = [], [], []
        for codes in self.codes.values():
            mode, where, raw = pack_positions(self._present(codes))
            values.append(codes.ravel()[where])
            positions.append(raw)
            table.append([mode, int(where.size)])
        biases = np.concatenate([self.biases[name] for name in self.codes if name in self.biases]).astype(np.float16)
        fmt = [self.format.exponent, self.format.mantissa, self.format.shifted] if isinstance(self.format, Float8) else []
        shifts = np.array([self.shifts[name] for name in (*self.net.layers(), *self.net.activations())], np.int8 if fmt else np.float32)
        streams = {"values": np.concatenate(values), "positions": np.concatenate(positions), "biases": biases, "shifts": shifts}
        return {name: torch.from_numpy(stream) for name, stream in streams.items()}, {"config": self.config, "format": fmt, "layers": table}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], meta: dict) -> PackedSeparator:
        """The inverse of `tensors`. ArtifactError: streams and announcements do not fit each other."""
        try:
            config, fmt = dict(meta["config"]), Float8(*meta["format"]) if meta["format"] else Int8()
            widths = [config[key] for key in ("filters", "trunk", "stack", "window")] + list(config["inner"])
            if any(type(width) is not int or not 0 < width <= 4096 for width in widths) or len(widths) > 68 \
                    or not 0 < float(config["gain"]) < 1e6:
                raise ArtifactError(f"impossible widths {widths} or gain")
            if (config["filters"] * 2 + sum(config["inner"]) * 2) * (config["trunk"] + 1) > LARGEST_NET:
                raise ArtifactError("a net of more weights than any this can have packed")
            with torch.device("meta"):
                net = Separator(**{**config, "norm": False})
            streams = {name: tensors[name].numpy() for name in ("values", "positions", "biases", "shifts")}
            if len(meta["layers"]) != len(net.layers()) or streams["shifts"].size != len(net.layers()) + len(net.activations()):
                raise ArtifactError(f"{len(meta['layers'])} layers and {streams['shifts'].size} shifts for a net of {len(net.layers())} layers")
            codes, biases, start = {}, {}, {"values": 0, "positions": 0, "biases": 0}

            def take(stream: str, count: int) -> np.ndarray:
                part = streams[stream][start[stream]:start[stream] + count]
                if part.size != count or count < 0:
                    raise ArtifactError(f"{stream}: {part.size} of {count} left")
                start[stream] += count
                return part

            for (name, layer), (mode, entries) in zip(net.layers().items(), meta["layers"], strict=True):
                size = layer.weight.numel()
                if mode not in range(10) or not 0 <= entries <= size:
                    raise ArtifactError(f"{name}: {entries} weights of {size} in mode {mode}")
                where = unpack_positions(mode, entries, take("positions", position_bytes(mode, entries, size)), size)
                flat = np.zeros(size, np.uint8)
                flat[where] = take("values", entries)
                codes[name] = flat.reshape(layer.weight.shape)
                if layer.bias is not None:
                    biases[name] = take("biases", layer.bias.numel())
            if any(start[stream] != streams[stream].size for stream in start):
                raise ArtifactError("bytes are left over after the last layer")
            if any(not np.isfinite(part.astype(float)).all() for part in (streams["biases"], streams["shifts"])):
                raise ArtifactError("a bias or shift is not finite")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise error if isinstance(error, ArtifactError) else ArtifactError(f"not a packed separator: {type(error).__name__}: {error}") from error
        shifts = dict(zip((*net.layers(), *net.activations()), streams["shifts"].tolist()))
        return cls({**config, "norm": False}, codes, shifts, biases, fmt)

    def to_bytes(self) -> bytes:
        tensors, meta = self.tensors()
        return artifact.pack(tensors, {"kind": "packed separator", **meta})

    def save(self, path: str | Path) -> int:
        """Writes the file and returns its size in bytes."""
        tensors, meta = self.tensors()
        return artifact.save(path, tensors, {"kind": "packed separator", **meta})

    @classmethod
    def load(cls, path: str | Path) -> PackedSeparator:
        """ArtifactError: foreign, damaged, truncated or newer file."""
        found = artifact.read(path)
        if found.meta.get("kind") != "packed separator":
            raise ArtifactError(f"{path}: holds a {found.meta.get('kind', 'model')}, not a packed separator")
        return cls.from_tensors(found.tensors, found.meta)
