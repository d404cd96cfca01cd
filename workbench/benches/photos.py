"""The `photos` bench: small colour patches of real photographs, to be stored without loss.

Ten colour photographs ship inside the scikit-image and scikit-learn packages. Each is cut into three vertical strips, one per
split, so that no pixel of a test patch was ever trained on. Patches are drawn with integers only; `EXPECTED` pins the result
(it depends on the JPEG decoder inside Pillow too, so `fingerprint` is part of every stored result's key instead of drifting silently).

A codec is judged by the bytes it really writes for 20 patches, framing, checksums and auxiliary bits included, and by decoding them again.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..contracts import data
from ..contracts.data import StreamError
from ..core.study import Metric, Result, Track
from . import CHECKPOINTS
from .vision.data import PHOTOS, photographs

COLOUR = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg",
          "motorcycle_left.png", "china.jpg", "flower.jpg")
STRIPS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
SIZES = {"train": 6_000, "validation": 200, "test": 200}
PER_REPLICA = 20        # test patches that a point codes; each replica has its own
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


@dataclass(frozen=True)
class Pillow:
    """A lossless format of the Pillow package as a codec: all patches in one file, one below the other, so that its header counts once."""

    format: str = "PNG"

    @property
    def method(self) -> str:
        return self.format.lower()

    def compress(self, array: np.ndarray) -> bytes:
        from PIL import Image

        #  WebP's method 4 gives smaller files here than 5 and 6
        best = {"PNG": {"optimize": True}, "WEBP": {"lossless": True, "quality": 100, "method": 4}}[self.format]
        file = io.BytesIO()
        Image.fromarray(array.reshape(-1, *array.shape[2:])).save(file, self.format, **best)
        return file.getvalue()

    def decompress(self, payload: bytes, shape: tuple[int, ...]) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(payload), formats=[self.format]).convert("RGB")).reshape(shape)


@lru_cache(maxsize=8)
def _likelihood(replica: int, n: int) -> float:
    """What the float flow says that the test patches of a replica are worth, in bits per dimension."""
    import torch

    from . import photo_flow

    with torch.no_grad():
        flow = photo_flow.load(CHECKPOINTS / f"iflow-{replica}.safetensors")
        return float(photo_flow.bits_per_dim(flow, race_patches(replica, n)).mean())


def race_patches(replica: int, n: int = PER_REPLICA) -> np.ndarray:
    return patches("test")[replica * n:(replica + 1) * n]


def measure(thing, replica: int = 0, n: int = PER_REPLICA) -> Result:
    """Codes and decodes the replica's test patches. ``thing``: a codec of the `data` contract (``auxiliary(stream)`` bytes, if it has any)."""
    images = race_patches(replica, n)
    stream = data.encode(images, thing)
    try:
        exact = (data.decode(stream, {thing.method: thing}.get) == images).all((1, 2, 3))
    except StreamError:         # a decoder that notices that its own encoder was not exact
        exact = np.zeros(len(images), bool)
    bits, auxiliary = 8 * len(stream) / images.size, 8 * getattr(thing, "auxiliary", lambda stream: 0)(stream) / images.size
    likelihood = _likelihood(replica, n)
    return Result({"bits_per_dim": bits, "net_bits_per_dim": bits - auxiliary, "auxiliary": auxiliary, "bytes": len(stream),
                   "exact": 100 * float(exact.mean()), "gap": 100 * ((bits - auxiliary) / likelihood - 1)},
                  samples={"exact": exact})


METRICS = {
    "bits_per_dim": Metric("bits per dimension, all bytes", False, 3),
    "net_bits_per_dim": Metric("bits per dimension, net", False, 3),
    "auxiliary": Metric("auxiliary bits per dimension", False, 3),
    "bytes": Metric("file (bytes)", False, 0),
    "exact": Metric("patches returned bit for bit (%)"),
    "gap": Metric("above the float flow's likelihood (%)", False, 2),
}


def _data_key() -> str:
    digest = hashlib.sha256(fingerprint().encode())
    for path in sorted(CHECKPOINTS.glob("iflow-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


BITS = Track("photos/bits per dimension", "bits_per_dim", "gap", METRICS, measure, _data_key, replicas=3,
             title="small photographs without loss")
