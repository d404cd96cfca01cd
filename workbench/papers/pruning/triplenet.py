r"""# TripleNet — dense where maps are large, harmonic in the middle, residual at the end

**Efficient Convolutional Neural Networks on Raspberry Pi for Image Classification** (Ju, Lin, Jian, Chiang, 2022).

On a small processor a net is not slow because it multiplies much, but because it moves much: every activation map is written, read, and, where layers
are concatenated, copied. How layers are *connected* decides that. A dense block reads everything again in every layer,

$$R_{\text{dense}}=\sum_{l=1}^{L}\bigl(c_0+(l-1)\,g\bigr)HW = O(L^2)\,gHW ,$$

a harmonic block only the layers $l-2^i$ for the powers of two that divide $l$, so that $O(L\log L)$ links remain, and the layers where many links meet get
more channels, $g\cdot m^{\,\text{links}-1}$ with $m=1.7$. A residual bottleneck reads one map twice. TripleNet takes each where it is cheap:

```text
 image ─ 3×3/2 ─ 3×3 ─ pool ─► dense ×6 ─► pool ─► HarD 16 ─► HarD 16 ─► pool ─► HarD 16 ─► pool ─► bottleneck ×2 ─► average ─ linear
 (N,3,H,W)      32    64   /4   64→256        /8    g=16       g=20        /16    g=40        /32    160→480→720            (N, classes)
                                  └─ 1×1 → 128    └ 1×1→192  └ 1×1→256         └ 1×1→320
 harmonic links of layer 8:   8 ◄── 7, 6, 4, 0        of layer 7:   7 ◄── 6
```

`triplenet("S")` builds the published net ($8\,965\,434$ parameters with ten classes, to the last one), `width` scales every channel number, and
`Design().compress(model, ratio, data)` trains a TripleNet with the wanted share of *your* classifier's multiply–accumulates in its place.

**What to look for.** Every contender here has the same multiply–accumulates (within 3 %), the same steps and the same data. Look at what they *move*:
a net of depthwise convolutions has few parameters and few kernels, but large maps; the harmonic net moves least of all, so that it is not the mixture that
saves bytes. Look at what they *know* after two epochs, too: ghost bottlenecks and dense blocks, which hand their input on, learn faster than the mixture, and a
chain of depthwise layers without shortcuts hardly at all. At the published widths and after two hundred epochs that may differ; at equal cost and equal steps it is so. Look at the number of kernels too: fifty small layers are fifty calls, and a processor with a cheap memory pays for calls. The picture shows
each kernel's bytes and multiply–accumulates in the order in which they run.

The blocks, widths and links are those of the authors' code. Two nets are called B there: an older one with 14.1 million parameters (`B`) and the one of
the published table, S with a third bottleneck (`B3`; 12.6 million with a thousand classes). The published "9.67 M" for S is the thousand-class net.
Milliseconds of a Raspberry Pi cannot be measured here: claims on speed compare counted bytes and kernels, and a timing of this machine stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...benches import designs
from ...contracts.model import finetune
from ...contracts.structure.macs import macs
from ...contracts.structure.trace import forward
from ...contracts.structure.tuning import inputs_and_labels
from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Part, Study
from . import _triplenet_checks as checks
from ._triplenet_deploy import deploy, export, profile, scripted
from ._triplenet_lesson import SOLUTION, STUB, check_exercise, kernels_in_order
from ._triplenet_nets import POOLED, Bottleneck, ConvLayer, DenseLayer, HarDBlock, TripleNet, width_of
from ._triplenet_rivals import NETS, GhostModule, file_of

__all__ = ["STUDY", "Design", "TripleNet", "deploy", "export", "fit_classifier", "profile", "triplenet"]

SMALLEST = 32                                                       # pixels; the maps shrink by 32
SIZES: dict[str, dict[str, Any]] = {
    "S": {"dense": 6, "layers": (16, 16, 16), "channels": (128, 192, 256, 320), "residual": (160, 240)},
    "B": {"dense": 8, "layers": (16, 18, 24), "channels": (160, 256, 320, 480), "residual": (240, 360)},
    "B3": {"dense": 6, "layers": (16, 16, 16), "channels": (128, 192, 256, 320), "residual": (160, 240, 360)},
}
GROWTH, INNER, HARMONIC_GROWTH, STEM = 32, 128, (16, 20, 40), (32, 64)


@dataclass(frozen=True)
class Design:
    """A TripleNet before it has weights: ``size`` (S, B, B3), ``width`` (factor on every channel number, rounded to even), ``layers`` per harmonic block
    (default: the published ones), ``steps`` of training in :meth:`compress`.

    ``first``, ``last``, ``kind``, ``multiplier``, ``pooled``, ``stem_pool``, ``halved_at`` exist to be wrong on purpose: another kind of block 1 or 5, other links,
    equal widths, other poolings, another schedule.
    """

    size: str = "S"
    width: float = 1.0
    layers: int | None = None
    steps: int = 300
    first: str = "dense"
    last: str = "residual"
    kind: str = "harmonic"
    multiplier: float = 1.7
    pooled: tuple[int, ...] = POOLED
    stem_pool: bool = True
    halved_at: tuple[int, ...] = (75, 150)

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, not {self.size!r}")
        if not self.width > 0 or not np.isfinite(self.width):
            raise ValueError(f"width must be a positive number, not {self.width!r}: it would give 0 channels")
        if self.layers is not None and not 1 <= self.layers <= 64:
            raise ValueError(f"layers: a harmonic block has 1 … 64 layers, not {self.layers!r}")

    def scaled(self, *channels: int) -> list[int]:
        """The numbers times ``width``, rounded to even, at least 2."""
        return [max(2, int(c * self.width / 2 + 0.5) * 2) for c in channels]

    def build(self, num_classes: int = 10) -> TripleNet:
        """A net with fresh weights from torch's generator."""
        plan = SIZES[self.size]
        growth, inner = self.scaled(GROWTH, INNER)
        first = ("dense", plan["dense"], growth, inner) if self.first == "dense" else ("hard", plan["dense"], growth)
        middle = [("hard", self.layers or n, g) for n, g in zip(plan["layers"], self.scaled(*HARMONIC_GROWTH), strict=True)]
        last = ("residual", *self.scaled(*plan["residual"])) if self.last == "residual" else ("hard", 4, *self.scaled(plan["residual"][0]))
        return TripleNet((first, *middle, last), self.scaled(*plan["channels"]), self.scaled(*STEM), num_classes, self.multiplier, self.kind, self.pooled,
                         self.stem_pool)

    def learning_rate(self, epoch: int, epochs: int = 200) -> float:
        """Adam's rate in ``epoch`` (from 1): 1e-3, halved at epochs 75 and 150 of 200 (in proportion for other lengths)."""
        return 1e-3 * 0.5 ** sum(epoch >= at * epochs / 200 for at in self.halved_at)

    def deploy(self, net: nn.Module) -> nn.Module:
        return deploy(net)

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example: Any) -> nn.Module:
        """A TripleNet with ``1 − ratio`` of the MACs of ``model``, trained on ``data`` for ``steps`` steps; the weights of ``model`` are not used."""
        if not isinstance(example, torch.Tensor) or example.dim() != 4 or example.shape[1] != 3 or min(example.shape[2:]) < SMALLEST:
            raise ValueError(f"example: TripleNet takes images (N, 3, H, W) of at least {SMALLEST}×{SMALLEST} pixels, "
                             f"found {tuple(getattr(example, 'shape', ()))}")
        if data is None:
            raise ValueError("data: TripleNet is trained from nothing, so a loader of (images, labels) is needed")
        with torch.no_grad():
            answer = forward(model, example)
        if answer.dim() != 2:
            raise ValueError(f"model: a classifier with outputs (N, classes) is needed, found {tuple(answer.shape)}")
        net = self.fitting((1 - ratio) * macs(model, example), example).build(answer.shape[1])
        finetune(net, data, self.steps, learning_rate=6e-3)
        return net

    def fitting(self, budget: float, example: torch.Tensor) -> Design:
        """The widest design (in steps of 1/32) whose MACs at the shape of ``example`` lie within ``budget``."""
        low, high = 1, 64
        if (least := macs(replace(self, width=low / 32).build().eval(), example[:1])) > budget:
            raise ValueError(f"ratio: {budget:,.0f} MACs are asked for, but the narrowest TripleNet-{self.size} needs {least:,d}")
        while high - low > 1:
            middle = (low + high) // 2
            fits = macs(replace(self, width=middle / 32).build().eval(), example[:1]) <= budget
            low, high = (middle, high) if fits else (low, middle)
        return replace(self, width=low / 32)


def triplenet(size: str = "S", num_classes: int = 10, width: float = 1.0, in_size: int = 32, layers: int | None = None) -> TripleNet:
    """TripleNet-S, -B or -B3 for images (N, 3, in_size, in_size). ValueError: images under 32 pixels, an unknown size, no class, no width."""
    if in_size < SMALLEST:
        raise ValueError(f"in_size: {in_size} pixels; the maps shrink by 32, so at least {SMALLEST} are needed")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, found {num_classes}")
    return Design(size, width, layers).build(num_classes)


def fit_classifier(net: nn.Module, loader: Iterable, epochs: int = 200, design: Design | None = None) -> list[float]:
    """Trains in place as published (Adam, :meth:`Design.learning_rate`); the mean loss of each epoch. ``loader`` yields (images, labels)."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    means = []
    for epoch in range(1, epochs + 1):
        optimizer.param_groups[0]["lr"] = (design or Design()).learning_rate(epoch, epochs)
        losses = []
        net.train()
        for images, labels in map(inputs_and_labels, loader):
            if labels is None:
                raise ValueError("loader: batches of (images, labels) are needed, found images alone")
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if not losses or not np.isfinite(losses).all():
            raise ValueError(f"loader: epoch {epoch} had {'no batch' if not losses else 'a loss that is not finite'}")
        means.append(float(np.mean(losses)))
    net.eval()
    return means


@dataclass(frozen=True)
class ShiftForgotten(Design):
    """Wrong on purpose: batch norms are folded, but their shifts are lost."""

    def deploy(self, net: nn.Module) -> nn.Module:
        folded = deploy(net)
        for module in folded.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return folded


# --- contenders -----------------------------------------------------------------------------------------------------------------------------------

NARROW = Design(width=0.125, layers=8)


def _triple(width: float, replica: int) -> nn.Module:
    if width == NARROW.width:
        return designs.shipped(file_of("TripleNet"), NETS["TripleNet"], replica)
    return designs.trained(replace(NARROW, width=width).build, replica)


def _untrained(design: Design, note: str) -> Contender:
    def make(replica: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(replica)
            return design.build().eval()

    return Contender(make, note=note, subject=design)


def _shipped(name: str) -> Contender:
    return Contender(lambda replica: designs.shipped(file_of(name), NETS[name], replica), evidence="checkpoint")


def half_the_width(m: Measurements) -> Estimate:
    """Accuracy of the shipped width less that of half of it, over replicas."""
    ours, half = (rows.groupby("replica").accuracy.mean() for rows in (m.rows(), m.rows("TripleNet, half as wide", width=0.0625)))
    return estimate((ours - half).dropna().to_numpy(), 2.0)


def PROBE() -> dict:
    """What `workbench probe` times, one image of 32×32 pixels: TripleNet-S as trained, folded and as TorchScript, and the others folded."""
    x = torch.zeros(1, 3, 32, 32)
    with torch.random.fork_rng(devices=[]):
        whole = triplenet("S").eval()
        nets = {"TripleNet-S": whole, "TripleNet-S, folded": deploy(whole), "TripleNet-S, TorchScript": scripted(whole),
                "TripleNet-B, folded": deploy(triplenet("B").eval()), "TripleNet-B3, folded": deploy(triplenet("B3").eval())}
        nets |= {f"{name} (0.85 MMAC), folded": deploy(build()) for name, build in NETS.items()}
    return {label: lambda net=net: net(x) for label, net in nets.items()}


# --- the study ------------------------------------------------------------------------------------------------------------------------------------

STUDY = Study(
    paper="2204.00943",
    name="triplenet",
    track=designs.track("triplenet", "Small nets trained from nothing, accuracy against multiply–accumulates"),
    method=Design(),
    time_limit=300.0,
    knobs=(Knob("width", (0.0625, 0.125, 0.1875), 0.125, slides=False, label="factor on every channel number of TripleNet-S"),),
    contenders={
        "TripleNet": Contender(_triple, role="paper", subject=Design(), evidence="checkpoint", grid={"width": (NARROW.width,)}),
        "TripleNet, half as wide": Contender(_triple, role="paper", evidence="recorded", grid={"width": (0.0625,)}),
        **{name: _shipped(name) for name in NETS if name != "TripleNet"},
    },
    ablations={
        "block 1 harmonic": Ablation("3 block 1, dense", subject=Design(first="hard")),
        "block 5 harmonic": Ablation("5 block 5, residual", subject=Design(last="hard")),
        "every link": Ablation("4 harmonic blocks", subject=Design(kind="all")),
        "equal widths": Ablation("4 harmonic blocks", subject=Design(multiplier=1.0)),
        "halved after every block": Ablation("2 stem", subject=Design(pooled=(0, 1, 2, 3))),
        "stem without pooling": Ablation("2 stem", _untrained(replace(NARROW, stem_pool=False), "not trained: its counts are what matters")),
        "untrained": Ablation("8 training", _untrained(NARROW, "the weights it starts from")),
        "constant rate": Ablation("8 training", subject=Design(halved_at=())),
        "shift forgotten": Ablation("9 harness", subject=ShiftForgotten()),
    },
    checks=(
        Check("parameters", "S, B and B3 have the published numbers of parameters, with ten and with a thousand classes, to the last one", checks.parameter_counts),
        Check("links and widths", "The links and widths of a harmonic block of 16 layers are the published ones", checks.links_and_widths),
        Check("activation memory", "All layers of S together put out the published 90.25 MB for one image of 224 pixels", checks.activation_memory),
        Check("shapes", "Maps of 1×1 at 32 pixels and 7×7 at 224; 10 answers a picture", checks.shapes),
        Check("functional reference", "Dense layers, harmonic blocks and bottlenecks equal a recursion over the published link rule with the same weights",
              checks.functional_reference),
        Check("harmonic blocks read less", "A harmonic block of 16 layers reads at most half the bytes of a dense block of its depth and growth",
              checks.harmonic_reads),
        Check("deployment", "Folded, channels-last and as TorchScript the net gives the same logits (to 1e-3) and the same answers, with fewer kernels",
              checks.deployment),
        Check("schedule", "Adam's rate is 1e-3, halved at epochs 75 and 150 of 200, and in proportion for fewer", checks.schedule),
    ),
    claims=(
        Claim("not worse than MobileNet", "At equal MACs TripleNet is at most 1 point less accurate than a MobileNet", better("accuracy", "MobileNet-like", by=-1),
              paper="13.05 % against 16.12 % error on CIFAR-10 (the authors' table)"),
        Claim("not worse than GhostNet", "At equal MACs TripleNet is at most 1 point less accurate than a GhostNet", better("accuracy", "GhostNet-small", by=-1),
              paper="no loss of accuracy (abstract)",
              reason="two epochs favour nets that learn fast: ghost bottlenecks pass everything on by a shortcut, harmonic blocks at an eighth of their width "
                     "squeeze everything through layers of two channels"),
        Claim("beats pure dense", "At equal MACs the mixture is more accurate than dense blocks alone", better("accuracy", "pure dense"),
              reason="dense blocks hand every map on unchanged and learn fastest; what the harmonic blocks save is traffic, which this comparison does not count"),
        Claim("beats pure harmonic", "At equal MACs the mixture is more accurate than harmonic blocks alone", better("accuracy", "pure harmonic"),
              paper="13.05 % against 13.89 % error of HarDNet-85 (the authors' table)"),
        Claim("moves less than MobileNet", "At equal MACs it moves at most 84 % of the bytes of a MobileNet",
              bound("traffic", at_most=0.84, relative_to="MobileNet-like"), paper="16 % less time an image on a Raspberry Pi 4 (abstract)"),
        Claim("moves less than GhostNet", "At equal MACs it moves at most 85 % of the bytes of a GhostNet",
              bound("traffic", at_most=0.85, relative_to="GhostNet-small"), paper="15 % less time an image on a Raspberry Pi 4 (abstract)"),
        Claim("moves less than HarDNet", "At equal MACs it moves at most 70 % of the bytes of harmonic blocks alone",
              bound("traffic", at_most=0.7, relative_to="pure harmonic"), paper="30 % less time an image than HarDNet on a Raspberry Pi 4 (abstract)",
              reason="the HarDNet of the paper has four times TripleNet's parameters; at equal MACs harmonic links move the least, and the dense block costs most"),
        Claim("fewer kernels than MobileNet", "At equal MACs it launches at most 84 % of the kernels of a MobileNet",
              bound("kernels", at_most=0.84, relative_to="MobileNet-like"), paper="16 % less time an image on a Raspberry Pi 4 (abstract)",
              reason="narrow layers in long chains: nearly twice the convolutions, each with its activation, and concatenations between them"),
        Claim("width pays", "Half the width costs at least 2 points",
              half_the_width),
        Claim("milliseconds", "An image takes 16 % less time than with a MobileNet, 30 % less than with HarDNet-85", None,
              paper="40.6 ms against 76.8 (MobileNet), 67.4 (MobileNetV2) and 92.5 (HarDNet-85)", needs="a Raspberry Pi 4"),
    ),
    parts={
        "1 ConvLayer": Part(ConvLayer, "functional reference"),
        "2 stem": Part(TripleNet, "shapes", "halved after every block"),
        "3 block 1, dense": Part(DenseLayer, "functional reference", "block 1 harmonic"),
        "4 harmonic blocks": Part(HarDBlock, "harmonic blocks read less", "every link"),
        "4 links and widths": Part(width_of, "links and widths", "equal widths"),
        "5 block 5, residual": Part(Bottleneck, "functional reference", "block 5 harmonic"),
        "6 head": Part(TripleNet.forward, "shapes"),
        "7 configurations": Part(Design.build, "parameters", "block 5 harmonic"),
        "8 training": Part(fit_classifier, "schedule", "constant rate"),
        "9 harness": Part(designs.kernels, "deployment", "shift forgotten"),
        "10 comparison set": Part(GhostModule, "moves less than GhostNet", reconstructed=True),
    },
    picture=kernels_in_order,
    exercise=Exercise("Write down the links of a harmonic dense block.", STUB,
                      ["Which powers of two divide the layer's number?", "Each of them is a step back: layer 12 reads 11, 10 and 8.",
                       "2 ** 0 = 1 divides every number, so the layer before is always among them."], check_exercise, SOLUTION),
)
