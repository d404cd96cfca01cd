r"""How far two domains lie apart in a network's features, and training that brings them together.

    source x_s ─┐             ┌─► features f_s ─► logits ─► cross-entropy with y_s ─┐
                ├─► one net ──┤         │                                           ├─► L = CE + β·MMD²
    target x_t ─┘             └─► features f_t ──► MMD²(f_s, f_t) ──────────────────┘

The kernel two-sample statistic of Gretton et al. (2012) as deep adaptation networks use it (Long et al. 2015): five Gaussian kernels whose widths
follow the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNELS = 5
Triples = Iterable[tuple[Tensor, Tensor, Tensor]]  # (source inputs, their labels, target inputs), equally many of both


def squared_distances(rows: Tensor) -> Tensor:
    """(n, n) squared distances of the rows (n, d), from one Gram matrix instead of n²·d differences."""
    gram = rows @ rows.T
    squares = gram.diagonal()
    return (squares[:, None] + squares[None] - 2 * gram).clamp_min(0)


def narrowest(distance: Tensor, kernels: int = KERNELS) -> Tensor:
    """The narrowest kernel's width: the mean squared distance of two different rows, over 2^(kernels // 2); a number, without gradient."""
    n = len(distance)
    return (distance.detach().sum() / (n * n - n) / 2 ** (kernels // 2)).clamp_min(torch.finfo(distance.dtype).tiny)


def mmd(a: Tensor, b: Tensor, kernels: int = KERNELS, width: Tensor | None = None) -> Tensor:
    """MMD² of features ``a`` and ``b``, both (n, d): mean(K_ss + K_tt − K_st − K_ts), the biased estimate, with K = Σᵢ exp(−d²/(w·2ⁱ)).

    ``width``: w (default: :func:`narrowest` of the joint batch). ValueError: unequal shapes.
    """
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"a, b: two feature matrices of equal shape (n, d) are needed, found {tuple(a.shape)} and {tuple(b.shape)}")
    distance, n = squared_distances(torch.cat([a, b])), len(a)
    width = narrowest(distance, kernels) if width is None else width
    kernel = sum(torch.exp(-distance / (width * 2**i)) for i in range(kernels))
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def rising(progress: float) -> float:
    """β = 2/(1 + e^(−10p)) − 1: from 0 to 1 while training goes from p = 0 to 1."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


@contextmanager
def features(model: nn.Module, layer: str = "") -> Iterator[list[Tensor]]:
    """What ``layer`` puts out (default: what the last linear layer reads) in each forward pass of the block, flattened to (n, d)."""
    modules, seen = dict(model.named_modules()), []
    linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
    if layer not in modules or not linear and not layer:
        found = f"the model has {', '.join(name for name in modules if name)}" if layer else "it has no linear layer"
        raise ValueError(f"feature: the name of the layer whose outputs two domains are compared by; {layer!r} is none, {found}")
    hook = modules[layer].register_forward_hook(lambda _, __, out: seen.append(out.flatten(1))) if layer else \
        linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    try:
        yield seen
    finally:
        hook.remove()


def joint_loss(model: nn.Module, source: Tensor, labels: Tensor, target: Tensor, beta: float, layer: str = "",
               distance: Callable[[Tensor, Tensor], Tensor] = mmd) -> tuple[Tensor, Tensor, Tensor]:
    """(L, cross-entropy, MMD²) of one forward pass over source and target images together, L = CE(source) + β·MMD²."""
    with features(model, layer) as seen:
        logits = model(torch.cat([source, target]))
    n, loss = len(source), F.cross_entropy(logits[: len(source)], labels)
    apart = distance(seen[0][:n], seen[0][n:])
    return (loss + beta * apart if beta else loss), loss, apart


def endless(triples: Triples) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The triples again and again. ValueError: there are none (any more: a generator can be gone through only once)."""
    while True:
        empty = True
        for triple in triples:
            empty = False
            yield triple
        if empty:
            raise ValueError("data: the loader yields no batch (a generator is empty the second time: hand in a list or a loader)")


def adapt(model: nn.Module, triples: Iterator[tuple[Tensor, Tensor, Tensor]], steps: int, optimizer: torch.optim.Optimizer,
          schedule: Callable[[float], None] | None = None, beta: Callable[[float], float] = rising, layer: str = "",
          distance: Callable[[Tensor, Tensor], Tensor] = mmd, on_step: Callable[[float, float], None] | None = None) -> nn.Module:
    """``steps`` steps on the joint loss, in place. ``schedule(p)`` and ``beta(p)`` see the share of steps done; ``on_step(cross-entropy, MMD²)``."""
    model.train()
    for step, (source, labels, target) in zip(range(steps), triples):
        progress = step / steps
        if schedule:
            schedule(progress)
        loss, entropy, apart = joint_loss(model, source, labels, target, beta(progress), layer, distance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if on_step:
            on_step(float(entropy.detach()), float(apart.detach()))
    return model.eval()
