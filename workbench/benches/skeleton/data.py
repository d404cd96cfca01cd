"""The `skeleton` data: ten synthetic actions of a 25-joint body (the joints of the Kinect, as in NTU RGB+D), 24 frames a clip.

A body is a tree of bones; an action turns some of its joints by sinusoids and constants. Body size, viewpoint, speed, moment, the strength of the motion,
idle movements of all other joints and the sensor's noise are drawn for each clip, from different ranges of seeds in each split.

Angles are integers (4096 to a turn) looked up in a sine table rounded to 2⁻¹⁴; what is left are products and sums of single numbers, which every CPU rounds alike; the
coordinates are rounded to whole millimetres. `EXPECTED` pins them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..clips import Clips, pinned

FRAMES, JOINTS = 24, 25
CLIPS = {"train": 3_000, "validation": 300, "test": 600}
EXPECTED = {"train": "54d98ca594571cae", "validation": "f84dbb9c35506948", "test": "812ea4c954a03668"}
ACTIONS = ("wave right", "wave left", "clap", "punch", "kick", "squat", "walk", "march", "turn", "bow")

# joint: (parent, bone at rest in mm: right, up, forward); 0 base of the spine, 20 between the shoulders
PARENT = (-1, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 7, 11, 11)
REST = np.array([(0, 0, 0), (0, 250, 0), (0, 90, 0), (0, 150, 20), (-170, -20, 0), (0, -280, 0), (0, -250, 0), (0, -80, 0), (170, -20, 0), (0, -280, 0),
                 (0, -250, 0), (0, -80, 0), (-90, -60, 0), (0, -420, 0), (0, -400, 0), (0, -60, 110), (90, -60, 0), (0, -420, 0), (0, -400, 0), (0, -60, 110),
                 (0, 250, 0), (0, -80, 20), (-40, -20, 20), (0, -80, 20), (40, -20, 20)])
ORDER = (0, 1, 20, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24)
X, Y, Z = 0, 1, 2   # pitch (about the axis to the right), yaw (about the vertical), roll

# action: (joint, axis, degrees at rest, degrees of swing, times the action's frequency, phase in degrees, only one way?)
MOTION = {
    "wave right": ((8, Z, 125, 8, 1, 0, False), (9, Z, 30, 38, 2, 0, False)),
    "wave left": ((4, Z, -125, 8, 1, 0, False), (5, Z, -30, 38, 2, 0, False)),
    "clap": ((4, X, -70, 6, 1, 0, False), (8, X, -70, 6, 1, 0, False), (4, Y, 22, 28, 2, 0, False), (8, Y, -22, -28, 2, 0, False)),
    "punch": ((8, X, -55, -35, 1, 0, True), (9, X, -95, 90, 1, 0, True), (20, Y, 0, 18, 1, 0, True)),
    "kick": ((16, X, 0, -65, 1, 0, True), (17, X, 35, -30, 1, 0, True)),
    "squat": ((12, X, 0, -75, 1, 0, True), (16, X, 0, -75, 1, 0, True), (13, X, 0, 110, 1, 0, True), (17, X, 0, 110, 1, 0, True), (1, X, 0, 25, 1, 0, True)),
    "walk": ((12, X, 0, 26, 1, 0, False), (16, X, 0, -26, 1, 0, False), (4, X, 0, -22, 1, 0, False), (8, X, 0, 22, 1, 0, False), (13, X, 12, 12, 1, 90, False),
             (17, X, 12, -12, 1, 90, False)),
    "march": ((12, X, 0, -60, 1, 0, True), (16, X, 0, -60, 1, 180, True), (13, X, 0, 70, 1, 0, True), (17, X, 0, 70, 1, 180, True), (4, X, 0, 15, 1, 180, False),
              (8, X, 0, 15, 1, 0, False)),
    "turn": ((0, Y, 0, 50, 1, 0, False), (4, Z, -14, 6, 1, 0, False), (8, Z, 14, -6, 1, 0, False)),
    "bow": ((1, X, 0, 55, 1, 0, True), (2, X, 0, 20, 1, 0, True)),
}
_SINE = np.rint(16_384 * np.sin(2 * np.pi * np.arange(4096) / 4096)) / 16_384


class Split(Clips):
    """``clips``: int16 (N, 3, 24, 25), millimetres from the base of the spine in the first frame; ``labels``: int64 (N,), an index into `ACTIONS`."""

    def tensors(self, n: int | None = None):
        """The first ``n`` clips in metres, float32 (n, 3, 24, 25), and their labels."""
        import torch

        return torch.from_numpy(self.clips[:n].astype(np.float32) / 1000), torch.from_numpy(self.labels[:n])


@lru_cache(maxsize=3)
def split(name: str) -> Split:
    """The split ``train``, ``validation`` or ``test`` (generated within a second)."""
    return pinned(name, EXPECTED, generate, "skeleton", "numpy")


def _turn(points: np.ndarray, axis: int, angle: np.ndarray) -> np.ndarray:
    """(n, T, 3) vectors turned about an axis by (n, T) angles (4096 to a turn)."""
    sin, cos = _SINE[angle & 4095], _SINE[angle + 1024 & 4095]
    a, b = (points[..., (axis + k) % 3] for k in (1, 2))
    out = points.copy()
    out[..., (axis + 1) % 3], out[..., (axis + 2) % 3] = a * cos - b * sin, a * sin + b * cos
    return out


def generate(name: str) -> Split:
    n, rng = CLIPS[name], np.random.Generator(np.random.PCG64([47, list(CLIPS).index(name)]))
    labels, t = rng.integers(0, len(ACTIONS), n), np.arange(FRAMES)
    size, view, strength = rng.integers(80, 121, n), rng.integers(-700, 701, n), rng.integers(45, 111, n)          # %, 1/4096 turn, %
    speed, moment = rng.integers(90, 211, n), rng.integers(0, 4096, n)                                           # 1/4096 turn a frame
    idle, pace, start = rng.integers(0, 130, (n, JOINTS, 3)), rng.integers(20, 260, (n, JOINTS, 3)), rng.integers(0, 4096, (n, JOINTS, 3))
    noise = rng.integers(-35, 36, (n, 3, FRAMES, JOINTS)) + rng.integers(-35, 36, (n, 3, FRAMES, JOINTS))
    angle = np.rint(idle[..., None] * _SINE[start[..., None] + pace[..., None] * t & 4095]).astype(np.int64)     # (n, joints, axes, T)
    for action, moves in MOTION.items():
        mine = labels == ACTIONS.index(action)
        for joint, axis, rest, swing, times, phase, one_way in moves:
            wave = _SINE[times * (moment[mine, None] + speed[mine, None] * t) + phase * 4096 // 360 & 4095]
            wave = np.maximum(wave, 0) if one_way else wave
            degrees = rest + swing * wave * strength[mine, None] / 100
            angle[mine, joint, axis] += np.rint(degrees * 4096 / 360).astype(np.int64)
    angle[:, 0, Y] += view[:, None]
    place, frame = np.zeros((n, FRAMES, JOINTS, 3)), [None] * JOINTS

    for joint in ORDER:     # a joint turns everything below it; the bone to it was turned by its parents
        parent = PARENT[joint]
        frame[joint] = ([] if parent < 0 else frame[parent]) + [(axis, angle[:, joint, axis]) for axis in (Z, X, Y)]
        bone = np.broadcast_to(REST[joint] * size[:, None, None] / 100, (n, FRAMES, 3)).copy()
        for axis, turn in reversed([] if parent < 0 else frame[parent]):
            bone = _turn(bone, axis, turn)
        place[:, :, joint] = bone + (0 if parent < 0 else place[:, :, parent])
    clips = np.rint(place).astype(np.int64).transpose(0, 3, 1, 2) + noise
    return Split(clips.astype(np.int16), labels)
