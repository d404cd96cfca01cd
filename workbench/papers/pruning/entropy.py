r"""# Entropy pruning — a filter that always answers alike says nothing

**An Entropy-based Pruning Method for CNN Compression** (Luo and Wu, 2017).

Show a network a thousand images and average each feature map over its positions: every filter answers with one number an image. If these numbers hardly
differ, the filter tells the layers behind it nothing about the image, whatever the size of its weights. The paper measures "hardly differ" by entropy,
and goes through the network one layer at a time, so that each decision is made on the network as it then is.

```text
  images ──► current net ──► maps of layer i ──ReLU──► mean over h·w ──► A
  (M, 3, H, W)               (M, c, h, w)                               (M, c)
                                                                          │ per column: m equal bins from min to max
     layer i+1 ◄── fine-tune ◄── remove filters, BN, next slices ◄── lowest H_j ◄── H_j = −Σ p_b log p_b
```

With $A \in \mathbb{R}^{M\times c}$ and $p_{jb}$ the share of images whose $A_{\cdot j}$ falls into bin $b$ of $m$,

$$H_j=-\sum_{b=1}^{m}p_{jb}\log p_{jb},\qquad 0\le H_j\le\log m .$$

All columns are counted by one `bincount` of $M\cdot c$ integers. Because the bins stretch from the channel's least to its largest answer, $H_j$ does not change
under $a\,x+b$: a channel is not worth more for being loud. It also makes $H_j$ hang on two extreme images.

**For VGG-16** over 90 % of the multiply–accumulates lie in the first ten convolutions, which lose half of their filters; 89 % of the parameters lie in the
fully connected layers, which global average pooling and one linear layer replace. **For ResNet-50** the first two convolutions of each block are pruned, so that
what is added stays as wide as it was. Fewer filters also mean fewer maps: `kept` and `peak` count the memory that they take in training and in use.

**What to look for.** The picture shows the first layer's histograms, most informative channel on top. They look more alike than the idea suggests: in the dense net nearly
all channels reach 80 to 95 % of $\log m$, so the ranking rests on small differences, and two sets of images rank the channels differently (the claims on *stability* say how
differently; the plain standard deviation has no such trouble). Slide *images* down to 64 and little of the ranking is left. Then race it: before fine-tuning
this bench does not confirm that entropy picks better filters than chance, and after it the differences are small, whoever picked.

Reconstructed: batch-norm statistics are estimated anew on 256 images after each layer, where the paper fine-tunes for an epoch or two; half of the tuning
steps go between the layers. Ours: `fold`, which hands a removed channel's mean to the next layer's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from scipy import stats
from torch import nn

from ...benches import vision
from ...benches.activations import VGG_MACS, kept_for_backward
from ...contracts.model import inputs_and_labels
from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _entropy_checks as checks
from . import untouched
from ._entropy_contenders import Spread, cut, entropy, rival, strategy, tuned, watched, with_head
from ._entropy_method import (
    ChannelEntropy,
    EntropyPruning,
    LayerByLayer,
    head_to_gap,
    leading_layers,
    pooled_responses,
    prunable,
    take,
    uniform_loss,
)
from .classics import L1, Random
from .classics_of_data import Activation, Taylor

__all__ = ["PROBE", "STUDY", "ChannelEntropy", "EntropyPruning", "channel_entropy", "entropy_prune", "head_to_gap", "leading_layers"]


# --- on your own model --------------------------------------------------------------------------------------------------------------------------


def channel_entropy(model: nn.Module, loader: Iterable, bins: int = 100, images: int = 1024) -> dict[str, torch.Tensor]:
    """{layer: (channels,)}: the entropy in nats of every prunable convolution's channels, on the model as it is. Labels are not needed."""
    batches = take(loader, images)
    example = inputs_and_labels(batches[0])[0]
    return ChannelEntropy(bins).scores(prunable(model, example[:1]), model, batches)


def entropy_prune(model: nn.Module, loader: Iterable, keep: float = 0.5, bins: int = 100, images: int = 1024,
                  finetune: Callable[[nn.Module], None] | None = None) -> LayerByLayer:
    """``keep`` of the filters of every convolution stays; ``finetune(net)`` trains the net in place after each layer (default: new batch-norm
    statistics). The result's ``model`` is really smaller; ``scores`` and ``dropped`` say why. ValueError: keep outside (0, 1], a loader with fewer
    than ``images`` images, a layer without a spatial output, NaN activations."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep: share of the filters that stay, must lie in (0, 1], found {keep}")
    method = EntropyPruning(ChannelEntropy(bins), images)
    example = inputs_and_labels(take(loader, images)[0])[0][:1]
    return method.prune(model, uniform_loss(prunable(model, example), 1 - keep), loader, example, finetune)


# --- claims -------------------------------------------------------------------------------------------------------------------------------------


def _agreement(m: Measurements, contender: str | None) -> dict[int, float]:
    """Replica → Spearman's rank correlation between the scores of two image sets that share none, averaged over the layers."""
    rows = m.rows(contender)
    found: dict[int, float] = {}
    for replica, pair in rows.groupby("replica"):
        first, second = (m.by_key(key).result.series for key in pair.sort_values("seed").key)
        found[replica] = float(np.mean([stats.spearmanr(first[name], second[name]).statistic for name in first]))
    return found


def stable(of: str, least: float, above: str = "") -> Callable[[Measurements], Estimate]:
    """The rankings of two image sets correlate by at least ``least`` (or by that much more than those of ``above``)."""
    def test(m: Measurements) -> Estimate:
        ours, theirs = _agreement(m, of), _agreement(m, above) if above else {}
        return estimate([value - theirs.get(replica, 0.0) for replica, value in ours.items()], least)

    test.of = of
    return test


BEFORE_TUNING = {"at_equal": "macs_share", "over": (0.25, 0.65)}  # 20 to 50 % of the filters


# --- picture ------------------------------------------------------------------------------------------------------------------------------------


def answers_and_scores(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Left: how the first layer's channels answer (one row a channel, the most informative on top). Right: every channel's score, layer by layer.

    ``exhibits``: ``histograms`` (channels, bins), images per bin (an entropy's only); per layer the scores as thousandths of the largest, and
    ``out <layer>``, the channels removed.
    """
    from plotly.subplots import make_subplots

    layers = [name for name in exhibits if name != "histograms" and not name.startswith("out ")]
    figure = make_subplots(1, 2, column_widths=[0.4, 0.6], horizontal_spacing=0.13,
                           subplot_titles=("answers of the first layer's channels", "score, as a share of its layer's largest"))
    if "histograms" in exhibits:
        share = exhibits["histograms"] / exhibits["histograms"].sum(1, keepdims=True).clip(1)
        order = np.argsort(-(share * np.log(share.clip(1e-12))).sum(1), kind="stable")
        figure.add_heatmap(z=np.round(100 * share[order], 1).tolist(), y=[f"channel {j}" for j in order], colorscale="Cividis", showscale=False,
                           hovertemplate="%{y}, bin %{x}: %{z} % of the images<extra></extra>", row=1, col=1)
        figure.update_xaxes(title_text="bin, from the channel's least answer to its largest", row=1, col=1)
    for label, gone, colour, symbol in (("kept", False, "#0072B2", "circle"), ("removed", True, "#D55E00", "x")):
        x, y = [], []
        for i, name in enumerate(layers):
            score, out = exhibits[name] / 1000, np.isin(np.arange(len(exhibits[name])), exhibits[f"out {name}"])
            spots = np.flatnonzero(out == gone)
            x += (i + 1 + 0.6 * (spots / len(score) - 0.5)).round(3).tolist()
            y += score[spots].round(3).tolist()
        figure.add_scatter(x=x, y=y, mode="markers", name=label, marker={"size": 5, "color": colour, "symbol": symbol}, row=1, col=2)
    figure.update_xaxes(tickvals=list(range(1, len(layers) + 1)), ticktext=layers, row=1, col=2)
    return figure.update_layout(height=340, margin={"l": 10, "r": 10, "t": 40, "b": 40}, legend={"orientation": "h", "y": -0.2, "x": 0.6})


def PROBE() -> dict:
    """What `workbench probe` times: a batch of 32 through the dense net, and with half of the filters of every layer."""
    images = vision.calibration()[:32]
    nets = {"dense": vision.dense("vgg-small"), "half of the filters": cut(EntropyPruning(images=256), 0.5, 0).model}
    return {label: torch.inference_mode()(lambda net=net: net(images)) for label, net in nets.items()}


# --- exercise -----------------------------------------------------------------------------------------------------------------------------------

STUB = '''def channel_entropy(responses, bins=100):
    """responses: (M, c) array, the pooled answer of each of c channels to M images. Return (c,): the entropy of each in nats."""
    return responses.std(0)        # the spread: it grows with the channel's scale, entropy does not
'''
SOLUTION = '''def channel_entropy(responses, bins=100):
    entropy = np.zeros(responses.shape[1])
    for j, column in enumerate(responses.T):
        share = np.histogram(column, bins)[0] / len(column)
        share = share[share > 0]
        entropy[j] = -(share * np.log(share)).sum()
    return entropy
'''


def _check_exercise(namespace: dict) -> None:
    rng = np.random.default_rng(1)
    answers = rng.normal(size=(400, 3))
    got = np.asarray(namespace["channel_entropy"](answers, 20))
    assert got.shape == (3,), f"one number a channel: shape (3,), not {got.shape}"
    assert np.allclose(namespace["channel_entropy"](10 * answers, 20), got, atol=0.02), "ten times louder says nothing more: bins go from least to largest"
    assert np.allclose(got, [stats.entropy(np.histogram(column, 20)[0]) for column in answers.T]), "−Σ p log p over the bins that are not empty"
    assert abs(float(namespace["channel_entropy"](np.full((50, 1), 2.0), 20)[0])) < 1e-12, "a channel that always answers alike has entropy 0"


def five_channels(namespace: dict):
    """The exercise's picture: what the answer makes of five channels of which two differ in loudness only, beside entropy."""
    import plotly.graph_objects as go

    rng = np.random.default_rng(3)
    answers = rng.normal(size=(600, 1)) * [[1, 10, 0, 0, 0]] + np.stack([0 * np.ones(600), np.zeros(600), np.full(600, 2.0), rng.integers(0, 2, 600), rng.random(600)], 1)
    yours = np.asarray(namespace["channel_entropy"](answers, 20), float)
    right = np.array([stats.entropy(np.histogram(column, 20)[0]) for column in answers.T])
    figure = go.Figure(layout={"height": 300, "margin": {"l": 10, "r": 10, "t": 40, "b": 40}, "yaxis": {"title": {"text": "score"}}, "title": {
        "text": f"ten times louder scores {yours[1] / max(yours[0], 1e-9):.1f} times as much (entropy: 1.0)", "font": {"size": 14}}})
    for name, values, colour, pattern in (("yours", yours, "#D55E00", "/"), ("entropy", right, "#0072B2", "")):
        figure.add_bar(x=["quiet", "ten times louder", "always 2", "0 or 1", "anything"], y=values.round(3).tolist(), name=name,
                       marker={"color": colour, "pattern": {"shape": pattern}})
    return figure


# --- the study ----------------------------------------------------------------------------------------------------------------------------------

ONE = {"filters_removed": (0.3,)}
REVERSED = EntropyPruning(ChannelEntropy(inverted=True))
APOZ = EntropyPruning(Activation("zeros"), images=256)

STUDY = Study(
    paper="1706.05791",
    name="entropy-pruning",
    track=VGG_MACS,
    method=EntropyPruning(),
    knobs=(Knob("filters_removed", np.linspace(0, 0.8, 9), 0.3, quick=(0.3,), neutral=0, label="share of every layer's filters removed"),
           Knob("bins", (10, 25, 100, 250, 500), 100, label="bins of the histogram"),
           Knob("images", (64, 256, 1024, 2048), 1024, label="images that are looked at")),
    contenders={
        "entropy": entropy(role="paper", replicas=3),
        "random": rival(EntropyPruning(Random()), role="control", replicas=3),
        "L1": rival(EntropyPruning(L1()), replicas=3),
        "APoZ": rival(APOZ, replicas=3),
        "spread": rival(EntropyPruning(Spread()), evidence="recorded", replicas=3, grid=ONE),
        "mean activation": rival(EntropyPruning(Activation("mean")), evidence="recorded", replicas=3, grid=ONE),
        "Taylor": rival(EntropyPruning(Taylor()), evidence="recorded", replicas=3, grid=ONE),
        "dense": untouched(),
        "entropy, tuned": tuned(EntropyPruning()),
        "all layers at once, tuned": tuned(EntropyPruning(recompute=False)),
        "random, tuned": tuned(EntropyPruning(Random()), role="control"),
        "entropy, tuned longer": tuned(EntropyPruning(), 140),
        "ranking by 64 images": watched(ChannelEntropy(), 64),
        "ranking by 256 images": watched(ChannelEntropy(), 256),
        "ranking by 1,024 images": watched(ChannelEntropy(), 1024),
        "ranking by spread": watched(Spread(), 1024),
        "VGG with a large head": with_head(),
        "pooled head, tuned": strategy(EntropyPruning(), 0.0, 93),
        "half the filters, pooled head, tuned": strategy(EntropyPruning(), 0.5, 93),
    },
    ablations={
        "inverted": Ablation("3 selection", rival(REVERSED, evidence="recorded", replicas=3, grid=ONE), REVERSED),
        "one range for all channels": Ablation("2 entropy", subject=EntropyPruning(ChannelEntropy(span="layer"))),
        "entropy of the weights": Ablation("1 statistic", subject=EntropyPruning(checks.OfWeights())),
        "all scores from the dense net": Ablation("4 schedule", subject=EntropyPruning(recompute=False)),
        "large head kept": Ablation("5 VGG", strategy(checks.HeadKept(), 0.5, 60), checks.HeadKept()),
        "masks only": Ablation("7 memory", subject=checks.MasksOnly()),
    },
    checks=(
        Check("entropy = scipy", "Entropies equal scipy's of numpy's histogram; constant: 0; uniform: near log(bins)", checks.equals_scipy),
        Check("free of scale", "a·x + b of each channel's answers changes nothing, but for ties at a bin's edge", checks.free_of_scale),
        Check("planted constants", "Constant and dead channels score lowest; folded into the next bias they leave the next maps' inside as it was",
              checks.planted_constants),
        Check("measured on the current net", "What decides in a layer was measured on the net without the filters removed before, and the lowest half goes",
              checks.measured_on_current),
        Check("residual nets", "In ResNet-20 and in bottlenecks inner convolutions alone lose filters; zeroed and rebuilt give the same logits", checks.residual_strategy),
        Check("memory", "Bytes that autograd keeps fall by the share of the maps that the formula says, within a point", checks.memory_as_predicted),
        Check("VGG strategy", "VGG-16's leading layers and head by arithmetic; the bench's head loses 80 % of its parameters, its maps stay", checks.vgg_strategy),
        Check("neutral", "Removing nothing returns the same logits bit for bit, without any image", checks.neutral_is_identity),
    ),
    claims=(
        Claim("beats APoZ", "Before tuning, 20–50 % of the filters removed, entropy is at least 15 points above APoZ",
              better("accuracy", "APoZ", by=15, **BEFORE_TUNING), paper="better than APoZ (section 4.2)",
              reason="the margin was piloted on a net twice as wide; on this narrow one neither way of reading a channel's answers leads"),
        Claim("beats random", "It is better than random filters of equal number",
              better("accuracy", "random", by=0, **BEFORE_TUNING), paper="better than random selection (section 4.2)",
              reason="the entropies of a layer differ little, and the two most extreme images set each channel's bins: at equal counts chance does no worse"),
        Claim("beats L1", "It is better than the filters' L1 norm",
              better("accuracy", "L1", by=0, **BEFORE_TUNING), paper="better than weight magnitude (section 4.2)",
              reason="how much a filter writes tells more here about what its loss costs than how variedly it answers"),
        Claim("beats its reverse", "Removing the highest entropies instead costs at least 2 points", better("accuracy", "inverted", by=2, **BEFORE_TUNING),
              reason="before tuning the relation between entropy and worth is not visible on this net, in either direction"),
        Claim("more than spread", "It is better than the standard deviation of the same responses", better("accuracy", "spread", by=0, **BEFORE_TUNING),
              reason="the two agree within the noise of three nets"),
        Claim("tuning repairs", "Half of the filters removed and 140 steps (one and a half epochs) cost at most 1.5 points",
              better("accuracy", "dense", by=-1.5, of="entropy, tuned longer"),
              paper="about 1 % top-5 (abstract)",
              reason="one and a half epochs in all, where the paper tunes for one or two after each layer, and a narrow net of which a quarter of the parameters is left"),
        Claim("beats random, tuned", "After 60 steps each, entropy is at least half a point above random", better("accuracy", "random, tuned", by=0.5, of="entropy, tuned"),
              paper="better than random selection (section 4.2)",
              reason="nets differ by more than criteria do after tuning"),
        Claim("layer by layer", "Tuning between the layers is at most 0.3 points below tuning once at the end, in as many steps",
              better("accuracy", "all layers at once, tuned", by=-0.3, of="entropy, tuned"), paper="less training in all (section 3.3)",
              reason="five steps a layer are far from the paper's epoch; what they cost is missing at the end"),
        Claim("stable ranking", "Two sets of 1,024 images rank the channels alike: Spearman at least 0.5", stable("ranking by 1,024 images", 0.5)),
        Claim("images matter", "That is at least 0.3 more than with 64 images", stable("ranking by 1,024 images", 0.3, "ranking by 64 images")),
        Claim("spread is stabler", "The standard deviation ranks two sets of 1,024 images alike: Spearman at least 0.95", stable("ranking by spread", 0.95)),
        Claim("head not needed", "Pooling and one linear layer instead of the large head cost at most one point after one epoch",
              better("accuracy", "VGG with a large head", by=-1, of="pooled head, tuned"), paper="VGG-16: fully connected layers replaced (section 4.1)",
              reason="one epoch at the rate of fine-tuning for a fresh layer, and 32 pooled numbers where the head read 512: these features were trained to be read by position"),
        Claim("16.64 times smaller", "The whole strategy leaves at most 1/16.64 of the parameters",
              bound("params", at_most=1 / 16.64, of="half the filters, pooled head, tuned", relative_to="VGG with a large head"), paper="VGG-16: 16.64× (abstract)"),
        Claim("strategy keeps accuracy", "and costs at most one point", better("accuracy", "VGG with a large head", by=-1, of="half the filters, pooled head, tuned"),
              paper="about 1 % top-5 (abstract)",
              reason="as for the head alone, with a quarter of the convolutions' parameters left to learn from"),
        Claim("3.3 times faster on ImageNet", "VGG-16 runs 3.3 times, ResNet-50 1.54 times as fast with about 1 % of top-5 accuracy lost", None,
              paper="abstract", needs="ImageNet and a GPU for weeks of training"),
    ),
    parts={
        "1 statistic": Part(pooled_responses, "planted constants", "entropy of the weights"),
        "2 entropy": Part(ChannelEntropy.entropy, "entropy = scipy", "one range for all channels"),
        "3 selection": Part(EntropyPruning.prune, "measured on the current net", "inverted"),
        "4 schedule": Part(EntropyPruning.prune, "measured on the current net", "all scores from the dense net", reconstructed=True),
        "5 VGG": Part(EntropyPruning.vgg, "VGG strategy", "large head kept"),
        "6 ResNet": Part(prunable, "residual nets", "masks only"),
        "7 memory": Part(kept_for_backward, "memory", "masks only"),
        "8 baselines": Part(Activation.scores, "beats APoZ"),
    },
    time_limit=600.0,
    picture=answers_and_scores,
    exercise=Exercise("Entropy of a channel's pooled answers: how much does a filter say about the image?", STUB,
                      ["np.histogram(column, bins) counts in equal bins from the least to the largest value.",
                       "Counts over M are shares p; −Σ p·log p, with 0·log 0 = 0.", "A column that never changes falls into one bin: p = 1, log 1 = 0."],
                      _check_exercise, SOLUTION, five_channels),
)
