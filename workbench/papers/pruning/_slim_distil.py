r"""Distillation (Hinton et al. 2015) with SlimNets' weights: $L = 2\alpha T^2\,\mathrm{KL}(\sigma(z_T/T)\,\|\,\sigma(z_S/T)) + (1-\alpha)\,\mathrm{CE}$."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.structure.trace import forward
from ._gradual import endless, train_steps

TEMPERATURE, ALPHA = 4.0, 0.5


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = TEMPERATURE, alpha: float = ALPHA) -> Tensor:
    """Scalar, from logits (B, classes) of both and labels (B,): Kullback–Leibler divergence summed over classes, averaged over the batch."""
    soft = F.kl_div(F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1), reduction="batchmean", log_target=True)
    return 2 * alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)


@torch.no_grad()
def answers_of(teacher: nn.Module, inputs) -> Tensor:
    """The teacher's logits (B, classes)."""
    return forward(teacher, inputs)


def distil(student: nn.Module, teacher: nn.Module, loader: Iterable, temperature: float = TEMPERATURE, alpha: float = ALPHA, steps: int = 400,
           rate: float = 6e-3) -> nn.Module:
    """A trained copy of ``student``. ValueError: temperature not positive, alpha outside [0, 1], other numbers of classes, no data or labels."""
    if not temperature > 0 or not 0 <= alpha <= 1:
        raise ValueError(f"temperature, alpha: above 0, and 0 to 1; found {temperature} and {alpha}")
    inputs, _ = next(endless(loader))
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher).eval()
    with torch.no_grad():
        found = forward(copy.deepcopy(student).eval(), inputs).shape[1], forward(teacher, inputs).shape[1]
    if found[0] != found[1]:
        raise ValueError(f"student, teacher: equally many classes are needed, found {found[0]} and {found[1]}")

    def stream() -> Iterator:
        for images, labels in endless(loader):
            yield images, (labels, answers_of(teacher, images))

    train_steps(student, stream(), steps, rate, loss=lambda net, x, y: distillation_loss(forward(net, x), y[1], y[0], temperature, alpha))
    return student
