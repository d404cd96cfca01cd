"""The `speech` data: two synthetic speech-like voices mixed at 8 kHz, 2 s a clip.

A voice is a source and a filter. The source of a vowel is a sum of harmonics of a wandering pitch, shaped by three moving formants;
consonants are high-passed noise; syllables, pauses and the pitch's fall over a phrase follow a speaker's own rate and range. Each mixture
pairs a low voice (90–150 Hz) with a high one (170–250 Hz) at −1.3 … +1.3 dB. Speakers of the three splits are disjoint.

Samples are sums of integers (the sine is a table rounded to 2⁻¹⁴, phases and amplitudes are integers; the formant gains need only
+ − × ÷ √, which every CPU rounds alike), so the clips are the same everywhere; `EXPECTED` pins them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RATE, SECONDS, FRAME = 8_000, 2, 80                                  # Hz, s, samples between two control points (10 ms)
SAMPLES, FRAMES = RATE * SECONDS, RATE * SECONDS // FRAME
SPEAKERS = {"train": 48, "validation": 12, "test": 12}               # half of them low, half high
CLIPS = {"train": 960, "validation": 24, "test": 48}                 # mixtures; in training every low clip meets every high one
VOWELS = np.array([(270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410), (730, 1090, 2440), (640, 1190, 2390),
                   (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240), (490, 1350, 1690)], float)        # formants of a grown man, Hz
BANDWIDTHS = (80.0, 110.0, 170.0)
EXPECTED = "b67e2969a7c1e3d7"

_SINE = np.rint(16_384 * np.sin(2 * np.pi * np.arange(4096) / 4096)).astype(np.int32)


@dataclass(frozen=True)
class Speaker:
    """``pitch`` in Hz, ``tract`` scales the formants, ``tilt`` in Hz sets how fast harmonics fade, ``rate`` stretches syllables."""

    pitch: float
    tract: float
    tilt: float
    rate: float


@dataclass(frozen=True)
class Split:
    """``voices``: int16 (clips, 2, 16000), low voice first; a mixture is the sum of its two voices and fits int16 as well."""

    voices: np.ndarray

    def __len__(self) -> int:
        return len(self.voices)

    def tensors(self, n: int | None = None, samples: int = SAMPLES, start: int = 0):
        """``n`` clips from sample ``start`` on as float32 in ±1: mixtures (n, samples) and voices (n, 2, samples)."""
        import torch

        voices = torch.from_numpy(self.voices[:n, :, start:start + samples].astype(np.float32) / 32_768)
        return voices.sum(1), voices


def speakers(split: str) -> tuple[list[Speaker], list[Speaker]]:
    """The low and the high speakers of a split; no pitch or tract of one split returns in another."""
    rng = np.random.Generator(np.random.PCG64([3, list(SPEAKERS).index(split)]))
    half = SPEAKERS[split] // 2

    def draw(pitch: tuple[float, float], tract: tuple[float, float]) -> list[Speaker]:
        return [Speaker(rng.uniform(*pitch), rng.uniform(*tract), rng.uniform(500, 1100), rng.uniform(0.8, 1.25)) for _ in range(half)]

    return draw((90, 150), (0.92, 1.06)), draw((170, 250), (1.08, 1.22))


def _ramp(control: np.ndarray) -> np.ndarray:
    """Integer control points (…, frames + 1) → integer samples (…, frames · 80), straight lines between them."""
    step = np.arange(FRAME, dtype=np.int32)
    value = control[..., :-1, None] * (FRAME - step) + control[..., 1:, None] * step
    return (value // FRAME).reshape(*control.shape[:-1], -1)


def utterance(speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Two seconds of one voice, int32 (16000,), about 2,500 in root mean square."""
    voiced, noise = np.zeros(FRAMES + 1), np.zeros(FRAMES + 1)
    formants = np.zeros((FRAMES + 1, 3))
    frame, previous = 0, VOWELS[rng.integers(len(VOWELS))]
    while frame <= FRAMES:
        if rng.random() < 0.18:
            length = int(rng.integers(6, 22))                        # a pause
        elif rng.random() < 0.4:
            length = int(rng.integers(4, 10) * speaker.rate)         # an unvoiced consonant
            noise[frame:frame + length] = rng.uniform(0.3, 1.0)
        else:
            length = 0
        formants[frame:frame + length] = previous
        frame, length = frame + length, int(rng.integers(8, 24) * speaker.rate)
        target = VOWELS[rng.integers(len(VOWELS))]
        glide = np.minimum(np.arange(length) / (0.4 * length), 1.0)[: max(0, FRAMES + 1 - frame), None]
        formants[frame:frame + length] = previous + (target - previous) * glide
        voiced[frame:frame + length] = rng.uniform(0.5, 1.0)
        frame, previous = frame + length, target
    voiced[1:-1] = (voiced[:-2] + 2 * voiced[1:-1] + voiced[2:]) / 4  # soft onsets

    bends = rng.uniform(-0.14, 0.14, FRAMES // 20 + 2)               # a new pitch target every 200 ms, falling by 12 % in all
    at = np.arange(FRAMES + 1)
    bend = bends[at // 20] + (bends[at // 20 + 1] - bends[at // 20]) * (at % 20 / 20)
    pitch = speaker.pitch * (1.06 - 0.12 * at / FRAMES + bend) * rng.uniform(0.99, 1.01, FRAMES + 1)
    phase = np.cumsum(_ramp(np.rint(pitch * (2**22 / RATE)).astype(np.int32)), dtype=np.int64) + rng.integers(2**22)

    number = np.arange(1, int(3_900 / speaker.pitch) + 1)
    frequency = pitch[:, None] * number                              # (frames + 1, harmonics)
    gain = voiced[:, None] / (1 + frequency / speaker.tilt) * (frequency < 3_900)
    for i, width in enumerate(BANDWIDTHS):
        centre = (formants[:, i] * speaker.tract)[:, None]
        gain = gain * (centre * centre / np.sqrt((centre * centre - frequency * frequency) ** 2 + (width * frequency) ** 2 + 1.0))
    amplitude = np.rint(1_000 * gain).astype(np.int32)
    out = np.zeros(SAMPLES, np.int32)
    for i, k in enumerate(number):
        out += _ramp(amplitude[:, i]) * _SINE[(phase * k >> 10) & 4095] >> 14
    hiss = rng.integers(-900, 901, SAMPLES + 2).astype(np.int32)
    out += (2 * hiss[1:-1] - hiss[:-2] - hiss[2:]) * _ramp(np.rint(1024 * noise).astype(np.int32)) >> 10
    power = int((out.astype(np.int64) ** 2).mean()) + 1
    return out * int(2_500 * 256 / np.sqrt(power)) >> 8


@lru_cache(maxsize=3)
def split(name: str) -> Split:
    """The split ``train``, ``validation`` or ``test``, generated on first use."""
    if name not in CLIPS:
        raise ValueError(f"split must be one of {', '.join(CLIPS)}, not {name!r}")
    groups = speakers(name)
    voices = np.empty((CLIPS[name], 2, SAMPLES), np.int16)
    for clip in range(CLIPS[name]):                                  # a clip has its own generator: the first n never depend on the rest
        rng = np.random.Generator(np.random.PCG64([5, list(CLIPS).index(name), clip]))
        levels = 220 + rng.integers(0, 74), 256                      # −1.3 … +1.2 dB; the louder voice alternates
        for voice, level in enumerate(levels if clip % 2 else levels[::-1]):
            one = utterance(groups[voice][rng.integers(len(groups[voice]))], rng) * int(level) >> 8
            voices[clip, voice] = np.clip(one, -16_383, 16_383)
    return Split(voices)


def fingerprint() -> str:
    """SHA-256 of the validation and test voices as little-endian int16, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in ("validation", "test"):
        digest.update(split(name).voices.astype("<i2").tobytes())
    return digest.hexdigest()[:16]
