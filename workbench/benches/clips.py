"""Labelled clips of a bench, and that they are those its nets were trained on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clips:
    """``clips``: integers (N, …), the first axis numbers them; ``labels``: int64 (N,)."""

    clips: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def fingerprint(part: Clips) -> str:
    """SHA-256 of clips and labels, 16 hexadecimal digits."""
    return hashlib.sha256(part.clips.tobytes() + part.labels.astype(np.uint8).tobytes()).hexdigest()[:16]


def pinned(name: str, expected: Mapping[str, str], generate: Callable[[str], Clips], bench: str, packages: str) -> Clips:
    """The split ``name`` as `generate` makes it; a warning where its fingerprint is not the ``expected`` one. ValueError: no such split."""
    if name not in expected:
        raise ValueError(f"split must be one of {', '.join(expected)}, not {name!r}")
    made = generate(name)
    if (digest := fingerprint(made)) != expected[name]:
        warnings.warn(f"the {bench} data ({name}) differ from those the nets were trained on ({digest}, expected {expected[name]}): other versions of "
                      f"{packages} than constraints.txt pins; numbers will not match", stacklevel=3)
    return made
