"""The `photos` bench: small colour patches of real photographs, to be stored without loss.

Ten colour photographs ship inside the scikit-image and scikit-learn packages. Each is cut into three vertical strips, one per
split, so that no pixel of a test patch was ever trained on. Patches are drawn with integers only; `EXPECTED` pins the result
(it depends on the JPEG decoder inside Pillow too, so `fingerprint` is printed with every result instead of drifting silently).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from .vision.data import PHOTOS, photographs

COLOUR = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg",
          "motorcycle_left.png", "china.jpg", "flower.jpg")
STRIPS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
SIZES = {"train": 6_000, "validation": 200, "test": 200}
EXPECTED = "2082e242f63ed989"


@lru_cache(maxsize=8)
def patches(split: str, n: int | None = None, side: int = 32) -> np.ndarray:
    """The first ``n`` patches of a split, uint8 (n, side, side, 3); the photographs take turns, so any ten hold one of each."""
    if split not in STRIPS:
        raise ValueError(f"split must be one of {', '.join(STRIPS)}, not {split!r}")
    n = SIZES[split] if n is None else n
    colour = [photo for name, photo in zip(PHOTOS, photographs()) if name in COLOUR]
    where = np.random.Generator(np.random.PCG64([23, list(STRIPS).index(split)])).integers(0, 1 << 20, (n, 2))
    out = np.empty((n, side, side, 3), np.uint8)
    for i in range(n):
        photo = colour[i % len(colour)]
        left, right = (int(photo.shape[1] * edge) for edge in STRIPS[split])
        y = where[i, 0] % (photo.shape[0] - side + 1)
        x = left + where[i, 1] % (right - left - side + 1)
        out[i] = photo[y:y + side, x:x + side]
    out.flags.writeable = False
    return out


def fingerprint() -> str:
    """SHA-256 of the pixels of the three splits, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for split in STRIPS:
        digest.update(patches(split).tobytes())
    return digest.hexdigest()[:16]
