"""Compression at test time: a tracker that specialises to its video, stays near what it was, and gets smaller, while it follows.

    frame 0 ──► K steps: L_s (crops of frame 0) + α·L_g (stored pairs) + β·L_c ──► channels taken out
    frame t ──► box ──► confident? remember the frame; every n frames one step ──► lost? the uncompressed weights come back
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...benches.detection import data, tracking
from ...benches.detection.nets import Siamese
from ...contracts.structure.macs import macs, parameters
from ._bsgc_method import BSGC, Student
from ._bsgc_tasks import Correlation

ONLINE = BSGC(alpha=10.0, beta=10.0, growth=1.02, currency="macs", every=10, outgoing=float("inf"), rate=0.002, steps=48, clip=1.0)
Pairs = tuple[Tensor, Tensor]


@lru_cache(maxsize=1)
def stored(n: int = 32) -> Pairs:
    """General crops that a tracker carries along: exemplars (n, 3, 32, 32) and search crops (n, 3, 64, 64) of training clips."""
    frames, boxes = data.clips()
    one, other = (data.normalised(frames[:n, i]) for i in (0, 2))
    exemplars = tracking.crops(one, *tracking.window(torch.from_numpy(boxes[:n, 0])), tracking.EXEMPLAR)
    return exemplars, tracking.pairs(other, torch.from_numpy(boxes[:n, 2]), torch.Generator().manual_seed(0))[0]


class OnlineTracker(tracking.Tracker):
    """A Siamese tracker that learns and shrinks on line; ``run(frames, box0)`` gives the track (n, 4).

    ``size``: share of the MACs to keep; ``compress=False`` only specialises. ``general``: stored crops (see `stored`), needed with ``method.alpha`` > 0. At the start ``method.steps`` steps of
    ``batch`` crops, then one every ``every`` frames. A frame is learnt from if the confidence is at least ``sure``; below ``lost`` the uncompressed weights come back
    (reconstructed), judge the same frame again, and stay. ValueError: a box outside of the frame, no general crops, a ``size`` that cannot be.
    """

    def __init__(self, net: Siamese, general: Pairs | None = None, compress: bool = True, size: float = 0.8, method: BSGC = ONLINE, batch: int = 4,
                 every: int = 8, sure: float = 0.9, lost: float = 0.2, seed: int = 0):
        super().__init__(net)
        if not 0 < size <= 1:
            raise ValueError(f"size: the share of the MACs to keep lies in (0, 1], found {size}")
        if method.alpha > 0 and general is None:
            raise ValueError(f"general: with alpha = {method.alpha} stored crops are needed (exemplars, search crops); alpha=0 goes without")
        self.whole, self.general, self.compress, self.size, self.method = net, general, compress and size < 1, size, method
        self.batch, self.every, self.sure, self.lost, self.task = batch, every, sure, lost, Correlation()
        self.generator = torch.Generator().manual_seed(seed)
        self.seen, self.restored_at, self.history = 0, -1, {"macs": [], "confidence": []}

    def run(self, frames: np.ndarray | data.Stream, box0: Sequence[float]) -> np.ndarray:
        """The track of uint8 frames (n, 3, H, W), answered frame by frame."""
        return tracking.follow(self, frames, box0)

    def start(self, frame: Tensor, box: Sequence[float]) -> None:
        super().start(frame, box)
        self.first, self.memory = self.crop(frame, self.box), [(frame, self.box[0])]
        example = torch.zeros(1, 3, tracking.SEARCH, tracking.SEARCH)
        shrinking = round(self.method.steps * (1 - self.method.tuning)) if self.compress else 0
        self.student = Student(self.method, self.whole, example, round(self.size * macs(self.whole, example)), shrinking, frozen=True)
        if self.general is not None:
            with torch.no_grad():
                self.answers = self.whole.response(self.whole.exemplar(self.general[0]), self.general[1])
        for _ in range(self.method.steps):
            if self.restored_at < 0:
                self.learn()
        self.renew()

    def learn(self) -> None:
        """One step: the first frame takes half of the batch, confident later ones the other half."""
        later = torch.randint(len(self.memory), (self.batch - self.batch // 2,), generator=self.generator).tolist()
        chosen = [self.memory[i] for i in [0] * (self.batch // 2) + later]
        search, label = tracking.pairs(torch.stack([f for f, _ in chosen]), torch.stack([b for _, b in chosen]), self.generator)
        net = self.student.mode()
        exemplar = net.exemplar(self.first)
        specialise = self.task.loss(net.response(exemplar.expand(len(search), -1, -1, -1), search), label)
        general: Tensor | float = 0.0
        if self.method.alpha > 0:
            others = torch.randperm(len(self.answers), generator=self.generator)[:self.batch]
            general = self.task.keep(net.response(net.exemplar(self.general[0][others]), self.general[1][others]), self.answers[others], self.method.temperature)
        loss = self.method.total(specialise, general)
        if torch.isfinite(loss):
            self.student.learn(loss, self.method.rate)
        else:  # learning went astray: as if the target were lost
            self.restored_at = self.seen

    @torch.no_grad()
    def renew(self) -> None:
        """After learning: the network in use and its exemplar."""
        self.net = self.student.net.eval() if self.restored_at < 0 else self.whole
        self.exemplar = self.net.exemplar(self.first)

    def step(self, frame: Tensor) -> np.ndarray:
        before, found = self.box, super().step(frame)
        self.seen += 1
        if self.restored_at < 0 and self.confidence < self.lost:
            found = self.restore(frame, before)
        elif self.confidence >= self.sure:
            self.memory = [*self.memory[:1], *self.memory[1:][-7:], (frame, self.box[0])]
        if self.restored_at < 0 and self.seen % self.every == 0:
            self.learn()
            self.renew()
        self.history["confidence"].append(self.confidence)
        self.history["macs"].append(self.student.size if self.restored_at < 0 else self.student.whole)
        return found

    @torch.no_grad()
    def restore(self, frame: Tensor, before: Tensor) -> np.ndarray:
        """Safety: the uncompressed weights look at the same frame again, and stay."""
        self.net, self.box, self.restored_at = self.whole, before, self.seen
        self.exemplar = self.net.exemplar(self.first)
        return super().step(frame)


def report(tracker: OnlineTracker) -> dict[str, float]:
    """What a track ended with: parameters, and MACs of a search crop, before and after; the frame at which the uncompressed weights came back (−1: none)."""
    example = torch.zeros(1, 3, tracking.SEARCH, tracking.SEARCH)
    return {"parameters": (parameters(tracker.whole), parameters(tracker.net)), "macs": (macs(tracker.whole, example), macs(tracker.net, example)),
            "restored at": tracker.restored_at}
