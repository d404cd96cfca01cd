"""Rivals of iFlow, and iFlow with one part taken away.

`RANS` is range coding with uniform frequencies in the place of UBCS: the same lanes, stack of words and compiler. A symbol out of ``R`` gets
``freq ≈ 2^24 / R`` of the 2^24 slots: ``c → (c div freq)·2^24 + start + c mod freq``. Encoding divides by the frequency, decoding looks for the
symbol of a slot; UBCS needs neither. States are in [2^31, 2^63).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from ...benches import photo_flow
from .integer_flow import OCTAVE
from .ubcs import MAX_RADIX, UBCS, U, _divide, kernel, mask32, u0, u1, u32

u24, u31, mask24 = U(24), U(31), U((1 << 24) - 1)


@kernel
def _push_rans(state, words, count, symbols, radices):
    at, lanes, step = count[0], state.size, (0 if radices.size == 1 else 1)
    for start in range(0, symbols.size, lanes):
        for lane in range(min(lanes, symbols.size - start)):
            c, symbol, radix = state[lane], U(symbols[start + lane]), U(radices[(start + lane) * step])
            first = _divide(symbol << u24, radix)
            freq = _divide((symbol + u1) << u24, radix) - first
            words[at] = c & mask32
            full = (c >> U(39)) >= freq                       # c ≥ 2^39·freq
            at += full
            c = c >> u32 if full else c
            whole = c // freq
            state[lane] = (whole << u24) + first + (c - whole * freq)
    count[0] = at


@kernel
def _pop_rans(state, words, count, out, radices):
    at, lanes, step = count[0], state.size, (0 if radices.size == 1 else 1)
    for start in range((out.size - 1) // lanes * lanes, -1, -lanes):
        for lane in range(min(lanes, out.size - start) - 1, -1, -1):
            c, radix = state[lane], U(radices[(start + lane) * step])
            slot = c & mask24
            symbol = ((slot + u1) * radix - u1) >> u24
            first = _divide(symbol << u24, radix)
            freq = _divide((symbol + u1) << u24, radix) - first
            c = freq * (c >> u24) + slot - first
            if c < (u1 << u31):
                at -= 1
                c = (c << u32) | (U(words[at]) if at >= 0 else u0)
                if at < 0:
                    count[2], at = 1, 0
            state[lane] = c
            out[start + lane] = symbol
    count[0], count[1] = at, min(count[1], at)


class RANS(UBCS):
    """A stack with the methods of `UBCS` whose symbols are coded by rANS; layers run as pop, arithmetic, push over whole arrays."""

    START, STATE_BYTES = 1 << 31, 8
    push_kernel, pop_kernel = staticmethod(_push_rans), staticmethod(_pop_rans)

    def _pop_wide(self, radices):
        wide = radices > MAX_RADIX
        high = self.pop_many(np.where(wide, radices >> 16, radices))
        return np.where(wide, high << 16 | self.pop_many(np.where(wide, MAX_RADIX, 1)), high)

    def _push_wide(self, symbols, radices):
        wide = radices > MAX_RADIX
        self.push_many(np.where(wide, symbols & MAX_RADIX - 1, 0), np.where(wide, MAX_RADIX, 1))
        self.push_many(np.where(wide, symbols >> 16, symbols), np.where(wide, radices >> 16, radices))

    def mst(self, x, numerator, divisor, backwards):
        whole, rest = np.divmod(numerator.ravel() * x.ravel() + self.pop_many(numerator), divisor.ravel())
        self.push_many(rest, divisor)
        return whole.reshape(x.shape)

    def remap(self, x, source, target, backwards, coded=False):
        values = self.pop_many([MAX_RADIX], x.size) if coded and backwards else x.ravel()
        channel = np.arange(x.size) % len(source)
        piece = np.empty(x.size, np.int64)
        for i, knots in enumerate(source):
            piece[channel == i] = np.searchsorted(knots, values[channel == i], "right") - 1
        divisor, numerator = (knots[channel, piece + 1] - knots[channel, piece] for knots in (source, target))
        whole, rest = np.divmod(numerator * (values - source[channel, piece]) + self._pop_wide(numerator), divisor)
        self._push_wide(rest, divisor)
        out = target[channel, piece] + whole
        if coded and not backwards:
            self.push_many(out, [MAX_RADIX])
        return out.reshape(x.shape)


class WholeBits(UBCS):
    """Every radix rounded up to a power of two: plain bit packing."""

    def push_many(self, symbols, radices):
        super().push_many(symbols, 2 ** np.ceil(np.log2(radices)).astype(np.int64))

    def pop_many(self, radices, n=None):
        return super().pop_many(2 ** np.ceil(np.log2(radices)).astype(np.int64), n)


class Rounded:
    """What a float flow does instead: multiply, round, forget the remainder. Its inverse is inexact wherever the scale is below one."""

    @staticmethod
    def forward(stream, x, numerator, divisor):
        return np.rint(x * (numerator / divisor)).astype(np.int64)

    @staticmethod
    def inverse(stream, z, numerator, divisor):
        return np.rint(z * (divisor / numerator)).astype(np.int64)


class FloatNet:
    """The same network in float32, rounded at the end: what sums come out then depends on the order of their terms, hence on the machine."""

    def __init__(self, net: photo_flow.ContextNet):
        self.net = net

    @torch.no_grad()
    def __call__(self, pixels):
        shift, octave = self.net(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        return tuple((part.permute(0, 2, 3, 1) * scale).round().long().numpy() for part, scale in ((shift, 2.0**16), (octave, OCTAVE)))


def unpredicted(flow: photo_flow.PhotoFlow) -> None:
    """Couplings predict zero, at one scale for all."""
    for module in flow.modules():
        if isinstance(module, photo_flow.ContextNet):
            torch.nn.init.zeros_(module.linear.weight)
            torch.nn.init.zeros_(module.last.weight)
            torch.nn.init.zeros_(module.last.bias)


def unmixed(flow: photo_flow.PhotoFlow) -> None:
    """The 1×1 convolutions only permute."""
    for level in (flow.fine, flow.coarse):
        for parameter in level.mix.parameters():
            torch.nn.init.zeros_(parameter)


def one_logistic(flow: photo_flow.PhotoFlow) -> None:
    """Each mixture becomes the one logistic of its mean and spread."""
    for module in flow.modules():
        if isinstance(module, photo_flow.MixtureCDF):
            weight, spread = module.weight.softmax(-1), math.pi**2 / 3 * (2 * module.log_scale).exp()
            mean = (weight * module.mean).sum(-1, keepdim=True)
            variance = (weight * (spread + module.mean**2)).sum(-1, keepdim=True) - mean**2
            module.mean.data = mean.expand_as(weight).clone()
            module.log_scale.data = (0.5 * (variance * 3 / math.pi**2).log()).expand_as(weight).clone()
            module.freeze()


def race(n: int = 200_000, lanes: int = 8, seed: int = 0) -> dict[str, Callable[[], None]]:
    """What the probe times: both coders push (and pop) ``n`` symbols of random radices 2 … 2^16, and the constriction library's rANS does.

    The two here share lanes, stack and compiler. constriction is one state in Rust and also tests its arguments.
    """
    import constriction

    rng = np.random.default_rng(seed)
    radices = rng.integers(2, MAX_RADIX + 1, n)
    symbols, out = rng.integers(0, radices), np.empty(n, np.int64)

    def ours(coder: type[UBCS], pop: bool) -> Callable[[], None]:
        stack = coder(lanes)
        stack._room(pushes=2 * n)

        def run():
            stack.count[:] = 0
            stack.push_kernel(stack.state, stack.words, stack.count, symbols, radices)
            if pop:
                stack.pop_kernel(stack.state, stack.words, stack.count, out, radices)

        stack.state[:] = stack.START
        run()
        if pop and not (out == symbols).all():
            raise AssertionError("the coder is wrong, so its speed means nothing")
        return run

    uniform, small, sizes = constriction.stream.model.Uniform(), symbols.astype(np.int32), radices.astype(np.int32)

    def library():
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(small, uniform, sizes)
        coder.decode(uniform, sizes)

    return {"UBCS": ours(UBCS, True), "rANS": ours(RANS, True), "rANS (constriction)": library,
            "UBCS, push alone": ours(UBCS, False), "rANS, push alone": ours(RANS, False)}
