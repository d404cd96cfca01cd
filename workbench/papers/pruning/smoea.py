r"""# SMOEA — evolve the filters of a few layers at a time

**Sub-network Multi-objective Evolutionary Algorithm for Filter Pruning** (2022).

Which filters of a network can go? With $B$ filters there are $2^B$ answers, and two wishes that pull apart: few parameters, few errors. An evolutionary
algorithm can breed whole *sets* of answers at once, but not over hundreds of bits. SMOEA therefore cuts the network into groups of consecutive layers and
breeds masks for one group only, prunes it, and walks on to the next with the pruned network in hand.

```text
  deep ◄────────────────────────────── the walk ◄─────────────────────────────── shallow
                                             │
   images ──► earlier layers, run once ──► [ layer l, layer l+1 ] ──► next layer ──► Y    (the group whole)
                                             │ 40 masks side by side             ──► Ŷ_p  (mask p)
              f₁ = parameters kept of the sub-network      f₂ = ‖Y − Ŷ_p‖² / ‖Y‖²
                                             │
              NSGA-II: non-dominated sort → crowding → tournament → crossover, flips, repair → (μ+λ) survival
                                             ▼
              Pareto front of masks ──► one is chosen (errors allowed: δ) ──► filters really removed ──► next group
```

**Genome.** One bit a filter, $m \in \{0,1\}^{N_l + N_{l+1}}$ `(bits,)`; a layer that would lose all of its filters gets its largest back. **Objectives**, both to be
small: $f_1$ counts the weights, batch-norm entries and the input slices of the following layer that a mask keeps, exactly. $f_2$ is the relative error of what
the following layer computes,

$$f_2(m) = \frac{\lVert Y - \hat Y(m)\rVert_2^2}{\lVert Y\rVert_2^2},\qquad Y \in \mathbb{R}^{n \times C \times H \times W}.$$

It needs no label, and only the group is run: what enters it is the same for all masks, so a population is one batch of $n \cdot P$ feature maps. Each mask's batch
norms use its own statistics. The final front is re-ranked by the classification error of the whole network on validation images, and the walk takes the
smallest mask that costs at most $\delta$ points.

**Knowing something beforehand.** The first population holds the whole group and what L1, FPGM and chance would keep at nine ratios. A flip deletes a kept filter
with probability $\propto 1/\text{rank}$ and brings a dropped one back with probability $\propto \text{rank}$, ranked by L1 norm within the layer.

**Fronts are kept.** They are the slider: for an error level $\varepsilon$ take the smallest mask of each front with $f_2 \le \varepsilon$; every $\varepsilon$ is a network, and
none needs a new search.

```python
front = smoea_prune(model, loader, groups="auto", pop=40, gens=20, seed=0)
front.table()                                  # one row a group: evaluations, seconds, hypervolume, what was chosen
small = front.export(params=0.2, data=loader)  # really smaller; another share costs nothing; tolerance=1 and knee=True choose otherwise
front.save("fronts.wb")                        # masks as packed bits
```

**Equal parameters are not equal work.** The objective counts parameters, and most of them lie deep, where feature maps are small; so the shallow layers, which cost most of the
multiply–accumulates, are hardly touched. Look at both columns before you call a network small; `L1, uniform, as many MACs` may keep as much work instead.

**What to look for.** Compare with `random, same counts`: it keeps as many filters in every layer, so that the distance is due to *which* filters stay. Then with
`whole network`: the same algorithm and number of evaluations on all 224 bits at once. And look at the fine-tuned points: one pass over the data makes up for much of what
a choice had cost.

Reconstructed from the abstract and the field's practice: both definitions of $f_2$, the order of the walk, the seeds, the biased flips, $\delta$. On the bench: groups of two
layers (six layers make three groups), 40 masks, 20 generations, 32 training images to breed on, 256 validation images to re-rank; no fine-tuning between the groups. The
hypervolume of the *archive* of all masks seen cannot fall; that of NSGA-II's population may, because crowding drops members of a front that is too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...benches import vision
from ...core.claims import Estimate, better, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _smoea_checks as checks
from . import _smoea_pieces as pieces
from . import from_scratch, untouched
from ._smoea_contenders import FeatureRank, by_tolerance, same_counts, searched, tuned, uniform
from ._smoea_front import Front
from ._smoea_record import NET
from ._smoea_search import SMOEA, smoea_prune, split_layers, walk
from ._smoea_subnet import SubNetwork
from .classics import FPGM, L1, Random
from .classics_of_data import Taylor

__all__ = ["PROBE", "SMOEA", "STUDY", "Front", "smoea_prune"]
TARGET = 0.1656  # the share of the parameters that the paper keeps of VGG-14


def PROBE() -> dict:
    """What `workbench probe` times: 40 masks of the last two layers on 32 images, judged side by side, one by one, and one by one on the whole pruned network."""
    from ...contracts.structure.surgery import channel_groups, remove
    from ._smoea_subnet import segments

    model, images = vision.dense(NET), vision.calibration()[:32]
    groups = channel_groups(model, vision.EXAMPLE)[-2:]
    network = SubNetwork(model, groups, images)
    masks = np.random.default_rng(0).random((40, network.size)) < 0.6
    nets = [remove(model, {g.name: np.flatnonzero(~bits[where]) for g, where in zip(groups, segments(groups), strict=True)}, vision.EXAMPLE) for bits in masks]
    return {"whole networks, one by one": lambda: [net(images) for net in nets],
            "sub-network, side by side": lambda: network.errors(masks),
            "sub-network, one by one": lambda: [network.errors(bits[None]) for bits in masks]}


# --- claims -----------------------------------------------------------------------------------------------------------------------------------------

def beats_sweeps(m: Measurements) -> Estimate:
    """Hypervolume of the first group's front over that of the best criterion's ratio sweep, on other images than it was bred on; one value a replica."""
    rows = m.rows(params_left=0.5)
    return estimate([gain[0] for gain in m.series(rows[np.isclose(rows.params_left, 0.5)], "gain")], 1.05)


def best_criterion(m: Measurements) -> Estimate:
    """Accuracy above the best of four criteria that keep as many filters in every layer, replica by replica."""
    ours, *theirs = (rows[np.isclose(rows.params_left, 0.5)].groupby("replica").accuracy.mean() for rows in (m.rows(name) for name in (None, *SAME)))
    best = theirs[0]
    for other in theirs[1:]:
        best = np.maximum(best, other)
    return estimate((ours - best).dropna().to_numpy(), 1)


# --- picture ----------------------------------------------------------------------------------------------------------------------------------------

def masks_and_fronts(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Left: every filter of every layer, darker the larger its L1 norm ranks, a gap where it went. Right: the groups' fronts with the masks taken.

    ``exhibits``: layer → uint8 (filters,), 0 for removed, else 1 + rank; ``front i`` → int16 (3, k): f₁ and f₂ in ten-thousandths, 1 where taken.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    layers = {name: row for name, row in exhibits.items() if not name.startswith("front")}
    fronts = {name: rows.astype(float) for name, rows in exhibits.items() if name.startswith("front")}
    if not layers:
        return go.Figure(layout={"title": {"text": "nothing was removed: this is the dense net"}, "height": 120})
    grid = np.full((len(layers), max(map(len, layers.values()))), np.nan)
    for i, row in enumerate(layers.values()):
        grid[i, :len(row)] = np.where(row > 0, (row.astype(float) - 1) / 253, np.nan)
    titles = ["filters kept, dark: large by L1", "fronts, and the masks taken"][:2 if fronts else 1]
    figure = make_subplots(1, len(titles), column_widths=[0.58, 0.42][:len(titles)], subplot_titles=titles, horizontal_spacing=0.12)
    labels = [f"{name}  {int((row > 0).sum())}/{len(row)}" for name, row in layers.items()]
    figure.add_heatmap(z=np.round(grid, 2).tolist(), y=labels, colorscale="Cividis", reversescale=True, zmin=0, zmax=1, xgap=1, ygap=3, showscale=False,
                       hoverongaps=False, hovertemplate="%{y}, filter %{x}: L1 rank %{z}<extra></extra>", row=1, col=1)
    figure.update_yaxes(autorange="reversed", automargin=True, row=1, col=1)
    for (name, (share, error, taken)), colour, dash in zip(fronts.items(), ("#0072B2", "#D55E00", "#009E73"), ("solid", "dash", "dot"), strict=False):
        label = f"group {int(name.split()[1]) + 1} of the walk"
        figure.add_scatter(x=(share / 100).round(1).tolist(), y=(error / 1e4).round(4).tolist(), mode="lines", line={"color": colour, "dash": dash}, name=label, row=1, col=2)
        figure.add_scatter(x=(share[taken > 0] / 100).round(1).tolist(), y=(error[taken > 0] / 1e4).round(4).tolist(), mode="markers", showlegend=False,
                           marker={"color": colour, "size": 11, "symbol": "diamond"}, name=f"{label}, taken", row=1, col=2)
    figure.update_xaxes(title_text="filter", row=1, col=1)
    if fronts:
        figure.update_xaxes(title_text="parameters kept (%)", row=1, col=2)
        figure.update_yaxes(title_text="feature error", row=1, col=2)
    return figure.update_layout(height=330, margin={"l": 10, "r": 10, "t": 40, "b": 40}, legend={"orientation": "h", "y": -0.25})


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import numpy as np

def pareto(points):
    """points: (n, 2), both columns to be small. Return the sorted row numbers of the points that no other point dominates: a point is dominated
    if another is nowhere worse and somewhere better."""
    return [int(points.sum(1).argmin())]        # the best weighted sum is one point of the front, not the front
'''
SOLUTION = '''import numpy as np

def pareto(points):
    nowhere_worse = (points[:, None] <= points[None]).all(2)
    somewhere_better = (points[:, None] < points[None]).any(2)
    return np.flatnonzero(~(nowhere_worse & somewhere_better).any(0)).tolist()
'''


def _check_exercise(namespace: dict) -> None:
    pareto = namespace["pareto"]
    corner = np.array([[0.2, 0.9], [0.5, 0.5], [0.9, 0.1], [0.6, 0.6], [0.5, 0.7]])
    got = sorted(int(row) for row in pareto(corner))
    assert got == [0, 1, 2], f"three of these points are dominated by none: rows 0, 1, 2, not {got}"
    assert sorted(pareto(np.array([[1.0, 1.0], [1.0, 1.0]]))) == [0, 1], "equal points do not dominate each other"
    points = np.random.default_rng(0).random((60, 2)).round(2)
    want = [i for i, p in enumerate(points) if not any((q <= p).all() and (q < p).any() for q in points)]
    assert sorted(pareto(points)) == want, "compare every point with every other"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

SAME = ("L1, same counts", "FPGM, same counts", "Taylor, same counts", "feature rank, same counts")
RANDOM = "random, same counts"
ONLY_HALF = {"params_left": (0.5,)}
FEW = {"params_left": (0.3, 0.5, 0.7)}

STUDY = Study(
    paper="2211.01957",
    name="smoea",
    track=vision.VGG_BYTES,
    method=SMOEA(),
    knobs=(Knob("params_left", (0.1, TARGET, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 0.5, neutral=1.0, label="share of the parameters kept, at most"),
           Knob("tolerance", (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10), 1, label="points of error that each group may cost")),
    contenders={
        "SMOEA": searched("smoea", role="paper", subject=SMOEA()),
        "SMOEA, by tolerance": by_tolerance("smoea"),
        "whole network": searched("whole", note="NSGA-II on all filters at once, as many evaluations"),
        RANDOM: same_counts(Random(), role="control", seeds=2),
        SAME[0]: same_counts(L1(), evidence="recorded", grid=FEW),
        SAME[1]: same_counts(FPGM(), evidence="recorded", grid=FEW),
        SAME[2]: same_counts(Taylor(), evidence="recorded", grid=FEW),
        SAME[3]: same_counts(FeatureRank(), evidence="recorded", grid=FEW),
        "L1, uniform": uniform(L1()),
        "L1, uniform, as many MACs": uniform(L1(), same_macs=True, grid=ONLY_HALF),
        "Taylor, uniform": uniform(Taylor(), evidence="recorded", grid=FEW),
        "weighted sum": searched("weighted", evidence="recorded", grid=FEW, note="a genetic algorithm on (f₁ + f₂)/2"),
        "dense": untouched(),
        "SMOEA, tuned": tuned(searched("smoea"), TARGET),
        "random, same counts, tuned": tuned(same_counts(Random()), TARGET, role="control"),
        "L1, uniform, tuned": tuned(uniform(L1()), TARGET),
        "small net from scratch": replace(from_scratch((6, 6, 13, 13, 26, 26), 93), replicas=3),
    },
    ablations={
        "noise for errors": Ablation("3 objectives", searched("noise", grid=ONLY_HALF), SMOEA(error=pieces.noise)),
        "stored statistics": Ablation("3 objectives", subject=SMOEA(own_statistics=False)),
        "no repair": Ablation("2 genome", subject=SMOEA(repair=pieces.unrepaired)),
        "nothing known at the start": Ablation("4 initial population", subject=SMOEA(start=pieces.random_start)),
        "blind flips": Ablation("5 variation", subject=SMOEA(flips=pieces.blind_flips)),
        "dominated stay": Ablation("6 selection", subject=SMOEA(survivors=pieces.everything)),
        "masks only": Ablation("7 decision", subject=SMOEA(surgery=checks.masks_only)),
        "each group on the dense network": Ablation("8 progressive pruning", subject=SMOEA(progressive=False)),
    },
    checks=(
        Check("sorting", "Archive, non-dominated fronts and crowding distances equal plain loops over all pairs, on random sets with ties", checks.sorting),
        Check("the archive grows", "In a search made now the archive's hypervolume never falls, and no point of a final front is dominated", checks.archive_grows),
        Check("sub-network = network", "The error of masks judged side by side on the sub-network equals that of the whole pruned network, to 1e-5", checks.objective),
        Check("exact parameters", "Parameters that the objective and the slider reckon with are those of the rebuilt networks, never above the wish",
              checks.exact_parameters),
        Check("masked = rebuilt", "All ones change no bit; zeros and smaller tensors answer alike", checks.rebuilt),
        Check("one filter stays", "10,000 random genomes: no layer is empty after repair, sound genomes are unchanged", checks.one_stays),
        Check("informed start", "The first population holds the whole group and the largest filters by L1", checks.start),
        Check("biased flips", "One bit flips on average; small filters go, large ones return", checks.flips),
        Check("goes on pruned", "The second group was judged on the network that the first decision left", checks.progressive),
    ),
    claims=(
        Claim("front beats ratio sweeps", "On images that it was not bred on, the first group's front has at least 1.05 times the hypervolume of the best ratio sweep (L1, FPGM, Taylor)", beats_sweeps),
        Claim("which filters, not how many", "With half of the parameters, at least 3 points above random filters in the same numbers, before any tuning",
              better("accuracy", RANDOM, by=3, params_left=0.5)),
        Claim("groups beat the whole", "With half of the parameters, at least 2 points above evolving all filters at once with as many evaluations",
              better("accuracy", "whole network", by=2, params_left=0.5), paper="a compromise in reasonable time, where a search over all filters finds none (abstract)",
              reason="six narrow layers are 224 bits, few enough for one search over all of them; groups are judged apart, though their errors add up. Groups take less time"),
        Claim("beats criteria in the same numbers", "At least 1 point above the best of L1, FPGM, Taylor and feature rank that keep as many filters in every layer",
              best_criterion, paper="better than the widely used popular filter pruning criteria (abstract)",
              reason="the search decides how many filters each layer keeps; given that, Taylor, which sees the loss, chooses as well as the feature error"),
        Claim("beats uniform L1", "With half of the parameters (not of the MACs: it keeps more of them), at least 2 points above the largest filters in equal shares",
              better("accuracy", "L1, uniform", by=2, params_left=0.5), paper="better than the widely used popular filter pruning criteria (abstract)"),
        Claim("beats uniform L1 at equal work", "With as many multiply-accumulates as its network with half of the parameters has, the largest filters in equal shares are at least "
              "2 points below it", better("accuracy", "L1, uniform, as many MACs", by=2, params_left=0.5),
              reason="with as many MACs, equal shares keep more parameters, and deep filters, of which the search takes most, are what they have more of"),
        Claim("not below a weighted sum", "With half of the parameters, at most half a point below a genetic algorithm on the weighted sum",
              better("accuracy", "weighted sum", by=-0.5, params_left=0.5), reason="four replicas differ by more than the methods do"),
        Claim("tolerances add up", "Where each of three groups may cost 1 point of validation error, the network loses at most 4 on test images",
              better("accuracy", "dense", by=-4, of="SMOEA, by tolerance", tolerance=1)),
        Claim("tuning repairs", "With 16.56 % of the parameters and one epoch of tuning, at most 2 points below the dense network",
              better("accuracy", "dense", by=-2, of="SMOEA, tuned"), paper="VGG-14 on CIFAR-10: 16.56 % of the parameters, 0.28 % less accuracy (abstract)",
              reason="12,000 parameters are left here, millions in VGG-14; and one epoch on a narrow net is no long training"),
        Claim("the lead outlasts tuning", "Tuned alike at 16.56 % of the parameters, it is still half a point above random filters in the same numbers",
              better("accuracy", "random, same counts, tuned", by=0.5, of="SMOEA, tuned"), reason="three replicas; the lead differs between them by more than itself"),
    ),
    parts={
        "1 groups": Part(split_layers, "goes on pruned", "each group on the dense network", reconstructed=True),
        "2 genome": Part(pieces.at_least_one, "one filter stays", "no repair"),
        "3 objectives": Part(SubNetwork.errors, "sub-network = network", "stored statistics", reconstructed=True),
        "4 initial population": Part(pieces.informed_start, "informed start", "nothing known at the start", reconstructed=True),
        "5 variation": Part(pieces.ranked_flips, "biased flips", "blind flips", reconstructed=True),
        "6 selection": Part(pieces.non_dominated, "sorting", "dominated stay"),
        "7 decision": Part(Front.points, "exact parameters", "masks only", reconstructed=True),
        "8 progressive pruning": Part(walk, "goes on pruned", "each group on the dense network"),
        "9 population in parallel": Part(SubNetwork.answers, "sub-network = network", "stored statistics"),
        "10 reporting": Part(Front.table, "front beats ratio sweeps", "noise for errors"),
    },
    time_limit=300.0,
    picture=masks_and_fronts,
    exercise=Exercise("Find the Pareto front of masks that were judged by two objectives.", STUB,
                      ["Point q dominates p if q is at most p in both columns and below it in one.", "All pairs at once: points[:, None] against points[None].",
                       "Keep the rows that no other row dominates; equal points both stay."], _check_exercise, SOLUTION),
)
