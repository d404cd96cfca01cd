"""Sound in, sound out: 16-bit mono WAV files, read and written with the standard library."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

LONGEST = 600                                                        # seconds


class WavError(ValueError):
    """The file is no WAV file that can be used here; the message says what was found and what is allowed."""


def read(path: str | Path, longest: float = LONGEST) -> tuple[int, np.ndarray]:
    """(sample rate, int16 samples) of an uncompressed WAV file of 8, 16 or 32 bits; several channels are averaged. At most ``longest`` seconds."""
    try:
        with wave.open(str(path), "rb") as file:
            rate, width, channels, frames = file.getframerate(), file.getsampwidth(), file.getnchannels(), file.getnframes()
            if width not in (1, 2, 4) or not 1 <= channels <= 8 or not 1000 <= rate <= 384_000:
                raise WavError(f"{path}: {8 * width} bits, {channels} channels, {rate} Hz; 8, 16 or 32 bits, 1 to 8 channels, 1 to 384 kHz are read")
            if not 0 < frames <= longest * rate:
                raise WavError(f"{path}: {frames / rate:.1f} s of sound; more than none and at most {longest:g} s are read")
            raw = file.readframes(frames)
    except (wave.Error, EOFError, ZeroDivisionError) as error:
        raise WavError(f"{path}: not a readable WAV file: {error or 'it ends too early'}") from error
    if len(raw) < frames * width * channels:
        raise WavError(f"{path}: truncated: {len(raw) // (width * channels)} of {frames} frames")
    samples = np.frombuffer(raw, {1: "u1", 2: "<i2", 4: "<i4"}[width]).astype(np.int64)
    samples = (samples - 128) * 256 if width == 1 else samples >> 16 if width == 4 else samples
    return rate, (samples.reshape(-1, channels).sum(1) // channels).astype(np.int16)


def write(path: str | Path, samples: np.ndarray, rate: int = 8_000) -> None:
    """Writes int16 (samples,) as a mono WAV file."""
    if samples.dtype != np.int16 or samples.ndim != 1:
        raise WavError(f"samples must be int16 of shape (samples,), not {samples.dtype} of shape {samples.shape}")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
