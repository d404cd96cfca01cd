"""Compact convolution and the three small nets that are built with it: pictures, acoustic scenes, sound events. Tensors are (N, C, H, W).

    x (C) ─ depthwise k×k ─ BN ─ squeeze C → C/r ─ 1×1 → C_out ─ BN ─ ReLU          place="before" (default)
    x (C) ─ depthwise k×k ─ BN ─ 1×1 → C_out ─ squeeze C_out → C_out/r ─ BN ─ ReLU   place="after": the *next* layers get narrower
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAIRS = ("product", "diff")                                         # operations that exist for two members only
OPERATIONS = ("max", "mean", "sum", "min", "lp", "absmax", "median", *PAIRS, "drop")
ORDERS, PLACES = ("contiguous", "strided"), ("before", "after")


def members(x: Tensor, r: int, order: str = "contiguous") -> Tensor:
    """(N, C, H, W) → (N, ⌈C/r⌉, r, H, W): the groups, of neighbours or of channels ⌈C/r⌉ apart; the last channel is repeated where r does not divide C."""
    missing = -x.shape[1] % r
    if missing:
        x = torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1)], 1)
    if order == "contiguous":
        return x.unflatten(1, (-1, r))
    return x.unflatten(1, (r, -1)).transpose(1, 2)


def squeeze(x: Tensor, r: int, op: str = "max", order: str = "contiguous") -> Tensor:
    """(N, C, H, W) → (N, ⌈C/r⌉, H, W): the members of each group become one value, by an operation without parameters.

    ``lp`` is √mean x² (its gradient at 0 is 0), ``absmax`` keeps the sign of the largest magnitude, ``product`` and ``diff`` take pairs, ``drop`` takes the
    first member and forgets the others (the sceptic's control). Ties of ``max`` and ``min`` share the gradient evenly.
    """
    if r == 1 and op not in PAIRS and op != "lp":
        return x
    group = members(x, r, order)
    if op == "max":
        return group.amax(2)
    if op == "min":
        return group.amin(2)
    if op == "mean":
        return group.mean(2)
    if op == "sum":
        return group.sum(2)
    if op == "lp":
        return group.square().mean(2).clamp_min(1e-12).sqrt()
    if op == "absmax":
        return group.gather(2, group.abs().argmax(2, keepdim=True)).squeeze(2)
    if op == "median":
        return group.median(2).values
    if op == "product":
        made = group.prod(2)
        if made.dtype == torch.float16 and not torch.isfinite(made).all():
            raise ValueError("op: a product of two channels left the range of float16 (65 504); use max, mean or lp, or float32")
        return made
    return group[:, :, 0] - group[:, :, 1] if op == "diff" else group[:, :, 0]


class Squeeze(nn.Module):
    """:func:`squeeze` as a layer."""

    def __init__(self, r: int = 2, op: str = "max", order: str = "contiguous"):
        super().__init__()
        if op not in OPERATIONS:
            raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, not {op!r}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        if r < 1 or (op in PAIRS and r != 2):
            raise ValueError(f"r: {op} takes {'pairs, r = 2' if op in PAIRS else 'groups of at least 1'}, found {r}")
        self.r, self.op, self.order = r, op, order

    def forward(self, x: Tensor) -> Tensor:
        return squeeze(x, self.r, self.op, self.order)

    def extra_repr(self) -> str:
        return f"r={self.r}, op={self.op}, order={self.order}"


class CompactConv2d(nn.Module):
    """In place of Conv2d + BN + ReLU: (N, c_in, H, W) → (N, c_out, H/stride, W/stride); ``place="after"`` puts out ⌈c_out/r⌉ channels.

    ``learned``: a 1×1 convolution C → C/r instead of the operation (a rival, with parameters). ValueError: r larger than the channels it groups.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, r: int = 2, op: str = "max", order: str = "contiguous", place: str = "before",
                 stride: int | tuple[int, int] = 1, learned: bool = False):
        super().__init__()
        if place not in PLACES:
            raise ValueError(f"place must be one of {', '.join(PLACES)}, not {place!r}")
        grouped = c_in if place == "before" else c_out
        if not 1 <= r:
            raise ValueError(f"r: groups of at least 1 are needed, found {r}")
        if r > grouped:
            raise ValueError(f"r: groups of {r} were asked for, but there are {grouped} channels to group")
        narrow = -(-grouped // r)
        self.squeezer = nn.Conv2d(grouped, narrow, 1, bias=False) if learned else Squeeze(r, op, order)
        self.place, self.out_channels = place, c_out if place == "before" else narrow
        self.depthwise = nn.Conv2d(c_in, c_in, kernel, stride, kernel // 2, groups=c_in, bias=False)
        self.norm1 = nn.BatchNorm2d(c_in)
        self.pointwise = nn.Conv2d(narrow if place == "before" else c_in, c_out, 1, bias=False)
        self.norm2, self.relu = nn.BatchNorm2d(self.out_channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.depthwise(x))
        x = self.pointwise(self.squeezer(x)) if self.place == "before" else self.squeezer(self.pointwise(x))
        return self.relu(self.norm2(x))


def stem(c_in: int, c_out: int, stride: int | tuple[int, int]) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]


class CompactNet(nn.Module):
    """A stem and five compact convolutions; ``task``: ``images`` (N, 3 or 1, 32, 32) → (N, 10), ``scenes`` (N, 1, 40, 100) → (N, 6),
    ``events`` (N, 1, 40, 100) → (N, 50, 4), one row per two frames, by a recurrent layer over the frames."""

    def __init__(self, task: str, r: int = 2, op: str = "max", learned: bool = False, widths: Sequence[int] = (16, 32, 32, 64, 64, 64)):
        super().__init__()
        self._config = {"task": task, "r": r, "op": op, "learned": learned, "widths": list(widths)}
        outputs = {"images": 10, "scenes": 6, "events": 4}
        if task not in outputs:
            raise ValueError(f"task must be one of {', '.join(outputs)}, not {task!r}")
        shrink = nn.MaxPool2d((2, 1)) if task == "events" else nn.MaxPool2d(2)
        layers = stem(1, widths[0], {"images": 2, "scenes": (2, 4), "events": (4, 2)}[task])
        for i, (c_in, c_out) in enumerate(itertools.pairwise(widths)):
            layers.append(CompactConv2d(c_in, c_out, r=r, op=op, learned=learned))
            if i in (0, 2):
                layers.append(shrink)
        self.features = nn.Sequential(*layers)
        self.recurrent = nn.GRU(widths[-1], 24, batch_first=True) if task == "events" else None
        self.head = nn.Linear(24 if task == "events" else widths[-1], outputs[task])

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x.mean(1, keepdim=True))
        if self.recurrent is None:
            return self.head(x.mean((2, 3)))
        return self.head(self.recurrent(x.mean(2).transpose(1, 2))[0])

    def config(self) -> dict:
        return self._config


def loss_of(task: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or for events the binary one per frame; ``labels``: (N,) or (N, 50, 4)."""
    return F.binary_cross_entropy_with_logits(outputs, labels) if task == "events" else F.cross_entropy(outputs, labels)
