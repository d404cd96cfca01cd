r"""# ASCAI — every compressed network is a vector, and good vectors breed

**ASCAI: Adaptive Sampling for acquiring Compact AI** (2019).

How many filters of layer 3, which rank for layer 5, how many zeros in layer 6? Each question has one number for an answer, and the numbers of all layers and all methods make one
vector. ASCAI draws vectors, builds and scores their networks, and lets the distribution of the next draws follow the good ones by genetic operations: no gradient,
no agent to train, and every sample of an iteration can be judged by another worker.

```text
   θ = [ filters removed │ rank removed │ weights removed ]   one entry a layer (k×k convolutions: two ranks)
          │ 1. L1 order      2. SVD, Tucker-2   3. by magnitude
          ▼
   decode: smaller layers ──► factors ──► zeros ──► file           encode: shapes and zeros ──► θ
          │
   accuracy a on validation images (batch norm re-estimated, no tuning), cost c = bytes of the file / dense
          ▼
   score ──► draw parents ∝ score − lowest ──► cross neighbours' entries ──► + N(0, σ²) on a few entries ──► next population (the best one stays)
```

**Translation.** $\theta \in [0, 0.99]^L$ is clipped and rounded to what a layer can realise: a layer of 32 filters has 32 rates, one of 36,864 weights gets steps of one per
cent. A network's tensors give the vector back, so the translation is a bijection on that grid. A linear or 1×1 layer $W$ `(o, i)` becomes $L$ `(o, r)` and $R$ `(r, i)`
by a truncated SVD; a convolution becomes 1×1, k×k, 1×1 (Tucker-2): $W \approx G \times_1 U \times_2 V$ with $G$ `(p, r, k, k)`. The factors are never multiplied back: the file holds
them, and the processor runs them.

**Sampling.** A scan of single entries bounds the box: no entry starts above the largest level that alone costs a point of accuracy. The first population is uniform in the box.

**Score.** With $a_{thr}$ the least accuracy allowed and $\tau = 0.02$,

$$\text{score} = (1-c)\cdot\begin{cases}1 & a \ge a_{thr}\\ e^{-(a_{thr}-a)/\tau} & \text{else,}\end{cases}$$

and $a_{thr}$ tightens from 20 to 5 points below the dense network during the first half of the iterations. Parents are drawn with replacement, $p_i \propto \text{score}_i - \min_j \text{score}_j$; a pair
is crossed with probability 0.8, each entry with 0.2; an individual is mutated with probability 0.8, each entry with 0.1 by $N(0, 0.2^2)$.

**Every sample counts.** All that was judged is kept. The slider asks for bytes and takes the most accurate sample that fits; sliding *iterations* shows what the search knew by then.

```python
res = ascai(model, loader, methods=("filters", "ranks"), objective="bytes", max_drop=5, pop=24, iters=12, workers=2)
res.pareto                      # samples that nothing beats, as a table
net = res.export()              # the cheapest within 5 points; res.realise().save("net.wb") writes it
res.save("search.wb")           # ascai(…, resume="search.wb") judges nothing twice
```

**What to look for.** One dial for everything (`uniform`) is far below any search. Whether *breeding* beats plain luck is the question of `random search` and of the ablation that draws parents
regardless of their score; compare the scores that were searched for,
and accuracies at equal bytes, and see how far the three families get alone. A sample picked as the best of 112 on 160 validation images is partly
picked for its luck; test images tell.

Reconstructed: the constants, the form of the score, the box, the schedule of the threshold, the order of the families. Put together from a cache: layers at settings, sparse forms, singular vectors;
activations of equal prefixes are not kept, since almost every child differs in the first layers already. On AMC's own problem (operator 7, half of the MACs, 240 evaluations) the loop maximises accuracy and
the cost fades instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...benches import vision
from ...core.claims import Estimate, better, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _ascai_checks as checks
from . import untouched
from ._ascai_contenders import in_amcs_space, of_amc, one_shot, searched, tuned
from ._ascai_factors import factor, multiplied
from ._ascai_record import BENCH, FAMILIES
from ._ascai_result import ASCAI, Result, ascai
from ._ascai_search import Loop, anyone, as_they_come, noise, proportional, saving, sensitivity_box
from ._ascai_space import Param, Space, own_key, rounded_down

__all__ = ["ASCAI", "STUDY", "Param", "Result", "ascai"]
AT = 0.5  # of the bytes: where claims compare. A search for at most 5 points lost draws its samples at 0.35 to 0.6 of the bytes, hardly any below


# --- claims -----------------------------------------------------------------------------------------------------------------------------------------

def breeds(m: Measurements) -> Estimate:
    """Mean score of the second half of the iterations above that of the first, less two standard errors, all by the final threshold; one value a replica."""
    rows, gains = m.rows(bytes_left=AT, iterations=BENCH.iterations), []
    rows = rows[np.isclose(rows.bytes_left, AT)]
    for score, error in zip(m.series(rows, "score"), m.series(rows, "error"), strict=True):
        if len(score) < 2:  # a rule, or random search: nothing builds on anything
            continue
        early, late = slice(0, len(score) // 2), slice(len(score) // 2, None)
        gains.append(score[late].mean() - score[early].mean() - 2 * np.hypot(*(np.sqrt((error[part] ** 2).sum()) / len(error[part]) for part in (early, late))))
    return estimate(gains, 0)


def higher(than: str) -> Callable[[Measurements], Estimate]:
    """The best score that the search found (by the final threshold) above another's, replica by replica."""
    def best(m: Measurements, name: str | None):
        rows = m.rows(name, **WHERE)
        rows = rows[np.isclose(rows.bytes_left, AT)]
        return {replica: series[-1] for replica, series in zip(rows.replica, m.series(rows, "best"), strict=True)}

    def test(m: Measurements) -> Estimate:
        ours, theirs = best(m, None), best(m, than)
        return estimate([ours[replica] - theirs[replica] for replica in ours.keys() & theirs.keys()], 0)

    return test


def best_rule(m: Measurements) -> Estimate:
    """Accuracy above the best of the rules, replica by replica."""
    def at(name: str | None):
        rows = m.rows(name, bytes_left=AT, iterations=BENCH.iterations) if name is None else m.rows(name, bytes_left=AT)
        return rows[np.isclose(rows.bytes_left, AT)].groupby("replica").accuracy.mean()

    ours, best = at(None), at(RULES[0])
    for name in RULES[1:]:
        best = np.maximum(best, at(name))
    return estimate((ours - best).dropna().to_numpy(), 2)


# --- picture ----------------------------------------------------------------------------------------------------------------------------------------

COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def vector_and_samples(point: dict, exhibits: Mapping[str, np.ndarray]):
    """Left: the vector, one bar an entry. Right: every sample judged, pale for early ones, with the one that was taken.

    ``exhibits``: ``removed <kind>`` uint8 per cent a layer; ``cloud`` uint16 (2, samples): cost in ten-thousandths, accuracy in thousandths; ``taken``: its row.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if "cloud" not in exhibits:
        return go.Figure(layout={"title": {"text": "nothing was removed: this is the dense net"}, "height": 120})
    figure = make_subplots(1, 2, column_widths=[0.5, 0.5], subplot_titles=("removed, entry by entry", "every sample judged, pale ones first"), horizontal_spacing=0.12)
    kinds = {name.removeprefix("removed "): values.astype(float).tolist() for name, values in exhibits.items() if name.startswith("removed ")}
    start = 0
    for (kind, values), colour in zip(kinds.items(), COLOURS, strict=False):
        figure.add_bar(x=list(range(start, start + len(values))), y=values, name=kind, marker_color=colour, hovertemplate="%{y} % of " + kind + "<extra></extra>", row=1, col=1)
        start += len(values) + 1
    figure.update_xaxes(showticklabels=False, title_text="layers, from shallow to deep, kind by kind", row=1, col=1)
    figure.update_yaxes(range=[0, 100], title_text="removed (%)", row=1, col=1)
    figure.update_xaxes(title_text="bytes left (%)", row=1, col=2)
    figure.update_yaxes(title_text="right, validation (%)", row=1, col=2)
    cost, accuracy = exhibits["cloud"].astype(float) / np.array([[100], [10]])
    taken = int(exhibits["taken"][0])
    figure.add_scatter(x=cost.round(1).tolist(), y=accuracy.round(1).tolist(), mode="markers", showlegend=False, row=1, col=2,
                       marker={"size": 5, "color": list(range(len(cost))), "colorscale": "Blues", "cmin": -len(cost) // 2}, hovertemplate="%{x} % of the bytes: %{y} %<extra></extra>")
    figure.add_scatter(x=[round(float(cost[taken]), 1)], y=[round(float(accuracy[taken]), 1)], mode="markers", name="taken", marker={"size": 13, "color": "#D55E00", "symbol": "diamond"},
                       row=1, col=2)
    return figure.update_layout(height=320, margin={"l": 10, "r": 10, "t": 40, "b": 40}, legend={"orientation": "h", "y": -0.25})


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import numpy as np

def next_parents(score, count, rng):
    """score: (n,). Return `count` row numbers, drawn with replacement with probability proportional to score - lowest score."""
    return np.argsort(-score)[:count]        # the best few only: after three iterations all individuals are alike
'''
SOLUTION = '''import numpy as np

def next_parents(score, count, rng):
    weight = score - score.min()
    return rng.choice(len(score), count, p=weight / weight.sum() if weight.sum() > 0 else None)
'''


def _check_exercise(namespace: dict) -> None:
    draw, score = namespace["next_parents"], np.array([0.2, 0.9, 0.4, 0.2, 0.5])
    rows = np.asarray(draw(score, 20_000, np.random.default_rng(0)))
    assert rows.shape == (20_000,), f"20000 rows are wanted, with replacement; found shape {rows.shape}"
    share = np.bincount(rows, minlength=5) / 20_000
    assert share[0] == share[3] == 0, "the lowest score is never drawn"
    assert np.allclose(share, [0, 7 / 12, 2 / 12, 0, 3 / 12], atol=0.02), f"shares {share.round(2)} are not proportional to score - lowest"
    assert len(np.asarray(draw(np.ones(4), 8, np.random.default_rng(1)))) == 8, "where all scores are equal, anyone may be drawn"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

RULES = ("uniform", "shallow layers lose more", "deep layers lose more", "by sensitivity")
WHERE = {"bytes_left": AT, "iterations": BENCH.iterations}
FEW = {"bytes_left": (AT,)}
ONLY = {"bytes_left": (AT,), "iterations": (BENCH.iterations,)}

STUDY = Study(
    paper="1911.06471",
    name="ascai",
    track=vision.VGG_BYTES,
    method=ASCAI(),
    knobs=(Knob("bytes_left", (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, AT, 0.6, 0.8, 1.0), AT, neutral=1.0, label="share of the dense file's bytes, at most"),
           Knob("iterations", tuple(range(1, BENCH.iterations + 1)), BENCH.iterations, label=f"iterations of {BENCH.population} samples")),
    contenders={
        "ASCAI": searched("ascai", role="paper", subject=ASCAI()),
        "ASCAI, filters": searched("ascai-filters", FAMILIES["ascai-filters"], grid=ONLY, evidence="recorded"),
        "ASCAI, ranks": searched("ascai-ranks", FAMILIES["ascai-ranks"], grid=ONLY, evidence="recorded"),
        "ASCAI, weights": searched("ascai-weights", FAMILIES["ascai-weights"], grid=ONLY, evidence="recorded"),
        "random search": one_shot("random", role="control", note="as many evaluations in the same box"),
        RULES[0]: one_shot("uniform"),
        RULES[1]: one_shot("shallow", evidence="recorded", grid=FEW),
        RULES[2]: one_shot("deep", evidence="recorded", grid=FEW),
        RULES[3]: one_shot("sensitivity", evidence="recorded", grid=FEW),
        "ASCAI on AMC's problem": in_amcs_space(),
        "AMC": of_amc(),
        "dense": untouched(),
        "ASCAI, tuned": tuned(searched("ascai"), AT),
    },
    ablations={
        "parents drawn by chance": Ablation("4 selection", searched("anyone", grid=ONLY), ASCAI(select=anyone, elite=0)),
        "no box": Ablation("2 initial sampling", subject=ASCAI(bearable=100.0)),
        "noise for scores": Ablation("3 score", subject=ASCAI(score=noise)),
        "nobody survives": Ablation("4 selection", subject=ASCAI(elite=0)),
        "no crossover": Ablation("5 crossover", subject=ASCAI(cross=0.0)),
        "no mutation": Ablation("6 mutation", subject=ASCAI(mutate=0.0)),
        "rounded down": Ablation("1 encoding", subject=checks.wrong_space(count=rounded_down)),
        "factors multiplied back": Ablation("1 encoding", subject=checks.wrong_space(split=multiplied)),
        "forgetful cache": Ablation("9 fast scoring", subject=checks.wrong_space(key=own_key)),
        "first come, first served": Ablation("7 loop", subject=ASCAI(gather=as_they_come)),
    },
    checks=(
        Check("the best survives", "With a fixed threshold the best score never falls", checks.never_falls),
        Check("planted optimum", "On a problem whose best vector is known the loop comes within 5 % of it, and above random search", checks.finds_planted),
        Check("box", "No entry starts above the largest level that alone costs a point, found by bisection and by trying all", checks.bounded_alone),
        Check("score", "Scores equal hand-worked numbers on both sides of the threshold", checks.score_by_hand),
        Check("selection", "Parents are drawn in proportion to score − lowest score", checks.selection),
        Check("operators", "Crossover and mutation touch as many entries as their probabilities say", checks.operators),
        Check("translation", "Vector → network → vector is the identity on what layers can realise", checks.translation),
        Check("cached = direct", "Samples from the cache equal samples from nothing, bit for bit; the zero vector is the dense network", checks.cached),
        Check("factors", "Chains of factors compute the product of the factors, with as many weights as the ranks say", checks.factored),
        Check("honest size", "Stated bytes are the file's, MACs the rebuilt network's, and the file gives the same answers", checks.honest_size),
        Check("one history", "The same seed gives the same history with one worker or two", checks.workers),
    ),
    claims=(
        Claim("the population improves", "The mean score of the second half of the iterations is above that of the first by more than two standard errors", breeds),
        Claim("higher score than luck", "Its best score, by the final threshold, is above that of random search with as many evaluations", higher("random search"),
              reason="112 samples in a box of 26 entries that a scan has bounded well: luck goes far, and eight iterations are few (the paper's follow-up takes fifty)"),
        Claim("higher score than the rules", "Its best score is above that of rates in proportion to what the scan found each entry to bear", higher("by sensitivity"),
              paper="better than rule-based methods (abstract, no figures)"),
        Claim("selection raises the score", "Its best score is above that of a search whose parents are drawn by chance", higher("parents drawn by chance"),
              reason="eight iterations of drift stay near the good first box"),
        Claim("beats random search", "At half of the bytes, at least 1 point above random search with as many evaluations",
              better("accuracy", "random search", by=1, **WHERE),
              reason="the search asks for bytes at 5 points lost, not for accuracy at half of the bytes; luck in the same box comes near"),
        Claim("beats one dial", "At half of the bytes, at least 2 points above the same rate for all entries",
              better("accuracy", "uniform", by=2, **WHERE), paper="better than rule-based methods (abstract, no figures)"),
        Claim("beats the rules", "At half of the bytes, at least 2 points above the best of four rules", best_rule, paper="better than rule-based methods (abstract, no figures)",
              reason="rates in proportion to what the scan found each entry to bear are a good rule already, and the search starts from the same scan"),
        Claim("selection matters", "Parents drawn by chance cost at least 1 point", better("accuracy", "parents drawn by chance", by=1, **WHERE),
              reason="the threshold asks for 5 points of validation accuracy, not for half of the bytes; eight iterations of drift stay near the good first box"),
        Claim("more than filters", "One vector for three methods is at least 5 points above filters alone at half of the bytes",
              better("accuracy", "ASCAI, filters", by=5, **WHERE), reason="filters alone hardly reach half of the bytes: their smallest sample is larger", paper="techniques can be combined in one search (abstract)"),
        Claim("more than the best method alone", "One vector for three methods is not below zeros alone at half of the bytes", better("accuracy", "ASCAI, weights", **WHERE),
              reason="seven entries are searched more thoroughly by 112 samples than 26, and zeros are what a file stores best"),
        Claim("not below AMC", "On AMC's problem, half of the MACs and 240 evaluations, at most 1 point below what AMC's agent found",
              better("accuracy", "AMC", by=-1, of="ASCAI on AMC's problem"), reason="each policy is partly picked for its luck on the validation images", paper="better than reinforcement learning (abstract, no figures)"),
        Claim("tuning repairs", "At half of the bytes, 60 steps of tuning leave at most 2 points to the dense network", better("accuracy", "dense", by=-2, of="ASCAI, tuned"), reason="60 steps are two thirds of an epoch"),
    ),
    parts={
        "1 encoding": Part(Space.decode, "translation", "rounded down"),
        "1b decomposition": Part(factor, "factors", "factors multiplied back"),
        "2 initial sampling": Part(sensitivity_box, "box", "no box", reconstructed=True),
        "3 score": Part(saving, "score", "noise for scores", reconstructed=True),
        "4 selection": Part(proportional, "selection", "parents drawn by chance"),
        "5 crossover": Part(Loop.crossed, "operators", "no crossover"),
        "6 mutation": Part(Loop.mutated, "operators", "no mutation"),
        "7 loop": Part(Loop.run, "one history", "first come, first served"),
        "8 output": Part(Result.realise, "honest size", "factors multiplied back"),
        "9 fast scoring": Part(Space._layer, "cached = direct", "forgetful cache"),
    },
    time_limit=300.0,
    picture=vector_and_samples,
    exercise=Exercise("Draw the parents of the next population.", STUB,
                      ["Shift the scores so that the lowest is zero.", "Divide by their sum: these are probabilities.", "rng.choice(n, count, p=…) draws with replacement; mind equal scores."],
                      _check_exercise, SOLUTION),
)
