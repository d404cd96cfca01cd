"""Who races on the boards of this family, and how a method of your own gets there.

A board is a track with everything that can run on it: the classics, every paper that scores channels, the controls. All get the same surgery, the same
re-estimation of batch norm and, where they are tuned, the same 60 steps; a cost is compared at equal cost, paired over independently trained nets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...benches import vision
from ...contracts.structure.surgery import channel_groups, macs, remove
from ...core.study import Contender, StudyError
from . import TUNING_STEPS, Pruned, _exhibits, fine_tuned, inside_blocks, prune, score_and_remove, seeded
from ._entropy_method import ChannelEntropy
from ._pfgdf_method import PFGDF
from .classics import FPGM, L1, L2, BatchNormScale, ConsumerNorm, ProductNorm, Random
from .classics_of_data import Activation, HRank, Taylor, ThiNet
from .fscl import FSCL

TUNED = (0.3, 0.5, 0.7)
PAPERS: dict[str, tuple[Any, str]] = {"FSCL": (FSCL(), "2304.13397"), "entropy": (ChannelEntropy(), "1706.05791"), "PFGDF": (PFGDF(), "2006.12963")}
CLASSICS: dict[str, Any] = {
    "L1": L1(), "L2": L2(), "FPGM": FPGM(), "batch-norm scale": BatchNormScale(), "Taylor": Taylor(), "HRank": HRank(), "ThiNet": ThiNet(),
    "APoZ": Activation(), "reading side": ConsumerNorm(), "both sides": ProductNorm(),
}
OWN_TRACK = {
    "1802.03494": "it searches shares of layers, not channels: see `race` with an allocation, and its own study on the same nets",
    "1808.00496": "students, thin factors and sparse weights in one pipeline: its own study, on the same nets' bytes",
    "1811.07555": "it prunes while a 3-D net learns to read clips",
    "1901.08455": "it prunes while a net is trained from nothing; its criterion is L1 by fan-in, which is here",
    "1904.02654": "it asks a second, unlabelled domain",
    "1907.09286": "an ensemble of prunings is no single net",
    "1909.11348": "it shrinks detectors and trackers while they specialise",
    "1911.06471": "a search of minutes for each net and cost: its own study, on the same nets",
    "2005.04275": "a survey: its leaves are the classics here",
    "2007.01696": "nets that are trained with merged channels, not pruned",
    "2108.01020": "its net reads skeletons, and its knob is a datapath's",
    "2204.00943": "a net that is small from the start, not pruned",
    "2211.01957": "a search of a minute for each net: its own study, on the same nets' bytes",
    "2312.09580": "its net separates speech, and its knob is bits",
}


def field(net: str, without: tuple[str, ...] = (), tuned: tuple[float, ...] = TUNED) -> dict[str, Contender]:
    """The contenders of a board on ``net``: papers, classics and controls untuned; the first paper, L1, Taylor and random also tuned."""
    found = {name: prune(method, net, role="paper", source=source) for name, (method, source) in PAPERS.items() if name not in without}
    found |= {name: prune(method, net) for name, method in CLASSICS.items() if name not in without}
    found |= {"random": prune(Random(), net, role="control", seeds=2),
              "dense": Contender(lambda replica: Pruned(vision.dense(net, replica)), role="control")}
    if tuned:
        grid = {"macs_removed": tuned}
        for name, method, role in (("FSCL", FSCL(), "paper"), ("L1", L1(), "rival"), ("Taylor", Taylor(), "rival"), ("random", Random(), "control")):
            found[f"{name}, tuned"] = prune(method, net, tuned=True, grid=grid, replicas=3, role=role)
        found["dense, tuned"] = Contender(lambda replica, seed: fine_tuned(Pruned(vision.dense(net, replica)), seed), role="control", evidence="recorded",
                                          replicas=3)
    return found


def shares_kept(point: dict, exhibits: Mapping[str, np.ndarray]):
    """One bar a layer: how many per cent of its weights, filters or channels are left. ``exhibits``: kept → uint8 (layers,)."""
    import plotly.graph_objects as go

    kept = exhibits.get("kept", np.array([100], np.uint8)).astype(int)
    bars = go.Bar(x=[f"{i}" for i in range(1, len(kept) + 1)], y=kept.tolist(), text=[f"{share} %" for share in kept], hoverinfo="x+y")
    return go.Figure(bars, layout={"height": 260, "margin": {"l": 10, "r": 10, "t": 36, "b": 36}, "yaxis": {"title": {"text": "kept (%)"}, "range": [0, 105]},
                                   "xaxis": {"title": {"text": "layer"}}, "title": {"text": f"what {point['contender']} keeps of each layer", "font": {"size": 14}}})


# --- your own: what a visitor brings --------------------------------------------------------------------------------------------------------------


def entry(net: str) -> Callable[[Any], Contender]:
    """Makes a contender on ``net`` of one of four things (a class is called without arguments first):

    - a score: ``scores(groups, model, data) -> {group name: (size,) tensor}``, higher is kept;
    - an allocation: ``allocate(groups, model, data) -> {group name: number}``: how much more than others a layer loses; inside it, lowest L1 goes;
    - a schedule: ``schedule(step, steps, ratio) -> share of the MACs gone by then``: L1 in parts while the net is tuned for 60 steps;
    - a whole method: ``compress(model, ratio, data, example) -> module``, ``ratio`` the share of the MACs to remove.
    """

    def enter(thing: Any) -> Contender:
        method = thing() if isinstance(thing, type) else thing
        if callable(getattr(method, "scores", None)):
            return prune(method, net)
        slots = [make for name, make in SLOTS.items() if callable(getattr(method, name, None))]
        if slots:
            return Contender(lambda macs_removed, replica, seed: slots[0](seeded(method, seed), vision.dense(net, replica), macs_removed, seed, net))
        raise StudyError(f"{type(method).__name__} has none of scores, allocate, schedule and compress: see workbench.papers.pruning.boards.entry")

    return enter


def allocated(method: Any, model: nn.Module, ratio: float, seed: int, net: str) -> Pruned:
    """Channels of lowest L1 go; each layer loses a share proportional to its number, by the factor at which ``ratio`` of the MACs are gone."""
    groups = inside_blocks(channel_groups(model, vision.EXAMPLE))
    weights = {name: float(value) for name, value in method.allocate(groups, model, vision.labelled(net=net)).items()}
    if set(weights) != {g.name for g in groups} or min(weights.values()) < 0 or max(weights.values()) == 0:
        raise StudyError(f"allocate: one number from 0 on for each of {', '.join(g.name for g in groups)}, not all 0; found {weights}")
    scores, dense = L1().scores(groups, model), macs(model, vision.EXAMPLE)

    def drop(factor: float) -> Mapping[str, torch.Tensor]:
        counts = {g.name: min(g.size - 1, round(min(1.0, factor * weights[g.name]) * g.size)) for g in groups}
        return {name: scores[name].argsort()[:count] for name, count in counts.items() if count}

    low, high = 0.0, 1 / min(value for value in weights.values() if value)
    for _ in range(12):
        middle = (low + high) / 2
        short = macs(remove(model, drop(middle), vision.EXAMPLE, groups), vision.EXAMPLE) > (1 - ratio) * dense
        low, high = (middle, high) if short else (low, middle)
    return Pruned(remove(model, drop(high), vision.EXAMPLE, groups) if ratio else model, _exhibits(groups, scores, drop(high) if ratio else {}))


def scheduled(method: Any, model: nn.Module, ratio: float, seed: int, net: str, every: int = 10) -> Pruned:
    """Pruned by L1 every ``every`` steps so far as the schedule says, and tuned in between: 60 steps in all."""
    pruned, gone, losses = Pruned(model), 0.0, []
    for step in range(0, TUNING_STEPS, every):
        share = ratio if step + every >= TUNING_STEPS else float(method.schedule(step, TUNING_STEPS, ratio))
        if not 0 <= share <= ratio + 1e-9:
            raise StudyError(f"schedule: a share from 0 to {ratio} is needed at step {step}, found {share}")
        if share > gone:
            pruned, gone = score_and_remove(L1(), pruned.model, 1 - (1 - share) / (1 - gone)), share
        pruned = fine_tuned(pruned, seed + step, every)
        losses += pruned.series["loss"]
    return Pruned(pruned.model, pruned.exhibits, {"loss": losses})


def compressed(method: Any, model: nn.Module, ratio: float, seed: int, net: str) -> Pruned:
    return Pruned(method.compress(model, ratio, vision.labelled(net=net), vision.EXAMPLE))


SLOTS: dict[str, Callable[..., Pruned]] = {"allocate": allocated, "schedule": scheduled, "compress": compressed}
