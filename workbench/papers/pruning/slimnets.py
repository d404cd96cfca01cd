r"""# SlimNets — three ways to a small network, and what they are together

**SlimNets: An Exploration of Deep Model Compression and Acceleration** (Oguntola, Olubeko, Sweeney; 2018; arXiv 1808.00496).

Pruning looks for weights that do not matter, low rank for directions that do not matter, distillation for networks that do not matter: another, smaller one can do
the work if it is told *how* the large one answers. Each takes out another kind of redundancy. Do the gains multiply?

```text
               ┌─ prune:    w ← w · mask,  sparsity s_t ────────────► zeros, few bytes, the same time
  VGG-small ───┼─ low rank: 3×3 ► (3×1, K channels) (1×3) ──────────► fewer bytes and MACs
  (teacher)    └─ distil:   soft answers ► NIN, CNN, AlexNet, SNN ──► another net ── prune ──► 8 bits ──► one packed file
```

**Gradual pruning.** Every few steps each layer's smallest $|w|$ go until its share of zeros is $s_t = s_f + (s_i-s_f)\left(1-\frac{t-t_0}{n\Delta t}\right)^3$; the rest of the steps
repairs. The control prunes once and trains as long.

**Low rank** (Tai et al.). A kernel `W (N, C, d, d)` is read as a matrix `M (C·d, N·d)` with $M_{cd+r,\,nd+s} = W_{n,c,r,s}$. From $M = USV^\top$ a column layer
`K×C×d×1` gets $U\sqrt S$, a row layer `N×K×1×d` gets $V\sqrt S$ and the bias; rows of stride and padding go to the first, columns to the second. Full rank changes nothing, rank
$K$ costs $\lVert M-M_K\rVert_F = \sqrt{\sum_{k>K}S_k^2}$, and it pays while $K < \frac{CNd}{C+N}$.

**Distillation.** $L = 2\alpha T^2\,\mathrm{KL}(\sigma(z_T/T)\,\|\,\sigma(z_S/T)) + (1-\alpha)\,\mathrm{CE}$ with $T = 4$, $\alpha = 0.5$. The $T^2$ keeps gradients as large as at $T=1$.

**What to look for.** Bytes are those of a written file: bitmap or gaps plus the values that are not zero. The original's masks saved no byte. A bitmap alone is 1/32 of the dense
bytes, so a ratio beyond 32 needs a smaller network, not more zeros: that is why the combination wins where files are smallest, if it does. Slide *rank* and *sparsity*; compare at equal bytes,
not at equal knobs. Zeros leave multiply–accumulates as they were; the dense kernels multiply them all the same.

Corrections: the released code counts channels from 0 but writes $(c-1)d$, a cyclic shift that both sides share and that therefore changes nothing; plain indices here.
Reconstructed: $T$ and $\alpha$, the students' widths (batch norm in the place of dropout), steps (400 for students, 100 for tuning, where the authors train 100,000), and a VGG-small of 73
thousand parameters in the place of VGG-19 with 20 million: a teacher with far less to give away. 8-bit weights are an extension.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Part, Study
from . import _slim_checks as checks
from ._gradual import GradualPruner, Schedule
from ._slim_contenders import (
    TRACK,
    at_sparsity,
    by_rank,
    dense,
    eight_bits,
    low_rank_then_pruned,
    non_gradual,
    random_tuned,
    thin,
    to_time,
    trained,
    untaught,
)
from ._slim_distil import distil, distillation_loss
from ._slim_file import Slim, load_slim, save_slim
from ._slim_lowrank import lowrank_conv, random_basis
from ._slim_method import SlimNets, slim
from ._slim_recipe import COMBINED, SPARSITIES

__all__ = ["PROBE", "STUDY", "GradualPruner", "Schedule", "Slim", "SlimNets", "distil", "load_slim", "lowrank_conv", "slim"]
PROBE = to_time
STUDENTS = ("NIN-small", "AlexNet-small", "CNN", "SNN")


# --- claims ---------------------------------------------------------------------------------------------------------------------------------------------


def _accuracy(m: Measurements, name: str, **knobs: float) -> dict[int, float]:
    return m.rows(name, **knobs).groupby("replica").accuracy.mean().to_dict()


def teacher_helps(m: Measurements) -> Estimate:
    """Accuracy with a teacher minus without, in points, averaged over the four students; one value a replica."""
    gains = _gains(m)
    return estimate([np.mean(list(gain)) for gain in zip(*gains, strict=True)], 0.5)


teacher_helps.of = "distilled NIN-small"


def _gains(m: Measurements) -> list[list[float]]:
    found = []
    for name in STUDENTS:
        ours, theirs = _accuracy(m, f"distilled {name}"), _accuracy(m, f"{name} without a teacher")
        found.append([ours[replica] - theirs[replica] for replica in sorted(set(ours) & set(theirs))])
    return found


def beats_single_methods(m: Measurements) -> Estimate:
    """Of a combination (sparsity 0.75): accuracy above the best single method whose file is at most 5 % larger, replica by replica."""
    singles, ours, gains = ("gradual pruning", "low rank", "low rank, tuned", "8 bits", *(f"distilled {name}" for name in STUDENTS)), m.rows(sparsity=0.75), []
    for _, row in ours.iterrows():
        rivals = [rows[(rows.replica == row.replica) & (rows.bytes <= 1.05 * row.bytes)].accuracy.max() for rows in map(m.rows, singles)]
        known = [value for value in rivals if np.isfinite(value)]
        if known:
            gains.append(row.accuracy - max(known))
    return estimate(gains, 2)


def beats_at_no_more_bytes(rival: str, at: float, of: str, **knobs: float):
    """Accuracy above ``rival`` at sparsity ``at``; a replica whose file is larger counts as if it knew nothing."""
    def test(m: Measurements) -> Estimate:
        ours, theirs = m.rows(of, **knobs).set_index("replica"), m.rows(rival, sparsity=at).set_index("replica")
        ours, theirs = ours.align(theirs, "inner", axis=0)
        return estimate(np.where(ours.bytes <= theirs.bytes, ours.accuracy, 0.0) - theirs.accuracy, 0)

    test.of = of
    return test


def product_rule(m: Measurements) -> Estimate:
    """|log| of (dense : combination) over (dense : student) × (dense : pruned teacher), in bytes, all at sparsity 0.75."""
    sizes = [m.rows(name, **knobs).groupby("replica").bytes.mean() for name, knobs in (
        ("dense", {}), (None, {"sparsity": 0.75}), ("distilled NIN-small", {}), ("gradual pruning", {"sparsity": 0.75}))]
    whole, both, student, pruned = sizes
    return estimate(np.abs(np.log((whole / both) / (whole / student) / (whole / pruned))).dropna().to_numpy(), 0.15, at_least=False)


# --- picture --------------------------------------------------------------------------------------------------------------------------------------------


def layer_by_layer(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Per layer of the slim net: weights stored and weights that are zero, and its multiply–accumulates.

    ``exhibits``: ``weights`` int32 (layers, 2), not zero and all; ``macs`` int32 (layers,); ``bits`` of a stored value.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if "weights" not in exhibits:
        return go.Figure(layout={"title": {"text": "the dense net: nothing was made slim"}, "height": 120})
    weights, macs, bits = exhibits["weights"].astype(int), exhibits["macs"].astype(int), int(exhibits["bits"][0])
    names = [str(i + 1) for i in range(len(weights))]
    figure = make_subplots(1, 2, column_widths=[0.62, 0.38], subplot_titles=(f"weights (values of {bits} bits)", "multiply–accumulates (thousands)"))
    figure.add_bar(x=names, y=weights[:, 0].tolist(), name="stored", marker_color="#0072B2", row=1, col=1)
    figure.add_bar(x=names, y=(weights[:, 1] - weights[:, 0]).tolist(), name="zero", marker={"color": "#F0E442", "pattern": {"shape": "/"}}, row=1, col=1)
    figure.add_bar(x=names[:len(macs)], y=(macs / 1e3).round(1).tolist(), name="MACs", marker_color="#D55E00", row=1, col=2)
    title = f"{point['contender']}: {weights[:, 0].sum():,d} of {weights[:, 1].sum():,d} weights stored, {macs.sum() / 1e6:.1f} million multiply–accumulates"
    figure.update_xaxes(title_text="layer")
    return figure.update_layout(title={"text": title, "font": {"size": 14}}, barmode="stack", height=340, margin={"l": 10, "r": 10, "t": 70, "b": 40},
                                legend={"orientation": "h", "y": -0.3, "traceorder": "normal"})


# --- exercise -------------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import torch

def factorise(weight, rank):
    """weight: (N, C, d, d). Return (column (rank, C, d, 1), row (N, rank, 1, d)) so that column kernels followed by row kernels are the best rank-`rank`
    stand-in for the kernel."""
    N, C, d, _ = weight.shape
    m = weight.reshape(C * d, N * d)           # the numbers are there, but not in this order
    U, S, Vt = torch.linalg.svd(m, full_matrices=False)
    root = S[:rank].sqrt()
    return (U[:, :rank] * root).T.reshape(rank, C, d, 1), (Vt[:rank].T * root).reshape(N, d, rank).permute(0, 2, 1)[:, :, None]
'''
SOLUTION = STUB.replace("weight.reshape(C * d, N * d)           # the numbers are there, but not in this order", "weight.permute(1, 2, 0, 3).reshape(C * d, N * d)")


def _check_exercise(namespace: dict) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(4, 3, 3, 3, generator=generator), torch.randn(1, 3, 8, 8, generator=generator)
    column, row = namespace["factorise"](weight, 9)
    assert tuple(column.shape) == (9, 3, 3, 1) and tuple(row.shape) == (4, 9, 1, 3), f"shapes {tuple(column.shape)} and {tuple(row.shape)}"
    whole, pair = torch.nn.functional.conv2d(x, weight), torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, column), row)
    assert torch.allclose(whole, pair, atol=1e-4), "full rank must give the same map: row r of channel c belongs to line c·d + r, column s of filter n to n·d + s"
    column, row = namespace["factorise"](weight, 2)
    merged = torch.einsum("kch,nkw->nchw", column[..., 0], row[:, :, 0])
    tail = torch.linalg.svdvals(weight.permute(1, 2, 0, 3).reshape(9, 12))[2:].norm()
    assert torch.allclose((weight - merged).norm(), tail, rtol=1e-3), "of rank 2, the nearest kernel leaves the singular values from the third on"


# --- the study ------------------------------------------------------------------------------------------------------------------------------------------

STUDY = Study(
    paper="1808.00496",
    name="slimnets",
    track=TRACK,
    method=SlimNets(),
    time_limit=600,
    knobs=(Knob("sparsity", (0.4, 0.75, 0.875, 0.95), 0.75, quick=(0.4, 0.75, 0.875, 0.95), label="zeros in every layer (share)", slides=False),
           Knob("rank", (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1), 0.5, neutral=1, label="rank (share of full rank)")),
    contenders={
        "distil, then prune": at_sparsity("distilled-NIN-small-", COMBINED, role="paper", subject=SlimNets()),
        "gradual pruning": at_sparsity("", SPARSITIES),
        "low rank": by_rank(),
        "low rank, tuned": trained("lowrank"),
        **{f"distilled {name}": trained(f"distilled-{name}") for name in STUDENTS},
        "distil, prune, 8 bits": at_sparsity("distilled-NIN-small-", (0.75, 0.875), 8),
        "gradual pruning, 8 bits": at_sparsity("", (0.875, 0.95), 8),
        "8 bits": Contender(eight_bits),
        "dense": Contender(dense, "control", evidence="checkpoint"),
        **{f"{name} without a teacher": untaught(name) for name in STUDENTS},
        "pruned at once": non_gradual(0.875, 0.95),
        "low rank, then prune": Contender(low_rank_then_pruned, evidence="recorded"),
        "random basis, tuned": Contender(random_tuned, evidence="recorded"),
        "thin layers from nothing": Contender(thin, "control", evidence="recorded"),
    },
    ablations={
        "random basis": Ablation("3 low rank", by_rank(random_basis), SlimNets(basis=random_basis)),
        "smallest singular vectors": Ablation("3 low rank", by_rank(checks.smallest_first), SlimNets(basis=checks.smallest_first)),
        "stride not split": Ablation("3 low rank", subject=SlimNets(factorise=checks.stride_not_split)),
        "sparsity along a line": Ablation("2 gradual pruning", subject=SlimNets(schedule=checks.Linear)),
        "without T²": Ablation("4 distillation", subject=SlimNets(loss=checks.without_temperature_squared)),
        "masks only": Ablation("7 packed", subject=SlimNets(write=checks.densely, read=checks.read_dense)),
    },
    checks=(
        Check("full rank", "Two thin layers of full rank give the convolution's map, also with strides, paddings and oblong kernels", checks.full_rank_is_exact),
        Check("truncation", "Rank K leaves exactly the singular values beyond K", checks.truncation_is_optimal),
        Check("sparsity", "The schedule is the cubic from start to end, and every layer has its zeros to the weight", checks.sparsity_is_exact),
        Check("distillation loss", "The loss equals hand-worked numbers, with T and α at their ends too", checks.loss_by_hand),
        Check("file = net", "Zeros and pairs come back bit for bit; a file with 87.5 % zeros is less than a quarter of the dense one", checks.file_is_the_net),
        Check("all in one file", "Low rank, zeros and 8 bits stand together in one file that is smaller than with any two of them", checks.together),
    ),
    claims=(
        Claim("beats pruning alone", "At equal bytes, distil-then-prune is at least 20 points above gradual pruning of the teacher",
              better("accuracy", "gradual pruning", by=20, at_equal="bytes"), paper="distil-then-prune keeps 88.69 % at 75 % of a 965 k student (section 5)",
              reason="the mean over all sizes that both reach: the gain is largest where files are smallest, and shrinks towards sizes at which the pruned teacher "
                     "still answers well"),
        Claim("beats single methods", "… and at least 2 points above the best single method whose file is at most 5 % larger", beats_single_methods),
        Claim("beats pruning with 8 bits", "Where both are rounded to 8 bits, distil-then-prune (75 % zeros) is above gradual pruning of the teacher (95 %), whose file is "
              "no smaller", beats_at_no_more_bytes("gradual pruning, 8 bits", 0.95, of="distil, prune, 8 bits", sparsity=0.75)),
        Claim("ratios multiply", "The combination's byte ratio is within 15 % of the product of the student's and the pruned teacher's", product_rule,
              reason="what pruning leaves alone (biases, batch norms, the file's table) is a larger part of a small file, so the product promises too much"),
        Claim("gradual at 95 %", "With 95 % zeros gradual pruning is at least 5 points above pruning once and training as long",
              better("accuracy", "pruned at once", by=5, of="gradual pruning", sparsity=0.95)),
        Claim("gradual at 87.5 %", "With 87.5 % zeros it is at most 0.3 point below", better("accuracy", "pruned at once", by=-0.3, of="gradual pruning", sparsity=0.875),
              paper="88.82 against 86.16 % (table of pruning results)"),
        Claim("a teacher helps", "Averaged over four students, learning from the teacher's answers gains at least 0.5 point", teacher_helps,
              paper="+1.7 (NIN), +8.5 (AlexNet), +2.2 points (CNN)"),
        *(Claim(f"a teacher helps {name}", f"{name} is better with a teacher than without", better("accuracy", f"{name} without a teacher", of=f"distilled {name}"))
          for name in STUDENTS),
        Claim("low rank keeps the accuracy", "The factorised and tuned net is at most 1 point below the dense one",
              better("accuracy", "dense", by=-1, of="low rank, tuned"), paper="93.27 against 92.4 %",
              reason="a hundred steps of tuning in the place of a whole training, and a net that is narrow already: the directions cut off were in use"),
        Claim("low rank saves bytes", "… with at most half of its bytes", bound("bytes", at_most=0.5, of="low rank, tuned", relative_to="dense"),
              paper="41.2 % of the bytes"),
        Claim("singular vectors matter", "Untuned, at half of full rank, singular vectors are at least 5 points above a random basis",
              better("accuracy", "random basis", by=5, of="low rank", rank=0.5)),
        Claim("not thin layers from nothing", "Tuned low rank is at least 10 points above layers of the same shapes trained from nothing for as many steps",
              better("accuracy", "thin layers from nothing", by=10, of="low rank, tuned")),
        Claim("85 times smaller", "Distil-then-prune at 87.5 % has at most 1/85 of the dense bytes", bound("bytes", at_most=1 / 85, relative_to="dense", sparsity=0.875),
              paper="85× at 96 % of the accuracy (abstract)",
              reason="VGG-19 has twenty times the parameters of its student, this teacher not five times: there is less to give away, and files have a table"),
        Claim("8 bits are free", "Rounding the teacher's weights to 8 bits costs at most 1 point", better("accuracy", "dense", by=-1, of="8 bits")),
    ),
    parts={
        "1 reference": Part(dense, "low rank keeps the accuracy"),
        "2 gradual pruning": Part(GradualPruner.step, "sparsity", "sparsity along a line"),
        "3 low rank": Part(lowrank_conv, "full rank", "stride not split"),
        "4 distillation": Part(distillation_loss, "distillation loss", "without T²"),
        "5 combination": Part(slim, "beats single methods"),
        "6 metrics": Part(save_slim, "ratios multiply"),
        "7 packed": Part(load_slim, "file = net", "masks only"),
    },
    picture=layer_by_layer,
    exercise=Exercise("Split a convolution into a column and a row kernel by a singular value decomposition.", STUB,
                      ["Which two indices of the kernel make a line of the matrix, which two a column?", "weight.permute(1, 2, 0, 3) brings (C, d) and (N, d) together."],
                      _check_exercise, SOLUTION),
)
