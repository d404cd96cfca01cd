r"""# Compact convolution — squeeze channels by an operation that learns nothing

**Channel Compression: Rethinking Information Redundancy among Channels in CNN Architecture** (2020).

Channels of a trained layer say much the same. The usual answer is a layer that learns to mix them down (a 1×1 bottleneck, a gate); this one takes $r$ channels
and puts their maximum (or mean, …) in their place. Nothing is learned in that step, nothing is stored, and the costly 1×1 convolution behind it shrinks by $r$:

```text
            depthwise 3×3        groups of r           1×1
 x (N,C,H,W) ───────────► (N,C,H,W) ─► (N,C/r,r,H,W) ─ max ─► (N,C/r,H,W) ───────► (N,C_out,H,W)
                  BN                  no parameters                     BN, ReLU
```

Per pixel a standard convolution multiplies $k^2\,C\,C_{out}$ times, a separable one $k^2C+C\,C_{out}$, a compact one

$$k^2C+\frac{C\,C_{out}}{r}.$$

With $r=1$ the block *is* the separable convolution, bit for bit. The networks are trained with the operation in place: the depthwise filters of a group learn to
be worth comparing. Where a maximum ties, its members share the gradient.

Three tasks, as in the paper: pictures of digits, acoustic scenes, and sound events with their times (a recurrent layer over the frames, segment-based $F_1$).
Every variant of a task has the same topology, steps and data.

**What to look for.** Compare `max` with `drop`, which keeps one channel of each group and forgets the rest: it has the same cost, so whatever `max` gains over it
is what the *operation* is worth. Compare it with `narrower` too, a plain separable net with as many multiply–accumulates. And look at the picture: the effective rank
of the maps, $e^{H(\lambda)}$ with $\lambda$ the normalised eigenvalues of the channels' covariance, as a share of their number, before and after the squeeze.

The abstract names no figures; block, grouping and networks are reconstructed, and so are the sounds, which are generated.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ...contracts.model import finetune
from ...contracts.structure.macs import macs, macs_by_layer
from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Part, Study
from . import _compact_checks as checks
from ._compact_nets import CompactConv2d, CompactNet, Squeeze, members, squeeze
from ._compact_recipe import TASKS, answers, fit, shipped
from ._compact_track import TRACK, Trio, redundancy, trio

__all__ = ["STUDY", "CompactConv", "CompactConv2d", "compactify", "cost_table", "squeeze"]


@dataclass(frozen=True)
class CompactConv:
    """Channels in groups of ``r`` (``order``: contiguous or strided) become one by ``op``, before or after the 1×1 convolution (``place``).

    ``steps``: training steps of :meth:`compress`. For ``op`` see `_compact_nets.squeeze`.
    """

    r: int = 2
    op: str = "max"
    order: str = "contiguous"
    place: str = "before"
    steps: int = 300

    def squeeze(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, ⌈C/r⌉, H, W)."""
        return squeeze(x, self.r, self.op, self.order)

    def layer(self, c_in: int, c_out: int, kernel: int = 3) -> nn.Module:
        """Depthwise, squeeze, 1×1, batch norms and ReLU in place of a standard convolution with its batch norm and ReLU."""
        return CompactConv2d(c_in, c_out, kernel, self.r, self.op, self.order, self.place)

    def compactify(self, model: nn.Module, skip: Sequence[str] = ()) -> nn.Module:
        return compactify(model, self.r, self.op, skip, self.order)

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example: Any) -> nn.Module:
        """The net with its 3×3 convolutions (all but the first) exchanged, with the smallest group that removes ``ratio`` of the MACs, trained on ``data``."""
        if data is None:
            raise ValueError("data: the exchanged layers have new weights, so a loader of (inputs, labels) is needed to train them")
        whole, stem = macs(model, example), next((name for name, m in model.named_modules() if _replaceable(m)), "")
        for r in (1, 2, 4, 8):
            small = replace(self, r=r).compactify(model, skip=(stem,))
            if (left := macs(small, example)) <= (1 - ratio) * whole:
                finetune(small, data, self.steps, learning_rate=6e-3)
                return small
        raise ValueError(f"ratio: {ratio} of the MACs cannot be removed; groups of 8 remove {1 - left / whole:.3f}")


def _replaceable(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1 and min(module.kernel_size) >= 3


def compactify(model: nn.Module, r: int = 2, op: str = "max", skip: Sequence[str] = (), order: str = "contiguous") -> nn.Module:
    """A copy whose convolutions of 3×3 and larger are compact ones with new weights (strides, biases and shapes as before); ``skip``: names that stay.

    Train it with your own loop. ValueError: nothing to exchange, an unknown name in ``skip``, a layer with fewer than ``r`` channels.
    """
    small = copy.deepcopy(model)
    names = [name for name, module in small.named_modules() if _replaceable(module)]
    if unknown := set(skip) - {name for name, _ in small.named_modules()}:
        raise ValueError(f"skip: no layer is called {sorted(unknown)}; the convolutions are {', '.join(names)}")
    chosen = [name for name in names if name not in skip]
    if not chosen:
        raise ValueError(f"model: no convolution of 3×3 or larger is left to exchange; skipped were {list(skip)}")
    for name in chosen:
        old = small.get_submodule(name)
        if r > old.in_channels:
            raise ValueError(f"r: groups of {r} were asked for, but {name!r} has {old.in_channels} input channels; name it in `skip`")
        depthwise = nn.Conv2d(old.in_channels, old.in_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.in_channels, bias=False)
        pointwise = nn.Conv2d(-(-old.in_channels // r), old.out_channels, 1, bias=old.bias is not None)
        path, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(path), leaf, nn.Sequential(depthwise, nn.BatchNorm2d(old.in_channels), Squeeze(r, op, order), pointwise))
    return small


def cost_table(model: nn.Module, example: Tensor, r: int = 2) -> pd.DataFrame:
    """One row per convolution of 3×3 and larger: ``layer, standard, separable, compact``, multiply–accumulates of one sample as it is and exchanged."""
    counted, rows = macs_by_layer(model, example), []
    for name, module in model.named_modules():
        if _replaceable(module):
            area = counted[name] // module.weight.numel()
            spatial, mix = int(np.prod(module.kernel_size)) * module.in_channels, module.in_channels * module.out_channels
            rows.append({"layer": name, "standard": counted[name], "separable": area * (spatial + mix),
                         "compact": area * (spatial + -(-module.in_channels // r) * module.out_channels)})
    return pd.DataFrame(rows, columns=["layer", "standard", "separable", "compact"])


# --- wrong on purpose -----------------------------------------------------------------------------------------------------------------------------


class FirstTakesAll(CompactConv):
    """A maximum whose whole gradient goes to one of those that tie."""

    def squeeze(self, x: Tensor) -> Tensor:
        return members(x, self.r, self.order).max(2).values if self.op == "max" else super().squeeze(x)


class Forgetful(CompactConv):
    """Channels that fill no group are forgotten instead of filled up."""

    def squeeze(self, x: Tensor) -> Tensor:
        return super().squeeze(x[:, :x.shape[1] // self.r * self.r])


class Learned(CompactConv):
    """A 1×1 convolution in the operation's place: what the paper wants to do without."""

    def layer(self, c_in: int, c_out: int, kernel: int = 3) -> nn.Module:
        return CompactConv2d(c_in, c_out, kernel, self.r, place=self.place, learned=True)

    def compactify(self, model: nn.Module, skip: Sequence[str] = ()) -> nn.Module:
        small = super().compactify(model, skip)
        for name, module in list(small.named_modules()):
            if isinstance(module, Squeeze):
                channels = small.get_submodule(name.rpartition(".")[0])[0].out_channels
                small.get_submodule(name.rpartition(".")[0])[2] = nn.Conv2d(channels, channels // self.r, 1)
        return small


class AlwaysBefore(CompactConv):
    """The place is ignored."""

    def layer(self, c_in: int, c_out: int, kernel: int = 3) -> nn.Module:
        return CompactConv2d(c_in, c_out, kernel, self.r, self.op, self.order)


# --- contenders -----------------------------------------------------------------------------------------------------------------------------------


def _with(op: str, **settings: Any) -> Contender:
    return Contender(lambda r, replica: trio("separable" if r == 1 else f"{op} {r}", replica),
                     **{"subject": CompactConv(op=op), "evidence": "checkpoint", **settings})


def _fixed(variant: str, **settings: Any) -> Contender:
    return Contender(lambda replica: trio(variant, replica), evidence="checkpoint", **settings)


def _averaged(replica: int) -> Trio:
    """Trained separable nets whose groups are averaged afterwards, the weights that read a group added up: no training with the operation."""
    nets = {}
    for task, net in trio("separable", replica).nets.items():
        small = CompactNet(task, 2, "mean", widths=net.config()["widths"])
        state = net.state_dict()
        for name, value in small.state_dict().items():
            if name.endswith("pointwise.weight"):
                state[name] = state[name].unflatten(1, (value.shape[1], 2)).sum(2)
        small.load_state_dict(state)
        nets[task] = small.eval()
    return Trio(nets)


def _learned(r: int, replica: int) -> Trio:
    """A learned 1×1 squeeze in the operation's place, trained by the same recipe."""
    nets = {}
    for task in TASKS:
        torch.manual_seed(replica)
        nets[task] = fit(CompactNet(task, r, learned=True, widths=shipped(task, "separable", replica).config()["widths"]), task, replica)
    return Trio(nets)


def second_best_task(than: str, by: float):
    """Per replica, the gain over ``than`` on the second best of the three tasks: that many points are gained on two tasks at least."""

    def test(m: Measurements) -> Estimate:
        ours, theirs = (m.rows(name, r=2).groupby("replica")[list(TASKS)].mean() for name in (None, than))
        gains = np.sort((ours - theirs).dropna().to_numpy(), 1)
        return estimate(gains[:, 1] if len(gains) else [], by)

    return test


def rank_rises(m: Measurements) -> Estimate:
    """Effective rank per channel after the squeeze, less that before it."""
    rows = m.rows(r=2).groupby("replica")[["rank_before", "rank_after"]].mean()
    return estimate((rows.rank_after - rows.rank_before).to_numpy(), 0.0)


def PROBE() -> dict:
    """What `workbench probe` times: five blocks of 128 channels at 16×16, batch 16, channels-last, r = 1 first."""
    x = torch.zeros(16, 128, 16, 16).to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        nets = {f"r = {r}, {op}": nn.Sequential(*(CompactConv2d(128, 128, r=r, op=op) for _ in range(5))).eval().to(memory_format=torch.channels_last)
                for r, op in ((1, "max"), (2, "max"), (4, "max"), (4, "mean"), (8, "max"))}
        nets["standard convolution"] = nn.Sequential(*(nn.Conv2d(128, 128, 3, padding=1) for _ in range(5))).eval().to(memory_format=torch.channels_last)
    return {label: lambda net=net: net(x) for label, net in nets.items()}


# --- picture --------------------------------------------------------------------------------------------------------------------------------------


def redundancy_before_and_after(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Per task and layer, how many of the channels say something of their own (effective rank as a share), before the squeeze and after it."""
    import plotly.graph_objects as go

    table = exhibits["redundancy"].astype(float) / 10
    labels = [f"{task}, layer {layer + 1}" for task in TASKS for layer in range(table.shape[1])]
    figure = go.Figure()
    for column, name, color in ((0, "before the squeeze", "#0072b2"), (2, "after it", "#d55e00")):
        figure.add_bar(x=labels, y=table[:, :, column].flatten().round(1).tolist(), name=name, marker_color=color,
                       hovertemplate="%{x}: effective rank %{y} % of the channels<extra>" + name + "</extra>")
    return figure.update_layout(title={"text": f"{point['contender']}: effective rank of the maps", "font": {"size": 14}}, height=380, barmode="group",
                                yaxis={"title": {"text": "% of the channels"}}, margin={"l": 10, "r": 10, "t": 40, "b": 10}, legend={"orientation": "h", "y": 1.08})


# --- exercise -------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import torch

def compact(x, r):
    """x: (N, C, H, W), C divisible by r. The maximum of each group of r neighbouring channels: (N, C/r, H, W)."""
    return x[:, ::r]                            # this drops channels instead of comparing them
'''
SOLUTION = '''import torch

def compact(x, r):
    return x.unflatten(1, (-1, r)).amax(2)
'''


def _check_exercise(namespace: dict) -> None:
    x = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    got = namespace["compact"](x, 3)
    assert tuple(got.shape) == (2, 2, 3, 3), f"six channels in groups of three: shape (2, 2, 3, 3), not {tuple(got.shape)}"
    assert torch.equal(got[:, 1], torch.maximum(torch.maximum(x[:, 3], x[:, 4]), x[:, 5])), "group 1 is channels 3, 4 and 5: take the largest at every pixel"
    assert torch.equal(namespace["compact"](x, 1), x), "groups of one change nothing"


# --- the study ------------------------------------------------------------------------------------------------------------------------------------

STUDY = Study(
    paper="2007.01696",
    name="compact-conv",
    track=TRACK,
    method=CompactConv(),
    time_limit=300.0,
    knobs=(Knob("r", (1, 2, 4, 8), 2, quick=(2,), neutral=1, slides=False, label="channels that become one"),),
    contenders={
        "max": _with("max", role="paper"),
        "mean": _with("mean", grid={"r": (2,)}),
        **{op: _with(op, grid={"r": (2,)}, evidence="recorded") for op in ("lp", "min", "absmax", "median", "product", "diff")},
        "drop": _with("drop", role="control", grid={"r": (2, 4, 8)}),
        "separable": _fixed("separable"),
        "narrower": _fixed("narrower"),
        "learned squeeze": Contender(_learned, evidence="recorded", grid={"r": (2,)}, subject=Learned()),
    },
    ablations={
        "averaged afterwards": Ablation("6 networks", Contender(_averaged)),
        "ties to the first": Ablation("4 gradients", subject=FirstTakesAll()),
        "rest forgotten": Ablation("2 grouping", subject=Forgetful()),
        "learned": Ablation("3 operations", subject=Learned()),
        "place ignored": Ablation("1 block", subject=AlwaysBefore()),
    },
    checks=(
        Check("r = 1", "Groups of one are the separable convolution with the same weights, bit for bit, whatever the operation", checks.neutral),
        Check("by hand", "Every operation equals loops over groups and members, contiguous and strided, filled-up groups included", checks.by_hand),
        Check("gradients", "Slopes equal finite differences (1e-4), and members that tie share the gradient of the maximum", checks.gradients),
        Check("costs", "The counter finds k²C + C·C_out/r multiply–accumulates a pixel and as many weights; the operation has none", checks.costs),
        Check("after", "Placed after the 1×1 convolution it narrows the next layer", checks.after),
        Check("exchange", "`compactify` exchanges 3×3 convolutions but the skipped, keeps every shape and costs what the formula says", checks.swap),
        Check("trained with it", "A shipped net answers with its own operation, and not with another one", checks.trained_with_the_operation),
    ),
    claims=(
        *(Claim(f"{task}: no worse", f"Pairs by their maximum cost at most 1.5 points on {task}", better(task, "separable", by=-1.5, r=2),
                paper="effective on all three tasks (abstract, no figures)") for task in TASKS),
        Claim("training matters", "Training with the operation is at least 10 points better than averaging the channels of a trained separable net",
              better("quality", "averaged afterwards", by=10, r=2), paper="implicit squeezing (abstract)"),
        Claim("fewer weights", "Pairs leave at most 0.6 of the weights of the exchanged layers", bound("layer_params", at_most=0.6, relative_to="separable", r=2)),
        Claim("the operation matters", "At equal cost the maximum is at least 1 point better than forgetting one of two channels, on two of the three tasks",
              second_best_task("drop", 1.0)),
        Claim("better than narrower", "At equal MACs it is better than a separable net with fewer channels", better("quality", "narrower", r=2)),
        Claim("maximum beats mean", "The maximum is better than the mean", better("quality", "mean", r=2),
              reason="in a few hundred steps the linear squeezes (mean, difference) learn fastest: a maximum passes one channel's gradient at each pixel"),
        Claim("less redundant", "Per channel, the maps have a higher effective rank after the squeeze than before it", rank_rises),
    ),
    parts={
        "1 block": Part(CompactConv2d, "after", "place ignored", reconstructed=True),
        "2 grouping": Part(members, "by hand", "rest forgotten"),
        "3 operations": Part(squeeze, "by hand", "learned"),
        "4 gradients": Part(CompactConv.squeeze, "gradients", "ties to the first"),
        "5 cost": Part(cost_table, "costs", "learned"),
        "6 networks": Part(compactify, "exchange", "averaged afterwards", reconstructed=True),
        "7 tasks": Part(answers, "scenes: no worse", "averaged afterwards", reconstructed=True),
        "8 redundancy probe": Part(redundancy, "less redundant"),
        "9 parallel implementation": Part(Squeeze, "costs"),
    },
    picture=redundancy_before_and_after,
    exercise=Exercise("Squeeze neighbouring channels by their maximum.", STUB,
                      ["Give the channel axis two axes: groups, and members of a group.", "x.unflatten(1, (-1, r)) has shape (N, C/r, r, H, W).",
                       "amax over the members' axis."], _check_exercise, SOLUTION),
)
