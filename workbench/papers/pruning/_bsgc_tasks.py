"""What the three terms of BSGC need to know of a task: its loss against labels, its distance from the teacher, and labels made from the teacher's answers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...benches.detection import boxes, tracking

CONFIDENT = 0.5


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(z_G/T) ‖ softmax(z_S/T)), mean over everything but the classes (axis 1)."""
    log_student, log_teacher = ((z / temperature).log_softmax(1) for z in (student, teacher))
    return temperature ** 2 * (log_teacher.exp() * (log_teacher - log_student)).sum(1).mean()


class Task(Protocol):
    """``loss``: outputs against what a batch of the domain loader holds beside images; ``keep``: distance of the student's outputs from the teacher's;
    ``label``: what takes the place of labels, made from the teacher's outputs."""

    def loss(self, outputs: Tensor, *targets: Tensor) -> Tensor: ...

    def keep(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor: ...

    def label(self, teacher: Tensor) -> tuple[Tensor, ...]: ...


class Classification:
    """Outputs (n, classes); labels (n,), −1 where nobody knows."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        known = labels >= 0
        return F.cross_entropy(outputs[known], labels[known]) if known.any() else 0 * outputs.sum()

    def keep(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return softened(student, teacher, temperature)

    def label(self, teacher: Tensor) -> tuple[Tensor, ...]:
        score, label = teacher.softmax(1).max(1)
        return (torch.where(score > CONFIDENT, label, -1),)


class Detection:
    """Outputs of the bench's grid (n, 15, h, w); labels and offsets of the cells (see `benches.detection.boxes.targets`)."""

    def loss(self, outputs: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
        return boxes.loss(outputs, labels, offsets)

    def keep(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Classes by softened KL in every cell; boxes by smooth L1 where the teacher is confident of an object."""
        classes = boxes.CLASSES + 1
        sure = teacher[:, :classes].softmax(1)[:, :-1].amax(1) > CONFIDENT
        kept = softened(student[:, :classes], teacher[:, :classes], temperature)
        if not sure.any():
            return kept
        return kept + F.smooth_l1_loss(*(z[:, classes:].movedim(1, -1)[sure] for z in (student, teacher)))

    def label(self, teacher: Tensor) -> tuple[Tensor, ...]:
        """The teacher's boxes above 0.5, after non-maximum suppression, as if someone had drawn them."""
        found = boxes.decode(teacher, CONFIDENT)
        return boxes.targets(boxes.Boxes(found.image, found.box.astype(np.float32), found.label), len(teacher), teacher.shape[-1])


class Correlation:
    """Outputs: responses (n, h, w) of a Siamese tracker; labels: where they should be high. Kept are the teacher's probabilities, place by place."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return tracking.logistic(outputs, labels)

    def keep(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        two = [torch.stack([z, torch.zeros_like(z)], 1) for z in (student, teacher)]
        return softened(*two, temperature)
