"""The workbench's pruning against other libraries, on the same nets at equal multiply–accumulates: stored by ``workbench race-peers``, read here.

    peers_frame()     one row per net, replica, ratio and peer criterion: its accuracy, the best of the house, the paired difference
    peers_verdict()   per net: the best of the house (papers and classics) against the best peer criterion
    peers_speed()     CPU milliseconds of scoring, choosing and cutting, ours and theirs in turns in one process
    peers_kept()      whether equal criteria drop equal channels
    peers_summary()   all of it in sentences

A peer's point is the nearest to the budget that its own means reach: where many channels tie (dead ones), torch-pruning removes them all and lands below
it, never above. Each peer ran in its own environment with pinned versions; only text came back. These functions need neither the peers nor the data.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ...benches import DATA
from ...core.claims import estimate
from . import public
from ._public_points import Point, accuracy, paired, read
from .public import best, over_ratios, verdict_of

FOLDER = DATA / "peers"
OWN_KINDS = ("paper", "classic")


def _stored(folder=FOLDER, path=None) -> tuple[dict[str, dict], list[Point]]:
    """(heads of the peers' texts, all points: the house's and the peers')."""
    heads, points = {}, read(path or public.PATH)[1]
    for text in sorted(folder.glob("*.json")):
        head, more = read(text)
        heads[text.stem] = head
        points += more
    return heads, points


def peers_frame(folder=FOLDER, path=None) -> pd.DataFrame:
    """Columns net, replica, ratio, split, criterion, peer accuracy with its interval, house (the best paper or classic at that ratio and net), its accuracy,
    gain (house − peer, points, paired over test items) with its interval, verdict of the house."""
    _, points = _stored(folder, path)
    rows = []
    for p in points:
        if p.kind != "peer" or not p.right:
            continue
        ours = [q for q in points if (q.net, q.ratio, q.replica) == (p.net, p.ratio, p.replica) and q.kind in OWN_KINDS and q.right]
        for split in p.right:
            value, low, high = accuracy(p.share(split))
            row = {"net": p.net, "replica": p.replica, "ratio": p.ratio, "split": split, "criterion": p.criterion, "macs_share": p.macs_share,
                   "accuracy": value, "low": low, "high": high, "house": "", "house_accuracy": np.nan}
            if ours:
                first = max(ours, key=lambda q: q.share(split).mean())
                gain = paired(first.share(split), p.share(split))
                row |= {"house": first.criterion, "house_accuracy": 100 * first.share(split).mean(), "gain": gain.value, "gain_low": gain.low,
                        "gain_high": gain.high, "verdict": verdict_of(gain)}
            rows.append(row)
    return pd.DataFrame(rows, columns=["net", "replica", "ratio", "split", "criterion", "macs_share", "accuracy", "low", "high", "house", "house_accuracy",
                                       "gain", "gain_low", "gain_high", "verdict"])


def peers_verdict(folder=FOLDER, path=None) -> pd.DataFrame:
    """Per net: the best of the house against the best peer criterion, by the mean over ratios; the interval is over test items on a public net, over
    replicas where there are several. The house has more contestants, all chosen on these items, which flatters it."""
    _, points = _stored(folder, path)
    rows = []
    for net in dict.fromkeys(p.net for p in points if p.kind == "peer"):
        replicas = sorted({p.replica for p in points if p.net == net})
        means = [over_ratios([p for p in points if p.replica == replica], net) for replica in replicas]
        pooled = {key: np.concatenate([m[key] for m in means]) for key in means[0] if all(key in m for m in means)}
        ours, peer = max((best(pooled, kind) for kind in OWN_KINDS), key=lambda name: _mean(pooled, name)), best(pooled, "peer")
        if not ours or not peer:
            continue
        a, b = ([m[key] for m in means] for key in (_key(pooled, ours), ("peer", peer)))
        gain = paired(a[0], b[0]) if len(means) == 1 else estimate([100 * (x.mean() - y.mean()) for x, y in zip(a, b, strict=True)], 0.0)
        rows.append({"net": net, "house": ours, "house_accuracy": 100 * np.concatenate(a).mean(), "peer": peer, "peer_accuracy": 100 * np.concatenate(b).mean(),
                     "gain": gain.value, "low": gain.low, "high": gain.high, "units": f"{gain.units} {gain.unit}", "verdict": verdict_of(gain)})
    return pd.DataFrame(rows, columns=["net", "house", "house_accuracy", "peer", "peer_accuracy", "gain", "low", "high", "units", "verdict"])


def _key(means, name: str) -> tuple[str, str]:
    return next((key for key in means if key[1] == name and key[0] in OWN_KINDS), ("", ""))


def _mean(means, name: str) -> float:
    return float(means[_key(means, name)].mean()) if name else -np.inf


def _rows(which: str, folder) -> pd.DataFrame:
    return pd.DataFrame([{"peer": head.get("peer", stem), **row} for stem, head in _stored(folder)[0].items() for row in head.get(which, [])])


def peers_speed(folder=FOLDER) -> pd.DataFrame:
    """Per net: CPU milliseconds of both and the ratio ours / peer (median, and all but the extremes of the rounds). Below 1: ours is faster."""
    return _rows("speed", folder)


def peers_kept(folder=FOLDER) -> pd.DataFrame:
    """Per net, norm, threshold and normaliser: how many channels were dropped, and in how many the two differ."""
    return _rows("kept", folder)


def peers_summary(folder=FOLDER, path=None) -> list[str]:
    heads, _ = _stored(folder, path)
    verdict, speed, kept = peers_verdict(folder, path), peers_speed(folder), peers_kept(folder)
    if verdict.empty:
        return ["No peer has raced yet."]
    lines = [f"{r.net}: best of the house {r.house} {r.house_accuracy:.1f} %, best peer {r.peer} {r.peer_accuracy:.1f} %: {r.gain:+.1f} points "
             f"({r.low:+.1f} … {r.high:+.1f}, {r.units}): {r.verdict}." for r in verdict.itertuples()]
    lines += [f"{r.net}: scoring and cutting take {r.ratio:.2f}× the CPU time of {r.peer} ({r.low:.2f} … {r.high:.2f}), both told the share of channels; "
              f"told the MACs instead, ours takes {r.whole_ms:.0f} ms in all, and finding the share by the peer's own cuts {r.search_ms:.0f} ms more." for r in speed.itertuples()]
    if len(kept):
        lines.append(f"Equal criteria drop equal channels in {int(kept.equal.sum())} of {len(kept)} cases.")
    lines += [f"{head.get('peer', stem)}: not raced: {head['reason']}" for stem, head in heads.items() if "reason" in head]
    open_nets = verdict[verdict.units.str.endswith("test items")]
    won = open_nets.net[open_nets.verdict == "better"].tolist()
    return [*lines, f"The best of the house beats the best peer criterion on {len(won)} of {len(open_nets)} public nets{': ' + ', '.join(won) if won else ''}."]
