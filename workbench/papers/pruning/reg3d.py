r"""# 3D-Reg — unimportant weights fade, at a pace of their own

**Three Dimensional Convolutional Neural Network Pruning with Regularization-Based Method** (Zhang, Wang, Luo, Yu, Hu, Shan; 2018).

Networks for video convolve over time as well as over space, which multiplies their cost. Cutting weights away at once hurts, and so does one strong
penalty on all of them. Here every *group* $g$ of weights has a regularisation factor $\lambda_g$ of its own,

$$\mathcal{L}(W)+\tfrac{\lambda}{2}\lVert W\rVert^2+\tfrac12\sum_g \lambda_g\lVert W_g\rVert^2 ,$$

which starts at 0 and moves a little again and again: up if the group ranks low in importance, down (not below 0) if it ranks high. What is pulled at
for long has all but vanished by the time it goes; what was suspected wrongly recovers.

```text
  W (N, C, kt, ky, kx) ─► ‖W_g‖₁ ─► rank r_g ─► mean rank h_g ─► place j ─► Δλ(j) ─► λ_g = max(λ_g + Δλ, 0) ──┐
        ▲                                                                                                     │
        └──────── gradient + λ_g W_g ◄────────────────────────────────────── λ_g ≥ 2.5: gone for good ◄────────┘
```

**Groups.** A *column* is one position (c, t, y, x) of the kernel in all $N$ filters, a row of the im2col matrix; also whole filters and whole input channels.

**Increment.** With $P$ groups still to go, $a=\ln 8/P$ and $J_1=\tfrac23P$,

$$\Delta\lambda(j)=\begin{cases}A\,e^{-aj}& j<J_1\\ \tfrac12A-A\,e^{-a(2J_1-j)}& j\ge J_1\end{cases}$$

falls from $A$ at the front through $\tfrac14A$ to 0 exactly at $j=P$, symmetric about $(J_1,\tfrac14A)$. $P$ shrinks as groups go, so those near the border get their turn.

**How much of each layer.** $r_l=\min(r_{max},\kappa\,\rho_l\,(c_l/\bar c)^{1/2})$ with $\rho_l$ the share of redundant principal components of the filter matrix
$(N, C k_t k_y k_x)$ and $c_l$ the layer's multiply–accumulates; bisection finds $\kappa$ for the wanted speed-up; the first layer gets half.

**Execution.** Of $(N, C k_t k_y k_x)\times(C k_t k_y k_x, T'H'W')$ only the rows that are left are gathered and multiplied. Channels that nobody reads any more
leave for good, with the filters that wrote them.

**What to look for.** In the picture λ of one layer over time: most columns flicker and fall back, some climb and are gone. Then the damage at the moment of removal, and
what is left of it after training: rivals that cut at once lose far more at that moment, but the same training repairs much of it, and a *tuned* constant penalty is a
strong rival. Reversing the ranks shows that the choice matters.

Reconstructed: the layer ratios (part 6); batch-norm entries fade along with their filters; the schedule, which takes thousands of steps in the paper and 84 here, so $A$ is larger
in proportion; what is still due at 70 % of the steps goes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat

import numpy as np
import torch
from torch import nn

from ...benches import video
from ...contracts.structure.tuning import batches
from ...core.claims import Estimate, better, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Part, Study
from . import Pruned
from . import _reg3d_checks as checks
from ._reg3d_columns import ColumnConv, gather
from ._reg3d_pruner import RegPruner, find_layers
from ._reg3d_rivals import GroupLasso, OneShot, randomly
from ._reg3d_rules import averaged, cost_aware, latest, linear, only_up, quotas, symmetric, two_sided, uniform
from ._reg3d_runs import PRUNED_BY, STEPS, at_once, contender, from_scratch, prune_while_training, shipped, taylor_run

__all__ = ["PROBE", "STUDY", "ColumnConv", "Reg3D", "RegPruner", "gather", "linear", "two_sided"]


@dataclass(frozen=True)
class Reg3D:
    """Regularisation-based pruning while a network is trained.

    group: ``column``, ``filter`` or ``channel``. A: increment of the least important group (None: so large that all fade within 70 % of ``steps``), target: the
    factor at which a group goes, interval: training steps between two updates. ``steps``, ``rate``: of the training that `compress` does.
    ``increment`` may be `symmetric`, `two_sided` or `linear`. The other fields are the parts that ablations replace.
    """

    group: str = "column"
    A: float | None = None
    target: float = 2.5
    interval: int = 2
    steps: int = STEPS
    rate: float = 0.02
    increment: Callable = symmetric
    average: Callable = averaged
    ratios: Callable = cost_aware
    sign: int = 1
    compact: Callable[[nn.Module], nn.Module] = gather
    kind: type[RegPruner] = RegPruner

    def pruner(self, model: nn.Module, example, speedup: float = 2.0, measure: Callable[[], float] | None = None) -> RegPruner:
        """A pruner for ``model``, to be attached to its optimizer. The last group ripens after about eight times as many updates as the first needs."""
        deadline = max(1, int(PRUNED_BY * self.steps))
        return self.kind(model, example, speedup, self.group, A=self.A or 8 * self.target * self.interval / deadline, target=self.target, interval=self.interval,
                         deadline=deadline, average=self.average, increment=self.increment, sign=self.sign, ratios=self.ratios, compact=self.compact, measure=measure)

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example) -> nn.Module:
        """The model contract: a share ``ratio`` of the convolutions' MACs goes (a speed-up of 1/(1 − ratio)) while ``model`` is trained on ``data``, batches
        of (inputs, labels) that can be iterated again. ValueError: no data or no labels, data that end (an iterator: hand in a list or a loader), grouped
        convolutions in column mode, an unreachable ratio, too few steps."""
        if ratio == 0:
            return model
        if data is None:
            raise ValueError("data: batches of (inputs, labels) are needed; 3D-Reg prunes while it trains")
        pruner = self.pruner(model, example, 1 / (1 - ratio))
        prune_while_training(pruner, chain.from_iterable(map(batches, repeat(data))), self.steps, self.rate)
        if not pruner.done:
            raise ValueError(f"steps: {self.steps}, with an update every {self.interval}, end before the last groups can go")
        return pruner.finish()


def PROBE() -> dict:
    """What `workbench probe` times: one 3-D convolution of 32 → 32 channels on a batch of 32 (4×12×12 positions each), dense and with a quarter of its columns."""
    torch.manual_seed(0)
    conv, x = nn.Conv3d(32, 32, 3, padding=1, bias=False).eval(), torch.randn(32, 32, 4, 12, 12)
    sparse = nn.Conv3d(32, 32, 3, padding=1, bias=False).eval()
    with torch.no_grad():
        sparse.weight.copy_(conv.weight * (torch.rand(conv.weight.shape[1:]) < 0.25))
    nets = {"dense, torch": conv, "dense, gathered by this code": ColumnConv(conv), "a quarter of the columns": ColumnConv(sparse)}
    return {label: lambda net=net: net(x) for label, net in nets.items()}


# --- claims -----------------------------------------------------------------------------------------------------------------------------------------

SSL = {f"SSL {strength}": strength for strength in (0.002, 0.01, 0.03, 0.1)}     # group LASSO


def best_penalty(m: Measurements) -> Estimate:
    """Accuracy at five times the speed above the best of the constant penalties (by its mean over replicas)."""
    ours = m.rows("3D-Reg, trained now", speedup=5).groupby("replica").accuracy.mean()
    rivals = [m.rows(name, speedup=5).groupby("replica").accuracy.mean() for name in SSL]
    best = max(rivals, key=lambda rows: rows.mean())
    return estimate((ours - best).dropna().to_numpy(), 1.0)


best_penalty.of = "3D-Reg, trained now"


def damage(m: Measurements) -> Estimate:
    """Sum of |Δ loss| at the moments of removal, as a share of the Δ loss of L1 pruning at once, at five times the speed."""
    def total(name: str | None) -> dict[int, float]:
        rows = m.rows(name, speedup=5)
        return {replica: float(np.abs(series).sum()) for replica, series in zip(rows.replica, m.series(rows, "damage"), strict=True)}

    ours, once = total("3D-Reg, trained now"), total("L1 at once")
    return estimate([ours[replica] / once[replica] for replica in sorted(set(ours) & set(once))], 0.2, at_least=False)


damage.of = "3D-Reg, trained now"


# --- picture ----------------------------------------------------------------------------------------------------------------------------------------

def fading(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Above: λ of the second convolution's columns over time, sorted by when they went. Below: the columns left in each layer, channel by kernel position."""
    from plotly.subplots import make_subplots

    layers = {name: rows for name, rows in exhibits.items() if name != "lambda"}
    if not layers:
        import plotly.graph_objects as go

        return go.Figure(layout={"title": {"text": "dense: every column is computed"}, "height": 120})
    titles = [f"{name}: {int((rows > 0).sum())}/{rows.size}" for name, rows in layers.items()]
    figure = make_subplots(2, len(layers), specs=[[{"colspan": len(layers)}, *[None] * (len(layers) - 1)], [{}] * len(layers)], row_heights=[0.5, 0.5],
                           subplot_titles=["λ of the second convolution's columns (dark: gone)", *titles], vertical_spacing=0.16, horizontal_spacing=0.03)
    if "lambda" in exhibits:
        history = exhibits["lambda"].astype(float)
        order = np.lexsort((history.sum(0), (history == 255).sum(0)))[::-1]
        figure.add_heatmap(z=history[:, order].T.tolist(), zmin=0, zmax=255, colorscale="Cividis", reversescale=True, showscale=False, row=1, col=1,
                           hovertemplate="moment %{x}, column %{y}: %{z}<extra></extra>")
        figure.update_xaxes(title_text="time (share of the pruning phase, in 24ths)", row=1, col=1)
        figure.update_yaxes(title_text="columns", row=1, col=1)
    else:
        figure.add_annotation(text="nothing fades: cut at once", showarrow=False, x=0.5, y=0.5, xref="x domain", yref="y domain")
    figure.update_yaxes(title_text="channel", row=2, col=1)
    for i, rows in enumerate(layers.values()):
        figure.update_xaxes(title_text="kernel position" if i == len(layers) // 2 else None, row=2, col=i + 1)
        figure.update_yaxes(tickformat="d", dtick=max(1, len(rows) // 4), row=2, col=i + 1)
        figure.add_heatmap(z=(rows > 0).astype(int).tolist(), zmin=0, zmax=1, colorscale=[[0, "#f0f0f0"], [1, "#0072B2"]], showscale=False, row=2, col=i + 1,
                           hovertemplate="channel %{y}, position %{x}<extra></extra>")
    return figure.update_layout(height=520, margin={"l": 10, "r": 10, "t": 40, "b": 20})


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import math

def increment(j, P, A):
    """j: the place of a group in the order of importance (0: least important); P: groups still to go. Return its change of lambda."""
    return A * (1 - j / P)        # falls through 0 at P, but a straight line pulls too hard at the middle
'''
SOLUTION = '''import math

def increment(j, P, A):
    a = math.log(8) / P
    knee = 2 * P / 3
    return A * math.exp(-a * j) if j < knee else A / 2 - A * math.exp(-a * (2 * knee - j))
'''


def _check_exercise(namespace: dict) -> None:
    increment = namespace["increment"]
    for wanted in (6, 30, 99):
        knee = 2 * wanted // 3
        assert abs(increment(0, wanted, 0.5) - 0.5) < 1e-9, "the least important group gets A"
        assert abs(increment(wanted, wanted, 0.5)) < 1e-9, "the first group that may stay gets 0"
        assert abs(increment(knee, wanted, 0.5) - 0.125) < 1e-9, "at two thirds of P the increment is A/4"
        for j in range(knee):
            assert abs(increment(j, wanted, 0.5) + increment(2 * knee - j, wanted, 0.5) - 0.25) < 1e-9, "symmetric about (2P/3, A/4)"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

AT_5 = (5.0,)
HERE = "trained here, as 3D-Reg is"

STUDY = Study(
    paper="1811.07555",
    name="reg3d",
    track=video.MACS,
    method=Reg3D(),
    knobs=(Knob("speedup", (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8), 2, quick=(2,), neutral=1, label="theoretical speed-up (convolutions' MACs)"),),
    contenders={
        "3D-Reg": Contender(lambda speedup, replica: shipped("reg", speedup, replica), role="paper", subject=Reg3D(), evidence="checkpoint",
                            grid={"speedup": (2, 3, 5)}),
        "3D-Reg, trained now": contender(Reg3D().pruner, AT_5, role="paper"),
        "random columns": Contender(lambda speedup, replica: shipped("random", speedup, replica), role="control", evidence="checkpoint", grid={"speedup": AT_5}),
        "L1 at once": contender(OneShot, AT_5, note=HERE),
        "Taylor at once": contender(taylor_run, AT_5, note=HERE),
        **{name: contender(partial(GroupLasso, strength=strength, deadline=int(PRUNED_BY * STEPS)), AT_5, note=HERE) for name, strength in SSL.items()},
        "L1 at once, untrained": at_once(),
        "random columns, untrained": at_once(randomly, role="control"),
        "small net from scratch": from_scratch((4, 7, 10, 14, 14)),
        "dense": Contender(lambda replica: Pruned(video.dense(replica)), role="control"),
    },
    ablations={
        "ranks reversed": Ablation("2 importance", contender(Reg3D(sign=-1).pruner, AT_5), Reg3D(sign=-1)),
        "uniform ratios": Ablation("6 layer ratios", contender(Reg3D(ratios=uniform).pruner, AT_5), Reg3D(ratios=uniform)),
        "only the latest rank": Ablation("2 importance", subject=Reg3D(average=latest)),
        "linear increments": Ablation("3 increment", subject=Reg3D(increment=linear)),
        "no recovery": Ablation("3 increment", subject=Reg3D(increment=only_up)),
        "every pull alike": Ablation("1 groups", subject=Reg3D(kind=checks.Overeager)),
        "masks let go": Ablation("4 update", subject=Reg3D(kind=checks.Forgetful)),
        "masks only": Ablation("8 execution", subject=Reg3D(compact=checks.masks_only)),
        "rows of the next channel": Ablation("8 execution", subject=Reg3D(compact=checks.next_channel)),
    },
    checks=(
        Check("increment", "Δλ is A at rank 0, falls strictly, A/4 at ⅔ P, 0 at P, and symmetric about ⅔ P", checks.increments),
        Check("update by hand", "Mean ranks and factors after three updates equal those worked out by hand", checks.update_by_hand),
        Check("recovery", "A group suspected for five updates and important from then on loses its whole factor", checks.recovers),
        Check("pull", "One step multiplies each group by 1 − ηλ_g: columns, filters with their batch norm, channels", checks.pulls_by_its_factor),
        Check("exact and permanent", "Each layer loses exactly ceil(r·G) groups, which are still zero after 10 steps with momentum", checks.exact_and_permanent),
        Check("target met", "At 1.5 and 5 times the speed the columns left have 1/speed-up of the MACs within 3 %, and no more is computed", checks.target_met),
        Check("ratios", "Redundant layers lose more, the first layer little", checks.ratios),
        Check("gathered = masked", "Gathered columns and zeros in torch's convolution agree in one to three dimensions; unread channels leave", checks.gathered_equals_masked),
        Check("work done", "A convolution with a quarter of its columns multiplies exactly N·K·positions times", checks.does_only_what_is_left),
    ),
    claims=(
        Claim("twice as fast costs little", "At a speed-up of 2 the accuracy falls by at most 2 points",
              better("accuracy", "dense", by=-2, speedup=2), paper="2x: 0.41 % (3D-ResNet18) and 3.28 % (C3D) (abstract)",
              reason="120 steps in all, 36 of them behind the last removal, on a net of 63,000 weights; the paper starts from C3D's 80 million and retrains until validation stalls"),
        Claim("beats random columns", "At a speed-up of 5 it is at least half a point above random columns trained alike",
              better("accuracy", "random columns", by=0.5, speedup=5)),
        Claim("ranks matter", "With reversed ranks at least 5 points more are lost, at a speed-up of 5",
              better("accuracy", "ranks reversed", by=5, of="3D-Reg, trained now", speedup=5)),
        Claim("little damage at the moment of removal", "The loss moves at most a fifth as much as when L1 cuts at once, at a speed-up of 5", damage,
              reason="84 steps are a short time to fade in: the last columns go at the deadline with what they still weigh, and the sum counts every small move of 40 removals"),
        Claim("beats L1 at once", "At a speed-up of 5 it is at least half a point above one cut by L1 with as many steps of training",
              better("accuracy", "L1 at once", by=0.5, of="3D-Reg, trained now", speedup=5), paper="better than the methods compared (abstract)"),
        Claim("beats a tuned constant penalty", "At a speed-up of 5 it is at least a point above the best of four strengths of group LASSO", best_penalty,
              paper="better than the methods compared (abstract)"),
        Claim("cost-aware ratios do not lose", "At a speed-up of 5 they are at most half a point below equal ratios",
              better("accuracy", "uniform ratios", by=-0.5, of="3D-Reg, trained now", speedup=5),
              reason="the reconstructed ratios take 95 % of the two last convolutions and leave a bottleneck of eleven channels"),
        Claim("beats training from nothing", "At a speed-up of 5 it is at least as good as a net of a fifth of the MACs, trained from nothing for as many steps as the dense net and its pruning",
              better("accuracy", "small net from scratch", speedup=5),
              reason="a narrow dense net learns this task well in 1,620 steps, while a net that lost four fifths of its columns has 120 steps to recover"),
        Claim("shipped as trained", "The shipped nets are within a point of those trained now", better("accuracy", "3D-Reg, trained now", by=-1, speedup=5)),
    ),
    parts={
        "1 groups": Part(find_layers, "pull", "every pull alike"),
        "2 importance": Part(RegPruner.rank, "update by hand", "only the latest rank"),
        "3 increment": Part(symmetric, "increment", "linear increments"),
        "4 update": Part(RegPruner.step, "exact and permanent", "masks let go"),
        "5 schedule": Part(prune_while_training, "twice as fast costs little", "ranks reversed"),
        "6 layer ratios": Part(quotas, "ratios", "uniform ratios", reconstructed=True),
        "7 networks": Part(video.C3DSmall, "target met", "masks only"),
        "8 execution": Part(ColumnConv.forward, "gathered = masked", "rows of the next channel"),
    },
    picture=fading,
    exercise=Exercise("Write the increment of a group's factor from its place among the groups still there.", STUB,
                      ["Two exponentials: one falls from A at 0, the other is the same curve turned by half a turn.",
                       "With a = ln 8 / P the first reaches A/4 at J = 2P/3; that is the point about which it is turned.",
                       "Turned about (J, A/4): the value at j is A/2 minus the value of the first curve at 2J − j."], _check_exercise, SOLUTION),
)
