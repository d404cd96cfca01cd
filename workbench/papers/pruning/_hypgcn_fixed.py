"""The accelerator's arithmetic (parts 2 and 7): Q8.8 words, 32-bit sums, the graph product first; and the one file that holds such a network.

Batch norms are folded into the weights. All sums are sums of whole numbers below 2⁵³ and so exact in float64, in which they are computed because that is fast. Every
multiplication is counted where it is made: `work` holds, per block, what the loop nest really did.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...benches.skeleton.nets import AGCN, PARENT, TAPS, TwoStream
from ...contracts.files.artifact import ArtifactError, pack, read
from ...core.measurements import write_whole
from ._hypgcn_prune import Gate, TapConv

ONE, LOW, HIGH = 256, -(1 << 15), (1 << 15) - 1


def words(x: np.ndarray | torch.Tensor) -> np.ndarray:
    """Real numbers as Q8.8, rounded to the nearest and saturated: int16."""
    return np.clip(np.rint(np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float64) * ONE), LOW, HIGH).astype(np.int16)


def narrowed(sums: np.ndarray) -> np.ndarray:
    """Q16.16 sums (saturated to 32 bits) → Q8.8 words, rounded half up and saturated."""
    sums = np.clip(sums, -(1 << 31), (1 << 31) - 1)
    return np.clip(np.floor((sums + ONE // 2) / ONE), LOW, HIGH)


@dataclass
class FixedBlock:
    """One block as integers: ``kept`` channels, ``graph`` (3, V, V), ``spatial`` (C', 3, kept), ``rows`` (R, C') of (``taps``, ``filters``), biases, and the two shortcuts: a
    weight (C', C), True (identity) or None."""

    kept: np.ndarray
    graph: np.ndarray
    spatial: np.ndarray
    bias1: np.ndarray
    rows: np.ndarray
    taps: np.ndarray
    filters: np.ndarray
    bias2: np.ndarray
    inner: np.ndarray | bool | None
    outer: np.ndarray | bool | None
    channels: int
    stride: int
    work: Counter = field(default_factory=Counter)
    narrow = staticmethod(narrowed)

    def graph_product(self, f: np.ndarray, k: int, c: int) -> np.ndarray:
        """f[c] G_k for one input channel: (N, T, V)."""
        self.work["graph"] += f.shape[2] * f.shape[3] ** 2
        return self.narrow(f[:, c] @ self.graph[k].astype(np.float64))

    def spatial_sums(self, f: np.ndarray) -> np.ndarray:
        """Σ_k Σ_{c kept} W_k[:, c] (f[c] G_k): channels that are pruned never enter the loops, so neither product is made for them."""
        n, _, t, v = f.shape
        sums = np.zeros((n, self.channels, t * v))
        for k in range(len(self.graph)):
            g = np.stack([self.graph_product(f, k, c) for c in self.kept], 1).reshape(n, len(self.kept), -1)
            self.work["spatial"] += self.channels * len(self.kept) * t * v
            sums += self.spatial[:, k].astype(np.float64) @ g
        return sums.reshape(n, self.channels, t, v)

    def temporal_sums(self, h: np.ndarray) -> np.ndarray:
        n, c, t, v = h.shape
        padded, out = np.pad(h, ((0, 0), (0, 0), (TAPS // 2, TAPS // 2), (0, 0))), (t - 1) // self.stride + 1
        sums = np.zeros((n, self.channels, out * v))
        for tap in np.unique(self.taps):
            mine = self.taps == tap
            self.work["temporal"] += int(mine.sum()) * c * out * v
            window = padded[:, :, tap:tap + self.stride * (out - 1) + 1:self.stride].reshape(n, c, -1)
            sums[:, self.filters[mine]] += self.rows[mine].astype(np.float64) @ window
        return sums.reshape(n, self.channels, out, v)

    @property
    def patterns(self) -> np.ndarray:
        """(filters, taps) bool: the taps that are left."""
        kept = np.zeros((self.channels, TAPS), bool)
        kept[self.filters, self.taps] = True
        return kept

    def shortcut(self, weight: np.ndarray | bool | None, x: np.ndarray, stride: int) -> np.ndarray | float:
        if weight is None:
            return 0.0
        x = x[:, :, ::stride]
        if weight is True:
            return x * ONE
        self.work["shortcut"] += weight.size * x[0, 0].size
        return (weight.astype(np.float64) @ x.reshape(*x.shape[:2], -1)).reshape(len(x), -1, *x.shape[2:])

    def __call__(self, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, C, T, V) words → what stands between graph and temporal convolution, and the block's output; both words."""
        sums = self.spatial_sums(f) + self.bias1[:, None, None] * float(ONE) + self.shortcut(self.inner, f, 1)
        middle = np.maximum(self.narrow(sums), 0)
        sums = self.temporal_sums(middle) + self.bias2[:, None, None] * float(ONE) + self.shortcut(self.outer, f, self.stride)
        return middle, np.maximum(self.narrow(sums), 0)


def _folded(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch norm as y = scale · x + shift; a gate switches dead filters off."""
    alive = norm.alive.flatten() if isinstance(norm, Gate) else 1.0
    norm = norm.norm if isinstance(norm, Gate) else norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale * alive, (norm.bias - norm.running_mean * scale) * alive


def lower_block(block: nn.Module) -> FixedBlock:
    """A pruned block of the bench, folded and rounded."""
    (s1, b1), (s2, b2) = _folded(block.bn1), _folded(block.bn2)
    ways = {}
    for name in ("inner", "outer"):
        way = getattr(block, name)
        if isinstance(way, nn.Sequential):
            scale, shift = _folded(way[1])
            ways[name] = words(way[0].weight[:, :, 0, 0] * scale[:, None])
            b1, b2 = (b1 + shift, b2) if name == "inner" else (b1, b2 + shift)
        else:
            ways[name] = None if way is None else True
    tcn = block.tcn if isinstance(block.tcn, TapConv) else TapConv(block.tcn, np.ones((block.tcn.out_channels, TAPS), bool))
    taps = np.repeat(np.arange(TAPS), tcn.counts)
    return FixedBlock(block.gcn.kept.numpy(), words(block.gcn.graph), words(block.gcn.weight * s1[:, None, None]), words(b1),
                      words(tcn.weight * s2[tcn.filters][:, None]), taps, tcn.filters.numpy(), words(b2), ways["inner"], ways["outer"], tcn.out_channels, tcn.stride)


@dataclass
class FixedStream:
    """One AGCN: ``scale``, ``shift`` (3, V) of the input's batch norm (scale in Q8.8), the blocks, the linear layer."""

    scale: np.ndarray
    shift: np.ndarray
    blocks: list[FixedBlock]
    head: np.ndarray
    offset: np.ndarray

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """(N, 3, T, V) words → scores (Q16.16) and every feature map that is stored: words behind each ReLU."""
        f = narrowed(x * self.scale[:, None].astype(np.float64) + self.shift[:, None] * float(ONE))
        stored = []
        for block in self.blocks:
            middle, f = block(f)
            stored += [middle, f]
        mean = np.floor((f.sum((2, 3)) + f[0, 0].size // 2) / f[0, 0].size)
        return mean @ self.head.T.astype(np.float64) + self.offset * float(ONE), stored


def lower_stream(net: AGCN) -> FixedStream:
    scale, shift = _folded(net.norm)
    return FixedStream(words(scale.view(3, -1)), words(shift.view(3, -1)), [lower_block(block) for block in net.blocks], words(net.head.weight), words(net.head.bias))


class FixedNet:
    """A (pruned) two-stream network in the accelerator's arithmetic. ``net(clips)``: (N, 3, T, 25) floats → scores, as a tensor."""

    def __init__(self, joints: FixedStream, bones: FixedStream, skip: bool):
        self.joints, self.bones, self.skip = joints, bones, skip

    @classmethod
    def of(cls, model: TwoStream) -> FixedNet:
        return cls(lower_stream(model.joints), lower_stream(model.bones), model.skip)

    def streams(self, clips: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        x = words(clips).astype(np.float64)[:, :, ::2 if self.skip else 1]
        return x, np.clip(x - x[..., [max(p, 0) for p in PARENT]], LOW, HIGH)

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        joints, bones = self.streams(clips)
        return torch.from_numpy((self.joints(joints)[0] + self.bones(bones)[0]) / ONE**2).float()

    def run(self, clip: torch.Tensor) -> tuple[list[np.ndarray], list[Counter]]:
        """One clip (3, T, 25) through the joints' stream: the stored feature maps (int16), and the multiplications of each block."""
        for block in self.joints.blocks:
            block.work.clear()
        _, stored = self.joints(self.streams(clip[None])[0])
        return [f[0].astype(np.int16) for f in stored], [Counter(block.work) for block in self.joints.blocks]

    def weights(self) -> int:
        """Stored convolution weights of both streams (graphs and biases apart)."""
        return sum(b.spatial.size + b.rows.size + sum(w.size for w in (b.inner, b.outer) if isinstance(w, np.ndarray)) for s in (self.joints, self.bones) for b in s.blocks)

    # ------------------------------------------------------------------------------------------------------------------------- one file

    def parts(self) -> tuple[dict[str, torch.Tensor], dict]:
        """What the file holds: all 16-bit words in a fixed order, small numbers (kept channels; of each block the patterns of one loop of filters, or of all where they do
        not repeat), and the shapes."""
        numbers, small, shape = [], [], {"skip": self.skip, "streams": []}
        for stream in (self.joints, self.bones):
            blocks = []
            for b in stream.blocks:
                kept = b.patterns
                alive = kept.any(1)
                loop = kept[alive][:8] if np.array_equal(kept[alive], kept[alive][:8][np.arange(alive.sum()) % 8]) else kept[alive]
                ways = [0 if w is None else 1 if w is True else 2 for w in (b.inner, b.outer)]
                blocks.append([b.channels, int(b.stride), len(b.kept), len(loop), *ways])
                small += [b.kept.astype(np.uint8), np.packbits(alive), np.packbits(loop)]
                numbers += [b.graph, b.spatial, b.bias1, b.rows, b.bias2, *(w for w in (b.inner, b.outer) if isinstance(w, np.ndarray))]
            numbers += [stream.scale, stream.shift, stream.head, stream.offset]
            shape["streams"].append({"blocks": blocks, "classes": len(stream.offset), "joints": stream.scale.shape[1]})
        tensors = {"words": np.concatenate([n.ravel() for n in numbers]), "small": np.concatenate(small)}
        return {name: torch.from_numpy(array) for name, array in tensors.items()}, {"kind": "rfc-hypgcn", **shape}

    def to_bytes(self) -> bytes:
        return pack(*self.parts())

    def save(self, path: str | os.PathLike) -> int:
        write_whole(Path(path), data := self.to_bytes())
        return len(data)

    @classmethod
    def load(cls, path: str | os.PathLike) -> FixedNet:
        """ArtifactError: damaged, or something else."""
        artifact = read(path)
        try:
            return cls.from_parts(artifact.tensors, artifact.meta)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ArtifactError(f"{path}: no network of this kind: {error}") from error

    @classmethod
    def from_parts(cls, tensors: Mapping[str, torch.Tensor], meta: Mapping) -> FixedNet:
        if meta["kind"] != "rfc-hypgcn":
            raise ValueError(f"kind {meta['kind']!r}")
        feed, small = _Feed(tensors["words"].numpy()), _Feed(tensors["small"].numpy())
        net = cls(*(_read_stream(feed, small, **stream) for stream in meta["streams"]), bool(meta["skip"]))
        if feed.left or small.left:
            raise ValueError(f"{feed.left} words too many")
        return net


class _Feed:
    """Takes arrays of given shapes from the front of a flat one."""

    def __init__(self, flat: np.ndarray):
        self.flat, self.at = flat, 0

    @property
    def left(self) -> int:
        return len(self.flat) - self.at

    def take(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        if min(shape) < 0 or count > self.left:
            raise ValueError(f"{count} values are missing")
        self.at += count
        return self.flat[self.at - count:self.at].reshape(shape)


def _read_stream(feed: _Feed, small: _Feed, blocks: list, classes: int, joints: int) -> FixedStream:
    made, c_in = [], 3
    for channels, stride, kept, loop, *ways in blocks:
        reads, alive = small.take(kept).astype(int), np.unpackbits(small.take(-(-channels // 8)), count=channels).astype(bool)
        pattern = np.unpackbits(small.take(-(-loop * TAPS // 8)), count=loop * TAPS).reshape(loop, TAPS).astype(bool)
        mask = np.zeros((channels, TAPS), bool)
        mask[alive] = pattern[np.arange(alive.sum()) % loop]
        taps, filters = np.nonzero(mask.T)
        graph, spatial, bias1, rows, bias2 = (feed.take(*s) for s in ((3, joints, joints), (channels, 3, kept), (channels,), (len(taps), channels), (channels,)))
        inner, outer = (None if way == 0 else True if way == 1 else feed.take(channels, c_in) for way in ways)
        made.append(FixedBlock(reads, graph, spatial, bias1, rows, taps, filters, bias2, inner, outer, channels, stride))
        c_in = channels
    return FixedStream(feed.take(3, joints), feed.take(3, joints), made, feed.take(classes, c_in), feed.take(classes))


class WeightsFirst(FixedBlock):
    """The rival order of part 2: W_k f first, then G_k. Pruned input channels save spatial products, but the graph product meets every output channel."""

    def spatial_sums(self, f: np.ndarray) -> np.ndarray:
        n, _, t, v = f.shape
        sums = np.zeros((n, self.channels, t, v))
        for k in range(len(self.graph)):
            self.work["spatial"] += self.channels * len(self.kept) * t * v
            h = self.narrow(self.spatial[:, k].astype(np.float64) @ f[:, self.kept].reshape(n, len(self.kept), -1)).reshape(n, self.channels, t, v)
            self.work["graph"] += self.channels * t * v**2
            sums += h @ self.graph[k].astype(np.float64)
        return sums
