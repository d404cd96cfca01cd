"""When things are taken out: at once, in rounds, along a schedule, softly, by a penalty while training, before training.

Every procedure gets the same number of steps of the same batches, so that a race compares the procedures. Zeros are put back after every step
(``masks``), structures are zeroed while training and really removed at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches import vision
from ...benches.recipes import one_cycle
from ...benches.vision.recipe import batches
from ...contracts.structure.surgery import reestimate_batchnorm
from . import Pruned
from .classics import L1, weights
from .granularity import Pruner, Sparse, apply_masks, keep, percent

STEPS, BATCH, TUNE, LEARN = 60, 64, 2e-3, 6e-3


def fit(model: nn.Module, seed: int, steps: int = STEPS, rate: float = TUNE, before: Callable[[], None] | None = None,
        after: Callable[[int, float], None] | None = None) -> list[float]:
    """Trains in place: ``steps`` steps of AdamW, one cycle up to ``rate``. ``before()`` may change gradients, ``after(step, rate now)`` weights."""
    losses: list[float] = []
    values = (F.cross_entropy(model(images), labels) for images, labels in batches(2000 + seed, BATCH))
    one_cycle(model.to(memory_format=torch.channels_last), values, steps, rate, lambda step, loss: losses.append(loss), before, after)
    model.to(memory_format=torch.contiguous_format)
    return losses


def initial(net: str, replica: int) -> nn.Module:
    """The net as it was before the recipe trained it (the replica is the seed)."""
    torch.manual_seed(replica)
    return vision.NETS[net]()


def magnitude_masks(model: nn.Module, ratio: float, allocation: str = "global") -> dict[str, Tensor]:
    """Layer → mask of the weights that stay: the smallest ``ratio`` of them go, by one threshold for the whole network (``allocation="global"``) or one for
    each layer (Han et al., "Learning both Weights and Connections", NeurIPS 2015, section 3)."""
    return keep(L1().saliency(model), ratio, "weight", allocation)


def held(model: nn.Module, masks: Mapping[str, Tensor], losses: list[float]) -> Sparse:
    return Sparse(model, {"kept": percent(mask.float().mean().item() for mask in masks.values())}, {"loss": losses}, masks=dict(masks))


# --- single weights -----------------------------------------------------------------------------------------------------------------------------


def cubic(step: int, steps: int, ratio: float) -> float:
    """s_t = s_f·(1 − (1 − t/T)³): fast while there is much to spare, slow at the end (Zhu and Gupta 2017, equation 1)."""
    return ratio * (1 - (1 - min(step / steps, 1)) ** 3)


def rounds(step: int, steps: int, ratio: float, count: int = 3) -> float:
    """Iterative pruning: in ``count`` equal rounds, each leaving the same share of what is left (Han et al. 2015, section 3)."""
    return 1 - (1 - ratio) ** (min(1 + count * step // steps, count) / count)


def at_once(step: int, steps: int, ratio: float) -> float:
    return ratio


def scheduled(model: nn.Module, ratio: float, seed: int, schedule: Callable[[int, int, float], float], steps: int = STEPS, every: int = 4) -> Sparse:
    """Magnitude masks that follow ``schedule`` during the first three quarters of the steps; the rest repairs."""
    masks: dict[str, Tensor] = {}

    def after(step: int, rate: float) -> None:
        if step % every == 0 and (share := schedule(step, steps * 3 // 4, ratio)) > (1 - density(masks) + 1e-3):
            masks.update(magnitude_masks(model, share))
        apply_masks(model, masks)

    after(0, 0.0)
    losses = fit(model, seed, steps, after=after)
    return held(model, masks, losses)


def density(masks: Mapping[str, Tensor]) -> float:
    return sum(int(m.sum()) for m in masks.values()) / max(1, sum(m.numel() for m in masks.values())) if masks else 1.0


def masked_training(model: nn.Module, masks: Mapping[str, Tensor], seed: int, rate: float = LEARN, steps: int = STEPS) -> Sparse:
    """Training with fixed masks: a lottery ticket (mask of the trained net on the initial weights), or SNIP's mask from before training."""
    apply_masks(model, masks)
    return held(model, masks, fit(model, seed, steps, rate, after=lambda step, rate: apply_masks(model, masks)))


@dataclass
class ADMM:
    """Weights W are drawn towards their sparse projection: + ρ(W − Z + U) on the gradient, Z = Π(W + U), U += W − Z (Zhang et al. 2018, section 3)."""

    model: nn.Module
    ratio: float
    rho: float = 1e-2

    def __post_init__(self):
        self.u = {name: torch.zeros_like(weight) for name, weight in weights(self.model).items()}
        self.z = {}
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Z: the nearest tensors with the wanted share of zeros."""
        sums = {name: weight + self.u[name] for name, weight in weights(self.model).items()}
        masks = keep({name: value.abs() for name, value in sums.items()}, self.ratio, "weight", "global")
        self.z = {name: value * masks[name] for name, value in sums.items()}
        for name, weight in weights(self.model).items():
            self.u[name] += weight - self.z[name]

    def pull(self) -> None:
        for name, weight in weights(self.model).items():
            weight.grad += self.rho * (weight.detach() - self.z[name] + self.u[name])

    def gap(self) -> float:
        """‖W − Π(W)‖/‖W‖: what hard pruning would still cut off."""
        masks = magnitude_masks(self.model, self.ratio)
        total = sum(float(w.detach().square().sum()) for w in weights(self.model).values())
        return (sum(float((w.detach() * ~masks[name]).square().sum()) for name, w in weights(self.model).items()) / total) ** 0.5


def admm(model: nn.Module, ratio: float, seed: int, steps: int = STEPS, every: int = 5) -> Sparse:
    """Half of the steps with the pull, then the masks, then the rest of the steps with them."""
    state = ADMM(model, ratio)
    losses = fit(model, seed, steps // 2, before=state.pull, after=lambda step, rate: state.project() if step % every == every - 1 else None)
    result = masked_training(model, magnitude_masks(model, ratio), seed + 1, TUNE, steps - steps // 2)
    return held(model, result.masks, losses + list(result.series["loss"]))


# --- channels -----------------------------------------------------------------------------------------------------------------------------------


def cut_and_tune(model: nn.Module, pruner: Pruner, ratio: float, seed: int, steps: int = STEPS) -> Pruned:
    """One-shot: score, remove, tune."""
    pruned = pruner.apply(model, ratio, vision.labelled(), vision.EXAMPLE)
    reestimate_batchnorm(pruned.model, vision.calibration())
    return Pruned(pruned.model, pruned.exhibits, {"loss": fit(pruned.model, seed, steps)})


def soft(model: nn.Module, ratio: float, seed: int, steps: int = STEPS, every: int = 8) -> Pruned:
    """Soft filter pruning: the lowest filters are zeroed again and again but keep their gradients, so that a wrong choice grows back (He et al. 2018)."""
    pruner = Pruner("l2")
    losses = fit(model, seed, steps, after=lambda step, rate: pruner.soften(model, ratio, vision.EXAMPLE) if step % every == every - 1 else None)
    pruned = pruner.apply(model, ratio, None, vision.EXAMPLE)
    return Pruned(pruned.model, pruned.exhibits, {"loss": losses})


def shrink_filters(model: nn.Module, by: float) -> None:
    """Proximal step of the group LASSO λΣ‖W_g‖₂ (Wen et al. 2016, equation 1): every filter gets shorter by ``by`` of the layer's mean length."""
    for weight in weights(model).values():
        length = weight.flatten(1).norm(dim=1)
        weight.mul_((1 - by * length.mean() / length.clamp_min(1e-12)).clamp_min(0).view(-1, *[1] * (weight.dim() - 1)))


def shrink_scales(model: nn.Module, by: float) -> None:
    """Proximal step of λΣ|γ| (Liu et al. 2017, equation 1) on every batch-norm scale."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(module.weight.sign() * (module.weight.abs() - by).clamp_min(0))


def penalised(model: nn.Module, ratio: float, seed: int, shrink: Callable[[nn.Module, float], None], by: str, strength: float = 0.3,
              steps: int = STEPS) -> Pruned:
    """Half of the steps with a penalty, then the cut by the criterion ``by``, then the rest. ``strength``: what the penalty takes away in all.

    The papers take λ = 1e-4 at a rate of 0.1 over some 60 000 steps (0.6 in all, against the loss); so few steps need a larger λ for the same pull.
    """
    half = steps // 2
    losses = fit(model, seed, half, after=lambda step, rate: shrink(model, strength / half))
    pruned = cut_and_tune(model, Pruner(by), ratio, seed + 1, steps - half)
    return Pruned(pruned.model, pruned.exhibits, {"loss": losses + list(pruned.series["loss"])})


def group_lasso(model: nn.Module, ratio: float, seed: int) -> Pruned:
    return penalised(model, ratio, seed, shrink_filters, "l2")


def slimming(model: nn.Module, ratio: float, seed: int) -> Pruned:
    return penalised(model, ratio, seed, shrink_scales, "bn-gamma")


def small_from_scratch(ratio: float, replica: int, seed: int) -> Pruned:
    """Control: a dense net of the pruned one's widths, trained from nothing for as many steps."""
    torch.manual_seed(100 + replica)
    model = vision.NETS["vgg-small"]([size - round(ratio * size) for size in vision.NETS["vgg-small"]().config()["widths"]])
    return Pruned(model, {"kept": percent([1 - ratio])}, {"loss": fit(model, seed, rate=LEARN)})
