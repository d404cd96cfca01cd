r"""# AMC — an agent decides how much of each layer stays

**AMC: AutoML for Model Compression and Acceleration on Mobile Devices** (He, Lin, Liu, Wang, Li, Han; ECCV 2018).

A network that must lose half of its multiply–accumulates can lose them in very different places. Rules of thumb ("prune deep layers more") are
poor, and trying all settings is hopeless. AMC lets an agent walk through the network once per *episode*, layer by layer. At each layer it sees a few
numbers, answers with one, the share of input channels to keep, and at the end it learns how many answers the pruned network got right,
*without* any fine-tuning.

```text
             state s_t (11 numbers)           action a ∈ [0, 1]         channels kept
  layer t ───────────────────────► actor μ ────────────────────► wall ───────────────► layer t+1 … ──► operator 7 ──► reward R = −Error
                                      ▲                            │ budget B                                             │
                                   critic Q ◄──────── replay memory (s, a, R, s') ◄──────────────────────────────────────┘
```

**The wall.** The budget is no penalty, it cannot be left. With $W_{other}$ the cost of the network without layer $t$, where *all later layers stand at their
lower bound* $a_{min}$, and $W_{this}$ what layer $t$ costs in full after the earlier choices,

$$a_t \leftarrow \max\left(a_{min},\ \min\left(a_t,\ \frac{B-W_{other}}{W_{this}}\right)\right).$$

The multiply–accumulates of a layer are proportional to the share of its inputs *and* to that of its outputs, and a depthwise layer follows its channel, so this
algebra is exact: what it promises is what the rebuilt network has. Channels are rounded up to a multiple of `round_to`, but down where up would cross the wall.

**Operator 7.** The input channels with the largest $\sum|W_{:,c}|$ stay, and the weights that read them are refitted to the layer's original outputs,

$$W' = \arg\min_{W'} \lVert X_S W' - Y\rVert^2 = (X_S^\top X_S)^{-1} X_S^\top Y .$$

$X$ `(positions, c·k·k)` and $Y$ `(positions, n)` are sampled at ten places of each calibration image. $X^\top X$ and $X^\top Y$ are computed once and hold the
equations of every subset $S$, so that an episode costs a forward pass and little else.

**Learning (DDPG).** Every step of an episode gets its final reward. The critic learns $y = (R-b) + (1-\text{done})\,Q'(s',\mu'(s'))$ with $b$ a moving average
of rewards, the actor climbs $Q(s,\mu(s))$. A hundred episodes act at random; then the noise shrinks by 5 % an episode.

**What to look for.** In the picture the dots of the first hundred episodes scatter: that is random search under the same wall. Then they rise and close ranks: that
is the agent. It leaves random search behind, and an agent that is told other episodes' rewards, but on this net it only draws level with the simplest
rule, equal shares: refitted weights make six layers forgiving, and a policy picked as the best of 240 on 256 validation images is partly picked for its
luck (a standard error of 2 points; the authors judge on 3,000 to 5,000 images). Slide *episodes* and compare with test accuracy. A search never sees a test image.

Reconstructed: the im2col form of operator 7 for 3×3 kernels (the authors' released code refits 1×1 kernels only), rounding at the wall, the lookup table's
interpolation. Batch-norm statistics during the search are those of the images judged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...benches import vision
from ...core.claims import Estimate, better, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _amc_checks as checks
from . import exercise_pictures, untouched
from ._amc_contenders import AT_HALF, rule, searcher, to_time, tuned, with_operator
from ._amc_environment import Environment, budget_wall, guaranteed
from ._amc_operators import ChannelOperator, least_squares, weight_space
from ._amc_record import BENCH, shuffled
from ._amc_search import AMC, SearchResult, amc_search, in_stages
from .ddpg import DDPG

__all__ = ["AMC", "PROBE", "STUDY", "SearchResult", "amc_search", "in_stages"]
PROBE = to_time


# --- claims -----------------------------------------------------------------------------------------------------------------------------------------

def learns(m: Measurements) -> Estimate:
    """Mean reward of the last 50 episodes above that of the warm-up, in points of accuracy, less two standard errors; one value a replica."""
    rows, gains = m.rows(macs_removed=0.5, episodes=BENCH.episodes), []
    for rewards in m.series(rows, "reward"):
        early, late = 100 * rewards[:BENCH.warmup], 100 * rewards[-50:]
        gains.append(late.mean() - early.mean() - 2 * np.hypot(early.std() / np.sqrt(len(early)), late.std() / np.sqrt(len(late))))
    return estimate(gains, 0)


def steered(m: Measurements) -> Estimate:
    """Mean reward of the last 50 episodes, in points, above that of the agent that was told other episodes' rewards."""
    def late(name: str | None) -> dict[int, float]:
        rows = m.rows(name, macs_removed=0.5, episodes=BENCH.episodes)
        return {replica: 100 * rewards[-50:].mean() for replica, rewards in zip(rows.replica, m.series(rows, "reward"), strict=True)}

    ours, control = late(None), late("shuffled rewards")
    return estimate([ours[replica] - control[replica] for replica in sorted(set(ours) & set(control))], 3)


def heaviest(m: Measurements) -> Estimate:
    """The largest share of MACs that an exported network has; a count, so it is its own interval."""
    return estimate([m.rows(macs_removed=0.5).macs_share.max()], 0.5, at_least=False)


def better_than_rules(m: Measurements) -> Estimate:
    """Accuracy above the better of the two slanted rules of thumb, replica by replica."""
    ours, *rules = (m.rows(name, macs_removed=0.5, episodes=BENCH.episodes).groupby("replica").accuracy.mean() for name in (None, *SLANTED))
    return estimate((ours - np.maximum(*rules)).dropna().to_numpy(), 2)


# --- picture ----------------------------------------------------------------------------------------------------------------------------------------

def policy_and_history(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Left: the share of channels that each layer's input keeps. Right: the reward of every evaluation and the best so far.

    ``exhibits``: ``kept`` and ``of``, channels per choice; ``reward``, thousandths per episode (empty for a rule).
    """
    from plotly.subplots import make_subplots

    kept, of, reward = (exhibits[name].astype(float) for name in ("kept", "of", "reward"))
    figure = make_subplots(1, 2, column_widths=[0.42, 0.58], subplot_titles=("input channels kept", "right answers of the pruned net (%)"), horizontal_spacing=0.12)
    layers = [f"layer {i + 2}" for i in range(len(of))]
    figure.add_bar(x=layers, y=np.round(100 * kept / of, 1).tolist(), text=[f"{k:.0f}/{n:.0f}" for k, n in zip(kept, of, strict=True)],
                   marker_color="#0072B2", hovertemplate="%{x}: %{text} kept<extra></extra>", showlegend=False, row=1, col=1)
    figure.update_yaxes(range=[0, 105], ticksuffix=" %", row=1, col=1)
    if len(reward):
        accuracy, steps = 100 + reward / 10, list(range(1, len(reward) + 1))
        figure.add_scatter(x=steps, y=np.round(accuracy, 1).tolist(), mode="markers", marker={"size": 4, "color": "#56B4E9"}, name="episode", row=1, col=2)
        figure.add_scatter(x=steps, y=np.round(np.maximum.accumulate(accuracy), 1).tolist(), mode="lines", line={"color": "#D55E00", "shape": "hv"},
                           name="best so far", row=1, col=2)
        figure.update_xaxes(title_text="evaluation", row=1, col=2)
    else:
        figure.add_annotation(text="no search", showarrow=False, x=0.5, y=0.5, xref="x2 domain", yref="y2 domain")
    return figure.update_layout(height=300, margin={"l": 10, "r": 10, "t": 40, "b": 40}, legend={"orientation": "h", "y": -0.25, "x": 0.6})


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''def wall(actions, work, budget, lower=0.2):
    """actions: the share of layer t's cost that an agent asks for, one a layer; work: each layer's cost in full; budget: what all may cost together.
    Walk through the layers and return the shares that keep the total within budget. (Here a layer's cost is proportional to its own share alone.)"""
    kept = []
    for t, action in enumerate(actions):
        kept.append(max(lower, action))        # nothing keeps this within the budget
    return kept
'''
SOLUTION = '''def wall(actions, work, budget, lower=0.2):
    kept = []
    for t, action in enumerate(actions):
        earlier = sum(a * w for a, w in zip(kept, work))
        later = lower * sum(work[t + 1:])
        kept.append(max(lower, min(action, (budget - earlier - later) / work[t])))
    return kept
'''


def _check_exercise(namespace: dict) -> None:
    work, rng = [4.0, 8.0, 2.0, 6.0], np.random.default_rng(0)
    for _ in range(200):
        kept = namespace["wall"](rng.uniform(size=4).tolist(), work, 10.0)
        total = sum(a * w for a, w in zip(kept, work, strict=True))
        assert total <= 10 + 1e-9, f"the layers kept cost {total:.2f}, the budget is 10"
        assert min(kept) >= 0.2 - 1e-9, f"a layer keeps {min(kept):.2f}, below the lower bound"
    assert np.allclose(namespace["wall"]([1, 1, 1, 1], work, 10.0), [1, 0.55, 0.2, 0.2]), "what fits must be granted: only *later* layers stand at the lower bound"
    assert np.allclose(namespace["wall"]([0.3, 0.3, 0.3, 0.3], work, 10.0), [0.3] * 4), "an action that fits must not be changed"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

SLANTED = ("shallow layers lose more", "deep layers lose more")

STUDY = Study(
    paper="1802.03494",
    name="amc",
    track=vision.VGG_MACS,
    method=AMC(episodes=60, warmup=40),
    knobs=(Knob("macs_removed", np.linspace(0, 0.8, 9), 0.5, quick=(0.5, 0.7), neutral=0, label="share of the MACs removed"),
           Knob("episodes", (10, 20, 40, 60, 80, 100, 120, 150, 180, 210, 240), 240, label="episodes of search")),
    contenders={
        "AMC": searcher("amc", role="paper", subject=AMC()),
        "uniform": rule(0),
        SLANTED[0]: rule(1, evidence="recorded"),
        SLANTED[1]: rule(-1, evidence="recorded"),
        "random search": searcher("random", grid=AT_HALF),
        "greedy sensitivity": searcher("greedy", evidence="recorded", replicas=3, grid=AT_HALF | {"episodes": (BENCH.episodes,)}),
        "genetic search": searcher("evolution", evidence="recorded", replicas=3, grid=AT_HALF | {"episodes": (BENCH.episodes,)}),
        "AMC, tuned": tuned(searcher("amc")),
        "uniform, tuned": tuned(rule(0)),
        "dense": untouched(),
    },
    ablations={
        "no wall": Ablation("5 budget wall", subject=AMC(environment=checks.Unwalled)),
        "shuffled rewards": Ablation("6 rewards", searcher("shuffled", grid=AT_HALF), AMC(told=shuffled)),
        "no reconstruction": Ablation("7 operator 7", with_operator(ChannelOperator, checks.plain_removal), AMC(solve=checks.plain_removal)),
        "smallest channels stay": Ablation("7 operator 7", with_operator(checks.Smallest, least_squares), AMC(operator=checks.Smallest)),
        "masks only": Ablation("9 episode", subject=AMC(operator=checks.MasksOnly)),
        "something follows the end": Ablation("3 DDPG", subject=AMC(agent=checks.Bootstrapping)),
        "noise stays": Ablation("4 exploration", subject=AMC(agent=checks.Restless)),
        "forgetful state": Ablation("1 state", subject=AMC(environment=checks.Forgetful)),
    },
    checks=(
        Check("within budget", "No episode ends above its budget: 1,000 random policies in MACs, 12 on a latency table in steps", checks.within_budget),
        Check("exact cost", "MACs and parameters that the wall reckons with are those of the rebuilt network, as integers", checks.cost_is_exact),
        Check("tight wall", "The wall grants the largest share that fits, as found by trying all", checks.wall_is_tight),
        Check("state", "The 11 features equal those worked out from the layers' shapes by hand", checks.state_by_hand),
        Check("update rule", "The critic's goal, also at the end of an episode, the baseline and the slow nets equal hand-worked numbers", checks.update_by_hand),
        Check("exploration", "Uniform in the warm-up, then truncated noise that shrinks to the actor's own action", checks.exploration),
        Check("rewards", "Both rewards equal hand-worked numbers, and the agent is told its own", checks.rewards_by_hand),
        Check("least squares", "On images not used for it, the refitted layers' error is at most 0.8 of plain removal's, at a quarter and half of the inputs",
              checks.reconstruction_helps),
        Check("largest stay", "Planted large input channels are those kept; keeping all changes no bit", checks.largest_stay),
        Check("masked = exported", "Zeros with refitted weights and really smaller tensors give the same logits", checks.masked_equals_exported),
        Check("coupled layers", "Residual streams and depthwise layers follow the first action of their group", checks.coupled_layers_follow),
        Check("live search", "A search made now: the agent learns after its warm-up and not before, and every exported network is within budget",
              checks.live_search),
        Check("fine-grained", "Exactly the wanted number of largest weights stays, within a budget of weights", checks.fine_grained),
    ),
    claims=(
        Claim("learns", "The last 50 episodes earn more than the 100 random ones by over two standard errors (recorded; an agent that settles anywhere may pass)", learns,
              paper="the first 100 of 400 episodes act at random"),
        Claim("rewards steer it", "The last 50 episodes earn at least 3 points more than those of an agent told other episodes' rewards (recorded searches)",
              steered),
        Claim("beats the uniform rule", "At half the MACs, before any tuning, the policy is at least 2 points above equal shares",
              better("accuracy", "uniform", by=2, macs_removed=0.5, episodes=BENCH.episodes), paper="searched policies beat hand-crafted ones (abstract)",
              reason="six choices, refitted weights: equal shares are hard to beat; the lead of 1 to 3 points on 256 validation images is luck of the pick"),
        Claim("beats it at 30 %", "With 70 % of the MACs removed, it is at least 2.7 points above equal shares",
              better("accuracy", "uniform", by=2.7, macs_removed=0.7, episodes=BENCH.episodes), paper="VGG-16 at 4x fewer FLOPs: 2.7 % better than hand-crafted (abstract)",
              reason="the gain differs from replica to replica by 5 points; more validation images and more episodes would be needed"),
        Claim("beats slanted rules", "It is at least 2 points above the better of \"deep\" and \"shallow layers lose more\"", better_than_rules,
              paper="searched policies beat hand-crafted ones (abstract)"),
        Claim("not below random search", "It is at most half a point below random search with as many evaluations",
              better("accuracy", "random search", by=-0.5, macs_removed=0.5, episodes=BENCH.episodes)),
        Claim("not below greedy", "It is at most half a point below greedy shrinking with about 150 evaluations (NetAdapt's rule)",
              better("accuracy", "greedy sensitivity", by=-0.5, macs_removed=0.5, episodes=BENCH.episodes)),
        Claim("not below a genetic search", "It is at most half a point below a genetic algorithm with as many evaluations",
              better("accuracy", "genetic search", by=-0.5, macs_removed=0.5, episodes=BENCH.episodes)),
        Claim("budget held on the network", "Every exported network has at most half of the MACs, counted on it",
              heaviest),
        Claim("tuning keeps the lead", "After 60 steps of fine-tuning the policy is still not below equal shares",
              better("accuracy", "uniform, tuned", of="AMC, tuned")),
        Claim("tuning repairs", "After 60 steps half of the MACs cost at most one point of the dense network's accuracy",
              better("accuracy", "dense", by=-1, of="AMC, tuned"), paper="0.1 points of top-1 with MobileNet at half the FLOPs",
              reason="60 steps against the authors' 150 epochs"),
        Claim("faster on a phone", "1.81 times as fast on a phone at half the MACs", None, paper="MobileNet, 1.81x on a Pixel-1, 1.43x on a Titan XP",
              needs="an Android phone"),
    ),
    parts={
        "1 state": Part(Environment.state, "state", "forgetful state"),
        "2 action": Part(Environment.step, "coupled layers", "masks only", reconstructed=True),
        "3 DDPG": Part(DDPG.update, "update rule", "something follows the end"),
        "4 exploration": Part(DDPG.act, "exploration", "noise stays"),
        "5 budget wall": Part(budget_wall, "within budget", "no wall"),
        "6 rewards": Part(guaranteed, "rewards", "shuffled rewards"),
        "7 operator 7": Part(least_squares, "least squares", "no reconstruction", reconstructed=True),
        "8 fine-grained": Part(weight_space, "fine-grained", "no wall"),
        "9 episode": Part(AMC.run, "learns", "shuffled rewards"),
    },
    picture=policy_and_history,
    exercise=Exercise("Keep an agent within a budget: clip each action so that the layers still to come can meet it.", STUB,
                      ["What is spent before layer t is known; what comes after costs at least `lower` of its full cost.",
                       "What is left over, divided by the layer's full cost, is the largest share that fits.",
                       "Clip from above by that share first, then from below by `lower`."], _check_exercise, SOLUTION, exercise_pictures.budget),
)
