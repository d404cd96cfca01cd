"""UBCS, the uniform base conversion system: a stack of symbols, each uniform over its own radix.

A lane is one integer ``c`` in ``[2^16, 2^48)``. Pushing ``s`` out of ``R`` makes it ``c·R + s`` (mixed-radix counting, one
multiplication, no frequency table); when that reaches ``2^48`` the low 32 bits move to the stack of words. Popping divides. The
decision to move is reversible: states that moved a word were below ``2^16·R`` afterwards, all others are not. ``c·R < 2^64``.

Element ``i`` of an array uses lane ``i mod lanes``; lanes share one stack of words. ``mst`` and ``remap`` fuse a pop, exact
integer arithmetic and a push for each element, so that a whole layer of a flow borrows no more than a few bits at a time.
Every division is a float64 division of integers below 2^53, whose rounded quotient never crosses an integer: exact on every CPU.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ...contracts.data import StreamError

LOW, WORD = 16, 32                       # M and K: states are in [2^M, 2^(M+K))
MAX_RADIX = 1 << LOW
POINTER, FLOOR, EMPTY = range(3)         # the three counters shared with the kernels
U = np.uint64
u0, u1, u16, u32, u48, mask16, mask32 = U(0), U(1), U(16), U(32), U(48), U(0xFFFF), U(0xFFFFFFFF)
kernel = njit(cache=True, error_model="numpy")      # divisors are checked before, in Python


class UniformCoderError(ValueError):
    """A symbol or radix out of range."""


@kernel
def _push(c, words, at, symbol, radix):
    c = c * radix + symbol
    words[at] = c & mask32               # always written, kept only if the state is full: no branch to mispredict
    full = c >= (u1 << u48)
    return (c >> u32 if full else c), at + full


@kernel
def _divide(a, b):
    """⌊a/b⌋ for a < 2^53, by way of signed conversions, which are single instructions."""
    return U(np.int64(np.float64(np.int64(a)) / np.float64(np.int64(b))))


@kernel
def _pop(c, words, at, radix):
    """→ state, pointer (−1 below an empty stack), symbol. Long division in base 2^32, the same steps whether a word is fetched or not."""
    fetch = c < (radix << u16)
    at -= fetch
    word = U(words[max(at, 0)])
    upper, lower = (c, word) if fetch else (c >> u32, c & mask32)
    high = _divide(upper, radix)
    rest = ((upper - high * radix) << u32) | lower
    low = _divide(rest, radix)
    return (high << u32) | low, at, rest - low * radix


@kernel
def _push_many(state, words, count, symbols, radices):
    at, lanes, step = count[0], state.size, (0 if radices.size == 1 else 1)
    for start in range(0, symbols.size, lanes):
        for lane in range(min(lanes, symbols.size - start)):
            i = start + lane
            state[lane], at = _push(state[lane], words, at, U(symbols[i]), U(radices[i * step]))
    count[0] = at


@kernel
def _pop_many(state, words, count, out, radices):
    at, lanes, step = count[0], state.size, (0 if radices.size == 1 else 1)
    for start in range((out.size - 1) // lanes * lanes, -1, -lanes):
        for lane in range(min(lanes, out.size - start) - 1, -1, -1):
            i = start + lane
            state[lane], at, symbol = _pop(state[lane], words, at, U(radices[i * step]))
            out[i] = symbol
            if at < 0:
                count[2], at = 1, 0
    count[0], count[1] = at, min(count[1], at)


@kernel
def _mst(state, words, count, x, out, numerator, divisor, backwards):
    """out = ⌊(numerator·x + popped) / divisor⌋, remainder pushed; ``backwards`` visits the elements last to first."""
    at, floor, lanes = count[0], count[1], state.size
    for index in range(x.size):
        i = x.size - 1 - index if backwards else index
        lane = i % lanes
        c, at, popped = _pop(state[lane], words, at, U(numerator[i]))
        if at < 0:
            count[2], at = 1, 0
        floor = min(floor, at)
        y = numerator[i] * x[i] + np.int64(popped)
        out[i] = np.int64(np.floor(np.float64(y) / np.float64(divisor[i])))
        state[lane], at = _push(c, words, at, U(y - out[i] * divisor[i]), U(divisor[i]))
    count[0], count[1] = at, floor


@kernel
def _remap(state, words, count, x, out, source, target, backwards, coded):
    """Piecewise MST from the knots ``source[channel]`` to ``target[channel]``; widths above 2^16 are powers of two, two digits.

    ``coded``: what comes out is pushed at once as a symbol of radix 2^16 or, backwards, what goes in is popped.
    """
    at, floor, lanes, channels, pieces = count[0], count[1], state.size, source.shape[0], source.shape[1] - 1
    for index in range(x.size):
        i = x.size - 1 - index if backwards else index
        lane, channel = i % lanes, i % channels
        c, value, low, high = state[lane], x[i], 0, pieces
        if coded and backwards:
            c, at, popped = _pop(c, words, at, u1 << u16)
            value = np.int64(popped)
            if at < 0:
                count[2], at = 1, 0
        while high - low > 1:                        # the piece that the value is in
            middle = (low + high) // 2
            if value >= source[channel, middle]:
                low = middle
            else:
                high = middle
        divisor = source[channel, low + 1] - source[channel, low]
        numerator = target[channel, low + 1] - target[channel, low]
        if numerator > MAX_RADIX:
            c, at, popped = _pop(c, words, at, U(numerator >> 16))
            if at < 0:
                count[2], at = 1, 0
            c, at, digit = _pop(c, words, at, u1 << u16)
            popped = (popped << u16) | digit
        else:
            c, at, popped = _pop(c, words, at, U(numerator))
        if at < 0:
            count[2], at = 1, 0
        floor = min(floor, at)
        y = numerator * (value - source[channel, low]) + np.int64(popped)
        quotient = np.int64(np.float64(y) / np.float64(divisor))
        out[i] = target[channel, low] + quotient
        rest = U(y - quotient * divisor)
        if divisor > MAX_RADIX:
            c, at = _push(c, words, at, rest & mask16, u1 << u16)
            c, at = _push(c, words, at, rest >> u16, U(divisor >> 16))
        else:
            c, at = _push(c, words, at, rest, U(divisor))
        if coded and not backwards:
            c, at = _push(c, words, at, U(out[i]), u1 << u16)
        state[lane] = c
    count[0], count[1] = at, floor


def auxiliary(start: int, stop: int) -> np.ndarray:
    """Words ``start … stop`` of the agreed pseudo-random bits below the stack (SplitMix64), uint32."""
    z = np.arange(start + 1, stop + 1, dtype=np.uint64) * U(0x9E3779B97F4A7C15)
    z = (z ^ (z >> U(30))) * U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
    return (z >> u32).astype(np.uint32)


class UBCS:
    """A stack of uniform symbols. ``endless=True`` lends auxiliary words when it runs empty and counts them.

    >>> stack = UBCS(); stack.push(5, 7); stack.push_many([1, 2], [3, 10])
    >>> stack.pop_many([3, 10]).tolist(), stack.pop(7)
    ([1, 2], 5)
    """

    START, STATE_BYTES = 1 << LOW, 6
    push_kernel, pop_kernel = staticmethod(_push_many), staticmethod(_pop_many)

    def __init__(self, lanes: int = 1, endless: bool = False):
        if not 1 <= lanes <= 64:
            raise UniformCoderError(f"lanes must be 1 to 64, not {lanes}")
        self.state = np.full(lanes, self.START, np.uint64)
        self.words = np.empty(64, np.uint32)
        self.count = np.zeros(3, np.int64)
        self.endless, self.lent = endless, 0

    def _room(self, pushes: int = 0, pops: int = 0) -> None:
        """Makes room for ``pushes`` words above and, if endless, lends words below until ``pops`` are there."""
        at = int(self.count[POINTER])
        lend = max(0, pops - at) if self.endless else 0
        if at + lend + pushes + 1 > len(self.words) or lend:
            grown = np.empty(2 * (at + lend + pushes + 64), np.uint32)
            grown[:lend] = auxiliary(self.lent, self.lent + lend)[::-1]
            grown[lend:lend + at] = self.words[:at]
            self.words, self.lent = grown, self.lent + lend
            self.count[:2] += lend

    def _finish(self) -> None:
        if self.count[EMPTY]:
            raise StreamError("the stream ends too early: damaged or truncated")

    @staticmethod
    def _radices(radices, n: int) -> np.ndarray:
        radices = np.atleast_1d(np.asarray(radices, np.int64)).ravel()
        if len(radices) not in (1, n):
            raise UniformCoderError(f"radices must be one or {n} numbers, not {len(radices)}")
        if len(radices) and (radices.min() < 1 or radices.max() > MAX_RADIX):
            raise UniformCoderError(f"radices must be 1 to {MAX_RADIX}, found {radices.min()} to {radices.max()}")
        return radices

    def push(self, symbol: int, radix: int) -> None:
        self.push_many([symbol], [radix])

    def pop(self, radix: int) -> int:
        return int(self.pop_many([radix])[0])

    def push_many(self, symbols, radices) -> None:
        """Pushes integers (n,), each in [0, radix); one radix for all or one each."""
        symbols = np.asarray(symbols, np.int64).ravel()
        radices = self._radices(radices, len(symbols))
        if len(symbols) and (symbols.min() < 0 or (symbols >= radices).any()):
            raise UniformCoderError("every symbol must be at least 0 and below its radix")
        self._room(pushes=len(symbols))
        self.push_kernel(self.state, self.words, self.count, symbols, radices)

    def pop_many(self, radices, n: int | None = None) -> np.ndarray:
        """The last ``n`` (default: as many as radices) symbols, int64, in the order in which they were pushed."""
        radices = self._radices(radices, np.size(radices) if n is None else n)
        out = np.empty(len(radices) if n is None else n, np.int64)
        self._room(pops=len(out))
        self.pop_kernel(self.state, self.words, self.count, out, radices)
        self._finish()
        return out

    def mst(self, x: np.ndarray, numerator: np.ndarray, divisor: np.ndarray, backwards: bool) -> np.ndarray:
        """Modular scale transform of int64 ``x`` by int64 ``numerator / divisor`` of the same shape; ``backwards``: last element first."""
        if x.size and max(numerator.max(), divisor.max()) * (int(np.abs(x).max()) + 1) >= 2**53:
            raise UniformCoderError(f"values up to {np.abs(x).max()} times radices up to {max(numerator.max(), divisor.max())} exceed 2^53")
        out = np.empty(x.shape, np.int64)
        self._room(pushes=x.size, pops=x.size)
        _mst(self.state, self.words, self.count, x.ravel(), out.ravel(), numerator.ravel(), divisor.ravel(), backwards)
        self._finish()
        return out

    def remap(self, x: np.ndarray, source: np.ndarray, target: np.ndarray, backwards: bool, coded: bool = False) -> np.ndarray:
        """Piecewise MST of int64 ``x`` (…, channels) between knots (channels, pieces + 1); if ``coded`` with a push of the result (pop of ``x``)."""
        out = np.empty(x.shape, np.int64)
        self._room(pushes=3 * x.size, pops=3 * x.size)
        _remap(self.state, self.words, self.count, x.ravel(), out.ravel(), source, target, backwards, coded)
        self._finish()
        return out

    @property
    def borrowed(self) -> int:
        """Auxiliary words really taken from below the stack so far."""
        return self.lent - int(self.count[FLOOR])

    @property
    def net_bits(self) -> float:
        """Information held beyond the auxiliary words borrowed, in bits: whole words, and log2 of each lane's state."""
        words = int(self.count[POINTER]) - self.lent
        return WORD * words + float(np.log2(self.state.astype(np.float64)).sum())

    def copy(self) -> UBCS:
        twin = type(self)(len(self.state), self.endless)
        twin.state, twin.words, twin.count, twin.lent = self.state.copy(), self.words.copy(), self.count.copy(), self.lent
        return twin

    def to_bytes(self) -> bytes:
        """Six bytes a lane, then the words from the lowest that was touched."""
        states = self.state.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :self.STATE_BYTES].tobytes()
        return states + self.words[self.count[FLOOR]:self.count[POINTER]].astype("<u4").tobytes()

    @classmethod
    def from_bytes(cls, payload: bytes, lanes: int = 1) -> UBCS:
        stack, head = cls(lanes), cls.STATE_BYTES * lanes
        if len(payload) < head or (len(payload) - head) % 4:
            raise StreamError(f"{len(payload)} bytes are no stream of {lanes} lanes: damaged or truncated")
        states = np.zeros((lanes, 8), np.uint8)
        states[:, :cls.STATE_BYTES] = np.frombuffer(payload[:head], np.uint8).reshape(lanes, cls.STATE_BYTES)
        stack.state = states.view("<u8").ravel().astype(np.uint64)
        if (stack.state < cls.START).any() or (stack.state >= cls.START << WORD).any():
            raise StreamError("a lane's state is out of range: damaged")
        words = np.frombuffer(payload[head:], "<u4")
        stack._room(pushes=len(words))
        stack.words[:len(words)] = words
        stack.count[POINTER] = len(words)
        return stack

    def spent(self, borrowed: int) -> bool:
        """Whether nothing is left but ``borrowed`` auxiliary words: what a decoder must find at the end."""
        left = int(self.count[POINTER])
        return left == borrowed and bool((self.state == self.START).all() and (self.words[:left] == auxiliary(0, left)[::-1]).all())
