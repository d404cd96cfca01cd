"""A vision transformer at a laptop's size: ViT-Tiny's layout (Touvron et al. 2021: pre-norm blocks, three heads) at a quarter of its width.

64 patches of 4×4 pixels, width 48, 4 blocks, three heads of 16, hidden width 96. The patches' embedding is a 3×3 convolution in front of the patch convolution, without
which so small a training set teaches a transformer little. What can be pruned are the hidden units of the blocks: the stream is read and written by all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); shapes (batch, tokens, width)."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViTTiny(nn.Module):
    """Patches → blocks → norm → mean over tokens → linear. ``hidden[i]``: hidden width of block i."""

    def __init__(self, hidden=(96, 96, 96, 96), width: int = 48, heads: int = 3, stem: int = 16, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(), nn.Conv2d(stem, width, 2, 2))
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads, h) for h in hidden))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.blocks(x)).mean(1))

    def config(self) -> dict:
        block = self.blocks[0]
        return {"hidden": [b.fc1.out_features for b in self.blocks], "width": block.proj.out_features, "heads": block.heads,
                "stem": self.stem[0].out_channels, "classes": self.classifier.out_features}
