"""Number formats of the separator: 8-bit floats whose exponent range is shifted to the data, and 8-bit integers as their rival.

A format turns a tensor into 8-bit codes with one number per tensor: the exponent bias (an integer) of a float, the scale of an integer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


class _Straight(torch.autograd.Function):
    """Rounds forwards; passes the gradient straight through backwards where the value was in range."""

    @staticmethod
    def forward(ctx, x, fmt, shift):
        ctx.save_for_backward(x.abs() <= fmt.largest(shift))
        return fmt.round(x, shift)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


@dataclass(frozen=True)
class Float8:
    """1 sign bit, ``exponent`` and ``mantissa`` bits, no infinity and no NaN: value = (−1)^s · 2^(E−bias) · (1 + M/2^m), and for E = 0 the
    subnormal (−1)^s · 2^(1−bias) · M/2^m. ``shifted=False`` keeps the bias that IEEE 754 gives such a format (7 for 4 exponent bits)."""

    exponent: int = 4
    mantissa: int = 3
    shifted: bool = True
    shift_code = "b"                                                # a tensor's shift is stored as one signed byte

    def __post_init__(self):
        if self.exponent + self.mantissa != 7 or self.exponent < 2 or self.mantissa < 1:
            raise ValueError(f"an 8-bit float has 7 exponent and mantissa bits (at least 2 and 1), not {self.exponent} and {self.mantissa}")

    def largest(self, bias: int) -> float:
        return 2.0 ** ((1 << self.exponent) - 1 - bias) * (2 - 2.0**-self.mantissa)

    def fit(self, x: torch.Tensor) -> int:
        """The bias of least squared error among the five around that which gives max|x| the top exponent. All-zero tensors have none."""
        if not self.shifted:
            return (1 << self.exponent - 1) - 1
        peak = x.abs().max().item() if x.numel() else 0.0
        if not 0 < peak < float("inf"):
            raise ValueError(f"the exponent range is fitted to finite numbers that are not all zero; the largest magnitude found is {peak}")
        top = (1 << self.exponent) - 1 - int(torch.frexp(torch.tensor(peak))[1] - 1)
        return min(range(max(top - 2, -100), min(top + 2, 100) + 1), key=lambda bias: (self.round(x, bias) - x).square().sum().item())

    def round(self, x: torch.Tensor, bias: int) -> torch.Tensor:
        """The nearest representable values (ties to even, too large ones to the largest) of ``x`` read as float32; same type as ``x``."""
        number, top = x.detach().float(), self.largest(bias)
        exponent = (number.view(torch.int32) & 0x7F800000).clamp_(min=128 - bias << 23)     # below 2^(1−bias) the step no longer shrinks
        step = exponent.sub_(self.mantissa << 23).view(torch.float32)
        return (number / step).round_().mul_(step).clamp_(-top, top).to(x.dtype)

    def quantise(self, x: torch.Tensor, bias: int) -> torch.Tensor:
        """As `round`, with a straight-through gradient."""
        return _Straight.apply(x, self, bias)

    def encode(self, x: torch.Tensor, bias: int) -> torch.Tensor:
        """uint8 codes of the nearest values; NaN is refused."""
        if torch.isnan(x).any():
            raise ValueError(f"{int(torch.isnan(x).sum())} NaN among {x.numel()} numbers; an 8-bit float without NaN cannot hold them")
        value = self.round(x.double(), bias)
        exponent = (torch.frexp(value.abs())[1] - 1 + bias).clamp(min=0)  # of zero frexp says 0: looked at as subnormal below
        exponent = torch.where(value.abs() < 2.0 ** (1 - bias), 0, exponent)
        step = 2.0 ** (exponent.clamp(min=1) - bias - self.mantissa).double()
        mantissa = (value.abs() / step).long() - (exponent > 0) * (1 << self.mantissa)
        return (torch.signbit(value) * 128 + (exponent << self.mantissa) + mantissa).to(torch.uint8)

    def decode(self, codes: torch.Tensor, bias: int) -> torch.Tensor:
        """float32 values of uint8 codes; every one of the 256 codes has a value of its own (zero has two signs)."""
        codes = codes.long()
        exponent, mantissa = (codes & 127) >> self.mantissa, codes & (1 << self.mantissa) - 1
        significand = mantissa + (exponent > 0) * (1 << self.mantissa)
        value = significand * 2.0 ** (exponent.clamp(min=1) - bias - self.mantissa).double()
        return torch.where(codes >= 128, -value, value).float()


@dataclass(frozen=True)
class Int8:
    """Symmetric integers −127 … 127 times one scale, that of max|x| (the common rival)."""

    shift_code = "f"                                                # a tensor's scale is stored as one float32

    def largest(self, scale: float) -> float:
        return 127 * scale

    def fit(self, x: torch.Tensor) -> float:
        peak = x.abs().max().item() if x.numel() else 0.0
        if not 0 < peak < float("inf"):
            raise ValueError(f"the scale is fitted to finite numbers that are not all zero; the largest magnitude found is {peak}")
        return torch.tensor(peak / 127, dtype=torch.float32).item()

    def round(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return (x / scale).round_().clamp_(-127, 127) * scale

    def quantise(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return _Straight.apply(x, self, scale)

    def encode(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return (x / scale).round().clamp(-127, 127).to(torch.int8).view(torch.uint8)

    def decode(self, codes: torch.Tensor, scale: float) -> torch.Tensor:
        return codes.view(torch.int8).float() * scale


FORMATS = (Float8(4, 3), Float8(5, 2), Int8(), Float8(4, 3, shifted=False))


def sqnr(x: torch.Tensor, fmt: Float8 | Int8) -> float:
    """Signal-to-quantisation-noise ratio in dB of a tensor stored in a format fitted to it."""
    error = fmt.round(x, fmt.fit(x)) - x
    return 10 * torch.log10(x.square().sum() / error.square().sum()).item()
