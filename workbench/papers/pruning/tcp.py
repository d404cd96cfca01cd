r"""# TCP — prune what does not travel

**Accelerating Deep Unsupervised Domain Adaptation with Transfer Channel Pruning** (Yu, Wang, Chen and Wu, IJCNN 2019).

A network learns from images with labels (the *source*) and has to work where nobody labelled anything (the *target*). Pruning it by what its channels do
for the source keeps those that only the source needs. Transfer channel pruning asks both domains at once: one backward pass through
the loss that adaptation itself minimises, two lists of scores, one cut, a little more adaptation, and so on.

```text
  source x_s, y_s ─┐                  ┌─ logits ── CE ──────────────┐
                   ├─► convolutions ──┤                             ├─► L = CE + β·MMD² ── one backward pass
  target x_t ──────┘    a (2n,C,H,W)  └─ bottleneck f_s, f_t ─ MMD² ┘            │
        ▲                                                                        ▼
        │            remove ◄── n lowest of min(Θˢ, Θᵗ) ◄── Θˢ, Θᵗ (C,) per layer: |Σ a·∂L/∂a| over the source / target half
        └── a few steps on L ◄──┘
```

**The loss.** With $f\in\mathbb{R}^{n\times 256}$ the features behind the bottleneck,

$$L=\mathrm{CE}(x_s,y_s)+\beta\,\mathrm{MMD}^2(f_s,f_t),\qquad \mathrm{MMD}^2=\operatorname{mean}(K_{ss}+K_{tt}-K_{st}-K_{ts}),\quad K=\sum_{i=0}^{4}e^{-d^2/(b\,2^i)},$$

$b$ a quarter of the mean squared distance in the joint batch, without gradient, and $\beta=2/(1+e^{-10p})-1$ rising with the share $p$ of the steps done.

**The score.** Taking channel $c$ away changes $L$, to first order, by $-\sum a_c\,\partial L/\partial a_c$. Source images and target images add their own parts
of this sum, so that one backward pass gives two numbers a channel; a target image feels $\beta\,\mathrm{MMD}^2$ alone. Each list is divided by its
layer's $\ell_2$ norm. The released code merges the two by the *smaller* one (`merge="min"`): whatever either domain can do without goes. The paper's text has
the change of the whole loss, $|\Delta_s+\Delta_t|$ (`merge="sum"`).

**What to look for.** In the picture every dot is a channel of the adapted network, source score to the right, target score upwards. `min` cuts an L along both axes;
`source` would cut a vertical strip. Which merging is the better one is measured before tuning. Two things decide what the numbers mean. First, a network that had never adapted must be clearly worse on the target, or
pruning *for transfer* is an empty word. Second, all contenders are tuned on the joint loss for equally many steps, whatever the number of their rounds, and tuning repairs most choices: look
at the cuts without tuning as well. The last step's network is judged. The released code keeps the checkpoint that is best on the target's test labels; the series
`target accuracy` shows what that would have picked.

Reconstructed: the number of steps (the code counts epochs), scores summed over all batches of a round before the absolute value is taken (the code's last
batch wins: `batches=1`), the last round's cut that stops at the wanted MACs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...benches import domains
from ...benches.domains.discrepancy import joint_loss
from ...benches.domains.discrepancy import mmd as mmd_rbf
from ...contracts.structure.surgery import remove
from ...core.claims import better, bound
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _tcp_checks as checks
from ._tcp_checks import ByCriterion
from ._tcp_contenders import ALL_AT_ONCE, HALF, PAIR, at_once, pruned, shipped, tuned_on, two_stage
from ._tcp_method import TCP, Joined, Round, Transferred
from .classics import L1, Random

__all__ = ["PROBE", "STUDY", "TCP", "Joined", "Round", "Transferred", "mmd_rbf"]


def PROBE() -> dict:
    """What `workbench probe` times: 64 images through the adapted net and through it with 26 % and half of its MACs removed."""
    from ...benches.domains import data

    images, nets = data.tensors(data.domain("target", "test"), 64)[0], {"adapted": domains.net()}
    for share in (0.26, 0.5):
        nets[f"{share:.0%} of the MACs removed"] = replace(TCP(), **ALL_AT_ONCE).prune(domains.net(), share, domains.Pairs(0), domains.EXAMPLE).model
    return {label: lambda net=net: net(images) for label, net in nets.items()}


# --- picture ----------------------------------------------------------------------------------------------------------------------------------------

def lists_and_rounds(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Left: every channel's two scores before the first cut (square-root scales), those cut as crosses. Right: each layer's channels, round by round."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not len(exhibits):
        return go.Figure(layout={"title": {"text": "nothing was removed"}, "height": 120})
    figure = make_subplots(1, 2, subplot_titles=("before the first cut", "channels left"), horizontal_spacing=0.13)
    source, target = (np.round((exhibits[name].astype(float) / 255) ** 2, 3) for name in ("source", "target"))
    for gone, label, color, symbol in ((0, "stays", "#0072B2", "circle"), (1, "cut first", "#D55E00", "x")):
        chosen = exhibits["cut"] == gone
        figure.add_scatter(x=np.sqrt(source[chosen]).round(3).tolist(), y=np.sqrt(target[chosen]).round(3).tolist(), mode="markers", name=label,
                           marker={"color": color, "symbol": symbol, "size": 7}, text=[f"layer {i + 1}" for i in exhibits["layer"][chosen].tolist()],
                           hovertemplate="%{text}<extra></extra>", row=1, col=1)
    widths = exhibits["widths"].astype(int)
    for i in range(widths.shape[1]):
        figure.add_scatter(x=list(range(len(widths))), y=widths[:, i].tolist(), mode="lines+markers", name=f"layer {i + 1}", line={"shape": "hv", "dash": ("solid", "dot", "dash")[i % 3]},
                           marker={"size": 4}, row=1, col=2)
    figure.update_xaxes(title_text="source score (√)", row=1, col=1)
    figure.update_yaxes(title_text="target score (√)", row=1, col=1)
    figure.update_xaxes(title_text="round", row=1, col=2)
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    return figure.update_layout(height=340, margin={"l": 10, "r": 10, "t": 40, "b": 40})


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import numpy as np

def to_prune(source, target, n):
    """source, target: lists of arrays, one array a layer, each channel's |sum of a * dL/da| over that domain's images.
    Return the n pairs (layer, channel) that transfer channel pruning cuts, worst first."""
    scores = [(score, i, c) for i, layer in enumerate(source) for c, score in enumerate(layer)]   # the target is never asked
    return [(i, c) for _, i, c in sorted(scores)[:n]]
'''
SOLUTION = '''import numpy as np

def to_prune(source, target, n):
    scores = []
    for i, lists in enumerate(zip(source, target)):
        s, t = (layer / max(np.linalg.norm(layer), 1e-12) for layer in lists)
        scores += [(min(a, b), i, c) for c, (a, b) in enumerate(zip(s, t))]
    return [(i, c) for _, i, c in sorted(scores)[:n]]
'''


def _check_exercise(namespace: dict) -> None:
    source, target = [np.array([3.0, 4.0]), np.array([500.0, 0.0, 1200.0])], [np.array([8.0, 6.0]), np.array([3.0, 4.0, 0.1])]
    got = [tuple(map(int, pair)) for pair in namespace["to_prune"](source, target, 3)]
    assert len(got) == 3, f"three channels go, not {len(got)}"
    assert (1, 2) in got, "channel 2 of layer 1 is nothing to the target: ask both lists and take the smaller score"
    assert got == [(1, 1), (1, 2), (1, 0)], "each list is divided by its layer's norm before layers are compared"
    assert namespace["to_prune"](source, [np.zeros(2), np.zeros(3)], 1), "a list of zeros (β = 0) must not divide by zero"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

BEFORE_TUNING = {"at_equal": "macs_share", "over": (0.45, 0.8)}

STUDY = Study(
    paper="1904.02654",
    name="tcp",
    track=domains.MACS,
    method=TCP(),
    knobs=(Knob("macs_removed", (0, 0.1, 0.2, 0.26, 0.34, 0.42, 0.5, 0.6, 0.7), 0.5, quick=(0.26, 0.5), neutral=0, label="share of the MACs removed"),),
    contenders={
        "TCP": pruned(TCP(), role="paper", grid=PAIR),
        "TCP, not tuned": at_once(TCP(), role="paper"),
        "source list, not tuned": at_once(TCP(merge="source")),
        "sum of the lists, not tuned": at_once(TCP(merge="sum"), replicas=3, evidence="recorded"),
        "random, not tuned": at_once(ByCriterion(criterion=Random()), role="control"),
        "two-stage": two_stage(grid=HALF, replicas=3),
        "L1": pruned(ByCriterion(criterion=L1()), grid=HALF, replicas=3),
        "source list": pruned(TCP(merge="source"), grid=HALF, replicas=3),
        "random": pruned(ByCriterion(criterion=Random()), grid=HALF, role="control"),
        "adapted": shipped("adapted"),
        "adapted, tuned on": tuned_on(),
        "source only": shipped("source"),
    },
    ablations={
        "without the discrepancy": Ablation("2 loss", pruned(TCP(mmd_weight=0.0), replicas=3), TCP(mmd_weight=0.0)),
        "kernels too wide": Ablation("3 MMD", subject=TCP(discrepancy=checks.too_wide)),
        "slope alone": Ablation("4 channel evaluation", subject=checks.SlopeAlone()),
        "target scores shuffled": Ablation("5 transfer channel evaluation", subject=checks.Shuffled()),
        "source list only": Ablation("5 transfer channel evaluation", subject=TCP(merge="source")),
        "all at once": Ablation("6 iterations", subject=TCP(per_round=10**6)),
        "steady rate": Ablation("7 optimiser", subject=checks.SteadyRate()),
        "masks only": Ablation("8 surgery", subject=checks.MasksOnly()),
        "sees target labels": Ablation("9 selection", subject=checks.Peeks()),
    },
    checks=(
        Check("statistic", "MMD² and its gradient equal the double loop; 0 for equal batches, symmetric, rising with a shift of the mean", checks.statistic),
        Check("finite differences", "Scaling a channel by 1 − ε changes the joint loss by −ε·(Δs + Δt)", checks.finite_differences),
        Check("target list", "Without the discrepancy the target's list is zero, not NaN; with it, every layer's is not", checks.silent_without_discrepancy),
        Check("merging", "Three layers worked out by hand: norms, the smaller score, the lowest over all layers, two left in each", checks.merged_by_hand),
        Check("small steps", "A round takes eight channels at most, and the last one stops at the MACs asked for", checks.small_steps),
        Check("masked = rebuilt", "Zeroed channels and smaller tensors answer alike, behind the flatten too; share 0 changes no bit", checks.rebuilt),
        Check("no target labels", "A target loader that yields labels is refused", checks.refuses_target_labels),
        Check("schedule", "β, the learning rates and the first step equal numbers worked out by hand", checks.schedule),
    ),
    claims=(
        Claim("adaptation works", "The adapted net is at least 5 points better on the target than one trained on the source for as many steps",
              better("accuracy", "source only", by=5, of="adapted"), reason="the discrepancy term alone gains about 5 points on this pair of domains"),
        Claim("something to lose", "The adapted net is right on at least 60 % of the target's test images", bound("accuracy", at_least=60, of="adapted")),
        Claim("beats random before tuning", "With 20 to 55 % of the MACs removed at once and nothing tuned, TCP is at least 5 points above random channels",
              better("accuracy", "random, not tuned", by=5, of="TCP, not tuned", **BEFORE_TUNING),
              reason="a net so narrow loses most of its answers whichever channels go"),
        Claim("target list helps before tuning", "There, it is at least 1 point above the same scores without the target's list",
              better("accuracy", "source list, not tuned", by=1, of="TCP, not tuned", **BEFORE_TUNING),
              reason="an adapted net serves both domains with much the same channels, so that the two lists agree on most of what goes"),
        Claim("the smaller score is as good as the sum", "There, merging by the smaller score is at most 1 point below merging by the sum",
              better("accuracy", "sum of the lists, not tuned", by=-1, of="TCP, not tuned", **BEFORE_TUNING), paper="text: the sum; released code: the smaller",
              reason="the sum is the change of the loss itself; the smaller score also takes channels that one of the domains needs"),
        Claim("beats two-stage pruning", "At half the MACs, TCP is at least 1 point above pruning on the source first and adapting afterwards",
              better("accuracy", "two-stage", by=1, macs_removed=0.5), paper="one joint stage against two (abstract: less negative transfer)",
              reason="of as many steps, the other way spends its 800 joint ones on the net that is judged; TCP spends them before the cut, and 260 smaller ones after it"),
        Claim("beats random", "At half the MACs, tuned equally, TCP is at least 3 points above random channels", better("accuracy", "random", by=3, macs_removed=0.5),
              reason="rounds of tuning repair most choices"),
        Claim("costs little", "With 26 % of the MACs removed, TCP is at most 1 point below the adapted net", better("accuracy", "adapted", by=-1, macs_removed=0.26),
              paper="VGG-16, 26 % of the FLOPs: above the unpruned baseline",
              reason="VGG-16 has 138 million parameters to spare, this net 63 thousand: what goes is missed, and 260 steps bring only a part back"),
        Claim("better than unpruned", "With 26 % of the MACs removed, TCP is above the adapted net tuned for as many steps", better("accuracy", "adapted, tuned on", macs_removed=0.26),
              paper="VGG-16, 26 % of the FLOPs: above the unpruned baseline; ResNet-50, 12 %: on half of the tasks",
              reason="as above: the net is too narrow to gain from losing channels"),
        Claim("domains stay together", "MMD² on test images with half of the MACs removed is at most 1.1 of the adapted net's",
              bound("mmd", at_most=1.1, relative_to="adapted", macs_removed=0.5),
              reason="the smaller net tells source from target a little more; 1.1 is tight for a distance that is small on the adapted net already"),
    ),
    parts={
        "1 base model": Part(domains.net, "something to lose"),
        "2 loss": Part(joint_loss, "finite differences", "without the discrepancy"),
        "3 MMD": Part(mmd_rbf, "statistic", "kernels too wide"),
        "4 channel evaluation": Part(TCP.products, "finite differences", "slope alone"),
        "5 transfer channel evaluation": Part(TCP.merged, "merging", "source list only"),
        "6 iterations": Part(TCP.prune, "small steps", "all at once", reconstructed=True),
        "7 optimiser": Part(TCP.tune, "schedule", "steady rate"),
        "8 surgery": Part(remove, "masked = rebuilt", "masks only"),
        "9 selection": Part(Joined, "no target labels", "sees target labels"),
    },
    time_limit=300.0,
    picture=lists_and_rounds,
    exercise=Exercise("Choose the channels to cut from two lists of scores.", STUB,
                      ["Layers are compared only after each list was divided by its layer's length.", "A channel counts as much as the domain that needs it less.",
                       "max(norm, 1e-12) keeps a list of zeros from becoming NaN."], _check_exercise, SOLUTION),
)
