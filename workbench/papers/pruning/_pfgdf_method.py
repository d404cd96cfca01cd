"""PFGDF, the method: one number a filter, a Gaussian per layer, an interval, and the search for its width."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from ...contracts.structure.channels import ChannelGroup, Member, check_finite
from ...contracts.structure.surgery import channel_groups, remove
from . import Pruned, inside_blocks

STATISTICS = ("sum", "l1", "l2")
FEWEST = 8  # filters: with fewer a mean and a standard deviation say nothing
WIDEST = 8.0  # no layer of up to 65 filters has one further out than (N − 1)/√N < 8 standard deviations


# --- 1 statistic, 2 fit, 3 rule -----------------------------------------------------------------------------------------------------------------


def filter_statistic(weight: Tensor, kind: str = "sum") -> Tensor:
    """(N,) from filters (N, …): their signed mean, mean magnitude, or root mean square (reconstructed; the abstract names none)."""
    if kind not in STATISTICS:
        raise ValueError(f"statistic: one of {', '.join(STATISTICS)}, found {kind!r}")
    rows = weight.detach().flatten(1).double()
    return rows.mean(1) if kind == "sum" else rows.abs().mean(1) if kind == "l1" else rows.square().mean(1).sqrt()


def standardised(statistic: Tensor, where: str = "weight") -> Tensor:
    """(N,): z = (s − μ)/σ with the layer's mean and sample standard deviation. ValueError: all filters alike."""
    spread = statistic.std()
    if not float(spread) > 0:
        raise ValueError(f"{where}: σ = 0, all {len(statistic)} filters have the same statistic; no Gaussian can be fitted")
    return (statistic - statistic.mean()) / spread


def pfgdf_mask(weight: Tensor, alpha: float, statistic: str = "sum", keep: str = "inside") -> Tensor:
    """(N,) bool, True: the filter stays. ``weight``: (N, C, k, k), (N, C) or any (N, …); ``keep`` what lies ``inside`` μ ± ασ, or its ``tails``."""
    if not alpha > 0:
        raise ValueError(f"alpha: width in standard deviations, must be positive, found {alpha}")
    return PFGDF(statistic, keep).stays(standardised(filter_statistic(weight, statistic)).abs(), alpha)


@dataclass(frozen=True)
class Normality:
    """How Gaussian a layer's statistics are. ``quantiles``: (2, N), those of the Gaussian and the standardised statistics in order (a QQ plot)."""

    skewness: float
    kurtosis: float
    p: float
    quantiles: np.ndarray


def normality(statistic: Tensor) -> Normality:
    """Skewness, excess kurtosis, Shapiro–Wilk's p."""
    z = standardised(statistic).numpy()
    (gaussian, ordered), _ = stats.probplot(z)
    return Normality(float(stats.skew(z)), float(stats.kurtosis(z)), float(stats.shapiro(z).pvalue), np.stack([gaussian, ordered]))


def predicted_share(alpha: float) -> float:
    """Of an exact Gaussian, μ ± ασ holds erf(α/√2)."""
    return math.erf(alpha / math.sqrt(2))


@dataclass(frozen=True)
class PFGDF:
    """Keep the filters inside μ ± ασ of their layer's statistic; all others go as insignificant in distribution.

    ``coupled``: residual streams too; a unit that several layers write goes where all of them would delete it (5). No data is looked at.
    """

    statistic: str = "sum"
    keep: str = "inside"
    coupled: bool = False

    cut = staticmethod(remove)  # only an ablation brings its own

    def __post_init__(self):
        if self.statistic not in STATISTICS:
            raise ValueError(f"statistic: one of {', '.join(STATISTICS)}, found {self.statistic!r}")
        if self.keep not in ("inside", "tails"):
            raise ValueError(f"keep: 'inside' or 'tails', found {self.keep!r}")

    def stays(self, distance: Tensor, alpha: float) -> Tensor:
        """bool from |z|: the rule."""
        return distance <= alpha if self.keep == "inside" else distance >= alpha

    def distance(self, group: ChannelGroup) -> Tensor:
        """(size,) |z|; of several producers the one that argues most for keeping the unit (their sets to delete are intersected)."""
        each = torch.stack([group.spread(m, self.of_layer(m)) for m in group.producers])
        return each.amin(0) if self.keep == "inside" else each.amax(0)

    def of_layer(self, member: Member) -> Tensor:
        return standardised(filter_statistic(member.weights(), self.statistic), repr(member.name)).abs()

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data: Iterable | None = None) -> dict[str, Tensor]:
        """{group name: (size,)}, higher is kept: how near to the mean (or how far out) a filter lies in its layer, as the share of an exact Gaussian's
        filters further out (or in), so that one threshold for all layers is one width for all layers."""
        inside = {group.name: 1 - torch.erf(self.distance(group) / math.sqrt(2)) for group in groups}
        return inside if self.keep == "inside" else {name: 1 - value for name, value in inside.items()}

    def eligible(self, model: nn.Module, example: Any) -> tuple[list[ChannelGroup], list[str]]:
        """The groups with enough filters, and the names of those skipped. ValueError: none has."""
        groups = channel_groups(model, example)
        groups = groups if self.coupled else inside_blocks(groups)
        chosen = [group for group in groups if group.size >= FEWEST]
        if not chosen:
            raise ValueError(f"model: no layer has {FEWEST} filters or more that may be removed; found {[(g.name, g.size) for g in groups]}")
        return chosen, [group.name for group in groups if group.size < FEWEST]

    def drop(self, groups: Sequence[ChannelGroup], alpha: float | Mapping[str, float]) -> dict[str, Tensor]:
        """{group name: units to delete} for one width or one a layer; the unit nearest to staying stays in any case."""
        found = {}
        for group in groups:
            width = alpha[group.name] if isinstance(alpha, Mapping) else alpha
            if not width > 0:
                raise ValueError(f"alpha: width in standard deviations, must be positive, found {width} for {group.name!r}")
            distance = self.distance(group)
            stays = self.stays(distance, width)
            if not stays.any():
                stays[distance.argmin() if self.keep == "inside" else distance.argmax()] = True
            if not stays.all():
                found[group.name] = (~stays).nonzero().flatten()
        return found

    def prune(self, model: nn.Module, alpha: float | Mapping[str, float], example: Any) -> Pruned:
        """The network at given widths, really smaller, not tuned."""
        check_finite(model)
        groups, _ = self.eligible(model, example)
        return Pruned(self.cut(model, self.drop(groups, alpha), example, groups))


# --- 4 search -----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One trial of the search: the filters that ``layer`` would keep at ``alpha``, the accuracy after tuning, and whether that was accepted."""

    layer: str
    alpha: float
    kept: int
    accuracy: float
    accepted: bool


@dataclass
class Searched(Pruned):
    """``alpha``: the width per layer; ``kept``: filters left; ``history``: every trial; ``skipped``: layers with fewer than eight filters."""

    alpha: dict[str, float] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    history: list[Step] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WidthSearch:
    """Layer by layer (``last`` first): narrow the interval, prune, tune, measure; the narrowest width with accuracy ≥ dense − ``tolerance`` stays.

    ``widths``: falling; ``bisect`` halves the list instead of walking down it (a fifth of the trials). What was tuned stays tuned: each trial starts
    from the last accepted state, to which a refused one is rolled back. ``rollback=False`` is wrong on purpose.
    """

    method: PFGDF = PFGDF()
    tolerance: float = 0.5
    widths: Sequence[float] = tuple(np.round(np.arange(3, 0.1, -0.2), 2).tolist())
    order: str = "last"
    bisect: bool = True
    rollback: bool = True

    def __post_init__(self):
        if list(self.widths) != sorted(set(self.widths), reverse=True) or not self.widths or not self.widths[-1] > 0:
            raise ValueError(f"widths: positive, falling, each once; found {list(self.widths)}")
        if self.order not in ("first", "last"):
            raise ValueError(f"order: the layer to start with, 'first' or 'last', found {self.order!r}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance: points of accuracy that may be lost, not negative, found {self.tolerance}")

    def run(self, model: nn.Module, example: Any, tune: Callable[[nn.Module], None], evaluate: Callable[[nn.Module], float]) -> Searched:
        """``tune(net)`` trains in place, ``evaluate(net)`` gives validation accuracy in per cent. ValueError: not one trial was accepted."""
        check_finite(model)
        groups, skipped = self.method.eligible(model, example)
        state, floor = copy.deepcopy(model), evaluate(model) - self.tolerance
        result = Searched(state, skipped=skipped, kept={g.name: g.size for g in groups})
        for name in [g.name for g in (reversed(groups) if self.order == "last" else groups)]:
            group = next(g for g in channel_groups(state, example) if g.name == name)  # fitted on the filters as they now are, once for all widths
            distance, left = self.method.distance(group), torch.arange(group.size)
            low, high = -1, len(self.widths)  # widths[low] is accepted, widths[high] refused
            while high - low > 1:
                trial = (low + high) // 2 if self.bisect else low + 1
                stays = self.method.stays(distance, self.widths[trial])
                gone = (~stays[left]).nonzero().flatten()
                if len(gone) == len(left):
                    high = trial
                    continue
                accuracy, accepted, candidate = math.nan, True, state
                if len(gone):  # else the same net as before: nothing to tune or to refuse
                    candidate = self.method.cut(state, {name: gone}, example)
                    tune(candidate)
                    accuracy = evaluate(candidate)
                    accepted = accuracy >= floor or not self.rollback
                    result.history.append(Step(name, self.widths[trial], int(stays.sum()), accuracy, accepted))
                if accepted:
                    low, state, left = trial, candidate, left[stays[left]]
                else:
                    high = trial
            result.alpha[name] = self.widths[low] if low >= 0 else math.inf
            result.kept[name] = len(left)
        if result.history and not any(step.accepted for step in result.history):
            best = max(step.accuracy for step in result.history)
            raise ValueError(f"tol: no width of any layer stays within {self.tolerance} points of the dense {floor + self.tolerance:.2f} %; the best trial "
                             f"has {best:.2f} %. Allow more points or more steps of tuning")
        result.model = state
        return result

