"""The `sounds` data: log-mel spectrograms of six acoustic scenes, and of four sound events with the times at which they happen.

A clip is two seconds, 40 mel bands × 100 frames, uint8 in sixteenths of an octave of power. It is made where a log-mel front end would have put it: a band of
a noise has a power that scatters like χ² around the scene's spectrum, slow swells move all bands together, events add their power to the bands and frames
they cover, and the sum is logarithmised.

    scenes   street (low, swelling, horns)   rain (bright, drops)   wind (very low, gusts)   workshop (hammering)   birds (chirps)   crowd (babble)
    events   horn (a stack of harmonics)     click (broadband, decaying)     chirp (one rising line)     burst (a band of noise)

Loudness, spectral tilt, event levels and times are drawn anew for every clip, so that no single band tells the scene. All arithmetic is on integers (powers
and their logarithms are piecewise linear between octaves), so the arrays are the same on every CPU; `EXPECTED` pins them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..core.measurements import cache_folder, write_whole

BANDS, FRAMES = 40, 100
SCENES = ("street", "rain", "wind", "workshop", "birds", "crowd")
EVENTS = ("horn", "click", "chirp", "burst")
CLIPS = {"train": 1200, "validation": 300, "test": 500}
EXPECTED = {("scenes", "train"): "a3dce98c00d295a7", ("scenes", "validation"): "38d028f045f28e5b", ("scenes", "test"): "b028f97e5cc32b60",
            ("events", "train"): "ad8b970e56428149", ("events", "validation"): "88d6efef1e02e8b0", ("events", "test"): "6c84acf924fdb185"}
# per scene, in sixteenths of an octave: level at the lowest band, change per band, centre and height of a hump, largest step of the swell; then its events
_SCENES = ((150, -2, 8, 10, 4, ((0, 1),)), (100, 1, 30, 12, 1, ((1, 2),)), (165, -3, 4, 12, 9, ()), (130, -1, 16, 12, 2, ((1, 4), (3, 1))),
           (125, -1, 24, 8, 3, ((2, 4),)), (135, -1, 14, 20, 5, ((0, 1), (3, 2))))


def power(level: np.ndarray) -> np.ndarray:
    """Levels in sixteenths of an octave → powers, int64: 2^(level/16), with straight lines between octaves."""
    level = np.clip(level, 0, 400)
    return (16 + (level & 15)) << (level >> 4)


def level(power: np.ndarray) -> np.ndarray:
    """The inverse of :func:`power`, rounded down."""
    _, exponent = np.frexp(power.astype(np.float64))                # exact: powers are below 2^53
    octave = np.maximum(exponent - 5, 0)
    return np.maximum(16 * octave + (power >> octave) - 16, 0)


def _event(rng: np.random.Generator, kind: int, loud: int) -> tuple[np.ndarray, int, int]:
    """One event: its levels (bands, frames), 0 where it is silent, and the frames ``start … stop`` in which it sounds."""
    made = np.zeros((BANDS, FRAMES), np.int64)
    length = int(rng.integers(*((15, 40), (3, 6), (8, 18), (10, 25))[kind]))
    start = int(rng.integers(0, FRAMES - length))
    frames = np.arange(start, start + length)
    if kind == 0:                                                   # harmonics of one pitch lie closer in higher mel bands
        bands = np.unique(np.minimum(int(rng.integers(5, 12)) + np.array([0, 7, 12, 16, 19, 21, 23]), BANDS - 1))
        made[np.ix_(bands, frames)] = loud - 3 * np.arange(len(bands))[:, None]
    elif kind == 1:
        made[:, frames] = loud - 14 * np.arange(length)
    elif kind == 2:
        low, rise = int(rng.integers(14, 24)), int(rng.integers(8, 15))
        made[np.minimum(low + rise * np.arange(length) // length, BANDS - 1), frames] = loud + 10
    else:
        low = int(rng.integers(8, 26))
        made[low:low + int(rng.integers(6, 11)), frames] = loud - 6
    return made, start, start + length


def _clip(rng: np.random.Generator, scene: int, events: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Levels uint8 (bands, frames) and which of the events sound in each frame, uint8 (frames, events)."""
    low, slope, centre, hump, swell, _ = _SCENES[scene]
    band = np.arange(BANDS)
    spectrum = low + slope * band + np.maximum(hump - 2 * np.abs(band - centre), 0) + int(rng.integers(-20, 21)) + int(rng.integers(-16, 17)) * band // BANDS
    swells = np.clip(np.cumsum(rng.integers(-swell, swell + 1, FRAMES)), -40, 40)
    noise = np.square(rng.integers(-128, 128, (4, BANDS, FRAMES))).sum(0)               # χ² with four degrees of freedom, mean 21 845
    total = (power(spectrum[:, None] + swells) * noise) >> 14
    active = np.zeros((FRAMES, len(EVENTS)), np.uint8)
    for kind in events:
        made, start, stop = _event(rng, kind, int(spectrum.mean()) + int(rng.integers(8, 45)))
        total += np.where(made > 0, power(made), 0)
        active[start:stop, kind] = 1
    return np.minimum(level(total), 255).astype(np.uint8), active


@dataclass(frozen=True)
class Clips:
    """``levels``: uint8 (N, 40, 100); ``labels``: int64 (N,) scenes, or uint8 (N, 100, 4) events."""

    levels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self, index=slice(None)):
        """Clips as float32 (n, 1, 40, 100) of about zero mean and unit spread, with labels (float32 for events)."""
        import torch

        labels = torch.from_numpy(np.array(self.labels[index]))
        return torch.from_numpy(self.levels[index].astype(np.float32)).sub_(120.0).div_(40.0)[:, None], labels if labels.dim() == 1 else labels.float()


def generate(task: str, split: str) -> Clips:
    """The clips of a task (``scenes`` or ``events``) and split, made anew."""
    rng = np.random.Generator(np.random.PCG64([17, ("scenes", "events").index(task), list(CLIPS).index(split)]))
    made, labels = [], []
    for _ in range(CLIPS[split]):
        scene = int(rng.integers(len(SCENES)))
        own = [kind for kind, most in _SCENES[scene][-1] for _ in range(int(rng.integers(0, most + 1)))]
        events = own if task == "scenes" else list(rng.integers(0, len(EVENTS), int(rng.integers(1, 5))))
        clip, active = _clip(rng, scene, events)
        made.append(clip)
        labels.append(scene if task == "scenes" else active)
    return Clips(np.stack(made), np.array(labels, np.int64 if task == "scenes" else np.uint8))


def fingerprint(clips: Clips) -> str:
    """SHA-256 of levels and labels, 16 hexadecimal digits."""
    return hashlib.sha256(clips.levels.tobytes() + clips.labels.astype(np.uint8).tobytes()).hexdigest()[:16]


@lru_cache(maxsize=6)
def clips(task: str, split: str) -> Clips:
    """The clips of a task and split: read from the cache, or generated (about a second) and put there."""
    if (task, split) not in EXPECTED:
        raise ValueError(f"task and split must be one of {', '.join(map(' '.join, EXPECTED))}, not {task!r}, {split!r}")
    expected = EXPECTED[task, split]
    folder = cache_folder() / f"sounds-{task}-{expected}"
    try:
        found = Clips(*(np.load(folder / f"{part}.npy", allow_pickle=False) for part in ("levels", "labels")))
        if fingerprint(found) == expected:
            return found
    except (OSError, ValueError):
        pass  # not there, or damaged: generated anew
    made = generate(task, split)
    if (digest := fingerprint(made)) != expected:
        warnings.warn(f"the sounds ({task}, {split}) differ from those the nets were trained on ({digest}, expected {expected}): another version of numpy "
                      f"than constraints.txt pins; numbers will not match", stacklevel=2)
        return made
    for part in ("levels", "labels"):
        buffer = io.BytesIO()
        np.save(buffer, getattr(made, part))
        write_whole(folder / f"{part}.npy", buffer.getvalue())
    return made
