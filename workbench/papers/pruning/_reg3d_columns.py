"""Convolutions that compute only the columns that are left: part 8 of 3D-Reg, for one, two and three dimensions.

A *column* is one position (channel, t, y, x) of the kernel, read by all N filters; it is a row of the im2col matrix. Where columns are gone,

    kept rows of im2col (K, batch · positions)  ──►  weight (N, K) @ rows  ──►  (N, batch · positions)

needs K/(C·kt·ky·kx) of the multiplications, whatever the pattern. Rows are gathered a kernel position at a time: one slice of the padded input, from
which the channels that this position reads are copied.
"""

from __future__ import annotations

import copy
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.structure.trace import CONV


def kept_columns(conv: nn.Module) -> Tensor:
    """(C · positions,) bool: the columns that some filter reads."""
    return (conv.weight.detach() != 0).any(0).flatten()


def plain(module: nn.Module) -> bool:
    """Whether the gathered form can stand for this module."""
    return isinstance(module, CONV) and not module.transposed and module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class ColumnConv(nn.Module):
    """A convolution (B, C, …) → (B, N, …) from its kept columns: ``weight`` (N, K), ``channels`` (K,), sorted by kernel position, ``counts[p]`` of them
    at position p. ValueError: grouped or transposed, padding that is not zeros."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        if not plain(conv):
            raise ValueError(f"conv: a convolution with groups 1 and zeros around, as many as a number says, is needed, found {conv}")
        self.kernel, self.stride, self.dilation, self.in_channels = conv.kernel_size, conv.stride, conv.dilation, conv.in_channels
        self.around = [edge for p in reversed(conv.padding) for edge in (p, p)]
        position, channel = kept_columns(conv).view(conv.in_channels, -1).T.nonzero(as_tuple=True)
        self.counts = torch.bincount(position, minlength=conv.weight[0, 0].numel()).tolist()
        narrow = torch.uint8 if conv.in_channels <= 256 else torch.int32
        self.register_buffer("channels", channel.to(narrow))
        self.weight = nn.Parameter(conv.weight.detach().flatten(2)[:, channel, position].contiguous())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.around).transpose(0, 1)
        out = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)]
        rows = []
        for offset, channels in zip(product(*map(range, self.kernel)), self.channels.long().split(self.counts), strict=True):
            if len(channels):
                window = tuple(slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in zip(offset, self.dilation, self.stride, out, strict=True))
                rows.append(x[:, :, *window].index_select(0, channels).flatten(1))
        y = (self.weight @ torch.cat(rows)).unflatten(1, (x.shape[1], *out)).transpose(0, 1)
        return y if self.bias is None else y + self.bias.view(-1, *[1] * len(out))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.weight.shape[0]}, kernel_size={self.kernel}, columns={self.weight.shape[1]} of {self.in_channels * len(self.counts)}"


def gather(model: nn.Module, everything: bool = False) -> nn.Module:
    """A copy in which every plain convolution that lost columns computes the rest only (``everything``: also those that lost none)."""
    small = copy.deepcopy(model).eval()
    for name, module in list(small.named_modules()):
        if plain(module) and (everything or not bool(kept_columns(module).all())):
            parent, _, leaf = name.rpartition(".")
            setattr(small.get_submodule(parent), leaf, ColumnConv(module))
    return small
