"""The `speech` net: a small causal Conv-TasNet (Luo and Mesgarani 2019) with ReLU and batch norm, which folds into the convolutions.

| part | shape for one second of 8 kHz sound |
|---|---|
| encoder | Conv1d 1 → N, 20 samples, stride 10, ReLU: (N, 800) |
| bottleneck | 1×1 N → B, norm, ReLU |
| R·X blocks | x ← ReLU(x + conv 1×1 (ReLU norm depthwise 3, dilation 2^i (ReLU norm conv 1×1 x))), B → H → H → B |
| mask | 1×1 B → 2N, ReLU: one mask a voice, times the encoder's output |
| decoder | ConvTranspose1d N → 1, 20 samples, stride 10, for each voice |

All convolutions look into the past only, so that the net can run on a live signal: the delay is one window, 2.5 ms. ReLU after every sum
leaves zeros in all activations, which a sparse datapath can skip.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """1×1 → depthwise dilated (causal) → 1×1 with a residual; ``norm=False`` once batch norms are folded."""

    def __init__(self, trunk: int, inner: int, dilation: int, norm: bool = True):
        super().__init__()
        self.expand, self.norm1 = _conv(trunk, inner, norm)
        self.depth, self.norm2 = _conv(inner, inner, norm, kernel=3, dilation=dilation)
        self.reduce, self.norm3 = _conv(inner, trunk, norm)

    def forward(self, x):
        y = F.relu(self.norm1(self.expand(x)))
        y = F.relu(self.norm2(self.depth(F.pad(y, (2 * self.depth.dilation[0], 0)))))
        return F.relu(x + self.norm3(self.reduce(y)))


def _conv(c_in: int, c_out: int, norm: bool, kernel: int = 1, dilation: int = 1) -> tuple[nn.Conv1d, nn.Module]:
    conv = nn.Conv1d(c_in, c_out, kernel, dilation=dilation, groups=c_in if kernel > 1 else 1, bias=not norm)
    return conv, nn.BatchNorm1d(c_out) if norm else nn.Identity()


class Separator(nn.Module):
    """``mixture`` (batch, samples) in ±1 → voices (batch, 2, samples). ``inner``: the width H of each block."""

    def __init__(self, filters: int = 64, trunk: int = 48, inner=(96,) * 10, stack: int = 5, window: int = 20, norm: bool = True):
        super().__init__()
        self.window, self.stride, self.stack, self.folded = window, window // 2, stack, not norm
        self.encoder = nn.Conv1d(1, filters, window, self.stride, bias=False)
        self.bottleneck, self.norm = _conv(filters, trunk, norm)
        self.blocks = nn.ModuleList(Block(trunk, width, 2 ** (i % stack), norm) for i, width in enumerate(inner))
        self.mask = nn.Conv1d(trunk, 2 * filters, 1)
        self.decoder = nn.ConvTranspose1d(filters, 1, window, self.stride, bias=False)

    def config(self) -> dict:
        """The numbers that rebuild this net, pruned or not."""
        return {"filters": self.encoder.out_channels, "trunk": self.bottleneck.out_channels, "stack": self.stack, "window": self.window,
                "inner": [block.expand.out_channels for block in self.blocks], "norm": not self.folded}

    def forward(self, mixture):
        samples = mixture.shape[-1]
        x = F.pad(mixture, (self.window - self.stride, -(samples - self.window) % self.stride + self.window - self.stride))
        encoded = F.relu(self.encoder(16 * x.unsqueeze(1)))
        y = F.relu(self.norm(self.bottleneck(encoded)))
        for block in self.blocks:
            y = block(y)
        mask = F.relu(self.mask(y)).unflatten(1, (2, -1))
        voices = self.decoder((mask * encoded.unsqueeze(1)).flatten(0, 1)).unflatten(0, (-1, 2)).squeeze(2)
        return voices[..., self.window - self.stride:][..., :samples]
