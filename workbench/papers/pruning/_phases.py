"""Exact removal of structural zeros: a dilated convolution as dense ones on phases, a transposed one as sub-kernels (any Conv1d, ConvTranspose1d).

    dilation d:  y[t] = Σ_j w[j] x[t + j·d]   only meets inputs of t's own phase t mod d
                 x ─► d sequences x[p::d] ─► dense kernel on each ─► interleave
    stride s:    y[q·s + r] = Σ_j w[r + j·s] x[q − j]   output phase r only meets the taps of the same phase
                 x ─► s kernels w[r::s] on the input as it is ─► interleave
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ...contracts.machine import Layer


class DilatedByPhase(nn.Module):
    """Same numbers as the Conv1d it wraps (parameters are shared): (batch, C, T) → (batch, O, T')."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        conv, dilation = self.conv, self.conv.dilation[0]
        left, right = conv._reversed_padding_repeated_twice
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, (left, right), mode=mode)
        batch, _, samples = x.shape
        length = samples - dilation * (conv.kernel_size[0] - 1)
        if length < 1:
            raise ValueError(f"the input is too short: {samples} samples with padding, the dilated kernel spans {samples - length + 1}")
        phases = F.pad(x, (0, -samples % dilation)).unflatten(2, (-1, dilation)).permute(0, 3, 1, 2)       # (batch, d, C, T/d)
        y = F.conv1d(phases.flatten(0, 1), conv.weight, conv.bias, groups=conv.groups)
        return y.unflatten(0, (batch, dilation)).permute(0, 2, 3, 1).flatten(2)[..., :length]


class TransposeByPhase(nn.Module):
    """Same numbers as the ConvTranspose1d it wraps (parameters are shared): (batch, C, T) → (batch, O, T')."""

    def __init__(self, conv: nn.ConvTranspose1d):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        conv, stride, kernel, padding = self.conv, self.conv.stride[0], self.conv.kernel_size[0], self.conv.padding[0]
        weight = phase_kernels(conv)
        taps, length = weight.shape[2], (x.shape[2] - 1) * stride - 2 * padding + kernel + conv.output_padding[0]
        y = F.conv1d(F.pad(x, (taps - 1, taps - 1)), weight, groups=conv.groups)                           # (batch, O·s, q)
        y = y.unflatten(1, (-1, stride)).transpose(2, 3).flatten(2)
        y = F.pad(y, (0, max(0, padding + length - y.shape[2])))[..., padding:padding + length]
        return y if conv.bias is None else y + conv.bias[:, None]


def phase_kernels(conv: nn.ConvTranspose1d) -> torch.Tensor:
    """The sub-kernels as one weight (O·stride, C/groups, ⌈K/stride⌉), output phases of a channel side by side; missing last taps are zero."""
    stride, groups = conv.stride[0], conv.groups
    weight = F.pad(conv.weight, (0, -conv.kernel_size[0] % stride))
    c_in, c_out, taps = weight.shape[0] // groups, weight.shape[1], weight.shape[2] // stride
    weight = weight.view(groups, c_in, c_out, taps, stride).permute(0, 2, 4, 1, 3)
    return weight.reshape(groups * c_out * stride, c_in, taps).flip(2)


def zero_inserted(x: torch.Tensor, stride: int) -> torch.Tensor:
    """The textbook input of a transposed convolution, ``stride − 1`` zeros after each sample: (…, T) → (…, (T − 1)·stride + 1)."""
    return F.pad(x.unsqueeze(-1), (0, stride - 1)).flatten(-2)[..., :(x.shape[-1] - 1) * stride + 1]


def lower_by_phase(module: nn.Module, x: torch.Tensor, index_bits: int = 0) -> tuple[list[Layer], Callable] | None:
    """What a machine runs for a Conv1d or ConvTranspose1d on ``x`` (C, T): dense kernels on phases only; other modules: None."""
    if not isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        return None
    bias = None if module.bias is None else module.bias.detach().numpy()
    if isinstance(module, nn.ConvTranspose1d):
        weight, (stride,), (padding,) = phase_kernels(module), module.stride, module.padding
        taps, length = weight.shape[2], (x.shape[1] - 1) * stride - 2 * padding + module.kernel_size[0] + module.output_padding[0]
        bias = None if bias is None else bias.repeat(stride)

        def interleave(parts):
            y = parts[0].unflatten(0, (-1, stride)).transpose(1, 2).flatten(1)
            return F.pad(y, (0, max(0, padding + length - y.shape[1])))[:, padding:padding + length]

        return [Layer(weight.detach().numpy(), F.pad(x, (taps - 1, taps - 1)).numpy(), bias, index_bits=index_bits)], interleave
    (dilation,), (padding,) = module.dilation, module.padding
    x, weight = F.pad(x, (padding, padding)), module.weight.detach().numpy()
    if dilation == 1:
        return [Layer(weight, x.numpy(), bias, module.stride[0], index_bits=index_bits)], lambda parts: parts[0]
    length = x.shape[1] - dilation * (module.kernel_size[0] - 1)

    def weave(parts):
        y = parts[0].new_empty(len(weight), length)
        for phase, part in enumerate(parts):
            y[:, phase::dilation] = part
        return y

    return [Layer(weight, x[:, phase::dilation].numpy(), bias, index_bits=index_bits) for phase in range(min(dilation, length))], weave


def lower_with_zeros(module: nn.Module, x: torch.Tensor, index_bits: int = 0) -> tuple[list[Layer], Callable] | None:
    """The same layers the textbook way: a dilated kernel with zeros between its taps, a transposed convolution over an input with zeros between
    its samples (padding, output padding and groups as `lower_by_phase`)."""
    if isinstance(module, nn.ConvTranspose1d):
        (stride,), (padding,), (kernel,) = module.stride, module.padding, module.kernel_size
        x = F.pad(zero_inserted(x, stride), (kernel - 1 - padding, kernel - 1 - padding + module.output_padding[0]))
        weight = module.weight.detach().transpose(0, 1).flip(2).numpy()
        return [Layer(weight, x.numpy(), None if module.bias is None else module.bias.detach().numpy(), index_bits=index_bits)], lambda parts: parts[0]
    if isinstance(module, nn.Conv1d) and module.dilation[0] > 1:
        x = F.pad(x, (module.padding[0], module.padding[0]))
        weight = zero_inserted(module.weight.detach(), module.dilation[0]).numpy()
        return [Layer(weight, x.numpy(), None if module.bias is None else module.bias.detach().numpy(), index_bits=index_bits)], lambda parts: parts[0]
    return lower_by_phase(module, x, index_bits)


def dilated_by_phase(conv: nn.Conv1d) -> nn.Module:
    """Wraps a dilated Conv1d of any padding, padding mode and groups; TypeError for other layers, ValueError if it also has a stride."""
    if not isinstance(conv, nn.Conv1d):
        raise TypeError(f"dilated_by_phase wraps a Conv1d, not {type(conv).__name__}")
    if conv.stride[0] > 1:
        raise ValueError(f"dilated_by_phase needs stride 1; this layer has stride {conv.stride[0]} and dilation {conv.dilation[0]}")
    return DilatedByPhase(conv)


def transpose_by_phase(conv: nn.ConvTranspose1d) -> nn.Module:
    """Wraps a ConvTranspose1d of any stride, padding, output padding and groups; TypeError for other layers, ValueError if it is dilated."""
    if not isinstance(conv, nn.ConvTranspose1d):
        raise TypeError(f"transpose_by_phase wraps a ConvTranspose1d, not {type(conv).__name__}")
    if conv.dilation[0] > 1:
        raise ValueError(f"transpose_by_phase needs dilation 1; this layer has dilation {conv.dilation[0]}")
    return TransposeByPhase(conv)
