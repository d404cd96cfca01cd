"""A small two-stream adaptive graph convolutional network (2s-AGCN, Shi et al. 2019), without its data-dependent graph.

    clip (3, 24, 25) ─┬─ joints ─► AGCN ─► scores ┐
                      └─ bones  ─► AGCN ─► scores ┴─► sum

| block | channels | frames in → out | MMAC: graph, spatial, temporal |
|---|---|---|---|
| 1 | 3 → 16 | 24 | 0.14, 0.09, 1.38 |
| 2 | 16 → 32 | 24 → 12 | 0.72, 0.92, 2.76 |
| 3 | 32 → 32 | 12 | 0.72, 0.92, 2.76 |
| 4 | 32 → 48 | 12 → 6 | 0.72, 1.38, 3.11 |
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .data import ACTIONS, JOINTS, PARENT

SUBSETS, TAPS = 3, 9


def adjacency() -> Tensor:
    """(3, 25, 25) A_k with rows u → columns v: the joint itself, its parent, its children, each column divided by its sum."""
    a = np.zeros((SUBSETS, JOINTS, JOINTS), np.float32)
    for joint, parent in enumerate(PARENT):
        a[0, joint, joint] = 1
        if parent >= 0:
            a[1, parent, joint] = a[2, joint, parent] = 1
    return torch.from_numpy(a / np.maximum(a.sum(1, keepdims=True), 1))


class GraphConv(nn.Module):
    """y = Σ_k W_k (f G_k), G_k = A_k + B_k, graph product first: (N, C, T, V) → (N, C', T, V). ``kept`` (input channels that are read): where channels are
    pruned, neither their graph products nor their columns of W are computed."""

    def __init__(self, c_in: int, c_out: int, kept: int | None = None):
        super().__init__()
        count = c_in if kept is None else kept
        self.register_buffer("kept", torch.arange(count))
        self.register_buffer("adjacency", adjacency(), persistent=False)
        self.learnt = nn.Parameter(torch.full((SUBSETS, JOINTS, JOINTS), 1e-6))
        self.weight = nn.Parameter(torch.randn(c_out, SUBSETS, count) * (2 / (SUBSETS * c_in)) ** 0.5)
        self.in_channels, self.out_channels = c_in, c_out

    @property
    def graph(self) -> Tensor:
        return self.adjacency + self.learnt

    def forward(self, x: Tensor) -> Tensor:
        x = x if len(self.kept) == self.in_channels else x.index_select(1, self.kept)
        n, c, t, v = x.shape
        g = (x.reshape(-1, v) @ self.graph.permute(1, 0, 2).reshape(v, -1)).view(n, c, t, SUBSETS, v)
        g = g.permute(0, 3, 1, 2, 4).reshape(n, SUBSETS * c, t * v)
        return (self.weight.flatten(1) @ g).view(n, self.out_channels, t, v)


class TemporalConv(nn.Conv2d):
    """9×1 over frames; ``mask`` (filters, 1, 9, 1): the taps that a filter keeps (none: the filter is gone)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__(c_in, c_out, (TAPS, 1), (stride, 1), (TAPS // 2, 0), bias=False)
        self.register_buffer("mask", torch.ones(c_out, 1, TAPS, 1, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, None)


def shortcut(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    if c_in == c_out and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, (stride, 1), bias=False), nn.BatchNorm2d(c_out))


class Block(nn.Module):
    """Graph convolution, batch norm, shortcut, ReLU; temporal convolution, batch norm, shortcut of the whole block, ReLU. ``residual=False``: no shortcuts."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, residual: bool = True, outer: bool = True):
        super().__init__()
        self.gcn, self.bn1 = GraphConv(c_in, c_out), nn.BatchNorm2d(c_out)
        self.tcn, self.bn2 = TemporalConv(c_out, c_out, stride), nn.BatchNorm2d(c_out)
        self.inner = shortcut(c_in, c_out) if residual else None
        self.outer = shortcut(c_in, c_out, stride) if residual and outer else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.gcn(x))
        y = (y if self.inner is None else y + self.inner(x)).relu()
        y = self.bn2(self.tcn(y))
        return (y if self.outer is None else y + self.outer(x)).relu()


class AGCN(nn.Module):
    """(N, 3, T, 25) → (N, classes)."""

    def __init__(self, widths=(16, 32, 32, 48), strides=(1, 2, 1, 2), residual: bool = True, classes: int = len(ACTIONS)):
        super().__init__()
        self.norm = nn.BatchNorm1d(3 * JOINTS)
        ins = (3, *widths[:-1])
        self.blocks = nn.Sequential(*(Block(i, o, s, residual, outer=k > 0) for k, (i, o, s) in enumerate(zip(ins, widths, strides, strict=True))))
        self.head = nn.Linear(widths[-1], classes)

    def prepared(self, x: Tensor) -> Tensor:
        n, c, t, v = x.shape
        return self.norm(x.permute(0, 1, 3, 2).reshape(n, c * v, t)).view(n, c, v, t).permute(0, 1, 3, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.prepared(x)).mean((2, 3)))


class TwoStream(nn.Module):
    """Joints and bones, scores added. ``skip``: every second frame is read only (input skipping)."""

    def __init__(self, skip: bool = False):
        super().__init__()
        self.joints, self.bones, self.skip = AGCN(), AGCN(), skip

    def streams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x[:, :, ::2] if self.skip else x
        parent = [max(p, 0) for p in PARENT]
        return x, x - x[..., parent]

    def forward(self, x: Tensor) -> Tensor:
        joints, bones = self.streams(x)
        return self.joints(joints) + self.bones(bones)
