r"""# Pruning on the edge — a map whose leaves run

**Pruning Algorithms to Accelerate Convolutional Neural Networks for Edge Applications: A Survey** (Liu et al., 2020).

A survey sorts; this one can also be run. Every pruning method answers the same five questions, and the tree below is those answers:

```text
  what goes?        which ones?            when?              how many where?      for whom?
  weights           magnitude  |w|         once, then tune    the same share       every image alike
  rows, kernels     loss  ½hw², Σa·g       in rounds          one threshold        or each image its own
  channels    ──►   activations      ──►   along a cubic ──►  as the loss    ──►
  blocks            reconstruction         softly, pulled     allows, or by
                    similarity             before training    search
```

*What goes* decides what is gained. Zeros anywhere cost least accuracy per byte, yet a dense kernel multiplies them as before; whole channels make every
tensor smaller. A sparse file pays for its indices, and this bench counts them: values plus a bitmap or 4/8-bit gaps, whichever is smaller, as written.

*Which ones*: the formulas side by side, for a filter $W$ with maps $a$ and gradients $g$:

| magnitude | $\lVert W\rVert_1,\ \lVert W\rVert_2$ | OBD | $\tfrac12\sum E[g_w^2]\,w^2$ |
|---|---|---|---|
| Taylor | $E\,\lvert\sum_{hw} a\,g\rvert$, per layer ÷ its L2 norm | APoZ | $-P(a=0)$ |
| FPGM | $\sum_j\lVert W_i-W_j\rVert_2$ | ThiNet | $\arg\min\sum(\sum_{\text{dropped}}x)^2$, then least squares |

*When*: gradual pruning follows $s_t=s_f\,(1-(1-t/T)^3)$; ADMM alternates $Z=\Pi(W+U)$, $U\mathrel{+}=W-Z$; soft pruning lets zeroed filters come back.

**What to look for.** Before tuning, criteria differ by tens of points, and those that only look at activations lose even to chance: a channel that is
silent most of the time is often the one that speaks when it matters. After a few dozen steps most of the gap is gone. So every contender here has the
same steps and the same batch-norm re-estimation, and random choice and a small dense net trained from nothing stand beside them. `ratio` is the share
of the units that go: channels of each layer, or weights.

Reconstructed: parts of the tree (abstract, list of abbreviations and introduction were at hand); formulas are those of the cited originals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import torch

from ...benches import vision
from ...contracts.files.sparse import save_sparse
from ...contracts.structure.surgery import channel_groups, forward, remove, select
from ...core.claims import Estimate, better, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import exercise_pictures, procedures
from . import survey_checks as checks
from . import survey_field as field
from .classics_of_data import ThiNet, criterion
from .compare import compare_pruners, costs, pareto, prune  # noqa: F401 - what a reader of this page calls on a model of their own
from .gating import gate
from .granularity import Pruner, allocate, keep
from .survey_checks import Engine
from .taxonomy import leaves, resolve, taxonomy_map

WEIGHTS, CHANNELS, MIDDLE = {"ratio": (0.6, 0.8)}, {"ratio": (0.3, 0.45)}, (0.3, 0.45, 0.6)

# --- claims -------------------------------------------------------------------------------------------------------------------------------------


def accuracy(m: Measurements, name: str, ratios: Sequence[float]) -> pd.Series:
    """Accuracy by replica and ratio, at these ratios."""
    rows = m.rows(name)
    return rows[rows.ratio.round(6).isin(ratios)].groupby(["replica", "ratio"]).accuracy.mean()


def above_random(of: str, by: float) -> Callable:
    """``of`` against random channels, averaged over 30, 45 and 60 % of each layer's channels."""

    def test(m: Measurements) -> Estimate:
        difference = accuracy(m, of, MIDDLE) - accuracy(m, "random", MIDDLE)
        return estimate(difference.dropna().groupby("replica").mean().to_numpy(), by)

    test.of = of
    return test


def at_ratio(of: str, than: str, by: float, ratio: float) -> Callable:
    return better("accuracy", than, by, of=of, ratio=ratio)


def share_of(of: str, than: str, least: float) -> Callable:
    """The accuracy of ``of`` as a share of that of ``than``, at 90 % zeros."""

    def test(m: Measurements) -> Estimate:
        return estimate((accuracy(m, of, (0.9,)) / accuracy(m, than, (0.9,))).dropna().to_numpy(), least)

    test.of = of
    return test


SPREAD = ("Taylor", "ThiNet", "filters by L1", "APoZ", "random")


def tuning_levels(m: Measurements) -> Estimate:
    """The spread (standard deviation) over criteria before tuning minus that after, per replica."""
    spread = [pd.concat([accuracy(m, name, (0.45,)) for name in names], axis=1).dropna().std(axis=1)
              for names in (SPREAD, [f"{name}, tuned" for name in SPREAD])]
    return estimate((spread[0] - spread[1]).dropna().to_numpy(), 0.0)


tuning_levels.of = "Taylor, tuned"


def PROBE() -> dict[str, Callable]:
    """What to time: a batch of 32 through the dense net, through zeros, and through really smaller ones."""
    images, dense = vision.calibration()[:32], vision.dense(field.NET)
    groups = channel_groups(dense, vision.EXAMPLE)
    eights = select(groups, Pruner("l1").scores(groups, dense), dense, vision.EXAMPLE, 0.5, "uniform", round_to=8)
    nets = {"dense": dense, "80 % of the weights zero": Pruner("l1", "weight").apply(dense, 0.8).model,
            "half of the MACs gone": Pruner("l1").apply(dense, 0.3, example=vision.EXAMPLE).model,
            "half of the MACs gone, channels in eights": remove(dense, eights, vision.EXAMPLE, groups),
            "channels gone, as few bytes as 80 % zeros": Pruner("l1").apply(dense, 0.51, example=vision.EXAMPLE).model}
    run = torch.inference_mode()(forward)
    return {name: lambda net=net: run(net, images) for name, net in nets.items()}


# --- exercise -----------------------------------------------------------------------------------------------------------------------------------

STUB = '''def share(step, steps, final):
    """Share of weights that are zero at a step: a cubic from 0 to `final` at `steps`, constant after it."""
    return final * step / steps        # a straight line: as fast at the end, where every weight counts, as at the start
'''
SOLUTION = '''def share(step, steps, final):
    return final * (1 - (1 - min(step / steps, 1)) ** 3)
'''


def _check_exercise(namespace: dict) -> None:
    share = namespace["share"]
    assert abs(share(0, 10, 0.9)) < 1e-12 and abs(share(10, 10, 0.9) - 0.9) < 1e-12, "it starts at 0 and ends at `final`"
    assert abs(share(25, 10, 0.9) - 0.9) < 1e-12, "after `steps` it stays at `final`"
    assert abs(share(5, 10, 0.8) - 0.7) < 1e-9, "half-way seven eighths of the way are done: 1 − (1/2)³"


# --- the study ----------------------------------------------------------------------------------------------------------------------------------

MISDIRECTED = tuple(replace(leaf, key="0000.00000") if leaf.title == "AMC" else leaf for leaf in leaves())

STUDY = Study(
    paper="2005.04275",
    name="pruning-survey",
    track=vision.VGG_BYTES,
    method=Engine(),
    knobs=(Knob("ratio", (0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.95), 0.45, quick=MIDDLE, neutral=0, label="share removed"),),
    contenders={
        "Taylor": field.one_shot(Pruner(), role="paper", subject=Engine()),
        "random": field.one_shot(Pruner("random"), role="control"),
        "filters by L1": field.one_shot(Pruner("l1"), grid=CHANNELS),
        "weights by magnitude": field.one_shot(Pruner("l1", "weight"), grid=WEIGHTS, replicas=3),
        **{name: field.recorded(Pruner(key), *MIDDLE, replicas=5) for name, key in {"OBD": "obd", "ThiNet": "thinet", "APoZ": "apoz"}.items()},
        **{name: field.recorded(Pruner(key), 0.3, 0.45) for name, key in {
            "filters by L2": "l2", "SNIP": "snip", "batch-norm scale": "bn-gamma", "mean activation": "mean activation", "entropy": "entropy",
            "FPGM": "fpgm", "k-means filters": "k-means", "consumer norm": "consumer norm"}.items()},
        **{name: field.recorded(Pruner("l1", unit), 0.6, 0.8)
           for name, unit in {"kernel rows": "row", "kernels": "kernel", "strided positions": "strided"}.items()},
        **{name: field.recorded(Pruner("l1", allocation=how), 0.3, replicas=5) for name, how in {
            "one threshold for all layers": "global", "sensitivity scan": "sensitivity", "searched shares": "searched"}.items()},
        "gated per image": field.gated(0.3, 0.45),
        "weights, at once": field.weights_by(procedures.at_once, 0.9, 0.95),
        "weights, in rounds": field.weights_by(procedures.rounds, 0.9),
        "weights, gradually": field.weights_by(procedures.cubic, 0.9, 0.95),
        "ADMM": field.from_trained(procedures.admm, 0.9),
        "lottery ticket": field.trained(field.lottery, 0.9),
        "SNIP before training": field.trained(field.before_training, 0.9),
        **{f"{name}, tuned": field.tuned(key) for name, key in zip(SPREAD, ("taylor", "thinet", "l1", "apoz", "random"), strict=True)},
        "soft filters": field.from_trained(procedures.soft, 0.45),
        "group LASSO": field.from_trained(procedures.group_lasso, 0.45),
        "slimming": field.from_trained(procedures.slimming, 0.45),
        "small net from scratch": field.trained(procedures.small_from_scratch, 0.45, role="control"),
    },
    ablations={
        "inverted": Ablation("3 criteria", field.one_shot(Pruner(inverted=True), grid={"ratio": (0.45,)}), Engine(inverted=True)),
        "one formula under all names": Ablation("3 criteria", subject=checks.OneFormula()),
        "masks and dense files": Ablation("2 sparsity structure", subject=checks.MasksOnly()),
        "without least squares": Ablation("3.5 reconstruction", subject=checks.NoLeastSquares()),
        "nothing grows back": Ablation("4 procedure", subject=checks.HardZeros()),
        "a leaf that points nowhere": Ablation("7 alternatives", subject=Engine(tree=MISDIRECTED)),
    },
    checks=(
        Check("neutral", "At ratio 0 every criterion, granularity and allocation returns the dense net bit for bit", checks.neutral),
        Check("masked = rebuilt", "Zeroed channels and smaller tensors give the same logits, for every criterion", checks.masked_equals_rebuilt),
        Check("achieved ratio", "What is left is within one channel (weight, row, kernel, position) of the ratio asked for", checks.achieved_ratio),
        Check("sparse file", "Nine weights of ten zero: the file written gives every tensor back, and is less than a sixth of the dense one",
              checks.sparse_file),
        Check("formulas", "Taylor, OBD, FPGM, APoZ and ThiNet equal their formulas written out in loops", checks.formulas),
        Check("duplicate repaired", "ThiNet's least squares makes up exactly for a channel that another repeats", checks.duplicate_repaired),
        Check("regrowth", "Softly pruned filters keep their gradients", checks.regrowth),
        Check("blocks", "A dropped residual block is its silenced branch, with its work gone", checks.blocks_dropped),
        Check("complete map", "Every leaf of the tree is in the catalogue or among the classics; no branch is empty", checks.complete_map),
    ),
    claims=(
        Claim("weights beat filters per byte", "In files of equal size, zeroed weights keep at least 1 point more accuracy than whole filters",
              better("accuracy", "filters by L1", 1, of="weights by magnitude", at_equal="bytes", over=(75, 135)), paper="fine-grained pruning compresses most (section 3)"),
        Claim("Taylor beats random", "Averaged over 30, 45 and 60 % of the channels gone, without tuning, Taylor is at least 3 points above random",
              above_random("Taylor", 3)),
        Claim("OBD beats random", "OBD is at least 3 points above random", above_random("OBD", 3),
              reason="at 60 % the narrow net is near chance whatever is kept, and OBD adds up single weights: what a whole filter does is not their sum"),
        Claim("ThiNet beats random", "ThiNet with its least squares is at least 3 points above random", above_random("ThiNet", 3)),
        Claim("the order matters", "Random is at least 3 points above removing what Taylor values most", at_ratio("random", "inverted", 3, 0.45)),
        Claim("silence tells", "Channels that are mostly zero can go: APoZ is not below random", above_random("APoZ", 0),
              paper="Network Trimming prunes by zeros (section on activations)",
              reason="on this bench a channel that rarely fires is a specialist: what it says, when it speaks, is said by no other"),
        Claim("gradually beats at once, 90 %", "After equal steps a cubic schedule is at least 1 point above a single cut",
              at_ratio("weights, gradually", "weights, at once", 1, 0.9),
              reason="60 steps are a third of an epoch; after the schedule a quarter of them is left to repair, a single cut has them all"),
        Claim("gradually beats at once, 95 %", "The same at 95 % zeros", at_ratio("weights, gradually", "weights, at once", 1, 0.95),
              reason="so few steps repair neither net, and three replicas differ by more than the procedures do"),
        Claim("rounds beat at once", "Three rounds of cutting and tuning are at least 1 point above a single cut, after equal steps",
              at_ratio("weights, in rounds", "weights, at once", 1, 0.9),
              reason="the steps are few: after the last round only a quarter of them is left to repair"),
        Claim("searched shares beat equal ones", "At equal MACs, the best of 24 policies on validation data is at least 1 point above equal shares",
              at_ratio("searched shares", "filters by L1", 1, 0.3), paper="AMC and the like allocate by learning"),
        Claim("scanned shares beat equal ones", "As many channels removed, but from the layers that bear it: at least 1 point above equal shares",
              at_ratio("sensitivity scan", "filters by L1", 1, 0.3),
              reason="the scan prunes one layer at a time, and losses of several layers do not add up"),
        Claim("tuning levels criteria", "The spread over criteria is smaller after tuning than before", tuning_levels),
        Claim("pruned beats small", "Pruned and tuned is at least 10 points above a small dense net trained from nothing for as many steps",
              at_ratio("Taylor, tuned", "small net from scratch", 10, 0.45)),
        Claim("a ticket beats a guess", "From the first weights, in as many steps, the trained net's mask reaches at least half of the accuracy of the trained, "
              "pruned and tuned weights; SNIP's mask from before training does not", share_of("lottery ticket", "weights, at once", 0.5)),
        Claim("gating needs no training", "Choosing channels per image by its input is not below random fixed channels", at_ratio("gated per image", "random", 0, 0.45),
              reason="the predictor is not trained here, and nothing re-estimates what skipped channels shift; published gates are learnt with the net"),
    ),
    parts={
        "1 metrics": Part(costs, "blocks", "masks and dense files"),
        "2 sparsity structure": Part(keep, "achieved ratio", "masks and dense files"),
        "2 sparse storage": Part(save_sparse, "sparse file", "masks and dense files"),
        "3 criteria": Part(criterion, "formulas", "one formula under all names"),
        "3.5 reconstruction": Part(ThiNet.repair, "duplicate repaired", "without least squares"),
        "4 procedure": Part(procedures.scheduled, "gradually beats at once, 90 %"),
        "4 soft masks": Part(Pruner.soften, "regrowth", "nothing grows back"),
        "5 ratio allocation": Part(allocate, "searched shares beat equal ones"),
        "6 conditional": Part(gate, "gating needs no training"),
        "7 alternatives": Part(resolve, "complete map", "a leaf that points nowhere"),
        "8 applications": Part(leaves, "complete map", "a leaf that points nowhere", reconstructed=True),
        "9 challenges": Part(field.one_shot, "the order matters", "inverted"),
    },
    picture=taxonomy_map,
    time_limit=900,
    exercise=Exercise("Write the gradual schedule: how many weights are zero at each step?", STUB,
                      ["The share rises fast while there is much to spare.", "1 − (1 − t/T)³ goes from 0 to 1.", "After T the share no longer changes."],
                      _check_exercise, SOLUTION, exercise_pictures.schedule),
)
