"""The survey's tree as a table of leaves, and the map that is drawn from it.

A leaf points at a paper of the catalogue (arXiv id) or a classic (its key); whether it is implemented is looked up when the map is drawn. ``contender``
names the leaf's live representative in the study, if it has one there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ...core import registry


@dataclass(frozen=True)
class Leaf:
    """``path``: branch and, where there is one, sub-branch; ``gloss``: one line that a passer-by understands."""

    path: tuple[str, ...]
    title: str
    key: str
    gloss: str
    contender: str = ""


BRANCHES = {
    "1": "why and where", "2": "sparsity structure", "3": "criteria", "4": "procedure", "5": "ratio allocation", "6": "at run time",
    "7": "alternatives, combination", "8": "applications", "9": "challenges",
    "2.1": "weights", "2.2": "rows, strides", "2.3": "kernels", "2.4": "channels", "2.5": "blocks",
    "3.1": "magnitude", "3.2": "penalties", "3.3": "loss sensitivity", "3.4": "activations", "3.5": "reconstruction", "3.6": "similarity",
}

TABLE = """
1 | dataflows | 2312.09580 | what sparsity saves depends on the order in which an accelerator moves data |
1 | Winograd and FFT | 2108.01020 | other ways to compute the same convolution, with which zeros must fit |
2.1 | magnitude | magnitude | zero the smallest weights wherever they are | weights by magnitude
2.1 | SlimNets | 1808.00496 | magnitude pruning combined with quantisation and distillation |
2.2 | kernel rows | kernel-pruning | zero whole rows of kernels: fewer indices | kernel rows
2.2 | strided positions | ikss | keep kernel positions a stride apart: columns of the matrix vanish | strided positions
2.2 | tap patterns | 2108.01020 | a few fixed patterns of kernel positions, made for the hardware |
2.3 | 2-D kernels | kernel-pruning | cut the connection between two channels | kernels
2.4 | FSCL | 2304.13397 | filters like those that read them stay |
2.4 | PFGDF | 2006.12963 | keep the filters in the middle of the layer's Gaussian |
2.4 | entropy pruning | 1706.05791 | channels whose averages never change carry nothing |
2.5 | residual blocks | block-drop | drop the blocks without which the loss rises least |
3.1 | L1 norm | l1 | small filters go | filters by L1
3.1 | L2 norm | l2 | small filters go, large weights count more | filters by L2
3.1 | early magnitude | 1901.08455 | the ranking settles long before training ends |
3.2 | group LASSO | ssl | train with a pull on whole filters | group LASSO
3.2 | network slimming | slimming | train with a pull on batch-norm scales | slimming
3.2 | batch-norm scale | bn-gamma | the scale alone as a score | batch-norm scale
3.2 | ADMM | admm | pull the weights towards their sparse projection | ADMM
3.2 | 3-D regularisation | 1811.07555 | a pull of its own for every group, by its rank |
3.3 | OBD | obd | half the curvature times the weight squared | OBD
3.3 | Taylor | taylor | what the loss would lose, to first order | Taylor
3.3 | SNIP | snip | how much the loss feels a connection, before training | SNIP
3.3 | OBS | obs | OBD with the whole Hessian, and the other weights corrected |
3.3 | transfer channels | 1904.02654 | Taylor on two domains at once |
3.4 | APoZ | apoz | channels that are mostly zero go | APoZ
3.4 | HRank | hrank | channels whose maps have a high rank stay |
3.4 | mean activation | mean-activation | channels that are faint go | mean activation
3.4 | entropy | 1706.05791 | channels that always say the same go | entropy
3.5 | ThiNet | thinet | drop what the next layer misses least, then least squares | ThiNet
3.5 | AMC's least squares | 1802.03494 | after every cut, refit the layer that reads it |
3.6 | FPGM | fpgm | near the geometric median is what the others can replace | FPGM
3.6 | k-means filters | kmeans-filters | one representative per cluster stays | k-means filters
3.6 | readers and writers | consumer-norm | the worth of a channel is what is read of it | consumer norm
4 | one-shot | magnitude | cut once, then tune | weights, at once
4 | iterative | iterative | cut a little, tune, cut again | weights, in rounds
4 | gradual | gradual | a cubic schedule: fast first, slow at the end | weights, gradually
4 | soft, with regrowth | sfp | zeroed filters keep learning and may come back | soft filters
4 | prune early | 1901.08455 | a little training, then the cut |
4 | lottery ticket | lottery-ticket | the winning mask, from the first weights again | lottery ticket
4 | before training | snip | one look at gradients of the untrained net | SNIP before training
5 | sensitivity scan | sensitivity-scan | every layer as far as the same loss allows | sensitivity scan
5 | AMC | 1802.03494 | an agent learns the share of each layer |
5 | ASCAI | 1911.06471 | a genetic search over layer shares |
5 | multi-objective | 2211.01957 | an evolving front of accuracy and size |
5 | EnSyth | 1907.09286 | many prunings, one ensemble |
6 | channel gating | channel-gating | every image computes only the channels it asks for | gated per image
7 | quantisation | 2002.08679 | fewer bits per weight |
7 | low rank | 2301.09422 | a product of thin matrices in a layer's place |
7 | distillation | 2006.05525 | a small net learns from a large one's answers |
7 | shared weights | 2107.09095 | many weights, few values |
7 | compact design | 2204.00943 | a net that is small from the start |
7 | channel compression | 2007.01696 | compress channels where they repeat each other |
8 | domain adaptation | 1904.02654 | prune while moving to another domain |
8 | 3-D video | 1811.07555 | time adds a dimension, and redundancy |
8 | detection, tracking | 1909.11348 | special or general, and how small |
8 | speech hardware | 2312.09580 | pruning and circuit designed together |
9 | fair benchmarks | random | the same steps, data and controls for everyone: random is the first | random
9 | one toolkit | 2405.01775 | from a compressed net to hardware without gaps |
"""


@cache
def leaves(table: str = TABLE) -> tuple[Leaf, ...]:
    """The table, parsed: ``branch | title | key | gloss | contender`` a line."""
    found = []
    for line in table.strip().splitlines():
        number, title, key, gloss, contender = (part.strip() for part in line.split("|"))
        path = tuple(f"{n} {BRANCHES[n]}" for n in dict.fromkeys((number.split(".")[0], number)))
        found.append(Leaf(path, title, key, gloss, contender))
    return tuple(found)


def resolve(leaf: Leaf):
    """The catalogue's entry of a leaf; None for one that is neither paper nor classic here (drawn in grey)."""
    return next((entry for entry in registry.catalogue() if leaf.key in (entry.arxiv, entry.name)), None)


LIVE, HERE, MISSING, CURRENT = "#0077bb", "#7fb8d8", "#b9b9b9", "#d55e00"


def taxonomy_map(point: Mapping, exhibits: Mapping, tree: Sequence[Leaf] = leaves()):
    """A treemap: a click opens a branch, pointing at a leaf tells its gloss. Blue: raced here; light: implemented; grey: missing; orange: this point."""
    import plotly.graph_objects as go

    root = "pruning for the edge"
    ids, labels, parents, colors, hints = [root], [root], [""], ["rgba(0,0,0,0)"], [f"{len(tree)} leaves"]
    for leaf in tree:
        for depth, name in enumerate(leaf.path):
            here = "/".join(leaf.path[:depth + 1])
            if here not in ids:
                ids.append(here), labels.append(name), parents.append("/".join(leaf.path[:depth]) or root), colors.append("rgba(128,128,128,0.10)")
                hints.append(f"{sum(other.path[:depth + 1] == leaf.path[:depth + 1] for other in tree)} leaves")
        entry = resolve(leaf)
        current = bool(leaf.contender) and leaf.contender == point.get("contender")
        state = "raced here" if leaf.contender else "implemented" if entry and entry.implemented else "not implemented yet"
        ids.append("/".join((*leaf.path, leaf.title)) + f"/{leaf.key}")
        labels.append(leaf.title)
        parents.append("/".join(leaf.path))
        colors.append(CURRENT if current else LIVE if leaf.contender else HERE if entry and entry.implemented else MISSING)
        hints.append(f"{leaf.gloss}<br>{entry.title if entry else leaf.key} ({entry.arxiv if entry else 'no entry'}): {state}")
    kept = " ".join(f"{share} %" for share in exhibits.get("kept", ()))
    title = f"{point.get('contender', 'the tree')}: {point['accuracy']:.1f} % right, {point['bytes']:.0f} KB; kept per layer {kept}" if "accuracy" in point else ""
    figure = go.Treemap(ids=ids, labels=labels, parents=parents, marker={"colors": colors, "line": {"width": 1}}, customdata=hints,
                        textfont={"size": 12}, hovertemplate="<b>%{label}</b><br>%{customdata}<extra></extra>", root={"color": "rgba(0,0,0,0)"})
    return go.Figure(figure, layout={"height": 640, "margin": {"l": 4, "r": 4, "t": 36, "b": 4}, "title": {"text": title, "font": {"size": 13}}})
