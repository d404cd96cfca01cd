"""The accelerator's time (parts 9 and 10): processing elements fed with the features of a real clip, cycle by cycle.

    Mult-PE      graph and spatial products: every multiplication of the loop nest takes a slot
    Dyn-Mult-PE  one temporal filter at one joint: a queue for each kept tap; each cycle a position (t', c) enters (its non-zero features, if every queue has
                 room) and `dsps` multipliers, fewer than taps, serve the oldest entries first
    pipeline     all blocks at once, a clip in each; multipliers are dealt out so that the slowest block is as fast as can be

Filters of one pattern see the same zeros, so a pattern and a joint are simulated once and counted for all filters that share it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...benches.skeleton.nets import TAPS

MHZ = 172.0     # clock of the reported implementation (reconstructed)


@dataclass(frozen=True)
class Lanes:
    """What the lanes of a temporal convolution did: ``cycles`` and ``macs`` (lanes,), ``share`` (lanes,): filters that each stands for; ``dsps`` a lane."""

    cycles: np.ndarray
    macs: np.ndarray
    share: np.ndarray
    dsps: np.ndarray

    @property
    def efficiency(self) -> float:
        """Multiplications that a DSP did per cycle in which its lane was at work."""
        return float((self.macs * self.share).sum() / (self.cycles * self.dsps * self.share).sum())


def arrivals(feature: np.ndarray, taps: np.ndarray, stride: int) -> np.ndarray:
    """(V, positions, taps) bool: which features are not zero where a filter's taps look, positions in the order t', c. ``feature``: (C, T, V)."""
    hot = np.pad(feature != 0, ((0, 0), (TAPS // 2, TAPS // 2), (0, 0)))
    out = (feature.shape[1] - 1) // stride + 1
    windows = np.stack([hot[:, tap:tap + stride * (out - 1) + 1:stride] for tap in taps], -1)      # (C, T', V, taps)
    return windows.transpose(2, 1, 0, 3).reshape(feature.shape[2], -1, len(taps))


def dynamic(enters: np.ndarray, dsps: int, depth: int = 8) -> np.ndarray:
    """(lanes,) cycles until all is done. ``enters``: (lanes, positions, taps) bool; the oldest of all queue heads are served first."""
    lanes, positions, taps = enters.shape
    queue, length = np.full((lanes, taps, depth), positions, np.int32), np.zeros((lanes, taps), np.int64)     # positions waiting; `positions`: none
    at, cycles, lane, tap = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64), np.arange(lanes)[:, None], np.arange(taps)
    enters = np.concatenate([enters, np.zeros((lanes, 1, taps), bool)], 1)
    while True:
        busy = (at < positions) | length.any(1)
        if not busy.any():
            return cycles
        cycles += busy
        free = (at < positions) & (length < depth).all(1)
        new = enters[lane[:, 0], at] & free[:, None]
        queue[np.broadcast_to(lane, new.shape)[new], np.broadcast_to(tap, new.shape)[new], length[new]] = np.broadcast_to(at[:, None], new.shape)[new]
        length += new
        at += free
        order = np.argsort(queue[:, :, 0], axis=1, kind="stable")[:, :dsps]
        served = queue[lane, order, 0] < positions
        rows, cols = np.broadcast_to(lane, order.shape)[served], order[served]
        queue[rows, cols, :-1] = queue[rows, cols, 1:]
        queue[rows, cols, -1] = positions
        length[rows, cols] -= 1


def static(enters: np.ndarray, dsps: int) -> np.ndarray:
    """(lanes,) cycles of a schedule fixed beforehand: every tap of every position takes a slot, zero or not."""
    return np.full(len(enters), enters.shape[1] * -(-enters.shape[2] // dsps))


def temporal(feature: np.ndarray, kept: np.ndarray, stride: int, scheduling: str = "dynamic", saved: int = 1) -> Lanes:
    """A temporal convolution on one clip. kept: (filters, taps) bool. A dynamic lane has ``saved`` DSPs fewer than taps (one at least), a static lane one per tap."""
    patterns, count = np.unique(kept[kept.any(1)], axis=0, return_counts=True)
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for pattern, filters in zip(patterns, count, strict=True):
        enters = arrivals(feature, np.flatnonzero(pattern), stride)
        taps = enters.shape[2]
        dsps = max(1, taps - saved) if scheduling == "dynamic" else taps
        cycles = dynamic(enters, dsps) if scheduling == "dynamic" else static(enters, dsps)
        for part, values in zip(parts, (cycles, enters.sum((1, 2)), filters, dsps), strict=True):
            part.append(np.broadcast_to(values, len(enters)))
    return Lanes(*(np.concatenate(part) for part in parts))


def lockstep(kept: np.ndarray, positions: int, loop: int = 8) -> int:
    """Cycles of static PEs with one multiplier each that run ``loop`` filters at a time, together: a position lasts as long as the filter with most taps."""
    taps = kept.sum(1)[kept.any(1)]
    return sum(int(taps[i:i + loop].max()) * positions for i in range(0, len(taps), loop))


def allot(work: Sequence[float], dsps: int) -> np.ndarray:
    """Deals ``dsps`` multipliers out to stages with this much work so that the slowest is as fast as can be (each gets one at least). ValueError: too few."""
    if dsps < len(work):
        raise ValueError(f"dsp: {dsps} multipliers for {len(work)} stages; one each is the least")
    given = np.ones(len(work), int)
    heap = [(-w, i) for i, w in enumerate(work)]
    heapq.heapify(heap)
    for _ in range(dsps - len(work)):
        _, i = heapq.heappop(heap)
        given[i] += 1
        heapq.heappush(heap, (-work[i] / given[i], i))
    return given


def pipeline(products: Sequence[int], lanes: Sequence[Lanes], dsps: int) -> dict[str, np.ndarray | float]:
    """Blocks as stages of a pipeline, two each (graph with spatial products; temporal). ``interval``: cycles between two clips, that of the slowest stage."""
    slots = [float((lane.cycles * lane.dsps * lane.share).sum()) for lane in lanes]     # DSP-cycles, stalls and idle ones included
    work = [w for pair in zip(map(float, products), slots, strict=True) for w in pair]
    given = allot(work, dsps)
    stage = np.ceil(np.array(work) / given).astype(int)
    return {"interval": int(stage.max()), "stage": stage, "dsps": given, "clips_per_second": MHZ * 1e6 / stage.max()}
