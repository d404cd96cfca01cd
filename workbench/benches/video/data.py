"""The `video` data: short grey clips in which a handwritten digit drifts over a panning photograph, 8 frames of 24×24.

The question is how the digit moves: left, right, up or down, by one or by two pixels a frame (eight classes). The photograph pans on its own, in any
direction at up to two pixels a frame, so that motion as such says nothing; the digit is drawn as ``|photo − digit|``, and single frames say nothing
either, because every clip begins and ends at random places. Digits are scikit-learn's, photographs those of :mod:`..vision.data`; test digits and test strips
of photographs are never seen in training.

All arithmetic is on integers, so the clips are the same on every CPU; `EXPECTED` pins them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..clips import Clips, pinned
from ..vision.data import DIGITS, STRIPS, photographs

FRAMES, SIDE = 8, 24
CLIPS = {"train": 6_000, "validation": 500, "test": 1_000}
MOTIONS = tuple((speed * dy, speed * dx) for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0)) for speed in (1, 2))     # pixels a frame, down and right
EXPECTED = {"train": "018ed42284507069", "validation": "ed5c592c35aece28", "test": "8d530d4f7b2304fb"}


class Split(Clips):
    """``clips``: uint8 (N, 8, 24, 24); ``labels``: int64 (N,), an index into `MOTIONS`."""

    def tensors(self, n: int | None = None):
        """The first ``n`` clips as float32 (n, 1, 8, 24, 24), about zero mean and unit spread, and their labels."""
        import torch

        return scaled(self.clips[:n]), torch.from_numpy(self.labels[:n])


def scaled(clips: np.ndarray):
    """uint8 (n, 8, 24, 24) → float32 tensor (n, 1, 8, 24, 24)."""
    import torch

    return torch.from_numpy(clips[:, None].astype("float32")).sub_(100.0).div_(70.0)


@lru_cache(maxsize=3)
def split(name: str) -> Split:
    """The split ``train``, ``validation`` or ``test`` (generated within a second)."""
    return pinned(name, EXPECTED, generate, "video", "scikit-learn, scikit-image or pillow")


def digits(name: str) -> np.ndarray:
    """The digits of a split, 12×12 uint8: each pixel of the 8×8 originals tripled, then 2×2 means."""
    from sklearn.datasets import load_digits

    bundle = load_digits().images.astype(np.int64)
    order = np.random.Generator(np.random.PCG64(7)).permutation(len(bundle))[DIGITS[name]]
    large = bundle[order].repeat(3, 1).repeat(3, 2)
    return (large.reshape(len(order), 12, 2, 12, 2).sum((2, 4)) * 15 // 4).astype(np.uint8)


def generate(name: str) -> Split:
    """The split, made from the packages' digits and photographs."""
    n, shapes = CLIPS[name], digits(name)
    rng = np.random.Generator(np.random.PCG64([31, list(CLIPS).index(name)]))
    labels = rng.integers(0, len(MOTIONS), n)
    which, photo, pans = rng.integers(0, len(shapes), n), rng.integers(0, 18, n), rng.integers(-2, 3, (n, 2))
    where, start, bright = rng.integers(0, 1 << 20, (n, 2)), rng.integers(0, 1 << 20, (n, 2)), rng.integers(110, 201, n)
    grey = [(p.astype(np.int64) @ (77, 150, 29) >> 8).astype(np.uint8) for p in photographs()]
    strips = [g[:, int(g.shape[1] * STRIPS[name][0]):int(g.shape[1] * STRIPS[name][1])] for g in grey]
    clips, reach, canvas = np.empty((n, FRAMES, SIDE, SIDE), np.uint8), 2 * (FRAMES - 1), SIDE + 16
    for i in range(n):
        strip, motion, pan = strips[photo[i]], MOTIONS[labels[i]], pans[i]
        y, x = (reach + int(where[i, k]) % (strip.shape[k] - SIDE - 2 * reach + 1) for k in (0, 1))
        # the digit's corner: at every frame at least half of it is in sight
        low = [max(-6, -6 - motion[k] * (FRAMES - 1)) for k in (0, 1)]
        high = [min(SIDE - 6, SIDE - 6 - motion[k] * (FRAMES - 1)) for k in (0, 1)]
        top, left = (low[k] + int(start[i, k]) % (high[k] - low[k] + 1) for k in (0, 1))
        digit = (shapes[which[i]].astype(np.int64) * bright[i] >> 8).astype(np.uint8)
        for t in range(FRAMES):
            layer = np.zeros((canvas, canvas), np.uint8)
            v, u = top + motion[0] * t + 8, left + motion[1] * t + 8
            layer[v:v + 12, u:u + 12] = digit
            layer, back = layer[8:8 + SIDE, 8:8 + SIDE], strip[y + pan[0] * t:y + pan[0] * t + SIDE, x + pan[1] * t:x + pan[1] * t + SIDE]
            clips[i, t] = np.maximum(back, layer) - np.minimum(back, layer)
    return Split(clips, labels)
