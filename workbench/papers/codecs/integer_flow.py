"""Exactly invertible layers on fixed-point integers (iFlow, sections on MST, element-wise, convolution and coupling flows).

    x̄ int64 (n, H, W, C), x = 2^−h x̄ ─► layer.forward(stream, x̄) ─► z̄          layer.inverse(stream, z̄) ─► x̄, stream as it was

Whatever a layer cannot keep in z̄ it pushes to ``stream`` (a stack of uniform symbols, `ubcs.UBCS`) and whatever it needs it pops.
`to_invertible` makes such layers from a trained float32 flow. Networks are evaluated in integers too: activations are multiples
of 2^−8, weights of 2^−12, and float64 matrix products of such integers stay far below 2^53. So every sum is exact, whatever
the order of its terms, and encoder and decoder agree on any two machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import nn

from ...benches import photo_flow
from ...contracts.data import StreamError
from .ubcs import MAX_RADIX, UBCS

WEIGHT, ACTIVATION, OCTAVE = 12, 8, 64          # fractional bits of weights and activations; steps of log2-scales in an octave
LIMIT = 2**15 - 1                               # activations are clipped here
OCTAVES = 8
MATRIX = 14                                     # fractional bits of L and U


def _roots() -> list[int]:
    """2^(30 + i/64), i = 0 … 63, rounded down, by integer square roots alone."""
    roots = []
    for i in range(OCTAVE):
        value = 1 << (i + 30 * OCTAVE)
        for _ in range(6):
            value = math.isqrt(value)
        roots.append(value)
    return roots


ROOTS = _roots()


def ratio(log2_scale, C: int) -> tuple[np.ndarray, np.ndarray]:
    """Part 2: integers (R, S) with R/S ≈ 2^(log2_scale/64) and R = 2^C, or less where S would exceed 2^16. ``log2_scale`` int64 in ±512."""
    if not 1 <= C <= 16:
        raise ValueError(f"C must be 1 to 16 (R = 2^C at most {MAX_RADIX}), not {C}")
    return tuple(table[np.asarray(log2_scale) + OCTAVES * OCTAVE] for table in _ratios(C))


@lru_cache(maxsize=16)
def _ratios(C: int) -> np.ndarray:
    pairs = []
    for q in range(-OCTAVES * OCTAVE, OCTAVES * OCTAVE + 1):
        for bits in range(C, 0, -1):
            whole, part = divmod(bits * OCTAVE - q, OCTAVE)
            divisor = ((ROOTS[part] << 16 + whole) >> 45) + 1 >> 1          # 2^(bits − q/64), rounded
            if divisor <= MAX_RADIX:
                break
        pairs.append((1 << bits, max(1, divisor)))
    return np.array(pairs, np.int64).T.copy()


def octaves(log2_scale: np.ndarray) -> np.ndarray:
    """Float log2 scales → integers in 64ths of an octave; not finite or beyond 2^±8: ValueError."""
    log2_scale = np.asarray(log2_scale, np.float64)
    if not (np.abs(log2_scale) <= OCTAVES).all():
        raise ValueError(f"every scale must be a positive number between 2^-{OCTAVES} and 2^{OCTAVES}, found 2^{log2_scale.ravel()}")
    return np.rint(log2_scale * OCTAVE).astype(np.int64)


class Modular:
    """Part 2, the modular scale transform: ``y = R·x̄ + r_d``, ``z̄ = ⌊y/S⌋``, and ``r_e = y mod S`` is pushed. Arrays int64 of one shape."""

    @staticmethod
    def forward(stream: UBCS, x, numerator, divisor):
        return stream.mst(x, numerator, divisor, backwards=False)

    @staticmethod
    def inverse(stream: UBCS, z, numerator, divisor):
        return stream.mst(z, divisor, numerator, backwards=True)


class Dequantise:
    """Part 1: pixels (n, H, W, 3) gain ``h`` fractional bits, popped from the stream: bits back."""

    def __init__(self, precision: Precision, noise: bool = True):
        self.h, self.noise = precision.h, noise

    def forward(self, stream, pixels):
        x = photo_flow.colours(pixels) << self.h
        return x + stream.pop_many([1 << self.h], x.size).reshape(x.shape) if self.noise else x

    def inverse(self, stream, x):
        values, noise = x >> self.h, x & (1 << self.h) - 1
        if self.noise:
            stream.push_many(noise, [1 << self.h])
        pixels = photo_flow.uncolours(values)
        if ((pixels < 0) | (pixels > 255)).any():
            raise StreamError("decoded pixels lie outside 0 to 255: damaged, or written with other weights")
        return pixels


@lru_cache(maxsize=32)
def _neighbours(height: int, width: int) -> np.ndarray:
    """Flat indices (H·W, 9) of the 3×3 neighbourhood of each position, clipped at the edges."""
    y, x = (np.clip(np.arange(size)[:, None] + np.arange(-1, 2), 0, size - 1) for size in (height, width))
    return (y[:, None, :, None] * width + x[None, :, None, :]).reshape(height * width, 9)


def _shift(x: np.ndarray, bits: int) -> np.ndarray:
    """⌊x / 2^bits⌋ of integers held as int64 or float64."""
    return np.floor(x * 2.0**-bits) if x.dtype == np.float64 else x >> bits


class IntegerNet:
    """A `photo_flow.ContextNet` in integers: pixels int64 (n, H, W, given) → shifts in 2^−16 pixels and log2 scales in 64ths, (n, H, W, changed)."""

    def __init__(self, net: photo_flow.ContextNet):
        def matrix(layer):
            weight = layer.weight.detach().double().numpy()
            return np.clip(np.rint(weight * 2**WEIGHT), -LIMIT, LIMIT).transpose(2, 3, 1, 0).reshape(-1, len(weight))

        def bias(layer):
            return np.rint(layer.bias.detach().double().numpy() * 2**(WEIGHT + ACTIVATION))

        self.first, self.second, self.last, self.linear = map(matrix, (net.first, net.second, net.last, net.linear))
        half = 2**(WEIGHT - 1)                  # rounds to nearest where activations are shifted back to 2^−8
        self.biases = bias(net.first) + half, bias(net.second) + half, bias(net.last)

    @staticmethod
    def windows(x):
        """(n, H, W, C) → (n·H·W, 9C), the edges repeated."""
        n, height, width, channels = x.shape
        return x.reshape(n, height * width, channels).take(_neighbours(height, width), 1).reshape(n * height * width, 9 * channels)

    def __call__(self, pixels, number=np.float64):
        def rounded(x):                         # to multiples of 2^−8, between 0 and 128
            return np.clip(_shift(x, WEIGHT), 0, LIMIT)

        shape = pixels.shape[:3]
        first, second, last, linear, *biases = (array.astype(number) for array in (self.first, self.second, self.last, self.linear, *self.biases))
        seen = self.windows(np.clip(pixels << ACTIVATION - 4, -LIMIT, LIMIT).astype(number))                # a unit is 16 pixels
        hidden = rounded(seen @ first + biases[0]).reshape(*shape, -1)
        out = rounded(self.windows(hidden) @ second + biases[1]) @ last + biases[2]
        changed, limit = out.shape[1] // 2, int(photo_flow.LOG2_SCALE) * OCTAVE
        step = WEIGHT + ACTIVATION - 6                                                                      # 2^−20 to 64ths
        shift = np.clip(out[:, :changed] + seen @ linear, -2**26, 2**26)                                    # at most 1024 pixels
        octave = np.clip(_shift(out[:, changed:] + 2**(step - 1), step), -limit, limit)
        return tuple(part.astype(np.int64).reshape(*shape, changed) for part in (shift, octave))

    def in_integers(self, pixels):
        """The same in int64: slower, and equal."""
        return self(pixels, np.int64)


@dataclass(frozen=True)
class Precision:
    """``h`` fractional bits of values, ``C`` bits of the numerator R; ``scaling`` and ``network`` can be replaced for comparison."""

    h: int = 12
    C: int = 12
    scaling: type = Modular
    network: type = IntegerNet

    def __post_init__(self):
        for name, value in (("h", self.h), ("C", self.C)):
            if not (isinstance(value, (int, np.integer)) and 1 <= value <= 16):
                raise ValueError(f"{name} must be an integer from 1 to 16 (radices up to {MAX_RADIX}), not {value!r}")


class Coupling:
    """Part 3: the channels ``changed`` become ``MST(x_b − t; s)``, with s and t from the pixels of the channels before them."""

    def __init__(self, layer: photo_flow.Coupling, precision: Precision):
        self.net, self.precision, self.given = precision.network(layer.net), precision, layer.given
        self.part = slice(layer.given, layer.given + len(layer.changed))

    def _parameters(self, x):
        shift, octave = self.net(x[..., :self.given] >> self.precision.h)
        return shift >> 16 - self.precision.h, *ratio(octave, self.precision.C)

    def forward(self, stream, x):
        shift, numerator, divisor = self._parameters(x)
        z = x.copy()
        z[..., self.part] = self.precision.scaling.forward(stream, x[..., self.part] - shift, numerator, divisor)
        return z

    def inverse(self, stream, z):
        shift, numerator, divisor = self._parameters(z)
        x = z.copy()
        x[..., self.part] = self.precision.scaling.inverse(stream, z[..., self.part], numerator, divisor) + shift
        return x


class Norm:
    """``(x − shift)·scale`` per channel: an addition and a modular scale transform."""

    def __init__(self, layer, precision: Precision, shift=None):
        self.scaling = precision.scaling
        shift = layer.shift.detach().double().numpy() if shift is None else shift
        self.shift = np.rint(shift * 2**precision.h).astype(np.int64)
        self.numerator, self.divisor = ratio(octaves(layer.log2_scale.detach().double().numpy()), precision.C)

    def _like(self, x):
        return (np.ascontiguousarray(np.broadcast_to(a, x.shape)) for a in (self.numerator, self.divisor))

    def forward(self, stream, x):
        return self.scaling.forward(stream, x - self.shift, *self._like(x))

    def inverse(self, stream, z):
        return self.scaling.inverse(stream, z, *self._like(z)) + self.shift


class Convolution:
    """Part 5, an invertible 1×1 convolution P·L·Λ·U: L and U add rounded multiples of other channels one channel at a time, Λ is an MST."""

    def __init__(self, layer: photo_flow.Conv1x1, precision: Precision):
        lower, upper = (np.rint(m.detach().double().numpy() * 2**MATRIX).astype(np.int64) for m in (layer.lower, layer.upper))
        self.lower, self.upper = np.tril(lower, -1), np.triu(upper, 1)
        self.permutation = layer.permutation.numpy()
        self.scale = Norm(layer, precision, shift=np.zeros(len(lower)))

    @staticmethod
    def _add(x, matrix, order, sign):
        x = x.copy()
        for i in order:
            x[..., i] += sign * ((x @ matrix[i] + (1 << MATRIX - 1)) >> MATRIX)
        return x

    def forward(self, stream, x):
        up = range(x.shape[-1])
        x = self.scale.forward(stream, self._add(x, self.upper, up, 1))
        return self._add(x, self.lower, reversed(up), 1)[..., self.permutation]

    def inverse(self, stream, z):
        up = range(z.shape[-1])
        x = self._add(z[..., np.argsort(self.permutation)], self.lower, up, -1)
        return self._add(self.scale.inverse(stream, x), self.upper, reversed(up), -1)


class Remap:
    """Part 4, an element-wise monotone flow: F between fixed knots, linear in each piece, onto the integers 0 … 2^16 − 1."""

    def __init__(self, layer: photo_flow.MixtureCDF, precision: Precision):
        if not int(layer.table.sum()):
            layer.freeze()
        table = layer.table.numpy().astype(np.int64)
        self.target = np.concatenate([np.zeros((len(table), 1), np.int64), table.cumsum(1)], 1)
        self.source = np.tile(np.array(photo_flow.KNOTS, np.int64) << precision.h - 1, (len(table), 1))

    def forward(self, stream, x, coded=False):
        """``coded`` pushes each value as soon as it is known, so that the pops of the next ones find bits there."""
        if x.size and np.abs(x).max() >= self.source[0, -1]:
            raise ValueError(f"a latent value of {np.abs(x).max()} lies outside the knots of the element-wise flow, ±{self.source[0, -1]}")
        return stream.remap(x, self.source, self.target, False, coded)

    def inverse(self, stream, z, coded=False):
        return stream.remap(z, self.target, self.source, True, coded)


class Squeeze:
    """(n, H, W, C) → (n, H/2, W/2, 4C), a permutation."""

    def forward(self, stream, x):
        return np.concatenate([x[:, i::2, j::2] for i, j in photo_flow.CELL], -1)

    def inverse(self, stream, z):
        n, height, width, channels = z.shape
        x = np.empty((n, 2 * height, 2 * width, channels // 4), np.int64)
        for part, (i, j) in zip(np.split(z, 4, -1), photo_flow.CELL):
            x[:, i::2, j::2] = part
        return x


class Split:
    """Part 6: all channels but the first ``keep`` are made uniform on 2^16 values by ``layers`` and pushed: the whole code is uniform symbols."""

    def __init__(self, layer: photo_flow.Split, precision: Precision):
        self.keep, self.layers = layer.keep, to_invertible(layer.layers, precision)
        if not self.layers or not isinstance(self.layers[-1], Remap):
            raise TypeError("the last layer of a Split must be a MixtureCDF, which makes its values uniform")
        self.channels = len(self.layers[-1].target)

    def forward(self, stream, x):
        latent = x[..., self.keep:]
        for layer in self.layers[:-1]:
            latent = layer.forward(stream, latent)
        self.layers[-1].forward(stream, latent, coded=True)
        return x[..., :self.keep]

    def inverse(self, stream, x):
        latent = self.layers[-1].inverse(stream, np.zeros((*x.shape[:-1], self.channels), np.int64), coded=True)
        for layer in reversed(self.layers[:-1]):
            latent = layer.inverse(stream, latent)
        return np.concatenate([x, latent], -1)


LAYERS = {photo_flow.Coupling: Coupling, photo_flow.Conv1x1: Convolution, photo_flow.ActNorm: Norm, photo_flow.MixtureCDF: Remap,
          photo_flow.Split: Split}


def to_invertible(flow: nn.Module | Iterable[nn.Module], precision: Precision = Precision()) -> list:
    """Integer layers of the layers of a float flow (anything with ``stack()``, an ``nn.Sequential`` or a list). Other layers: TypeError."""
    modules = flow.stack() if hasattr(flow, "stack") else [flow] if type(flow) in (*LAYERS, photo_flow.Squeeze) else flow
    layers = []
    for module in modules:
        if isinstance(module, photo_flow.Squeeze):
            layers.append(Squeeze())
        elif type(module) in LAYERS:
            layers.append(LAYERS[type(module)](module, precision))
        else:
            raise TypeError(f"{type(module).__name__} has no exactly invertible form here; supported are "
                            f"{', '.join(sorted(c.__name__ for c in (*LAYERS, photo_flow.Squeeze)))}")
    return layers
