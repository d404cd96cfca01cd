"""Boxes (x0, y0, x1, y1) in pixels: overlap, what a grid must answer, non-maximum suppression, average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Boxes

STRIDE, CLASSES, UNIT = 8, 10, 20.0                                # pixels a cell; class 10 is background; sizes are told as log(size / UNIT)
LEAST_SCORE, SAME = 0.05, 0.5                                      # what counts as found at all; overlap from which two boxes are one


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, (n, m) of boxes (n, 4) and (m, 4); 0 where either is empty."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(corner[1] - corner[0], 0, None), axis=2)
    areas = [np.prod(np.clip(c[:, 2:] - c[:, :2], 0, None), axis=1) for c in (a, b)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9)


def suppress(boxes: np.ndarray, scores: np.ndarray, same: float = SAME) -> np.ndarray:
    """Non-maximum suppression: numbers of the boxes that stay, best first; what overlaps a better one by more than ``same`` goes."""
    order, kept = np.argsort(-scores, kind="stable"), []
    shared = overlap(boxes, boxes)
    for i in order:
        if not kept or shared[i, kept].max() <= same:
            kept.append(i)
    return np.array(kept, np.int64)


# ---------------------------------------------------------------------------------------------------------------- a grid's answers

def centres(side: int) -> Tensor:
    """(2, side, side): x and y of the cells' centres, in pixels."""
    axis = STRIDE * (torch.arange(side, dtype=torch.float32) + 0.5)
    return torch.stack([axis.expand(side, side), axis.view(-1, 1).expand(side, side)])


def targets(objects: Boxes, n: int, side: int) -> tuple[Tensor, Tensor]:
    """What a grid must answer for ``n`` images: labels int64 (n, side, side), 10 for background, and offsets (n, 4, side, side). A cell answers for an object if its
    centre lies within a quarter of the box's size (at least half a cell) of the box's centre, in both directions."""
    labels, offsets, at = torch.full((n, side, side), CLASSES), torch.zeros(n, 4, side, side), centres(side)
    for i, box, label in zip(objects.image.tolist(), torch.from_numpy(objects.box), objects.label.tolist(), strict=True):
        middle, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        near = ((at - middle.view(2, 1, 1)).abs() <= (size / 4).clamp_min(STRIDE / 2).view(2, 1, 1)).all(0)
        labels[i][near] = label
        offsets[i, :2] = torch.where(near, (middle.view(2, 1, 1) - at) / STRIDE, offsets[i, :2])
        offsets[i, 2:] = torch.where(near, (size / UNIT).log().view(2, 1, 1), offsets[i, 2:])
    return labels, offsets


def loss(outputs: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Cross-entropy over cells, background at half weight, and the smooth-L1 error of the boxes of cells that answer for an object. outputs (n, 15, side, side)."""
    weight = torch.ones(CLASSES + 1)
    weight[CLASSES] = 0.5
    near = labels < CLASSES
    classes = F.cross_entropy(outputs[:, :CLASSES + 1], labels, weight)
    if not near.any():
        return classes
    boxes = F.smooth_l1_loss(outputs[:, CLASSES + 1:].movedim(1, -1)[near], offsets.movedim(1, -1)[near])
    return classes + boxes


@dataclass(frozen=True)
class Found:
    """Detections of n images in one table: ``image``, ``box``, ``label`` as in `data.Boxes`, ``score`` (m,)."""

    image: np.ndarray
    box: np.ndarray
    label: np.ndarray
    score: np.ndarray


def decode(outputs: Tensor, least: float = LEAST_SCORE) -> Found:
    """Boxes of a grid's answers (n, 15, side, side), after non-maximum suppression per image and class."""
    side = outputs.shape[-1]
    score, label = outputs[:, :CLASSES + 1].softmax(1)[:, :CLASSES].max(1)
    middle = centres(side) + STRIDE * outputs[:, CLASSES + 1:CLASSES + 3]
    half = UNIT / 2 * outputs[:, CLASSES + 3:].clamp(-3, 3).exp()
    corners = torch.cat([middle - half, middle + half], 1).movedim(1, -1)
    rows = [(np.empty(0, np.int64), np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.float32))]
    for i in range(len(outputs)):
        seen = score[i] >= least
        box, kind, value = corners[i][seen].numpy(), label[i][seen].numpy(), score[i][seen].numpy()
        apart = box + 1e4 * kind[:, None].astype(np.float32)       # classes far from one another: none suppresses another's boxes
        kept = suppress(apart, value) if len(value) else np.empty(0, np.int64)
        rows.append((np.full(len(kept), i), box[kept], kind[kept], value[kept]))
    return Found(*(np.concatenate(column) for column in zip(*rows, strict=True)))


# ---------------------------------------------------------------------------------------------------------------- judging

def matches(found: Found, truth: Boxes, least: float = SAME) -> np.ndarray:
    """Per detection the object that it finds, or −1: best scores choose first, an object is found once, by its own class, at an overlap of at least ``least``."""
    match, taken = np.full(len(found.score), -1), np.zeros(len(truth.label), bool)
    for i in np.argsort(-found.score, kind="stable"):
        here = np.flatnonzero((truth.image == found.image[i]) & (truth.label == found.label[i]) & ~taken)
        if len(here):
            shared = overlap(found.box[i:i + 1], truth.box[here])[0]
            if shared.max() >= least:
                match[i] = here[shared.argmax()]
                taken[match[i]] = True
    return match


def average_precision(found: Found, truth: Boxes, classes: Sequence[int] | None = None) -> float:
    """AP50 in per cent: the area under precision over recall (precision made falling), averaged over ``classes`` (default: those that occur)."""
    match, areas = matches(found, truth), []
    for kind in np.unique(truth.label) if classes is None else classes:
        mine = np.flatnonzero(found.label == kind)
        right = match[mine[np.argsort(-found.score[mine], kind="stable")]] >= 0
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        areas.append(float((falling * right).sum() / max(1, (truth.label == kind).sum())))
    return 100 * float(np.mean(areas)) if areas else float("nan")


def hit(found: Found, truth: Boxes, least_score: float = 0.3) -> np.ndarray:
    """Per object: was it found, with a score of at least ``least_score``? bool (m,); its complement is the miss rate."""
    sure = found.score >= least_score
    right = np.zeros(len(truth.label), bool)
    match = matches(Found(found.image[sure], found.box[sure], found.label[sure], found.score[sure]), truth)
    right[match[match >= 0]] = True
    return right
