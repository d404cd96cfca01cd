"""What 3D-Reg is raced against: a constant pull (group LASSO), and cuts made at once, by norm, Taylor expansion or chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ._reg3d_pruner import Layer, Pruner


class GroupLasso(Pruner):
    """Rival: a constant pull λ W_g/‖W_g‖ on every group (structured sparsity learning), until ``deadline``, when the groups of lowest norm go."""

    def __init__(self, model, example, speedup=2.0, strength: float = 0.02, deadline: int = 1, **settings):
        super().__init__(model, example, speedup, **settings)
        self.strength, self.deadline = strength, deadline

    @torch.no_grad()
    def pull(self) -> None:
        if self.iteration < self.deadline:
            for layer in self.layers:
                for slab in layer.slabs:
                    other = [d for d, n in enumerate(slab.shape) if n == 1]
                    slab.tensor.grad.addcdiv_(slab.tensor, slab.tensor.norm(dim=other, keepdim=True).clamp_min(1e-6), value=self.strength)

    def step(self) -> None:
        self.iteration += 1
        if self.iteration == self.deadline:
            self.take({layer.name: layer.importance().argsort(stable=True)[:layer.quota] for layer in self.layers})


class OneShot(Pruner):
    """Rival: the groups of lowest score go at once. ``score(layer) -> (groups,)``."""

    def __init__(self, model, example, speedup=2.0, score: Callable[[Layer], Tensor] = Layer.importance, **settings):
        super().__init__(model, example, speedup, **settings)
        self.take({layer.name: score(layer).argsort(stable=True)[:layer.quota] for layer in self.layers})


def randomly(seed: int) -> Callable[[Layer], Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return lambda layer: torch.rand(layer.size, generator=generator)


def taylor(batches: Sequence[tuple[Tensor, Tensor]], model: nn.Module) -> Callable[[Layer], Tensor]:
    """|Σ w ∂L/∂w| of each group, summed over batches: what its removal costs to first order (after Molchanov et al. 2017)."""
    params, totals = [p for p in model.parameters() if p.dim() > 1], {}
    for inputs, labels in batches:
        loss = nn.functional.cross_entropy(model.eval()(inputs), labels)
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            totals[p] = totals.get(p, 0) + (p * g).detach()
    return partial(_first_order, totals)


def _first_order(totals: Mapping, layer: Layer) -> Tensor:
    return sum(totals[s.tensor].sum([d for d, n in enumerate(s.shape) if n == 1]).flatten().double().abs() for s in layer.slabs if s.counts)
