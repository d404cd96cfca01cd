"""The classic quantised caches: keys and values as small integers, really packed, two 4-bit values in a byte."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...contracts.sequence import Block, Press

BITS = (2, 4, 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(…, d) codes below 2^bits → (…, d·bits/8) bytes; the first of neighbours is in the low bits."""
    per_byte = 8 // bits
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.uint8) * bits
    return (codes.unflatten(-1, (-1, per_byte)) << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """(…, m) bytes → (…, m·8/bits) codes, uint8."""
    shifts = torch.arange(8 // bits, device=packed.device, dtype=torch.uint8) * bits
    return ((packed[..., None] >> shifts) & (2 ** bits - 1)).flatten(-2)


def quantize(x: Tensor, bits: int, group: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x (…, n, d) → codes (…, n, d·bits/8) uint8, scale and zero float16.

    Scale and zero are (…, n, 1), one a token, or (…, ⌈n/group⌉, d), one a channel of ``group`` tokens; x ≈ zero + scale · code. Both
    are rounded so that they still span the values: each error is at most scale / 2.
    """
    n, levels = x.shape[-2], 2 ** bits - 1
    wide = x.float()
    if group:
        low, high = _padded(wide, group).unflatten(-2, (-1, group)).aminmax(dim=-2)
    else:
        low, high = wide.aminmax(dim=-1, keepdim=True)
    zero = (low - low.abs() * 2 ** -10 - 2 ** -24).half()  # float16 rounds by at most 2⁻¹¹ of a number, or by 2⁻²⁵
    scale = ((high - zero.float()) / levels * (1 + 2 ** -10) + 2 ** -24).half()
    if not (zero.isfinite().all() and scale.isfinite().all()):
        raise ValueError("keys, values: a cache with NaN, or beyond the range of float16, cannot be quantised")
    codes = ((x.float() - spread(zero, n, group)) / spread(scale, n, group)).round().clamp(0, levels)
    return pack(codes.to(torch.uint8), bits), scale, zero


def _padded(x: Tensor, group: int) -> Tensor:
    """(…, n, d) with its last token repeated to a multiple of ``group``, which changes no extreme."""
    missing = -x.shape[-2] % group
    return torch.cat([x, x[..., -1:, :].expand(*x.shape[:-2], missing, -1)], -2)


def spread(factor: Tensor, n: int, group: int) -> Tensor:
    """float32 (…, n, 1 or d): a scale or zero for each of n tokens."""
    return (factor.repeat_interleave(group, -2)[..., :n, :] if group else factor).float()


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int = 0) -> Tensor:
    """(…, n, d) float32 from what `quantize` gave."""
    n = codes.shape[-2]
    return spread(zero, n, group) + spread(scale, n, group) * unpack(codes, bits).float()


@dataclass(frozen=True)
class PackedBlock(Block):
    """Quantised keys and values: codes (batch, kv_heads, n, head_dim·bits/8) uint8, scales and zeros float16; see `quantize`. ``dtype``: the model's."""

    key_codes: Tensor
    key_scale: Tensor
    key_zero: Tensor
    value_codes: Tensor
    value_scale: Tensor
    value_zero: Tensor
    bits: int
    key_group: int
    dtype: str

    def read(self) -> tuple[Tensor, Tensor]:
        keys = dequantize(self.key_codes, self.key_scale, self.key_zero, self.bits, self.key_group)
        values = dequantize(self.value_codes, self.value_scale, self.value_zero, self.bits)
        return keys.to(getattr(torch, self.dtype)), values.to(getattr(torch, self.dtype))


@dataclass(frozen=True)
class Quantized(Press):
    """Keys and values rounded to 2^bits levels between their least and greatest, for each token and head (Sheng et al., FlexGen, ICML 2023, section 5).

    $$\\hat x = z + s\\,q, \\quad q = \\mathrm{round}\\Big(\\frac{x - z}{s}\\Big) \\in \\{0, …, 2^b - 1\\},$$

    $$z = \\min_d x_d, \\quad s = \\frac{\\max_d x_d - z}{2^b - 1}$$

    Every error is at most s/2. A number takes b + 32/D bits, since a scale and a zero of 16 bits serve D channels: 4.5 bits at D = 64. One channel
    with large values widens s for all: that is what KIVI, rotations and decompositions are for. Tokens decoded later stay as they are until
    ``residual`` of them are there, and are then packed together.
    """

    bits: int = 4
    residual: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in BITS:
            raise ValueError(f"bits: one of {', '.join(map(str, BITS))} is needed, found {self.bits}")
        if self.residual < 1:
            raise ValueError(f"residual: at least 1 token is needed, found {self.residual}")

    def encode(self, keys: Tensor, values: Tensor) -> PackedBlock:
        return self._packed(keys, values, 0)

    def _packed(self, keys: Tensor, values: Tensor, group: int) -> PackedBlock:
        if any(x.shape[-1] * self.bits % 8 for x in (keys, values)):
            raise ValueError(f"bits: heads of {keys.shape[-1]} channels do not fill whole bytes with {self.bits} bits")
        return PackedBlock(*quantize(keys, self.bits, group), *quantize(values, self.bits), self.bits, group, str(keys.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class KIVI(Quantized):
    """Keys with one scale a *channel* for each ``group`` tokens, values with one a token (Liu et al., KIVI, ICML 2024, section 3).

    Keys have a few channels that are large in all tokens. Scaled per token, they spoil all others of that token; scaled per channel, they spoil only
    themselves. Values have no such channels. A key takes b + 32/group bits.
    """

    group: int = 32

    def encode(self, keys: Tensor, values: Tensor) -> PackedBlock:
        return self._packed(keys, values, self.group)
