"""The `vision` data: handwritten digits turned, shifted and blended over photographs, 32×32 RGB.

Digits are scikit-learn's (8×8, 1,797 of them), photographs are those inside the scikit-image and scikit-learn packages; both
are read where they are installed. A digit of the training split never appears in validation or test, and each photograph is
cut into three vertical strips, one per split. An image is ``|photo − digit|`` per pixel and channel.

All arithmetic is on integers (sines are rounded to 2⁻¹⁴ first), so the arrays are the same on every CPU; `EXPECTED` pins them, and a data set
that differs (another version of the packages) says so. Generated arrays are kept in the cache folder and mapped from there.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...core.measurements import cache_folder, write_whole

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg",
          "motorcycle_left.png", "brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "moon.png", "page.png",
          "cell.png", "china.jpg", "flower.jpg")
SIDE = 32
SPLITS = {"train": 12_000, "validation": 2_000, "test": 2_000}
DIGITS = {"train": slice(0, 1197), "validation": slice(1197, 1497), "test": slice(1497, 1797)}
STRIPS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
EXPECTED = {"train": "db945f229380e840", "validation": "9b5195ab21525f31", "test": "6cfed3e3c0dbef8c"}


@dataclass(frozen=True)
class Split:
    """``images``: uint8 (N, 3, 32, 32); ``labels``: int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self, n: int | None = None, start: int = 0):
        """The images ``start … start+n`` as float32 (n, 3, 32, 32), normalised to about zero mean and unit spread, with labels."""
        import torch

        part = slice(start, None if n is None else start + n)
        images = torch.from_numpy(self.images[part].astype(np.float32)).sub_(100.0).div_(70.0)
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.array(self.labels[part]))


def photographs() -> list[np.ndarray]:
    """The photographs as uint8 (H, W, 3), read from the installed packages; grey ones are repeated over the channels."""
    import imageio.v3 as imageio
    import skimage.data
    import sklearn.datasets

    folders = [Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"]
    photos = []
    for name in PHOTOS:
        path = next((folder / name for folder in folders if (folder / name).exists()), None)
        if path is None:
            raise FileNotFoundError(f"{name} is in neither scikit-image nor scikit-learn as installed here; "
                                    f"install the versions that constraints.txt pins")
        photo = np.asarray(imageio.imread(path))
        photo = np.repeat(photo[..., None], 3, 2) if photo.ndim == 2 else photo[..., :3]
        photos.append(np.ascontiguousarray(photo, dtype=np.uint8))
    return photos


def _digits(rng: np.random.Generator, originals: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` turned (±0.35 rad), scaled (0.75–1.25), shifted (±25 %) digits, uint8 (n, 32, 32), and the index of each original."""
    index = rng.integers(0, len(originals), n)
    turn, scale = rng.uniform(-0.35, 0.35, n), rng.uniform(0.75, 1.25, n)
    shift = rng.integers(-SIDE // 8, SIDE // 8 + 1, (2, n)) * 2
    one = 1 << 14                                                   # fixed-point unit
    cos, sin = (np.rint(f(turn) / scale * one).astype(np.int32)[:, None, None] for f in (np.cos, np.sin))
    axis = 2 * np.arange(SIDE, dtype=np.int32) - (SIDE - 1)
    padded = np.zeros((len(originals), 12, 12), np.int32)           # 8×8 digit, two empty pixels around
    padded[:, 2:10, 2:10] = originals
    flat, out = padded.ravel(), np.empty((n, SIDE, SIDE), np.uint8)
    for start in range(0, n, 500):                                  # a part at a time stays in the processor's cache
        part = slice(start, start + 500)
        y, x = (axis - 2 * offset[part, None].astype(np.int32) for offset in shift)  # twice the distance from the centre
        y, x, c, s = y[:, :, None], x[:, None, :], cos[part], sin[part]
        # 32 output pixels span the 8 digit pixels: source = centre + rotation·offset / 4, in units of `one`
        source_y = np.clip((c * y - s * x) // 8 + 11 * one // 2, 0, 11 * one - 1)
        source_x = np.clip((s * y + c * x) // 8 + 11 * one // 2, 0, 11 * one - 1)
        corner = index[part, None, None].astype(np.int32) * 144 + (source_y >> 14) * 12 + (source_x >> 14)
        fy, fx = (source_y & one - 1) >> 6, (source_x & one - 1) >> 6                # 8-bit fractions
        upper = (256 - fx) * flat.take(corner) + fx * flat.take(corner + 1)
        lower = (256 - fx) * flat.take(corner + 12) + fx * flat.take(corner + 13)
        out[part] = ((256 - fy) * upper + fy * lower) * 255 >> 20
    return out, index


@lru_cache(maxsize=3)
def split(name: str) -> Split:
    """The split ``train``, ``validation`` or ``test``: read from the cache, or generated (two seconds for all three) and put there."""
    if name not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {name!r}")
    folder = cache_folder() / f"vision-{EXPECTED[name]}"
    try:
        found = Split(*(np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in ("images", "labels")))
        if found.images.shape == (SPLITS[name], 3, SIDE, SIDE) and len(found.labels) == SPLITS[name]:
            return found
    except (OSError, ValueError):
        pass  # not there, or damaged: generated anew
    made = generate(name)
    digest = fingerprint(made)
    if digest != EXPECTED[name]:
        warnings.warn(f"the vision data ({name}) differ from those the results were made with ({digest}, expected {EXPECTED[name]}): other versions "
                      f"of scikit-learn, scikit-image or pillow than constraints.txt pins; numbers will not match", stacklevel=2)
        return made
    for part, array in (("images", made.images), ("labels", made.labels)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_whole(folder / f"{part}.npy", buffer.getvalue())
    return made


def turned_digits(name: str) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """The digits of a split, turned, scaled and shifted, on black: uint8 (n, 32, 32), labels (n,), and the generator as they left it."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    order = np.random.Generator(np.random.PCG64(7)).permutation(len(bundle.target))[DIGITS[name]]
    rng = np.random.Generator(np.random.PCG64([11, list(SPLITS).index(name)]))
    digits, index = _digits(rng, bundle.images[order].astype(np.int64), SPLITS[name])
    return digits, bundle.target[order][index].astype(np.int64), rng


def generate(name: str) -> Split:
    """The split, made from the packages' digits and photographs."""
    n = SPLITS[name]
    digits, labels, rng = turned_digits(name)
    images = np.empty((n, 3, SIDE, SIDE), np.uint8)
    photos, which = photographs(), rng.integers(0, len(PHOTOS), n)
    where = rng.integers(0, 1 << 20, (n, 2))
    for i in range(n):
        photo = photos[which[i]]
        left, right = (int(photo.shape[1] * edge) for edge in STRIPS[name])
        y = where[i, 0] % (photo.shape[0] - SIDE + 1)
        x = left + where[i, 1] % (right - left - SIDE + 1)
        patch = photo[y:y + SIDE, x:x + SIDE].transpose(2, 0, 1)
        images[i] = np.maximum(patch, digits[i]) - np.minimum(patch, digits[i])
    return Split(images, labels)


def fingerprint(part: Split) -> str:
    """SHA-256 of the uint8 pixels and labels, 16 hexadecimal digits."""
    return hashlib.sha256(part.images.tobytes() + part.labels.astype(np.uint8).tobytes()).hexdigest()[:16]
