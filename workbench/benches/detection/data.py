"""The `detection` data: digits on photographs, with boxes. Three sources, 64×64 and 80×80 RGB:

| source | what | photographs | digits |
|---|---|---|---|
| `scenes("train" / "test")` | the general domain: one to three of ten digits, any size from 14 to 32 pixels, in all light | 13, in strips of their own | of the split |
| `camera()` | the restricted domain: 480 frames of *one* place, two digits, 18 to 24 pixels, while the light fades | one that no scene shows | training digits first, test digits later |
| `videos()` | 12 sequences of 40 frames: one digit to follow, turned, scaled, covered, beside another that looks like it | four that nothing else shows | test digits |

A pixel is ``|photo − digit|``, and a box (x0, y0, x1, y1), in pixels, holds the digit's ink tightly. Digits and photographs are those of the `vision` bench, its
splits too. Digits are drawn here anew, because that bench's shifts cut many off at the edge of their canvas, where a box would end with them.

A camera's frames come in time. What adapts to it may read those before `SPLIT`, what judges it those after `JUDGED`; a :class:`Stream` refuses the rest. All arithmetic is on
integers (sines are rounded first), so the arrays are the same on every CPU; `EXPECTED` pins them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ...core.measurements import cache_folder, write_whole
from ..vision.data import DIGITS, PHOTOS, STRIPS, photographs

SIDE, FRAME = 64, 80
CAMERA, CAMERA_DIGITS = "coffee.png", (3, 8)
VIDEO_PHOTOS = ("astronaut.png", "chelsea.png", "rocket.jpg", "flower.jpg")
SCENES = {"train": 4_000, "test": 400}
FRAMES, SPLIT, JUDGED = 480, 240, 300                              # frames 240 … 299 keep the two periods apart
SEQUENCES, LENGTH = 12, 40
CLIPS, CLIP_FRAMES = 700, 4
INK = 64                                                           # what is darker than this of 255 belongs to no box
EXPECTED = {"scenes-train": "2986a350e4b83ed9", "scenes-test": "8f54c77460d0255b", "camera": "0f7e480e6b33f60b", "videos": "78e602f9c42a9235", "clips": "08bead71379d4cd9"}


class LookAhead(LookupError):
    """A frame was asked for before its time."""


@dataclass(frozen=True)
class Boxes:
    """The objects of n images in one table: ``image`` (m,) of each object, ``box`` float32 (m, 4), ``label`` int64 (m,)."""

    image: np.ndarray
    box: np.ndarray
    label: np.ndarray

    def of(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(boxes, labels) of image ``i``."""
        here = self.image == i
        return self.box[here], self.label[here]


@dataclass(frozen=True)
class Scenes:
    """``images``: uint8 (n, 3, side, side); ``objects``: what is on them."""

    images: np.ndarray
    objects: Boxes

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> Scenes:
        here = (self.objects.image >= start) & (self.objects.image < stop)
        return Scenes(self.images[start:stop], Boxes(self.objects.image[here] - start, self.objects.box[here], self.objects.label[here]))


@dataclass
class Stream:
    """Frames as they come. Up to ``now`` (included) they may be read, again and again; a later one raises :class:`LookAhead`. ``read``: which were."""

    frames: np.ndarray
    now: int = 0
    read: list[int] = field(default_factory=list)

    def __getitem__(self, t: int) -> np.ndarray:
        if not 0 <= t <= self.now:
            raise LookAhead(f"frame {t} was asked for while frame {self.now} is the newest")
        self.read.append(t)
        return self.frames[t]

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frame after frame: the next one comes when it is asked for."""
        for t in range(self.now, len(self.frames)):
            self.now = t
            yield self[t]


def normalised(images: np.ndarray):
    """uint8 (…, h, w) → float32 tensor of about zero mean and unit spread."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).float().sub_(100.0).div_(70.0)


# ---------------------------------------------------------------------------------------------------------------- drawing

@lru_cache(maxsize=1)
def _originals() -> tuple[np.ndarray, np.ndarray]:
    """All digits in the order of the `vision` bench, padded by two empty pixels: int32 (1797, 12, 12), and their labels."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    order = np.random.Generator(np.random.PCG64(7)).permutation(len(bundle.target))
    return np.pad(bundle.images[order].astype(np.int32), ((0, 0), (2, 2), (2, 2))), bundle.target[order].astype(np.int64)


def _of(split: str, classes: tuple[int, ...] = tuple(range(10))) -> np.ndarray:
    """Numbers of the split's digits of these classes."""
    labels = _originals()[1]
    numbers = np.arange(len(labels))[DIGITS[split]]
    return numbers[np.isin(labels[numbers], classes)]


def drawn(number: int, size: int, turn: int) -> np.ndarray:
    """A digit, 8×8 pixels blown up to ``size`` of the new ones and turned by ``turn`` thousandths of a radian; cut to its ink, uint8 (h, w)."""
    side, one = size * 3 // 2, 1 << 14
    axis = 2 * np.arange(side, dtype=np.int64) - (side - 1)        # twice the distance from the centre, in new pixels
    cos, sin = (int(np.rint(f(turn / 1000) * one)) for f in (np.cos, np.sin))
    y, x = axis[:, None], axis[None, :]
    source_y, source_x = (np.clip(v * 8 // (2 * size) + 11 * one // 2, 0, 11 * one - 1) for v in (cos * y - sin * x, sin * y + cos * x))
    (top, dy), (left, dx) = divmod(source_y, one), divmod(source_x, one)
    digit = _originals()[0][number]
    rows = [digit[np.minimum(top + i, 11), left] * (one - dx) + digit[np.minimum(top + i, 11), np.minimum(left + 1, 11)] * dx for i in (0, 1)]
    ink = np.minimum(16 * (rows[0] // 64 * (one - dy) + rows[1] // 64 * dy) // (one // 64 * one), 255).astype(np.uint8)
    inside = [np.flatnonzero((ink >= INK).any(axis)) for axis in (1, 0)]
    return ink[inside[0][0]:inside[0][-1] + 1, inside[1][0]:inside[1][-1] + 1]


def paste(image: np.ndarray, ink: np.ndarray, x: int, y: int, strength: int = 256) -> tuple[int, int, int, int]:
    """Blends ``ink`` (h, w), with ``strength``/256 of its darkness, into ``image`` (H, W, 3) at (x, y), in place; its box, cut to the image."""
    h, w = ink.shape
    box = max(x, 0), max(y, 0), min(x + w, image.shape[1]), min(y + h, image.shape[0])
    if box[0] < box[2] and box[1] < box[3]:
        part = image[box[1]:box[3], box[0]:box[2]]
        layer = (ink[box[1] - y:box[3] - y, box[0] - x:box[2] - x, None].astype(np.int32) * strength >> 8).astype(np.uint8)
        part[...] = np.maximum(part, layer) - np.minimum(part, layer)
    return box


def _overlap(a, b, gap: int = 2) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _table(rows: list[tuple]) -> Boxes:
    image, box, label = (np.array([row[i] for row in rows]) for i in range(3))
    return Boxes(image.astype(np.int64), box.astype(np.float32), label.astype(np.int64))


# ---------------------------------------------------------------------------------------------------------------- sources

def _patch(rng: np.random.Generator, photo: np.ndarray, strip: tuple[float, float], side: int) -> np.ndarray:
    left, right = (int(photo.shape[1] * edge) for edge in strip)
    y, x = rng.integers(0, photo.shape[0] - side + 1), rng.integers(left, max(left, right - side) + 1)
    x = min(x, photo.shape[1] - side)
    return photo[y:y + side, x:x + side].copy()


def _make_scenes(split: str) -> Scenes:
    rng, labels, numbers = np.random.Generator(np.random.PCG64([21, split == "test"])), _originals()[1], _of(split)
    photos = [photo for name, photo in zip(PHOTOS, photographs(), strict=True) if name not in (CAMERA, *VIDEO_PHOTOS)]
    images, rows = np.empty((SCENES[split], 3, SIDE, SIDE), np.uint8), []
    for i in range(SCENES[split]):
        image = _patch(rng, photos[rng.integers(len(photos))], STRIPS[split], SIDE)
        image = (image.astype(np.int32) * rng.integers(128, 257) >> 8).astype(np.uint8)
        taken: list = []
        for _ in range(rng.integers(1, 4)):
            number, strength = numbers[rng.integers(len(numbers))], int(rng.integers(150, 257))
            ink = drawn(number, int(rng.integers(14, 33)), int(rng.integers(-350, 351)))
            for _ in range(12):
                x, y = int(rng.integers(0, SIDE - ink.shape[1] + 1)), int(rng.integers(0, SIDE - ink.shape[0] + 1))
                box = (x, y, x + ink.shape[1], y + ink.shape[0])
                if not any(_overlap(box, other) for other in taken):
                    taken.append(paste(image, ink, x, y, strength))
                    rows.append((i, box, labels[number]))
                    break
        images[i] = image.transpose(2, 0, 1)
    return Scenes(images, _table(rows))


def _make_camera() -> Scenes:
    """Every 10 frames two or three digits walk in from somewhere; the light falls from full to 55 %, with a flicker and noise."""
    rng, labels, life = np.random.Generator(np.random.PCG64(22)), _originals()[1], 10
    photo = photographs()[PHOTOS.index(CAMERA)]
    top, left = (photo.shape[0] - SIDE) // 2, (photo.shape[1] - SIDE) // 2
    place = photo[top:top + SIDE, left:left + SIDE]
    images, rows = np.empty((FRAMES, 3, SIDE, SIDE), np.uint8), []
    for start in range(0, FRAMES, life):
        numbers = _of("train" if start < SPLIT else "test", CAMERA_DIGITS)
        walkers = []
        for _ in range(rng.integers(2, 4)):
            at, to = rng.integers(0, SIDE - 16, (2, 2)) * 16       # sixteenths of a pixel
            walkers.append((numbers[rng.integers(len(numbers))], int(rng.integers(18, 25)), int(rng.integers(-350, 351)), at, to))
        for t in range(start, start + life):
            light = 256 - 115 * t // FRAMES + int(rng.integers(-6, 7))
            image, taken = place.copy(), []
            for number, size, turn, at, to in walkers:
                x, y = (int(v) // 16 for v in at + (to - at) * (t - start) // life)
                ink = drawn(number, size, turn)
                x, y = min(x, SIDE - ink.shape[1]), min(y, SIDE - ink.shape[0])
                box = (x, y, x + ink.shape[1], y + ink.shape[0])
                if not any(_overlap(box, other, 0) for other in taken):  # who would cover another waits outside
                    taken.append(paste(image, ink, x, y, 220))
                    rows.append((t, box, labels[number]))
            noisy = (image.astype(np.int32) * light >> 8) + rng.integers(-5, 6, image.shape)
            images[t] = np.clip(noisy, 0, 255).astype(np.uint8).transpose(2, 0, 1)
    return Scenes(images, _table(rows))


def _clip(rng: np.random.Generator, photo: np.ndarray, numbers: np.ndarray, times: np.ndarray, length: int,
          strip: tuple[float, float] = (0.0, 1.0)) -> tuple[np.ndarray, np.ndarray]:
    """Frames at ``times`` of a sequence of ``length``, uint8 (n, 3, 80, 80), and the followed digit's boxes, float32 (n, 4).

    The background pans, the digit and a second one move on bent paths, turn and change size; in every third sequence a bar covers part of the digit for a while.
    """
    room = _patch(rng, photo, strip, FRAME + 16)
    pan = rng.integers(0, 17, (2, 2))
    target, other = numbers[rng.integers(len(numbers), size=2)]
    path, side_path = rng.integers(18, FRAME - 18, (2, 3, 2))
    size, growth = int(rng.integers(18, 27)), int(rng.integers(-30, 31))     # per cent until the end
    turn, spin = int(rng.integers(-200, 201)), int(rng.integers(-700, 701))
    covered = int(rng.integers(0, 3)) == 0
    hidden_from = int(rng.integers(length // 3, 2 * length // 3))
    images, boxes = np.empty((len(times), 3, FRAME, FRAME), np.uint8), np.empty((len(times), 4), np.float32)
    for i, t in enumerate(times):
        y, x = (pan[0] + (pan[1] - pan[0]) * t // length).tolist()
        image = room[y:y + FRAME, x:x + FRAME].copy()
        for number, points in ((other, side_path), (target, path)):
            rest = length - t                                      # a Bézier curve through three points, in integers
            cx, cy = ((points[0] * rest * rest + 2 * points[1] * rest * t + points[2] * t * t) // (length * length)).tolist()
            ink = drawn(number, max(14, size * (100 * length + growth * int(t)) // (100 * length)), turn + spin * int(t) // length)
            box = paste(image, ink, cx - ink.shape[1] // 2, cy - ink.shape[0] // 2, 230)
        if covered and hidden_from <= t < hidden_from + length // 6:
            image[box[1]:box[3], box[0]:(box[0] + box[2]) // 2] = 128
        images[i], boxes[i] = image.transpose(2, 0, 1), box
    return images, boxes


def _make_videos() -> tuple[np.ndarray, np.ndarray]:
    photos = [photographs()[PHOTOS.index(name)] for name in VIDEO_PHOTOS]
    rng, numbers = np.random.Generator(np.random.PCG64(23)), _of("test")
    made = [_clip(rng, photos[i % len(photos)], numbers, np.arange(LENGTH), LENGTH) for i in range(SEQUENCES)]
    return np.stack([frames for frames, _ in made]), np.stack([boxes for _, boxes in made])


def _make_clips() -> tuple[np.ndarray, np.ndarray]:
    photos = [photo for name, photo in zip(PHOTOS, photographs(), strict=True)
              if name not in (CAMERA, *VIDEO_PHOTOS) and photo.shape[1] * STRIPS["train"][1] > FRAME + 16 < photo.shape[0]]
    rng, numbers = np.random.Generator(np.random.PCG64(24)), _of("train")
    made = [_clip(rng, photos[i % len(photos)], numbers, np.sort(rng.choice(LENGTH, CLIP_FRAMES, replace=False)), LENGTH, STRIPS["train"]) for i in range(CLIPS)]
    return np.stack([frames for frames, _ in made]), np.stack([boxes for _, boxes in made])


# ---------------------------------------------------------------------------------------------------------------- kept

def _arrays(made) -> dict[str, np.ndarray]:
    if isinstance(made, Scenes):
        return {"images": made.images, "image": made.objects.image, "box": made.objects.box, "label": made.objects.label}
    return {"images": made[0], "box": made[1]}


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over all arrays as integers, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name].astype(np.uint8 if name == "images" else np.int32)).tobytes())
    return digest.hexdigest()[:16]


def _kept(name: str, make: Callable) -> dict[str, np.ndarray]:
    """Read from the cache folder, or made and put there."""
    path = cache_folder() / f"detection-{EXPECTED[name]}" / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        if fingerprint(arrays) == EXPECTED[name]:
            return arrays
    except (OSError, ValueError, KeyError, EOFError):
        pass  # not there, or damaged: made anew
    arrays = _arrays(make())
    if (digest := fingerprint(arrays)) != EXPECTED[name]:
        warnings.warn(f"the detection data ({name}) differ from those the results were made with ({digest}, expected {EXPECTED[name]}): other versions of "
                      f"scikit-learn, scikit-image or numpy than constraints.txt pins; numbers will not match", stacklevel=3)
        return arrays
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())
    return arrays


def _scenes(name: str, make: Callable) -> Scenes:
    kept = _kept(name, make)
    return Scenes(kept["images"], Boxes(kept["image"], kept["box"], kept["label"]))


@lru_cache(maxsize=2)
def scenes(split: str) -> Scenes:
    """The general domain."""
    if split not in SCENES:
        raise ValueError(f"split: one of {', '.join(SCENES)}, found {split!r}")
    return _scenes(f"scenes-{split}", lambda: _make_scenes(split))


@lru_cache(maxsize=1)
def camera() -> Scenes:
    """All frames of the static camera, in time; see :func:`early` and :func:`late`."""
    return _scenes("camera", _make_camera)


def early(frames: int = SPLIT) -> Scenes:
    """What a specialisation may see: the first ``frames`` frames, read through a :class:`Stream` that stands at the last of them."""
    stream = Stream(camera().images, min(frames, SPLIT) - 1)
    images = np.stack([stream[t] for t in range(frames)])
    return Scenes(images, camera().part(0, frames).objects)


def late() -> Scenes:
    """What a specialised detector is judged by."""
    return camera().part(JUDGED, FRAMES)


@lru_cache(maxsize=1)
def videos() -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 (12, 40, 3, 80, 80) and boxes float32 (12, 40, 4)."""
    kept = _kept("videos", _make_videos)
    return kept["images"], kept["box"]


@lru_cache(maxsize=1)
def clips() -> tuple[np.ndarray, np.ndarray]:
    """What Siamese nets learn from: four frames each of 700 sequences, uint8 (700, 4, 3, 80, 80), and boxes (700, 4, 4)."""
    kept = _kept("clips", _make_clips)
    return kept["images"], kept["box"]
