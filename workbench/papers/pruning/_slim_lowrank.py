r"""A convolution as two thinner ones (Tai et al. 2016): a column kernel, then a row kernel, from one singular value decomposition.

    W (N, C, h, w) ──► M (C·h, N·w),  M[c·h+r, n·w+s] = W[n, c, r, s] ──► U S Vᵀ ──► V-layer C → K, h×1:  U √S       H-layer K → N, 1×w:  V √S, bias

Stride and padding are split: rows belong to the first layer, columns to the second. Full rank gives the same map, rank K the best one in the sense of
$\lVert M - M_K\rVert_F = \sqrt{\sum_{k>K} S_k^2}$. It pays, in multiply–accumulates and parameters, while $K (C h + N w) < C N h w$.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def matrix(weight: Tensor) -> Tensor:
    """(N, C, h, w) -> (C·h, N·w)."""
    n, c, h, w = weight.shape
    return weight.permute(1, 2, 0, 3).reshape(c * h, n * w)


def singular(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (rows, full rank), S falling, V (columns, full rank), float64."""
    u, s, vt = torch.linalg.svd(m.detach().double(), full_matrices=False)
    return u, s, vt.T


def random_basis(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For comparison: the same shapes from a random orthonormal basis Q instead of the singular one, M = Q (QᵀM)."""
    rows, columns = m.shape
    count = min(rows, columns)
    q = torch.linalg.qr(torch.randn(rows, rows, generator=torch.Generator().manual_seed(rows * columns), dtype=torch.double))[0][:, :count]
    return q, torch.ones(count, dtype=torch.double), m.detach().double().T @ q


class LowRank(nn.Sequential):
    """The pair of thin convolutions that stands for one; ``rank``: channels between them."""

    def __init__(self, column: nn.Conv2d, row: nn.Conv2d):
        super().__init__(column, row)
        self.rank = column.out_channels

    def merged(self) -> Tensor:
        """The kernel (N, C, h, w) that the pair computes."""
        column, row = self[0].weight, self[1].weight
        return torch.einsum("kch,nkw->nchw", column[..., 0], row[:, :, 0])


def full_rank(conv: nn.Conv2d) -> int:
    n, c, h, w = conv.weight.shape
    return min(c * h, n * w)


def rank_for_energy(conv: nn.Conv2d, energy: float) -> int:
    """The smallest rank whose squared singular values make up the share ``energy`` of all."""
    squares = singular(matrix(conv.weight))[1] ** 2
    return int((squares.cumsum(0) < energy * squares.sum() - 1e-12).sum()) + 1


def lowrank_conv(conv: nn.Conv2d, rank: int, basis: Callable = singular) -> LowRank:
    """``conv`` in rank ``rank``. ValueError: grouped or dilated convolutions, circular or named padding, a rank outside 1 … min(C·h, N·w)."""
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or conv.dilation != (1, 1):
        raise ValueError(f"conv: an undilated Conv2d without groups is needed, found {conv}")
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"conv: zero padding in numbers is needed, found {conv.padding_mode}, {conv.padding!r}")
    if not 1 <= rank <= full_rank(conv):
        raise ValueError(f"rank: 1 to {full_rank(conv)} for a kernel of shape {tuple(conv.weight.shape)}, found {rank}")
    n, c, h, w = conv.weight.shape
    column = nn.Conv2d(c, rank, (h, 1), (conv.stride[0], 1), (conv.padding[0], 0), bias=False)
    row = nn.Conv2d(rank, n, (1, w), (1, conv.stride[1]), (0, conv.padding[1]), bias=conv.bias is not None)
    u, s, v = basis(matrix(conv.weight))
    root = s[:rank].sqrt()
    with torch.no_grad():
        column.weight.copy_((u[:, :rank] * root).T.reshape(rank, c, h, 1))
        row.weight.copy_((v[:, :rank] * root).reshape(n, w, rank).permute(0, 2, 1)[:, :, None])
        if conv.bias is not None:
            row.bias.copy_(conv.bias)
    return LowRank(column, row).train(conv.training)


def candidates(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Name -> convolution that can be factorised and is larger than 1×1."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1 and m.dilation == (1, 1)
            and m.padding_mode == "zeros" and not isinstance(m.padding, str) and m.weight[0, 0].numel() > 1}


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place ``name``, in place."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def lowrank(model: nn.Module, ranks: Mapping[str, int], basis: Callable = singular) -> nn.Module:
    """A copy whose convolutions ``ranks`` names are factorised. ValueError: no convolution of the model."""
    small, found = copy.deepcopy(model), candidates(model)
    if unknown := set(ranks) - set(found):
        raise ValueError(f"ranks: {', '.join(sorted(unknown))} cannot be factorised; the model has {', '.join(found) or 'no such convolution'}")
    for name, rank in ranks.items():
        put(small, name, lowrank_conv(found[name], rank, basis))
    return small


def ranks_by_share(model: nn.Module, share: float) -> dict[str, int]:
    """The same share of each convolution's full rank, at least 1."""
    if not 0 < share <= 1:
        raise ValueError(f"share: of the full rank, above 0 to 1, found {share}")
    return {name: max(1, round(share * full_rank(conv))) for name, conv in candidates(model).items()}


def ranks_by_energy(model: nn.Module, energy: float) -> dict[str, int]:
    """The smallest rank of each convolution that keeps ``energy``, where the pair is then smaller than the kernel; other layers stay as they are."""
    if not 0 < energy <= 1:
        raise ValueError(f"energy: a share above 0 to 1, found {energy}")
    found = {name: (conv, rank_for_energy(conv, energy)) for name, conv in candidates(model).items()}
    return {name: rank for name, (conv, rank) in found.items() if saved(conv, rank) > 0}


def saved(conv: nn.Conv2d, rank: int) -> int:
    """Weights that the pair has fewer than the kernel; negative where it has more."""
    n, c, h, w = conv.weight.shape
    return n * c * h * w - rank * (c * h + n * w)
