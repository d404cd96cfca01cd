r"""# PFGDF — prune what is improbable

**PFGDF: Pruning Filter via Gaussian Distribution Feature for Deep Neural Networks Acceleration** (Xu et al., 2020; third version 2022).

Write one number under each filter of a trained layer, and the numbers form a heap in the middle with thin tails: roughly a Gaussian. PFGDF takes the heap for
what the layer is about and deletes filters that are *insignificant in that distribution*. No image is looked at, no gradient, no sensitivity. What remains to
be found is how wide the heap is, and that a search finds by trying: narrow the interval, prune, tune, measure; when accuracy cannot be restored, go back.

```text
  filters (N, C, k, k) ──► s_i = mean of W_i ──► μ, σ of the layer ──► stays if |s_i − μ| ≤ α·σ
                                                       ▲                       │
        from the last layer to the first:   α = 3, 2.8, 2.6 …                  ▼
        accuracy ≥ dense − ε ?  accept, go on narrower   ◄── tune ◄── remove filters, BN, next slices
                                refuse, roll back, next layer
```

With $s_i=\frac{1}{Ck^2}\sum W_i$ and the layer's mean $\mu$ and deviation $\sigma$ the filters that stay are

$$K_\alpha=\{\,i:\ |s_i-\mu|\le\alpha\,\sigma\,\},\qquad \frac{|K_\alpha|}{N}\approx\operatorname{erf}\!\left(\frac{\alpha}{\sqrt2}\right).$$

Of an exact Gaussian $\alpha=0.43$ keeps a third. No filter of $N$ can lie further out than $(N-1)/\sqrt N$ deviations, so $\alpha=8$ keeps every filter of layers of up
to 65: the slider's neutral end. A filter's number takes microseconds; the search pays for its tuning (bisection needs a fifth of the trials).

**What to look for.** Shapiro–Wilk rejects no layer here (with 16 to 64 filters a mild test). The abstract does not say which number, nor which side goes; both are switches, and the choice is put to the test. *Inside* and *tails* are exact opposites, and
in the picture one keeps the orange that the other keeps blue. Every rival gets the same number of filters in every layer, so only the *choice* differs: if
random filters do as well, the counts carry the result, and the Gaussian has only distributed them. The rule has a hole, too: a filter scaled to nothing has
$s\approx0\approx\mu$ and is the safest of all (check *dead filters stay*).

On the bench the search may lose 2 points of 500 validation images (their standard error is 1.3), with a dozen steps after each trial; half a point, the default, it
never meets with so few.

Reconstructed: the statistic (signed mean by default), the rule, the order and the steps of the widths, refitting a layer on its own tuned filters when its turn comes. In residual streams a channel goes where *all* layers that
write it would delete theirs. Layers of fewer than eight filters are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import nn

from ...benches import vision
from ...contracts.model import finetune, inputs_and_labels
from ...contracts.structure.surgery import reestimate_batchnorm
from ...contracts.structure.tuning import batches
from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _pfgdf_checks as checks
from . import fine_tuned, untouched
from ._pfgdf_contenders import NARROW, at_width, equal_counts, gaussian, searched, tuned
from ._pfgdf_method import PFGDF, WIDEST, Searched, WidthSearch, filter_statistic, normality, pfgdf_mask, predicted_share, standardised
from .classics import FPGM, L1, BatchNormScale, Random

__all__ = ["PFGDF", "PROBE", "STUDY", "WidthSearch", "normality", "pfgdf_mask", "pfgdf_prune", "predicted_share"]


# --- on your own model --------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def accuracy(model: nn.Module, loader: Iterable) -> float:
    """Per cent of a loader's labels that the model's largest output names."""
    right = total = 0
    for inputs, labels in batches(loader):
        if labels is None:
            raise ValueError("val_loader: accuracy needs batches of (inputs, labels)")
        right, total = right + int((model(inputs).argmax(1) == labels).sum()), total + len(labels)
    return 100 * right / total


def pfgdf_prune(model: nn.Module, train_loader: Iterable, val_loader: Iterable, tol: float = 0.5, statistic: str = "sum", keep: str = "inside",
                steps: int = 60, bisect: bool = True) -> Searched:
    """The automatic search: ``tol`` points of validation accuracy may be lost, ``steps`` of tuning follow each trial.

    The result's ``model`` is really smaller; ``alpha`` is the width per layer, ``history`` every trial, ``skipped`` the layers with fewer than eight filters.
    ValueError: σ = 0 in a layer, no layer large enough, a tolerance that the first trials cannot meet.
    """
    search = WidthSearch(PFGDF(statistic, keep), tol, bisect=bisect)
    inputs, _ = next(batches(train_loader))

    def tune(net: nn.Module) -> None:
        finetune(net, train_loader, steps)
        reestimate_batchnorm(net, (inputs_and_labels(batch)[0] for batch in train_loader))

    return search.run(model.eval(), inputs[:1], tune, lambda net: accuracy(net, val_loader))


# --- claims -------------------------------------------------------------------------------------------------------------------------------------


def rejected(m: Measurements) -> Estimate:
    """The share of layers in which Shapiro–Wilk rejects a Gaussian at p < 0.01, one value a replica."""
    rows = m.rows(alpha=1.0)
    return estimate([float((p < 0.01).mean()) for p in m.series(rows, "p")], 0.05, at_least=False)


def far_from_predicted(m: Measurements) -> Estimate:
    """By how much the share of filters left in a layer differs from erf(α/√2), on average over layers, one value a replica."""
    kept = m.series(m.rows(alpha=1.0), "kept")
    return estimate([float(np.abs(shares - predicted_share(1.0)).mean()) for shares in kept], 0.03, at_least=False)


def removed(of: str, least: float) -> Callable[[Measurements], Estimate]:
    """The share of all prunable filters that a contender has removed."""
    def test(m: Measurements) -> Estimate:
        rows = m.rows(of)
        return estimate([1 - float((kept * filters).sum() / filters.sum()) for kept, filters in zip(m.series(rows, "kept"), m.series(rows, "filters"), strict=True)], least)

    test.of = of
    return test


# --- picture ------------------------------------------------------------------------------------------------------------------------------------


def heaps(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Per layer every filter at its place in its layer's distribution, removed ones as crosses; of a search, its trials.

    ``exhibits``: layer → z in hundredths and ``out <layer>``; or ``trial accuracy`` (hundredths of a per cent), ``trial kept``, ``trial accepted``, ``trial layer``.
    """
    import plotly.graph_objects as go

    if "trial accuracy" in exhibits:
        good, figure = exhibits["trial accepted"].astype(bool), go.Figure()
        for label, which, colour, symbol in (("accepted", good, "#0072B2", "circle"), ("refused, rolled back", ~good, "#D55E00", "x")):
            spots = np.flatnonzero(which)
            figure.add_scatter(x=(spots + 1).tolist(), y=(exhibits["trial accuracy"][spots] / 100).round(2).tolist(), mode="markers+text", name=label,
                               text=[f"{k}" for k in exhibits["trial kept"][spots]], textposition="top center", marker={"size": 8, "color": colour, "symbol": symbol})
        return figure.update_layout(height=320, margin={"l": 10, "r": 10, "t": 36, "b": 40}, title={"text": "trials of the search (filters that the layer keeps)"},
                                    xaxis={"title": {"text": "trial, from the last layer to the first"}}, yaxis={"title": {"text": "validation accuracy (%)"}})
    layers = [name for name in exhibits if not name.startswith("out ")]
    figure = go.Figure()
    for label, gone, colour, symbol in (("kept", False, "#0072B2", "circle"), ("removed", True, "#D55E00", "x")):
        x, y = [], []
        for i, name in enumerate(layers):
            z = exhibits[name] / 100
            spots = np.flatnonzero(np.isin(np.arange(len(z)), exhibits[f"out {name}"]) == gone)
            order = np.argsort(np.argsort(z, kind="stable"), kind="stable")
            x += z[spots].round(2).tolist()
            y += (i + 0.7 * (order[spots] / max(1, len(z) - 1) - 0.5)).round(3).tolist()  # in order, like a QQ plot on its side
        figure.add_scatter(x=x, y=y, mode="markers", name=label, marker={"size": 6, "color": colour, "symbol": symbol})
    if "alpha" in point and point["alpha"] == point["alpha"]:
        for side in (-1, 1):
            figure.add_vline(x=side * float(point["alpha"]), line={"dash": "dash", "color": "#888888"})
    return figure.update_layout(height=120 + 50 * len(layers), margin={"l": 10, "r": 10, "t": 36, "b": 40},
                                title={"text": "filters in their layer's distribution (dashed: μ ± ασ)"}, xaxis={"title": {"text": "standard deviations from the mean"}, "range": [-4.2, 4.2]},
                                yaxis={"tickvals": list(range(len(layers))), "ticktext": layers, "autorange": "reversed", "automargin": True})


def PROBE() -> dict:
    """What `workbench probe` times: one image, and a batch of 32, through the dense net and through the net of the narrow interval."""
    nets = {"dense": vision.dense("vgg-small"), f"α = {NARROW}": fine_tuned(at_width(PFGDF(), NARROW, 0), 0, 1).model}
    images = vision.calibration()[:32]
    return {f"{label}, {name}": torch.inference_mode()(lambda net=net, x=x: net(x)) for label, net in nets.items()
            for name, x in (("one image", images[:1]), ("batch of 32", images))}


# --- exercise -----------------------------------------------------------------------------------------------------------------------------------

STUB = '''def keep(weight, alpha):
    """weight: (N, C, k, k) array of filters. Return (N,) bool: True for filters whose mean lies inside mu ± alpha·sigma of the layer's means."""
    size = np.abs(weight).sum((1, 2, 3))
    return size >= np.quantile(size, 0.5)        # this is magnitude pruning: it knows no distribution and no alpha
'''
SOLUTION = '''def keep(weight, alpha):
    s = weight.mean((1, 2, 3))
    return np.abs(s - s.mean()) <= alpha * s.std(ddof=1)
'''


def _check_exercise(namespace: dict) -> None:
    weight = np.random.default_rng(0).normal(size=(4000, 2, 3, 3))
    got = np.asarray(namespace["keep"](weight, 0.43))
    assert got.shape == (4000,) and got.dtype == bool, "one truth value a filter"
    assert abs(got.mean() - 1 / 3) < 0.03, f"of a Gaussian, 0.43 deviations keep a third, not {got.mean():.2f}"
    weight[0] = 5
    assert not namespace["keep"](weight, 2.0)[0], "a filter far out is improbable, so it goes, however large it is"
    assert (namespace["keep"](weight, 1.0) <= namespace["keep"](weight, 1.5)).all(), "a wider interval keeps whatever a narrower one keeps"


# --- the study ----------------------------------------------------------------------------------------------------------------------------------

AUTOMATIC = "automatic, tuned"
FEW, COARSE = {"alpha": (0.6, 1.0, 1.5)}, (2.5, 2.0, 1.5, 1.0, 0.6)
INSIDE, TAILS = gaussian(PFGDF(), role="paper", replicas=3), gaussian(PFGDF(keep="tails"), replicas=3)
RANDOM = equal_counts(Random(), role="control", replicas=3)
MILD = {"at_equal": "macs_share", "over": (0.3, 0.85)}

STUDY = Study(
    paper="2006.12963",
    name="pfgdf",
    track=vision.VGG_MACS,
    method=PFGDF(),
    knobs=(Knob("alpha", (0.2, 0.3, NARROW, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, WIDEST), 1.0, quick=(1.0,), neutral=WIDEST,
                label="half width of the interval (standard deviations)"),),
    contenders={
        "inside": INSIDE,
        "tails, as many": equal_counts(PFGDF(keep="tails"), replicas=3),
        "L1, as many": equal_counts(L1(), replicas=3),
        "random, as many": RANDOM,
        "FPGM, as many": equal_counts(FPGM(), evidence="recorded", grid=FEW, replicas=3),
        "BN scale, as many": equal_counts(BatchNormScale(), evidence="recorded", grid=FEW, replicas=3),
        "inside, by L1": gaussian(PFGDF("l1"), evidence="recorded", grid=FEW, replicas=3),
        "inside, by L2": gaussian(PFGDF("l2"), evidence="recorded", grid=FEW, replicas=3),
        "inside, equal shares": gaussian(PFGDF(), share=True, evidence="recorded", grid=FEW, replicas=3),
        "dense": untouched(),
        "inside, tuned": tuned(INSIDE),
        "tails, tuned": tuned(equal_counts(PFGDF(keep="tails"))),
        "L1, tuned": tuned(equal_counts(L1())),
        "random, tuned": tuned(RANDOM, role="control"),
        "inside, tuned longer": tuned(INSIDE, 93),
        AUTOMATIC: searched(WidthSearch(widths=COARSE, tolerance=2.0)),
    },
    ablations={
        "tails instead": Ablation("3 rule", TAILS),
        "magnitude under another name": Ablation("1 statistic", subject=WidthSearch(checks.SortedByNorm())),
        "mean magnitude": Ablation("2 fit", subject=WidthSearch(PFGDF("l1"))),
        "nothing is rolled back": Ablation("4 search", searched(WidthSearch(rollback=False, widths=(0.4,))), WidthSearch(rollback=False)),
        "masks only": Ablation("5 consistency", subject=WidthSearch(checks.MasksOnly())),
    },
    checks=(
        Check("interval by hand", "What stays is exactly {i : |s − μ| ≤ ασ} at every width, and a wider interval holds no less", checks.interval_by_hand),
        Check("Gaussian share", "Of 4,096 Gaussian filters erf(α/√2) stay, within 0.03", checks.gaussian_share),
        Check("normality", "Shapiro–Wilk, skewness: a planted Gaussian layer passes, a skewed one does not", checks.normality_seen),
        Check("dead filters stay", "Filters scaled to nothing lie inside the interval: the rule's weakness", checks.dead_filters_stay),
        Check("search", "No accepted step lies below the floor, refused ones leave no trace, bisection finds what walking finds, the log replays",
              checks.search_keeps_the_floor),
        Check("masked = rebuilt", "Zeroed and smaller tensors give the same logits: classifier columns, residual streams by intersection", checks.masked_equals_rebuilt),
        Check("neutral", "A width of 8 changes no bit", checks.widest_is_identity),
    ),
    claims=(
        Claim("layers are Gaussian", "Shapiro–Wilk rejects a Gaussian (p < 0.01) in at most 5 % of the layers", rejected,
              paper="the distribution of filters is close to a Gaussian (abstract)"),
        Claim("predicted share", "The share that a layer keeps differs from erf(α/√2) by at most 0.03 on average", far_from_predicted,
              reason="16 to 64 filters scatter: the share that an exact Gaussian of 32 filters keeps has a standard error of 0.08"),
        Claim("beats the tails", "At equal counts, before tuning, the inside is better than the tails", better("accuracy", "tails, as many", by=0, **MILD),
              paper="insignificant filters are deleted (abstract; which side is reconstructed)",
              reason="three nets differ by more than the rules"),
        Claim("beats random", "and better than random filters by at least 1 point", better("accuracy", "random, as many", by=1, **MILD),
              reason="most of the result lies in how many filters each layer loses, which random filters are given too"),
        Claim("not below L1", "and at most 1 point below the smallest norms", better("accuracy", "L1, as many", by=-1, **MILD),
              reason="the rule does not see size: a large filter far from the mean goes, a small one near it stays"),
        Claim("beats equal shares", "The interval's own counts are better than equal shares of every layer, at equal MACs",
              better("accuracy", "inside, equal shares", by=0, **MILD),
              reason="the interval's counts follow chance in small layers; equal shares are as good"),
        Claim("60 % removed", "A width of 0.4 removes at least 60 % of the filters", removed("inside, tuned longer", 0.6)),
        Claim("tuning repairs", "and one epoch brings the accuracy back to 2.5 points below the dense net's",
              better("accuracy", "dense", by=-2.5, of="inside, tuned longer"), paper="VGG-16: accuracy restored (abstract)",
              reason="in one epoch; a tenth of the multiply-accumulates is left of a narrow net, some layers keep two filters of 16"),
        Claim("inside matters, tuned", "After 60 steps each, the inside is better than random filters",
              better("accuracy", "random, tuned", by=0, of="inside, tuned"),
              reason="after tuning the nets differ by more than the choices"),
        Claim("rolling back pays", "The search's net is at least 2 points better than that of a search that never goes back",
              better("accuracy", "nothing is rolled back", by=2, of=AUTOMATIC)),
        Claim("accuracy restored", "The automatic search loses at most half a point on test images", better("accuracy", "dense", by=-0.5, of=AUTOMATIC),
              paper="CIFAR-10 VGG-16: 66.62 % of the filters, accuracy of the uncompressed model (abstract)",
              reason="the search may lose 2 points of validation accuracy here, and uses them"),
        Claim("two thirds go", "The automatic search removes at least 66.62 % of the filters", removed(AUTOMATIC, 0.6662), paper="66.62 % (abstract)",
              reason="a dozen steps after each trial, where the paper tunes for epochs, on a net without VGG-16's redundancy: the floor is met early"),
        Claim("90 % of the parameters", "and at least 90 % of the parameters", bound("params", at_most=0.1, of=AUTOMATIC, relative_to="dense"), paper="> 90 % (abstract)",
              reason="as for the filters"),
        Claim("83.73 % faster on a phone", "Inference on a Huawei MATE 10 is accelerated by 83.73 %", None, paper="abstract", needs="a phone of 2017"),
    ),
    parts={
        "1 statistic": Part(filter_statistic, "interval by hand", "magnitude under another name", reconstructed=True),
        "2 fit": Part(standardised, "normality", "mean magnitude"),
        "3 rule": Part(PFGDF.stays, "interval by hand", "tails instead", reconstructed=True),
        "4 search": Part(WidthSearch.run, "search", "nothing is rolled back", reconstructed=True),
        "5 consistency": Part(PFGDF.drop, "masked = rebuilt", "masks only"),
        "6 recovery": Part(fine_tuned, "tuning repairs"),
        "7 deployment": Part(PROBE, "83.73 % faster on a phone"),
    },
    time_limit=600.0,
    picture=heaps,
    exercise=Exercise("Keep the filters whose mean lies inside μ ± α·σ of their layer.", STUB,
                      ["One number a filter: its mean over channels and positions.", "μ and σ are those of the N numbers (sample deviation, ddof=1).",
                       "Keep where |s − μ| ≤ ασ: the far ones go, whether large or small."], _check_exercise, SOLUTION),
)
