r"""# IPLT — prune before the network is trained

**Really should we pruning after model be totally trained? Pruning based on a small amount of training** (Yue, Zhao and Shang, 2019).

The usual order is: train a large network to the end, prune it, tune what is left. If the filters that will be small at the end are small after a few epochs
already, most of that first training is spent on filters that are going to be thrown away. Incremental pruning based on less training (IPLT) trains
$E_0$ epochs, then takes away a little at a time while training goes on. Every step after a cut is a step of a smaller network, so that the *training* gets
cheaper and not only its result.

```text
  epochs   0 ……… E₀ │ E_i │ E_i │ …  │ E_i │ ………………………… E
                    ▼     ▼     ▼          ▼
  cut            t = 1   t = 2  …        t = K            widths  N_l → N_l·(1 − R_l·s(t)),  s(t) = t/K
  per cut:   filter ─ its γ, β, μ, σ² ─ the columns that read it ─ the same entries of the momentum
  cost       3·MACs(network now)·images, added up over all steps
```

The criterion is the simplest on purpose: the score of a filter $W_i\in\mathbb{R}^{C\times k\times k}$ is its mean magnitude,

$$s_i=\frac{1}{C k^2}\lVert W_i\rVert_1,\qquad \text{kept after round } t:\ N_l\,(1-R_l\,t/K),$$

and within a layer the lowest go. $R_l$ is the same for all layers, with the smallest value that leaves 12 % of the parameters, or comes from a scan of the
*partly trained* net, layer by layer (`sensitivity`). A training step costs one forward and two more passes' worth of multiply–accumulates, so a run costs

$$\sum_{\text{steps}} 3\cdot \mathrm{MACs}(\text{network at this step})\cdot \text{batch},$$

against $3\cdot\mathrm{MACs}(\text{dense})\cdot\text{images}\cdot E$ *before* the first cut in the traditional order. Memory is another matter: what a batch keeps for its
backward pass is at its highest while the net is still dense, so that only $E_0=0$ lowers the peak.

**What to look for.** In the picture of a run, the lines fall in $K$ steps and so does the cost of an epoch. The picture of a cut by young ranks shows the filters' places
after a few epochs against their places at the end: a cloud at first, then a diagonal. Ask two questions apart. Do the ranks settle early? And does it matter
which filters go at all, once training goes on? The control `random filters, same schedule` answers the second. And mind the learning rate: in the dense run it falls
to a tenth after epoch 5, and from then on norms hardly move. That ranks of epoch 5 agree with those of epoch 10 says as much about the rate as about filters;
the ranks of epochs 1 to 3 are the harder test.

Reconstructed (the abstract gives the idea and the results): the schedule, one epoch a round, equal shares, the rates (the dense run's, but never lowered before the
last round is over). Ten-fold acceleration of training needs $E_0/E<0.1$: with ten epochs in all, a single dense one takes a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...benches import training
from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.probe import with_gradients
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _iplt_checks as checks
from ._iplt_contenders import chance, cut_by, dense, small_from_scratch, steps, trained, trained_first
from ._iplt_surgery import FilterNorm, kept, overlap, rank_correlation, sensitivity, shrink
from ._iplt_trainer import IPLT, Epoch, Trainer, training_macs
from .classics import Random

__all__ = ["IPLT", "PROBE", "STUDY", "Epoch", "Trainer", "overlap", "rank_correlation", "sensitivity", "shrink", "training_macs"]


def PROBE() -> dict:
    """What `workbench probe` times (see `steps`); it trains."""
    return {label: with_gradients(act) for label, act in steps().items()}


# --- claims -----------------------------------------------------------------------------------------------------------------------------------------

def gain(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Callable[[Measurements], Estimate]:
    """Accuracy of the subject at some knob values above that at others, by a point at least."""

    def test(m: Measurements) -> Estimate:
        high, low = (m.rows(**DEFAULT | values).groupby("replica").accuracy.mean() for values in (ours, theirs))
        return estimate((high - low).dropna().to_numpy(), 1)

    return test


# --- picture ----------------------------------------------------------------------------------------------------------------------------------------

def run_or_ranks(point: dict, exhibits: Mapping[str, np.ndarray]):
    """A run: each layer's filters and an epoch's cost, epoch by epoch. A cut by young ranks: every filter's place then against its place at the end."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if "young" in exhibits:
        figure = go.Figure()
        for i in range(int(exhibits["layer"].max()) + 1):
            chosen = exhibits["layer"] == i
            young, old = (np.round(exhibits[name][chosen].astype(float) / 255, 3).tolist() for name in ("young", "trained"))
            figure.add_scatter(x=young, y=old, mode="markers", name=f"layer {i + 1}", marker={"size": 6, "symbol": i})
        return figure.update_layout(height=360, margin={"l": 10, "r": 10, "t": 40, "b": 40}, title={"text": "places of the filters (1 is the largest)", "font": {"size": 14}},
                                    xaxis={"title": {"text": "by the ranks used"}, "constrain": "domain"}, yaxis={"title": {"text": "by the trained net"}, "scaleanchor": "x"})
    if "widths" not in exhibits:
        return go.Figure(layout={"title": {"text": "trained as it is, nothing pruned"}, "height": 120})
    figure = make_subplots(1, 2, subplot_titles=("filters", "cost of an epoch (% of a dense one)"), horizontal_spacing=0.13)
    widths, cost = exhibits["widths"].astype(int), exhibits["cost"].astype(float) / 10
    epochs = list(range(1, len(widths) + 1))
    for i in range(widths.shape[1]):
        figure.add_scatter(x=epochs, y=widths[:, i].tolist(), mode="lines", name=f"layer {i + 1}", row=1, col=1,
                           line={"shape": "hvh", "width": 5 - 3 * (i % 2), "dash": ("solid", "dot")[i % 2], "color": "#222222" if i % 2 else ("#56B4E9", "#E69F00", "#CC79A7")[i // 2 % 3]})
    figure.add_bar(x=epochs, y=cost.tolist(), marker_color="#0072B2", showlegend=False, row=1, col=2)
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(height=320, margin={"l": 10, "r": 10, "t": 40, "b": 40})


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''def cost_of_training(widths, epochs_dense, images, macs):
    """widths: what each later epoch's network looks like, a list of tuples; macs(widths) -> MACs of one forward pass of one image; widths[0] is the dense
    network, which is trained for epochs_dense epochs before the others take one epoch each. Return the MACs of the whole training."""
    return macs(widths[-1]) * images            # one forward pass of the last network: that is not what training costs
'''
SOLUTION = '''def cost_of_training(widths, epochs_dense, images, macs):
    dense, *later = widths
    return 3 * images * (epochs_dense * macs(dense) + sum(macs(now) for now in later))
'''


def _check_exercise(namespace: dict) -> None:
    def macs(widths):
        return sum(a * b for a, b in zip((1, *widths), widths, strict=False))

    got = namespace["cost_of_training"]([(4, 4), (2, 2)], 2, 10, macs)
    assert got != 10 * macs((2, 2)), "count every step of training, with the network as it was then"
    assert got % 3 == 0, "a step is a forward pass and a backward one of twice its cost"
    assert got == 3 * 10 * (2 * 20 + 6), f"two dense epochs and one of the small network: {3 * 10 * 46}, not {got}"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

YOUNG, KEEP = (0, 1, 2, 3, 5, 10), (0.05, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RUNS, ENDS = {"pretrain": (0, 1, 2, 5), "keep": (0.12, 0.3), "rounds": (1, 4)}, {"keep": (0.12,)}
DEFAULT = {"pretrain": 1, "keep": 0.12, "rounds": 4}
AT_12 = {name: (value,) for name, value in DEFAULT.items()}
AT_HALF = {"of": "trained net cut by young ranks", "pretrain": 1, "keep": 0.5}

STUDY = Study(
    paper="1901.08455",
    name="iplt",
    track=training.PARAMS,
    method=IPLT(),
    knobs=(Knob("pretrain", YOUNG, 1, quick=(1, 5), label="epochs of training before filters are ranked"),
           Knob("keep", KEEP, 0.12, quick=(0.12, 0.5), neutral=1.0, label="share of the parameters kept"),
           Knob("rounds", (1, 4), 4, label="cuts, an epoch after each")),
    contenders={
        "IPLT": trained(IPLT(), role="paper", grid=RUNS),
        "IPLT, shares by sensitivity": trained(IPLT(), scanned=True, grid=AT_12),
        "trained first, iterative": trained_first(4, grid=ENDS),
        "trained first, one shot": trained_first(1, grid=ENDS),
        "random filters, same schedule": chance(role="control", grid=AT_12),
        "small net from scratch": small_from_scratch(grid=ENDS),
        "trained net cut by young ranks": cut_by(),
        "trained net cut by ranks of epoch 5": cut_by(5),
        "trained net cut by its own ranks": cut_by(10),
        "trained net cut at random": cut_by(criterion=Random(), role="control"),
        "dense": dense(),
    },
    ablations={
        "masks only": Ablation("4 removal", subject=checks.MasksOnly()),
        "momentum of other filters": Ablation("4 removal", subject=checks.OthersMomentum()),
        "cold momentum": Ablation("4 removal", subject=IPLT(warm=False)),
        "all at first": Ablation("3 schedule", subject=checks.AllAtFirst()),
        "cubic": Ablation("3 schedule", subject=IPLT(shape="cubic")),
        "random ranks": Ablation("2 criterion", subject=checks.by_chance()),
        "ranks before training": Ablation("1 pre-training", cut_by(0)),
    },
    checks=(
        Check("dead filters", "Filters that are zero, γ and β included, are the lowest, and taking them out changes no logit", checks.dead_filters),
        Check("momentum", "The cut momentum consists of the matching entries of the old one, bit for bit", checks.momentum_slices),
        Check("K = 1 is the old way", "One round after a whole training equals a plain loop that trains, cuts once and trains on, bit for bit", checks.one_round_is_the_old_way),
        Check("schedule", "Widths, moments and phases of three rounds equal those worked out by hand", checks.schedule_by_hand),
        Check("cost", "The log's MACs are those of the rebuilt networks, fall with every round, and the end has the parameters asked for", checks.cost_is_counted),
        Check("criterion", "The score is a filter's mean magnitude, and the lowest go", checks.ranks_by_hand),
    ),
    claims=(
        Claim("as good as training first", "At 12 % of the parameters, with one epoch of pre-training, IPLT is at most 1 point below training to the end and pruning step by step",
              better("accuracy", "trained first, iterative", by=-1, **DEFAULT), paper="competitive with pruning after full pre-training (abstract)",
              reason="the other way trains nine epochs more"),
        Claim("cheaper training", "Its training takes at most 0.4 of the MACs of training to the end, one cut and tuning",
              bound("training_share", at_most=0.4, relative_to="trained first, one shot", **DEFAULT)),
        Claim("ten times cheaper", "Its training takes at most a tenth of them", bound("training_share", at_most=0.1, relative_to="trained first, one shot", **DEFAULT),
              paper="VGG-19 on CIFAR-10: about 10x training acceleration (abstract)",
              reason="one dense epoch of ten is a tenth by itself, and the rounds come on top; the paper's budget is over a hundred epochs"),
        Claim("accuracy is kept", "At 12 % of the parameters, IPLT is at most 1 point below the dense net", better("accuracy", "dense", by=-1, **DEFAULT),
              paper="VGG-19 on CIFAR-10: 8 to 9x compression with negligible loss (abstract)",
              reason="the net has 41 thousand parameters, VGG-19 twenty million: here an eighth is too small for the task"),
        Claim("ranks settle", "After 5 of 10 epochs, the best 35 % of each layer's filters overlap with the trained net's by at least 0.55 (chance: 0.35)",
              bound("overlap", at_least=0.55, of="trained net cut by ranks of epoch 5", keep=0.5)),
        Claim("ranks show early", "After the first epoch, at the highest rate, that overlap is at least 0.55 already", bound("overlap", at_least=0.55, **AT_HALF)),
        Claim("young ranks serve", "The trained net, cut to half of its parameters by its ranks of epoch 5 and not tuned, is at least 5 points above a random cut",
              better("accuracy", "trained net cut at random", by=5, of="trained net cut by ranks of epoch 5", keep=0.5)),
        Claim("as well as its own", "That cut is at most 3 points below the cut by the trained net's own ranks",
              better("accuracy", "trained net cut by its own ranks", by=-3, of="trained net cut by ranks of epoch 5", keep=0.5)),
        Claim("a first epoch's ranks serve as well", "The same cut by the ranks of epoch 1 is at most 3 points below that by the trained net's own",
              better("accuracy", "trained net cut by its own ranks", by=-3, **AT_HALF), paper="a few epochs suffice to choose filters (abstract)",
              reason="after one epoch of ten the best third is right for two filters in three only"),
        Claim("not worse than chance", "IPLT is at most half a point below random filters on the same schedule", better("accuracy", "random filters, same schedule", by=-0.5, **DEFAULT),
              reason="training goes on, and repairs most choices: the counts matter, not the filters"),
        Claim("not worse than small from scratch", "IPLT is at most 1 point below a net of its final widths trained for as many epochs",
              better("accuracy", "small net from scratch", by=-1, **DEFAULT)),
        Claim("small steps", "Four cuts are at least 1 point better than a single one after the same first epoch", gain({}, {"rounds": 1}),
              reason="a single cut gives the small net more epochs of the ten, which weighs as much as gentle steps"),
        Claim("pre-training matters", "Five epochs before the first cut give at least 1 point more than none", gain({"pretrain": 5}, {"pretrain": 0}),
              reason="the budget is the same: epochs spent before the first cut are missing behind the last, and the small net ends with a single epoch at a lowered rate"),
        Claim("layers differ", "Shares from a scan of the net after its first epoch are at least 1 point better than equal ones",
              better("accuracy", "IPLT", by=1, of="IPLT, shares by sensitivity", **DEFAULT),
              reason="alone, the young net hardly misses its first layer's filters, so that a single one of them is left in some runs (see the picture): too few once the net is trained"),
    ),
    parts={
        "1 pre-training": Part(Trainer.fit, "as well as its own", "ranks before training"),
        "2 criterion": Part(FilterNorm.scores, "criterion", "random ranks"),
        "3 schedule": Part(kept, "schedule", "all at first", reconstructed=True),
        "3 shares from a scan": Part(sensitivity, "layers differ", reconstructed=True),
        "4 removal": Part(shrink, "momentum", "momentum of other filters"),
        "5 final training": Part(Trainer.fit, "K = 1 is the old way", "cold momentum"),
        "6 cost of training": Part(training_macs, "cost", "masks only"),
        "7 stability of ranks": Part(overlap, "ranks settle", "ranks before training"),
        "8 comparison": Part(trained_first, "as good as training first"),
    },
    time_limit=300.0,
    picture=run_or_ranks,
    exercise=Exercise("Count what a training costs whose network shrinks on the way.", STUB,
                      ["A step costs a forward pass and a backward one, which is twice as dear.", "Each epoch is paid with the network as it is in that epoch.",
                       "The dense network is paid epochs_dense times."], _check_exercise, SOLUTION),
)
