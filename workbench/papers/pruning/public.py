"""Every structured score of the workbench on nets that nobody here made: stored, compared in pairs, drawn.

    python -m workbench.papers.pruning.public               # measures what data/public/pruning.json lacks (needs the public tier: `workbench data get`)
    python -m workbench.papers.pruning.public fscl          # … of these scores only;  --net tiny-resnet8  on these nets;  --fresh  all again

    public_frame()      one row per net, split, criterion and ratio: accuracy, gain over L1, intervals
    public_figure(net)  accuracy against MACs left
    public_verdict()    per net: the best paper against the best classic
    public_summary()    the same in sentences

All criteria get the same: one-shot removal at equal multiply–accumulates, the same calibration items for scores and batch-norm statistics, no tuning. Only
channels inside blocks go. Intervals are 90 % over test items, so of twenty true ties two are called differences; they say nothing about *other* nets of
the same shape: each public net is one draw. The functions read the stored text; they need neither the data nor the nets.
"""

from __future__ import annotations

import argparse
import sys
from itertools import cycle

import numpy as np
import pandas as pd

from ...benches import DATA
from ...core.study import StudyError
from ._public_points import BASELINE, Point, accuracy, paired, read

PATH = DATA / "public" / "pruning.json"
COLUMNS = ["net", "criterion", "kind", "ratio", "split", "items", "macs_share", "reference", "reestimated", "accuracy", "low", "high", "gain", "gain_low", "gain_high",
           "verdict", "reason"]
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
HUES = {"paper": ("#d55e00", "#b8720a", "#c2558f"), "classic": ("#0077bb", "#00917c", "#aa4499", "#7a7fd0", "#5b8fa8"), "survey": ("#5f8a5f",),
        "control": ("#767676",), "peer": ("#8c564b", "#b5651d")}


def verdict_of(gain) -> str:
    """Of a paired difference: better or worse where the interval leaves zero out, else tie."""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "tie"


def public_frame(path=PATH) -> pd.DataFrame:
    """Columns `COLUMNS`; accuracies in %, gains in points over L1 at the same ratio (NaN for L1 itself), ``reference`` the uncut net's
    accuracy, ``reestimated`` that with batch-norm statistics of the calibration items, as the pruned nets have them."""
    head, points = read(path)
    base = {(p.net, p.ratio): p for p in points if p.criterion == BASELINE and p.right}
    rows = []
    for p in points:
        if p.reason:
            rows.append({"net": p.net, "criterion": p.criterion, "kind": p.kind, "ratio": p.ratio, "split": "", "reason": p.reason})
        for split in p.right:
            value, low, high = accuracy(p.share(split))
            row = {"net": p.net, "criterion": p.criterion, "kind": p.kind, "ratio": p.ratio, "split": split, "items": len(p.right[split]),
                   "macs_share": p.macs_share, "reference": head["nets"][p.net]["accuracy"][split],
                   "reestimated": head["nets"][p.net]["reestimated"][split], "accuracy": value, "low": low, "high": high,
                   "verdict": "", "reason": ""}
            if p.criterion != BASELINE and (p.net, p.ratio) in base:
                gain = paired(p.share(split), base[p.net, p.ratio].share(split))
                row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high, "verdict": verdict_of(gain)}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def over_ratios(points: list[Point], net: str, split: str = "") -> dict[tuple[str, str], np.ndarray]:
    """(kind, criterion) → (items,) share of the ratios at which each item was answered rightly; only criteria measured at as many ratios as any."""
    grouped: dict[tuple[str, str], list[np.ndarray]] = {}
    for p in points:
        if p.net == net and p.right:
            grouped.setdefault((p.kind, p.criterion), []).append(p.share(split))
    most = max(map(len, grouped.values()), default=0)
    return {key: np.mean(shares, axis=0) for key, shares in grouped.items() if len(shares) == most}


def best(means: dict[tuple[str, str], np.ndarray], kind: str) -> str:
    """The criterion of this kind with the highest mean; empty where there is none."""
    names = {name: values.mean() for (k, name), values in means.items() if k == kind}
    return max(names, key=names.get) if names else ""


def public_verdict(path=PATH, split: str = "") -> pd.DataFrame:
    """Per net: the best paper against the best classic, each by its mean over the ratios, in points with a paired interval over the test items.

    ``split``: one of the test splits (default: all items together). That both were *chosen* on these items flatters the kind with more contestants.
    """
    _, points = read(path)
    rows = []
    for net in dict.fromkeys(p.net for p in points):
        means = over_ratios(points, net, split)
        paper, classic = best(means, "paper"), best(means, "classic")
        if paper and classic:
            ours, theirs = means["paper", paper], means["classic", classic]
            gain = paired(ours, theirs)
            rows.append({"net": net, "paper": paper, "accuracy": 100 * ours.mean(), "classic": classic, "classic_accuracy": 100 * theirs.mean(),
                         "gain": gain.value, "low": gain.low, "high": gain.high, "items": len(ours), "verdict": verdict_of(gain)})
    return pd.DataFrame(rows, columns=["net", "paper", "accuracy", "classic", "classic_accuracy", "gain", "low", "high", "items", "verdict"])


def public_summary(path=PATH) -> list[str]:
    """One sentence a net, and one on all: where a paper beats the best classic, and where none does."""
    table = public_verdict(path)
    if table.empty:
        return ["Nothing is measured on public nets yet."]
    words = {"better": "a paper beats the classics", "tie": "no paper beats the classics: a tie", "worse": "no paper beats the classics"}
    lines = [f"{r.net}: {r.paper} {r.accuracy:.1f} %, best classic {r.classic} {r.classic_accuracy:.1f} %: {r.gain:+.1f} points "
             f"({r.low:+.1f} … {r.high:+.1f} over {r.items} items); {words[r.verdict]}." for r in table.itertuples()]
    won = table.net[table.verdict == "better"].tolist()
    return [*lines, f"A paper beats the best classic on {len(won)} of {len(table)} public nets{': ' + ', '.join(won) if won else ''}."]


def public_figure(net: str, split: str = "", path=PATH):
    """Accuracy against the share of MACs left, a line a criterion, the uncut net as a dotted level; ``split``: default the net's first.

    StudyError: nothing is stored of this net or split.
    """
    import plotly.graph_objects as go

    frame = public_frame(path)
    rows = frame[(frame.net == net) & (frame.reason == "")]
    if rows.empty:
        raise StudyError(f"net: nothing is stored of {net!r}; there is {', '.join(dict.fromkeys(frame.net)) or 'nothing'}")
    splits = list(dict.fromkeys(rows.split))
    if split and split not in splits:
        raise StudyError(f"split: {net} has {', '.join(splits)}, not {split!r}")
    rows = rows[rows.split == (split or splits[0])]
    figure = go.Figure()
    hues, dashes = {kind: cycle(values) for kind, values in HUES.items()}, cycle(DASHES)
    for i, ((kind, criterion), line) in enumerate(rows.groupby(["kind", "criterion"], sort=False)):
        line = line.sort_values("macs_share")
        texts = [f"<b>{criterion}</b> ({kind})<br>{r.accuracy:.1f} % ({r.low:.1f} – {r.high:.1f})" + ("" if np.isnan(r.gain) else
                 f"<br>over L1: {r.gain:+.1f} ({r.gain_low:+.1f} … {r.gain_high:+.1f})") for r in line.itertuples()]
        figure.add_scatter(x=line.macs_share.tolist(), y=line.accuracy.tolist(), name=criterion, mode="lines+markers", text=texts,
                           hovertemplate="%{text}<extra></extra>", marker={"symbol": i % 24, "size": 8},
                           line={"color": next(hues[kind]), "dash": "solid" if kind == "paper" else next(dashes), "width": 3.5 if kind == "paper" else 2})
    figure.add_hline(y=float(rows.reference.iloc[0]), line_dash="dot", annotation_text="uncut", line_color="#767676")
    return figure.update_layout(xaxis_title="MACs left (share)", yaxis_title=f"accuracy (%), {int(rows['items'].iloc[0])} {rows.split.iloc[0]} test items",
                                title={"text": net, "font": {"size": 14}})


def main(arguments: list[str] | None = None) -> int:
    from ._public_race import race

    parser = argparse.ArgumentParser(prog="python -m workbench.papers.pruning.public", description=__doc__.splitlines()[0])
    parser.add_argument("criteria", nargs="*", help="structured scores (default: all)")
    parser.add_argument("--net", action="append", default=[], help="public nets (default: all)")
    parser.add_argument("--fresh", action="store_true", help="measure what is stored again")
    chosen = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    try:
        race(PATH, chosen.criteria, chosen.net, chosen.fresh)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    print("\n".join(public_summary()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
