r"""# RFC-HyPGCN — prune a graph network so that hardware has less to do, and store features compressed while it runs

**A Runtime Sparse Feature Compress Accelerator for Skeleton-Based GCNs Action Recognition Model with Hybrid Pruning** (Wen et al., ASAP 2021).

A skeleton is a graph of 25 joints. Block after block, 2s-AGCN multiplies features by learnt graphs, mixes channels, and convolves over nine frames,

$$y=\sum_{k=1}^{3} W_k\, f\, G_k,\qquad G_k=A_k+B_k,\qquad f\in\mathbb{R}^{C\times T\times 25},$$

with $A_k$ the normalised graph (itself, parent, children) and $B_k$ learnt. The paper shapes pruning after the datapath:

```text
 f ─► kept channels c only ─► f[c] G_k ─► W_k[:, c] · ─► Σ ─► ReLU ─► RFC memory ─► kept taps of kept filters ─► ReLU ─► RFC memory ─► next block
      part 3: pruned channels      part 2: graph first              part 8              parts 4, 5
```

**Graph first.** $W_k(fG_k)=(W_kf)G_k$, but only in the first order does a pruned column $W_k[:,c]$ save its graph product too. The other order meets all $C'$ outputs.

**Channels** with the smallest $\sum_k\lVert W_k[:,c]\rVert_1$ go, more in deeper blocks. A temporal filter of the block before whose output only pruned channels read goes whole (*coarse*).
What is left keeps 2 to 5 of its nine taps in patterns that repeat every eight filters, each tap equally often (*fine*), so that every processing element has the same work. For the strongest
setting every second frame is skipped. Then 60 steps of tuning.

**Numbers.** Words are Q8.8, sums have 32 bits: $w=\mathrm{sat}_{16}(\lfloor (s+128)/256\rfloor)$. Batch norms are folded.

**RFC.** Behind each ReLU a vector of 16 channels becomes a 16-bit mask and its packed non-zeros. Words $4j\dots4j+3$ live in mini-bank $j$, which has rows only for vectors with more than
$4j$ non-zeros; a vector's row number is the number of earlier such vectors. Depths come from calibration clips; what does not fit spills.

**Queues.** A temporal PE has a queue for each kept tap and one multiplier fewer than taps. Non-zero features wait, the oldest are served first.

**What to look for.** In the picture: which channels and taps are left, how many words of the vectors are not zero, and how the multipliers are dealt out. Counts come from the executed loops and from
real features, never from a sparsity multiplied by something. Move *dsps*: the interval between two clips falls until one stage cannot be split any further.

Reconstructed (only the abstract was at hand): block sizes, dropping the data-dependent graph, the schedule of shares, patterns, quantiles, queue depths, the clock. Shortcuts read all channels, so a coarse cut is exact
only without them; here the filter's own part is dropped and tuning repairs it. The three input coordinates are never pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ...benches import skeleton
from ...benches.skeleton.nets import TAPS, TwoStream
from ...contracts.structure.tuning import batches
from ...core.claims import better, bound
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Part, Study
from . import _hypgcn_checks as checks
from ._hypgcn_cycles import dynamic, pipeline
from ._hypgcn_fixed import FixedBlock, FixedNet, WeightsFirst, narrowed
from ._hypgcn_prune import PRESETS, HybridPruning, Preset, balanced, pattern_of, plan_of, prune_channels, unbalanced
from ._hypgcn_rfc import RFC, NoPrefix
from ._hypgcn_runs import CALIBRATION, HYBRID, STEPS, Accelerator, Dense, made, scattered, shipped, tune, tuned

__all__ = ["RFC", "STUDY", "FixedNet", "HyPGCN", "hybrid_prune", "simulate"]


@dataclass(frozen=True)
class HyPGCN:
    """Hybrid pruning with its datapath. ``pruning``: channels, filters and taps; ``block``: order and rounding of the products; ``memory``: of features;
    ``scheduling``: ``dynamic`` or ``static`` temporal PEs; ``steps`` of tuning."""

    pruning: HybridPruning = HYBRID
    block: type[FixedBlock] = FixedBlock
    memory: type[RFC] = RFC
    scheduling: str = "dynamic"
    steps: int = STEPS

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example) -> nn.Module:
        """The model contract: the mildest preset that takes at least a share ``ratio`` of the multiplications, tuned on ``data`` if there is any.
        ValueError: not a two-stream network of the bench, a ratio beyond the strongest preset."""
        if ratio == 0:
            return model
        enough = [reduction for reduction in PRESETS if 1 - 1 / reduction >= ratio - 0.01]
        if not enough:
            raise ValueError(f"ratio: at most {1 - 1 / max(PRESETS):.2f} of the multiplications can go, found {ratio}")
        return self.pruned(model, PRESETS[enough[0]], data)

    def pruned(self, model: nn.Module, plan: Preset, data: Iterable | None = None) -> TwoStream:
        if not (hasattr(model, "joints") and hasattr(model, "bones")):
            raise ValueError(f"model: a two-stream graph network (benches.skeleton.nets.TwoStream) is needed, found {type(model).__name__}")
        small = self.pruning.prune(model, plan)
        if data is not None:
            tune(small, 0, self.steps, source=data)
        return small


def hybrid_prune(model: TwoStream, loader: Iterable | None = None, preset: str | Preset = "3x", steps: int = STEPS, dsps: int = 256) -> Accelerator:
    """A pruned, tuned (where there is a loader of clips and labels) and lowered network on the simulated chip; its ``net`` can be saved and loaded. The loader's
    first clips size the feature memory.

    ValueError: another kind of model, an unknown preset, shares that do not fit, a loader without batches (or one that runs only once), batches without labels.
    """
    seen = None if loader is None else next(batches(loader))[0][:CALIBRATION]
    return Accelerator(FixedNet.of(HyPGCN(steps=steps).pruned(model, plan_of(preset), loader)), dsps=dsps, calibration=seen)


def simulate(chip: Accelerator, clip: torch.Tensor, dsps: int | None = None) -> dict[str, float]:
    """What one clip (3, T, 25) in metres costs: multiplications, skipped graph products, feature memory, busy multipliers, cycles. ValueError: another graph, another
    number of frames than the clips that sized the feature memory, too few multipliers."""
    if clip.dim() != 3 or clip.shape[0] != 3 or clip.shape[2] != skeleton.data.JOINTS:
        raise ValueError(f"clip: (3, frames, {skeleton.data.JOINTS}) is needed for this graph, found {tuple(clip.shape)}")
    frames = skeleton.data.FRAMES if chip.calibration is None else chip.calibration.shape[2]
    if clip.shape[1] != frames:
        raise ValueError(f"clip: {frames} frames, as many as the clips that sized the feature memory, found {clip.shape[1]}; hybrid_prune's loader sizes it anew")
    return (chip if dsps is None else replace(chip, dsps=dsps)).counters(clip)[0]


class Truncating(FixedBlock):
    """Wrong on purpose: the low bits are cut off instead of rounded."""

    narrow = staticmethod(lambda sums: narrowed(sums - 128))


class FullDepth(RFC):
    """Wrong on purpose: every mini-bank has a row for every vector."""

    @classmethod
    def fit(cls, features: np.ndarray, quantile: float = 0.999, spill: bool = True) -> RFC:
        return cls(np.full((-(-features.shape[1] // 16), 4), features[0, 0].size), spill)


# --- picture ----------------------------------------------------------------------------------------------------------------------------------------

def chip(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Channels that each block reads, taps that each filter keeps, non-zeros per vector of the last feature memory, and cycles of each stage."""
    from plotly.subplots import make_subplots

    if "channels" not in exhibits:
        import plotly.graph_objects as go

        return go.Figure(layout={"title": {"text": "the dense net in floating point: everything is computed"}, "height": 120})
    figure = make_subplots(2, 2, subplot_titles=["input channels (blue: read)", "taps of all filters (blue: kept)",
                                                 "non-zeros per vector of 16", "cycles of each stage"], vertical_spacing=0.24, horizontal_spacing=0.14)
    channels, blocks = exhibits["channels"].astype(int), [f"block {i + 1}" for i in range(len(exhibits["channels"]))]
    figure.add_heatmap(z=channels.tolist(), y=blocks, zmin=0, zmax=2, colorscale=[[0, "rgba(0,0,0,0)"], [0.5, "#dddddd"], [1, "#0072B2"]], showscale=False, xgap=1, ygap=2, row=1, col=1)
    filters = int(exhibits["filters"].sum())
    taps = np.unpackbits(exhibits["patterns"], count=filters * TAPS).reshape(filters, TAPS)
    figure.add_heatmap(z=taps.T.astype(int).tolist(), zmin=0, zmax=1, colorscale=[[0, "#dddddd"], [1, "#0072B2"]], showscale=False, row=1, col=2)
    figure.add_bar(x=list(range(17)), y=exhibits["nonzeros"].astype(int).tolist(), marker_color="#009E73", showlegend=False, row=2, col=1)
    stages = [f"{block}, {part}" for block in range(1, len(blocks) + 1) for part in ("space", "time")]
    figure.add_bar(x=stages, y=exhibits["stage"].astype(int).tolist(), text=exhibits["dsps"].astype(int).tolist(), marker_color="#D55E00", showlegend=False, row=2, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    for row, col, x, y in ((1, 1, "input channel", None), (1, 2, "filters of all blocks", "tap (frame)"), (2, 1, "words that are not zero", "vectors of 16"),
                           (2, 2, "block and part (in the bars: its multipliers)", "cycles a clip")):
        figure.update_xaxes(title_text=x, row=row, col=col).update_yaxes(title_text=y, row=row, col=col)
    return figure.update_layout(height=600, margin={"l": 10, "r": 10, "t": 40, "b": 20})


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''def rows(nonzeros, j):
    """nonzeros: how many words of each vector are not zero. Mini-bank j holds words 4j to 4j+3 of the packed vectors that have more than 4j of them.
    Return, for each vector, its row in mini-bank j, or None if it has none there."""
    return list(range(len(nonzeros)))        # a row for everybody: nothing is saved
'''
SOLUTION = '''def rows(nonzeros, j):
    found, row = [], 0
    for count in nonzeros:
        has = count > 4 * j
        found.append(row if has else None)
        row += has
    return found
'''


def _check_exercise(namespace: dict) -> None:
    rows = namespace["rows"]
    assert list(rows([3, 0, 9, 5, 16], 0)) == [0, None, 1, 2, 3], "vectors without non-zeros have no row, the others follow each other"
    assert list(rows([3, 0, 9, 5, 16], 1)) == [None, None, 0, 1, 2], "mini-bank 1: more than four non-zeros"
    assert list(rows([3, 0, 9, 5, 16], 2)) == [None, None, 0, None, 1], "mini-bank 2: more than eight"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

AT_3 = {"reduction": (3.0,)}


def _at(evidence: str = "checkpoint", **settings) -> Contender:
    """The shipped net at a third of the multiplications, on another chip."""
    return Contender(lambda reduction, replica: shipped(reduction, replica, **settings), evidence=evidence, grid=AT_3)


STUDY = Study(
    paper="2108.01020",
    name="rfc-hypgcn",
    track=skeleton.MACS,
    method=HyPGCN(),
    knobs=(Knob("reduction", tuple(PRESETS), 3, label="fewer multiplications (times)", slides=False),
           Knob("dsps", (24, 32, 48, 64, 96, 128, 192, 256, 384), 256, label="multipliers on the chip")),
    contenders={
        "RFC-HyPGCN": Contender(lambda reduction, dsps, replica: shipped(reduction, replica, dsps=int(dsps)), role="paper", subject=HyPGCN(), evidence="checkpoint",
                                grid={"reduction": (3.0, 8.4)}),
        "RFC-HyPGCN, tuned now": tuned(role="paper"),
        "not tuned": Contender(lambda reduction, replica: made(plan_of(reduction), replica, steps=0), evidence="recorded"),
        "plain chip": _at(scheduling="static", block=WeightsFirst, memory="bitmap"),
        "CSR features": _at(memory="csr", evidence="recorded"),
        "single weights, same bytes": Contender(scattered, evidence="recorded", grid=AT_3),
        "16-bit words, nothing pruned": Contender(lambda replica: Accelerator(FixedNet.of(skeleton.dense(replica))), role="control", evidence="recorded"),
        "dense": Contender(lambda replica: Dense(skeleton.dense(replica)), role="control"),
        "dense, tuned as long": Contender(lambda replica: made(plan_of(1.0), replica), role="control", evidence="recorded"),
    },
    ablations={
        "taps anywhere": Ablation("5 fine temporal pruning", tuned(HybridPruning(unbalanced)), HyPGCN(HybridPruning(unbalanced))),
        "largest channels go": Ablation("3 channel pruning", tuned(HybridPruning(largest=True)), HyPGCN(HybridPruning(largest=True))),
        "no coarse pruning": Ablation("4 coarse temporal pruning", subject=HyPGCN(HybridPruning(coarse=False))),
        "weights first": Ablation("2 order of products", subject=HyPGCN(block=WeightsFirst)),
        "cut instead of rounded": Ablation("7 quantisation", subject=HyPGCN(block=Truncating)),
        "rows by vector number": Ablation("8 feature memory", subject=HyPGCN(memory=NoPrefix)),
        "full-depth mini-banks": Ablation("8 feature memory", subject=HyPGCN(memory=FullDepth)),
        "static PEs": Ablation("9 architecture", subject=HyPGCN(scheduling="static")),
    },
    checks=(
        Check("order of products", "Graph first without the pruned channels = weights first with zeros (1e-12); the loop nest counts what three plain loops count", checks.order_of_products),
        Check("integers", "A pruned block in the simulator equals an int64 reference bit for bit, rounding and saturation included", checks.integers_bit_for_bit),
        Check("features come back", "decode(encode(f)) = f bit for bit, spilled rows included; random bytes are refused", checks.features_come_back),
        Check("features are small", "With half of the words zero, the memory has at most 0.75 of the dense bits, and mini-banks get shallower", checks.features_are_small),
        Check("coarse pruning", "Without shortcuts, filters that only pruned channels read can go: the same scores, fewer weights", checks.coarse_changes_nothing),
        Check("balanced patterns", "Each tap equally often in a loop of eight filters (± 1), and at most 0.9 of the cycles of scattered taps", checks.patterns_are_balanced),
        Check("smallest channels go", "Three channels that are hardly read are exactly those that go", checks.smallest_channels_go),
        Check("queues", "Simulated queues take the cycles of real ones, and their multipliers are at least 5 points busier than one for each tap", checks.queues),
    ),
    claims=(
        Claim("three times fewer costs little", "At a third of the multiplications, in 16-bit words, at most 2 points are lost", better("accuracy", "dense", by=-2, reduction=3),
              paper="compression of 3.0x to 8.4x (abstract)"),
        Claim("… against a net tuned as long", "Nor are more than 2 points lost against the dense net after the same 60 steps, in the same words",
              better("accuracy", "dense, tuned as long", by=-2, reduction=3)),
        Claim("8.4 times fewer", "At 8.4 times fewer multiplications at most 5 points are lost", better("accuracy", "dense", by=-5, reduction=8.4),
              paper="compression of 3.0x to 8.4x (abstract)"),
        Claim("multiplications", "With 3x, at most 0.343 of the dense net's multiplications are made, counted in the loops", bound("macs_share", at_most=1.03 / 3, reduction=3)),
        Claim("graph products skipped", "At 8.4x at least 73.2 % of the graph products are skipped", bound("graph_skipped", at_least=0.732, reduction=8.4), paper="73.20 % (abstract)",
              reason="the first block's three coordinates are never pruned, and the other shares were set by the wanted number of multiplications"),
        Claim("graph first saves work", "The order saves at least a tenth of the multiplications that weights first needs", bound("macs", at_most=0.9, relative_to="plain chip", reduction=3)),
        Claim("busier multipliers", "Dynamic PEs keep their multipliers busy at least 5 points more than static ones", better("dsp_efficiency", "plain chip", by=0.05, reduction=3),
              paper="+28.93 % DSP efficiency (abstract)"),
        Claim("features in less memory", "All stored features of a clip take at most 0.75 of the dense memory", bound("features_share", at_most=0.75, reduction=3)),
        Claim("smaller than a bitmap", "At least 0.1 of the dense memory less than masks with full-depth banks", better("features_share", "plain chip", by=0.1, reduction=3)),
        Claim("not larger than CSR", "At most the memory of compressed rows, which have no fixed place", better("features_share", "CSR features", by=0, reduction=3),
              reason="compressed rows are counted as long as they are; mini-banks are reserved for the worst clip, which is the price of their fixed addresses"),
        Claim("16-bit words are enough", "Q8.8 alone costs at most half a point", better("accuracy", "dense", by=-0.5, of="16-bit words, nothing pruned")),
        Claim("balance costs nothing", "After tuning, balanced taps are at most a point below taps anywhere", better("accuracy", "taps anywhere", by=-1, reduction=3)),
        Claim("not below single weights", "At most a point below unstructured pruning with a file of the same size", better("accuracy", "single weights, same bytes", by=-1, reduction=3)),
        Claim("faster than graphics cards", "9.19 times an RTX 2080 Ti, 3.91 times a V100, 1142 GOP/s at peak", None, paper="9.19x, 3.91x, 1142 GOP/s (abstract)",
              needs="a Xilinx XCKU-115 and both graphics cards"),
    ),
    parts={
        "1 model": Part(TwoStream, "order of products", "weights first"),
        "2 order of products": Part(FixedBlock.spatial_sums, "order of products", "weights first"),
        "3 channel pruning": Part(prune_channels, "smallest channels go", "largest channels go"),
        "4 coarse temporal pruning": Part(pattern_of, "coarse pruning", "no coarse pruning", reconstructed=True),
        "5 fine temporal pruning": Part(balanced, "balanced patterns", "taps anywhere", reconstructed=True),
        "6 input skipping": Part(TwoStream.streams, "8.4 times fewer", reconstructed=True),
        "7 quantisation": Part(narrowed, "integers", "cut instead of rounded"),
        "8 feature memory": Part(RFC.encode, "features come back", "rows by vector number"),
        "9 architecture": Part(dynamic, "queues", "static PEs", reconstructed=True),
        "10 simulator": Part(pipeline, "multiplications", "weights first", reconstructed=True),
    },
    picture=chip,
    exercise=Exercise("Give each vector its row in a mini-bank.", STUB,
                      ["A vector has a row in mini-bank j only if it has more than 4j non-zeros.", "Its row is the number of earlier vectors that have one: a prefix count.",
                       "Walk through the vectors with a counter that rises only at those that have a row."], _check_exercise, SOLUTION),
)
