"""Following one object by correlation: crops, the loop that reads frame after frame, and how well a track fits.

    frame 0, box ──► exemplar 32×32 ──► net ──► (c, 6, 6) ─┐
    frame t, last box ──► three search crops 64×64 ──► net ─⋆─► responses (3, 11, 11) ──► best scale, place ──► box t
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import overlap
from .data import Stream, normalised
from .nets import Siamese

EXEMPLAR, SEARCH, CONTEXT, STEP = 32, 64, 1.5, 4                   # pixels of the crops; exemplar window / longer side of the box; pixels of a step of the response
SCALES, SCALE_PENALTY, WINDOW = (0.95, 1.0, 1.05), 0.96, 0.25
PRECISE = 5.0                                                      # pixels (frames are 80 wide; 20 are usual for frames four times as wide)


def crops(frames: Tensor, middle: Tensor, side: Tensor, out: int) -> Tensor:
    """Square windows of ``side`` (n,) pixels around ``middle`` (n, 2) of frames (n, 3, H, W), as (n, 3, out, out); outside of a frame its border goes on."""
    height, width = frames.shape[-2:]
    axis = (torch.arange(out, dtype=torch.float32) + 0.5) / out - 0.5
    x, y = (middle[:, i, None] + side[:, None] * axis for i in (0, 1))
    grid = torch.stack([(2 * x / width - 1)[:, None, :].expand(-1, out, -1), (2 * y / height - 1)[:, :, None].expand(-1, -1, out)], -1)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


def window(box: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (n, 2) and exemplar windows (n,) of boxes (n, 4)."""
    return (box[:, :2] + box[:, 2:]) / 2, CONTEXT * (box[:, 2:] - box[:, :2]).max(1).values


def labels(shift: Tensor, side: int = 11) -> Tensor:
    """(n, side, side): 1 where the response should be high, within 1.5 steps of a target that lies ``shift`` (n, 2) pixels of the search crop off its centre."""
    axis = STEP * (torch.arange(side, dtype=torch.float32) - side // 2)
    distance = ((axis - shift[:, 0, None, None]) ** 2 + (axis.view(-1, 1) - shift[:, 1, None, None]) ** 2).sqrt()
    return (distance <= 1.5 * STEP).float()


def logistic(response: Tensor, label: Tensor) -> Tensor:
    """The logistic loss, places with and without the target at equal weight."""
    weight = torch.where(label > 0, 0.5 / label.sum((1, 2), keepdim=True).clamp_min(1), 0.5 / (1 - label).sum((1, 2), keepdim=True))
    return (weight * F.binary_cross_entropy_with_logits(response, label, reduction="none")).sum((1, 2)).mean()


def pairs(frames: Tensor, boxes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Search crops (n, 3, 64, 64) that show the boxes up to 16 pixels off the centre and up to 8 % too large or small, and their labels (n, 11, 11)."""
    middle, side = window(boxes)
    n = len(boxes)
    shift = torch.rand(n, 2, generator=generator) * 32 - 16
    side = 2 * side * (0.92 + 0.16 * torch.rand(n, generator=generator))
    return crops(frames, middle - shift * side[:, None] / SEARCH, side, SEARCH), labels(shift)


class Tracker:
    """Follows with a net as it is. ``start`` with the first frame (3, H, W) and its box (4,); ``step`` with each next one gives its box."""

    def __init__(self, net: Siamese):
        self.net, self.box, self.exemplar, self.confidence = net.eval(), torch.zeros(1, 4), torch.empty(0), 1.0

    def crop(self, frame: Tensor, box: Tensor) -> Tensor:
        return crops(frame[None], *window(box), EXEMPLAR)

    @torch.no_grad()
    def start(self, frame: Tensor, box: Sequence[float]) -> None:
        self.box = torch.as_tensor(np.asarray(box), dtype=torch.float32).view(1, 4)
        self.exemplar = self.net.exemplar(self.crop(frame, self.box))

    @torch.no_grad()
    def step(self, frame: Tensor) -> np.ndarray:
        middle, side = window(self.box)
        sides = 2 * side * torch.tensor(SCALES)
        search = crops(frame.expand(len(SCALES), -1, -1, -1), middle.expand(len(SCALES), -1), sides, SEARCH)
        response = self.net.response(self.exemplar.expand(len(SCALES), -1, -1, -1), search)
        fine = F.interpolate(response.sigmoid()[:, None], scale_factor=STEP, mode="bicubic", align_corners=False)[:, 0]
        hann = torch.hann_window(fine.shape[-1], periodic=False)
        fine = (1 - WINDOW) * fine + WINDOW * hann * hann.view(-1, 1)
        best = fine.amax((1, 2)) * torch.tensor([SCALE_PENALTY, 1.0, SCALE_PENALTY])
        scale = int(best.argmax())
        self.confidence = float(response[scale].max().sigmoid())
        y, x = divmod(int(fine[scale].argmax()), fine.shape[-1])
        centre = (fine.shape[-1] - 1) / 2
        self.move(middle[0] + (torch.tensor([x, y]) - centre) * sides[scale] / SEARCH, 1 + 0.6 * (SCALES[scale] - 1), frame.shape[-2:])
        return self.box[0].numpy().copy()

    def move(self, middle: Tensor, scale: float, shape: Sequence[int]) -> None:
        """Puts the box to a new centre, inside the frame, and scales it (6 to 60 pixels)."""
        half = ((self.box[0, 2:] - self.box[0, :2]) * scale / 2).clamp(3, 30)
        middle = torch.minimum(middle.clamp_min(0), torch.tensor([float(shape[1]), float(shape[0])]))
        self.box = torch.cat([middle - half, middle + half])[None]


def follow(tracker: Tracker, frames: np.ndarray | Stream, box: Sequence[float]) -> np.ndarray:
    """The track (n, 4), frame after frame through a `data.Stream`: the answer for frame t is given before frame t + 1 can be read.

    frames: uint8 (n, 3, H, W). ValueError: a first box that is empty or not inside the first frame.
    """
    stream = frames if isinstance(frames, Stream) else Stream(frames)
    box = np.asarray(box, np.float32)
    height, width = stream[0].shape[-2:]
    if box.shape != (4,) or not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise ValueError(f"box0: (x0, y0, x1, y1) inside the first frame, {width} wide and {height} high, found {np.round(box, 1).tolist()}")
    track = [box]
    for frame in stream:
        if stream.now == 0:
            tracker.start(normalised(frame), box)
        else:
            track.append(tracker.step(normalised(frame)))
    return np.stack(track)


def overlaps(track: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n,) overlap of track and truth, frame by frame; the first frame, which was given, is left out by those who judge."""
    return np.array([overlap(a[None], b[None])[0, 0] for a, b in zip(track, truth, strict=True)])


def success(shared: np.ndarray) -> float:
    """Area under the success curve: the share of frames whose overlap exceeds a threshold, over 21 thresholds from 0 to 1 (per cent)."""
    return 100 * float(np.mean([(shared > threshold).mean() for threshold in np.linspace(0, 1, 21)]))


def precise(track: np.ndarray, truth: np.ndarray) -> float:
    """Per cent of frames with centres at most `PRECISE` pixels apart."""
    middles = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (track, truth)]
    return 100 * float((np.linalg.norm(middles[0] - middles[1], axis=1) <= PRECISE).mean())
