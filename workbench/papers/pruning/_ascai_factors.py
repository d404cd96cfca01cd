"""Low-rank layers: a truncated SVD for linear and 1×1 layers, Tucker-2 for k×k convolutions, as chains of really smaller layers.

    linear   W (o, i)       ≈ L (o, r) · R (r, i)                     R: i → r,  L: r → o
    conv     W (o, i, k, k) ≈ core (p, r, k, k) ×₁ U (o, p) ×₂ V (i, r)    V: 1×1, i → r,  core: k×k, r → p,  U: 1×1, p → o

U and V are the leading left singular vectors of the two unfoldings of W (higher-order SVD), the core is what W is in these coordinates; a rank that is whole
leaves its factor out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CAN_FACTOR = (nn.Linear, nn.Conv2d)


class Factored(nn.Module):
    """One layer as a chain of up to three: ``first`` reads fewer inputs' combinations, ``core`` (of an SVD: none), ``last`` writes the outputs."""

    def __init__(self, first: nn.Module | None, core: nn.Module | None, last: nn.Module | None):
        super().__init__()
        self.first, self.core, self.last = first, core, last

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.first, self.core, self.last):
            if part is not None:
                x = part(x)
        return x

    def parts(self) -> list[nn.Module]:
        return [part for part in (self.first, self.core, self.last) if part is not None]


def ranks_of(layer: nn.Module) -> tuple[int, ...]:
    """The whole ranks of a layer: (rank,) of a linear or 1×1 one, else (inputs, outputs)."""
    out, into, *kernel = layer.weight.shape
    area = math.prod(kernel)
    return (min(into, out * area), min(out, into * area)) if area > 1 else (min(out, into),)


def is_factorable(module: nn.Module) -> bool:
    return isinstance(module, CAN_FACTOR) and getattr(module, "groups", 1) == 1


def bases(weight: Tensor) -> tuple[Tensor, ...]:
    """What the factors are cut from: (U·S, Vᵀ) of a matrix, or the left singular vectors of both unfoldings (inputs, outputs) of a k×k kernel."""
    matrix = weight.detach().double()
    if max(weight.shape[2:], default=1) == 1:
        u, s, v = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
        return u * s, v
    return tuple(torch.linalg.svd(unfolding, full_matrices=False)[0] for unfolding in (matrix.transpose(0, 1).flatten(1), matrix.flatten(1)))


def factor(layer: nn.Module, ranks: tuple[int, ...], known: tuple[Tensor, ...] | None = None) -> nn.Module:
    """The layer at these ranks (`ranks_of` gives the whole ones); itself where all are whole. ``known``: its `bases`, computed before."""
    whole = ranks_of(layer)
    if len(ranks) != len(whole) or any(not 1 <= rank <= most for rank, most in zip(ranks, whole, strict=True)):
        raise ValueError(f"ranks: {len(whole)} whole numbers from 1 to {', '.join(map(str, whole))} are needed, found {ranks}")
    if ranks == whole:
        return layer
    known = bases(layer.weight) if known is None else known
    return _svd(layer, ranks[0], *known) if len(ranks) == 1 else _tucker(layer, *ranks, *known)


def _svd(layer: nn.Module, rank: int, left: Tensor, right: Tensor) -> Factored:
    kernel = layer.weight.shape[2:]
    if isinstance(layer, nn.Linear):
        first, last = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, layer.bias is not None)
    else:
        first = nn.Conv2d(layer.in_channels, rank, 1, layer.stride, bias=False)
        last = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    _fill(first, right[:rank].reshape(rank, -1, *kernel))
    _fill(last, left[:, :rank].reshape(-1, rank, *kernel), layer.bias)
    return Factored(first, None, last).eval()


def _tucker(layer: nn.Conv2d, inside: int, outside: int, v: Tensor, u: Tensor) -> Factored:
    core, first, last, bias = layer.weight.detach().double(), None, None, layer.bias
    if inside < layer.in_channels:
        v = v[:, :inside]
        core, first = torch.einsum("oiyx,ir->oryx", core, v), nn.Conv2d(layer.in_channels, inside, 1, bias=False)
        _fill(first, v.T[:, :, None, None])
    if outside < layer.out_channels:
        u = u[:, :outside]
        core, last = torch.einsum("oiyx,op->piyx", core, u), nn.Conv2d(outside, layer.out_channels, 1, bias=bias is not None)
        _fill(last, u[:, :, None, None], bias)
    middle = nn.Conv2d(inside, outside, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=bias is not None and last is None,
                       padding_mode=layer.padding_mode)
    _fill(middle, core, bias if last is None else None)
    return Factored(first, middle, last).eval()


@torch.no_grad()
def _fill(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)


def multiplied(layer: nn.Module, ranks: tuple[int, ...], known: tuple[Tensor, ...] | None = None) -> nn.Module:
    """Wrong on purpose: the factors multiplied back, a dense layer of the old size."""
    small = factor(layer, ranks, known)
    if small is layer:
        return layer
    whole = type(layer)(**_settings(layer))
    weights = [part.weight.detach().double() for part in small.parts()]
    if len(ranks) == 1:
        _fill(whole, (weights[1].flatten(1) @ weights[0].flatten(1)).reshape(layer.weight.shape), layer.bias)
    else:
        core = small.core.weight.detach().double()
        core = core if small.first is None else torch.einsum("oryx,ri->oiyx", core, weights[0].flatten(1))
        core = core if small.last is None else torch.einsum("op,piyx->oiyx", weights[-1].flatten(1), core)
        _fill(whole, core, layer.bias)
    return whole.eval()


def _settings(layer: nn.Module) -> dict:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    return {"in_channels": layer.in_channels, "out_channels": layer.out_channels, "kernel_size": layer.kernel_size, "stride": layer.stride,
            "padding": layer.padding, "dilation": layer.dilation, "bias": layer.bias is not None}
