"""The `domains` data: clean digits with labels (source) and the same kind of digits over dimmed photographs (target), 16×16, grey.

    source   a turned digit on black                                  labels may be used
    target   |photograph · CONTRAST − digit|                          labels for judging only: :func:`target` keeps them out of training

Digits and photographs are those of the `vision` bench (:mod:`workbench.benches.vision.data`), with its splits: an original digit of the training split
never appears in a test, a photograph's strips are apart. Of each split the first half of the draws is source, the second half target: two domains
never show one drawing twice. Everything is integer arithmetic, pinned by `EXPECTED`.

`CONTRAST` was set so that a network trained on the source alone is right on 50 to 70 % of target images: with photographs at full strength nothing
learned on clean digits carries over, and there would be nothing to adapt.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..vision import data as vision

SIDE = 16
CONTRAST = 144                                                      # of 256
EXPECTED = {("source", "train"): "465cf9d411c873c0", ("source", "validation"): "396e1c0d8a4c0935", ("source", "test"): "d3c3571304b609c3",
            ("target", "train"): "c250f8d6971033af", ("target", "validation"): "2fd63229eb834dae", ("target", "test"): "425182ddbf204bd1"}


def halved(images: np.ndarray) -> np.ndarray:
    """uint8 (n, 32, 32) → (n, 16, 16): means of 2×2 pixels, rounded down."""
    wide = images.astype(np.uint16)
    return ((wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]) >> 2).astype(np.uint8)


def backgrounds(split: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Grey patches of the split's strips of the photographs, dimmed, uint8 (n, 16, 16)."""
    grey = [(photo.astype(np.uint32) @ np.array([77, 151, 28], np.uint32) >> 8).astype(np.uint8) for photo in vision.photographs()]
    which, where = rng.integers(0, len(grey), n), rng.integers(0, 1 << 20, (n, 2))
    patches = np.empty((n, vision.SIDE, vision.SIDE), np.uint8)
    for i in range(n):
        photo = grey[which[i]]
        left, right = (int(photo.shape[1] * edge) for edge in vision.STRIPS[split])
        y, x = where[i, 0] % (photo.shape[0] - vision.SIDE + 1), left + where[i, 1] % (right - left - vision.SIDE + 1)
        patches[i] = photo[y:y + vision.SIDE, x:x + vision.SIDE]
    return (halved(patches).astype(np.uint16) * CONTRAST >> 8).astype(np.uint8)


@lru_cache(maxsize=6)
def domain(name: str, split: str) -> vision.Split:
    """``source`` or ``target`` images of ``train`` (6,000), ``validation`` or ``test`` (1,000 each), uint8 (n, 1, 16, 16), with labels."""
    if name not in ("source", "target"):
        raise ValueError(f"name: a domain is 'source' or 'target', found {name!r}")
    digits, labels, rng = vision.turned_digits(split)
    middle = len(labels) // 2
    half = slice(middle) if name == "source" else slice(middle, None)
    images = halved(digits[half])
    if name == "target":
        photos = backgrounds(split, len(images), rng)
        images = np.maximum(photos, images) - np.minimum(photos, images)
    made = vision.Split(images[:, None], labels[half])
    if (digest := vision.fingerprint(made)) != EXPECTED[name, split]:
        warnings.warn(f"the {name} images ({split}) differ from those the nets were trained on ({digest}, expected {EXPECTED[name, split]}): other versions "
                      f"of scikit-learn, scikit-image or numpy than constraints.txt pins; numbers will not match", stacklevel=2)
    return made


def tensors(part: vision.Split, which: int | np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """The first ``which`` images (or those of these numbers) as float32 (n, 1, 16, 16) around zero, and their labels."""
    which = which if isinstance(which, np.ndarray) else slice(which)
    return torch.from_numpy(part.images[which].astype(np.float32)).sub_(50.0).div_(70.0), torch.from_numpy(part.labels[which].copy())
