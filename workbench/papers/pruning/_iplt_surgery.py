"""What incremental pruning takes away, and when, and how the optimiser's state goes with it. The lesson stands in :mod:`.iplt`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...contracts.structure.channels import ChannelGroup, channel_groups
from ...contracts.structure.macs import parameters
from ...contracts.structure.surgery import mask, remove
from ...contracts.structure.trace import CONV
from . import inside_blocks
from .classics import norms

OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
Widths = dict[str, int]


# --- what goes, and when ------------------------------------------------------------------------------------------------------------------------


def convolutional(model: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """The groups that convolutions alone write and that are no residual stream."""
    groups = [g for g in inside_blocks(channel_groups(model, example)) if all(isinstance(m.module, CONV) for m in g.producers)]
    if not groups:
        raise ValueError("model: no convolution whose filters can go (residual streams stay: name blocks with an inner width)")
    return groups


@dataclass(frozen=True)
class FilterNorm:
    """‖filter‖₁ over its fan-in (on purpose the simplest criterion)."""

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        return {g.name: norms(g, "producers") / sum(m.weights().shape[1] for m in g.producers) for g in groups}


def progress(step: int, rounds: int, shape: str = "linear") -> float:
    """s(t): the share of the final cut that is done after round ``step`` of ``rounds``; ``cubic`` cuts more at first (reconstructed)."""
    t = step / rounds
    return t if shape == "linear" else 1 - (1 - t) ** 3


def kept(sizes: Mapping[str, int], shares: Mapping[str, float], done: float = 1.0) -> Widths:
    """N_l·(1 − R_l·s), rounded, one filter at least."""
    return {name: max(1, round(size * (1 - shares[name] * done))) for name, size in sizes.items()}


def final_shares(model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor, keep: float, slant: Mapping[str, float] | None = None) -> dict[str, float]:
    """{layer: R_l}: slant·c (uniform: 1·c), at most 0.98, with the smallest c at which the rebuilt net has ``keep`` of the parameters at most.

    ValueError: ``keep`` lies below what one filter a layer leaves.
    """
    slant = slant or {g.name: 1.0 for g in groups}
    sizes, dense = {g.name: g.size for g in groups}, parameters(model)

    def left(c: float) -> float:
        widths = kept(sizes, shares(c))
        return parameters(remove(model, {g.name: range(widths[g.name], g.size) for g in groups if widths[g.name] < g.size}, example, groups)) / dense

    def shares(c: float) -> dict[str, float]:
        return {name: min(0.98, c * slant[name]) for name in sizes}

    highest = 0.98 / min(value for value in slant.values() if value > 0)
    if not 0 < keep <= 1 or left(highest) > keep:
        raise ValueError(f"keep: share of the parameters (1 − ratio) between {left(highest):.3f} (one filter a layer, or what may not be cut) and 1, found {keep}")
    low, high = 0.0, highest
    if keep == 1:
        return shares(0.0)
    for _ in range(14):  # widths are whole numbers: finer shares change nothing
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= keep else (middle, high)
    return shares(high)


def sensitivity(model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor, accuracy: Callable[[nn.Module], float], delta: float = 2.0,
                steps: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.95)) -> dict[str, float]:
    """{layer: R_l}: the largest of ``steps`` that, cut from this layer alone by filter norm, costs at most ``delta`` points of ``accuracy``.

    Scanned on the partly trained net; a layer that can spare nothing gets half of the first step, so that none stands out of reach.
    """
    scores, before, shares = FilterNorm().scores(groups, model), accuracy(model), {}
    for group in groups:
        order, found = scores[group.name].argsort(), steps[0] / 2
        for share in steps:
            if before - accuracy(mask(model, {group.name: order[: min(group.size - 1, round(share * group.size))]}, example, groups)) > delta:
                break
            found = share
        shares[group.name] = found
    return shares


def lowest(scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """{layer: filters to drop}: the lowest, so that ``widths`` stay (a layer that is narrow enough already loses none)."""
    gone = {name: score.argsort(stable=True)[: max(0, len(score) - widths[name])].sort().values for name, score in scores.items()}
    return {name: units for name, units in gone.items() if len(units)}


# --- surgery on network and optimiser -----------------------------------------------------------------------------------------------------------


def sliced(model: nn.Module, values: Mapping[str, Tensor], drop: Mapping[str, Tensor], example: Tensor, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Tensors that stand beside the parameters (momentum), cut as :func:`remove` cuts those: they take the weights' place in a copy that is then cut."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(values[name])
    return {name: p.detach().clone() for name, p in remove(twin, drop, example, groups).named_parameters()}


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    if type(optimizer) not in OPTIMIZERS:
        raise ValueError(f"optimizer: {', '.join(cls.__name__ for cls in OPTIMIZERS)} can be cut with the network, found {type(optimizer).__name__}")


def entries(optimizer: torch.optim.Optimizer) -> list[str]:
    """The parts of the state that stand beside every weight: momentum, or Adam's moments (its clock is one number a tensor)."""
    return sorted({entry for p, state in optimizer.state.items() for entry, value in state.items() if entry != "step" and isinstance(value, Tensor)})


def shrink(model: nn.Module, optimizer: torch.optim.Optimizer, drop: Mapping[str, Tensor], example: Tensor,
           groups: Sequence[ChannelGroup]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A smaller network and an optimiser of its parameters whose state is the matching part of the old one: training goes on warm."""
    check_optimizer(optimizer)
    small, names = remove(model, drop, example, groups), {id(p): name for name, p in model.named_parameters()}
    now = dict(small.named_parameters())
    rebuilt = type(optimizer)([{**g, "params": [now[names[id(p)]] for p in g["params"]]} for g in optimizer.param_groups])
    for entry in entries(optimizer):
        values = {names[id(p)]: state[entry] for p, state in optimizer.state.items() if state.get(entry) is not None}
        cut = sliced(model, {name: values.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()}, drop, example, groups)
        for name in values:
            rebuilt.state[now[name]][entry] = cut[name]
    for p, state in optimizer.state.items():
        if "step" in state:
            rebuilt.state[now[names[id(p)]]]["step"] = copy.deepcopy(state["step"])
    return small, rebuilt


# --- does the order of filters stand? -----------------------------------------------------------------------------------------------------------


def overlap(young: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float = 0.35) -> float:
    """Share of the best ``share`` of each layer's filters, by the young net's scores, that are the trained net's best too; mean over layers. Chance: ``share``."""
    values = []
    for name, score in trained.items():
        n = max(1, round(share * len(score)))
        a, b = (set(scores.argsort(descending=True)[:n].tolist()) for scores in (young[name], score))
        values.append(len(a & b) / n)
    return sum(values) / len(values)


def rank_correlation(young: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> float:
    """Spearman's correlation of each layer's scores; mean over layers."""
    from scipy import stats

    return float(sum(stats.spearmanr(young[name].numpy(), score.numpy()).statistic for name, score in trained.items()) / len(trained))
