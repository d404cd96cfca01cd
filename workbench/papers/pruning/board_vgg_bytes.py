"""The board of `vgg-small/bytes`: what is left of the file when single weights go, kernels, or whole filters; values and indices as they are written."""

from __future__ import annotations

from typing import Any

from ...benches import vision
from ...contracts.structure.surgery import reestimate_batchnorm
from ...core.study import Contender, Knob, Study, StudyError
from . import Pruned, procedures
from .boards import OWN_TRACK, compressed, shares_kept
from .classics import L1
from .fscl import FSCL
from .granularity import Pruner
from .lottery import lottery_ticket
from .survey_field import before_training, from_trained, one_shot, trained, weights_by

GRID = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95)
FILTERS = {"ratio": (0.3, 0.5, 0.6, 0.7, 0.8)}
TUNED, FEW = (0.8, 0.9, 0.95), (0.3, 0.45, 0.6)


def enter(thing: Any) -> Contender:
    """A contender of a score of channels (``scores``) or of weights (``saliency(model, data) -> {layer: tensor like its weight}``), of a schedule
    (``schedule(step, steps, ratio) -> share of zeros``: magnitude along it, 60 steps), or of a whole method (``compress``). A class is called first."""
    method = thing() if isinstance(thing, type) else thing

    def pruned(ratio: float, replica: int) -> Pruned:
        small = pruner.apply(vision.dense("vgg-small", replica), ratio, vision.labelled(), vision.EXAMPLE)
        if ratio:
            reestimate_batchnorm(small.model, vision.calibration())
        return small

    pruner = Pruner(method, "weight", "global") if hasattr(method, "saliency") else Pruner(method) if hasattr(method, "scores") else None
    for name, make in (("saliency", lambda: Contender(pruned)), ("scores", lambda: Contender(pruned, grid={"ratio": FEW})),
                       ("schedule", lambda: weights_by(method.schedule, *TUNED)),
                       ("compress", lambda: from_trained(lambda model, ratio, seed: compressed(method, model, ratio, seed, "vgg-small")))):
        if callable(getattr(method, name, None)):
            return make()
    raise StudyError(f"{type(method).__name__} has none of saliency, scores, schedule and compress: see workbench.papers.pruning.board_vgg_bytes.enter")


STUDY = Study(
    paper="board vgg-small/bytes",
    name="vgg-small/bytes",
    track=vision.VGG_BYTES,
    knobs=(Knob("ratio", sorted({0, *GRID, *FEW}), 0.8, quick=(0.5, 0.8, 0.9), neutral=0, label="share of the weights, or of each layer's filters, removed"),),
    contenders={
        "magnitude": one_shot(Pruner("l1", "weight", "global"), role="paper", grid={"ratio": GRID}),
        "magnitude, equal shares": one_shot(Pruner("l1", "weight"), grid={"ratio": GRID}),
        "OBD": one_shot(Pruner("obd", "weight", "global"), grid={"ratio": GRID}),
        "SNIP, of the trained net": one_shot(Pruner("snip", "weight", "global"), grid={"ratio": GRID}),
        "random weights": one_shot(Pruner("random", "weight", "global"), role="control", grid={"ratio": GRID}),
        "kernels by L1": one_shot(Pruner("l1", "kernel"), grid=FILTERS),
        "filters by FSCL": one_shot(Pruner(FSCL()), grid=FILTERS, source="2304.13397"),
        "filters by L1": one_shot(Pruner("l1"), grid=FILTERS),
        "filters by FPGM": one_shot(Pruner("fpgm"), grid=FILTERS),
        "filters by Taylor": one_shot(Pruner("taylor"), grid=FILTERS),
        "filters by ThiNet": one_shot(Pruner("thinet"), grid=FILTERS),
        "random filters": one_shot(Pruner("random"), role="control", grid=FILTERS),
        "at once, tuned": weights_by(procedures.at_once, *TUNED),
        "iterative, tuned": weights_by(procedures.rounds, *TUNED),
        "gradual, tuned": weights_by(procedures.cubic, *TUNED),
        "ADMM, tuned": from_trained(procedures.admm, *TUNED),
        "lottery ticket": trained(lambda ratio, replica, seed: lottery_ticket("vgg-small", ratio, replica, seed), *TUNED),
        "SNIP, before training": trained(before_training, *TUNED),
        "filters by L1, tuned": from_trained(lambda model, ratio, seed: procedures.cut_and_tune(model, Pruner(L1()), ratio, seed), *FEW),
        "filters, soft, tuned": from_trained(procedures.soft, *FEW),
        "small net from scratch": trained(procedures.small_from_scratch, *FEW, role="control"),
        "dense": Contender(lambda replica: vision.dense("vgg-small", replica), role="control"),
    },
    ablations={}, checks=(), claims=(), parts={}, picture=shares_kept, exercise=None, enter=enter, absent=OWN_TRACK,
)
