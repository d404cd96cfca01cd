"""Measured points of the public races as text: one line a point, with which test items were answered right, so that any two can be compared in pairs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from ...core.claims import LEVEL, Estimate, estimate
from ...core.measurements import decode_array, encode_array, write_whole
from ...core.study import StudyError

FORMAT = 1
BASELINE = "l1"


@dataclass(frozen=True)
class Point:
    """One pruned net. ``right``: split → (items,) how many of ``seeds`` nets answered each item rightly. ``reason``: why it could not be made (then no
    ``right``). ``kind``: paper, classic, survey, control or peer; ``replica``: of the independently trained nets of one shape, which."""

    net: str
    criterion: str
    kind: str
    ratio: float
    macs_share: float = float("nan")
    right: Mapping[str, np.ndarray] = field(default_factory=dict)
    seeds: int = 1
    replica: int = 0
    reason: str = ""

    @property
    def key(self) -> tuple:
        return self.net, self.criterion, self.ratio, self.replica

    def share(self, split: str = "") -> np.ndarray:
        """(items,) share of the seeds that are right, of one split or of all."""
        return np.concatenate([self.right[name] for name in self.right if split in ("", name)]) / self.seeds


def accuracy(share: np.ndarray) -> tuple[float, float, float]:
    """Mean in %, with its 90 % interval: Wilson's for a share of right answers."""
    n, z, p = len(share), stats.norm.ppf((1 + LEVEL) / 2), float(np.mean(share))
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return 100 * p, 100 * (centre - half), 100 * (centre + half)


def paired(a: np.ndarray, b: np.ndarray) -> Estimate:
    """By how many points ``a`` is right more often than ``b`` on the same items: mean and 90 % interval over items."""
    if len(a) != len(b):
        raise StudyError(f"{len(a)} and {len(b)} test items cannot be compared in pairs")
    return estimate(100 * (np.asarray(a, float) - np.asarray(b, float)), 0.0, unit="test items")


def write(path: Path, head: Mapping, points: Iterable[Point]) -> None:
    """Writes the text; accuracies and the gain over the baseline follow from the answers and stand beside them to be read."""
    points = sorted(points, key=lambda p: (p.net, p.kind, p.criterion, p.replica, p.ratio))
    base = {(p.net, p.ratio, p.replica): p for p in points if p.criterion == BASELINE and p.right}
    lines = []
    for p in points:
        line = {"net": p.net, "criterion": p.criterion, "kind": p.kind, "ratio": p.ratio, **({"replica": p.replica} if p.replica else {})}
        if p.reason:
            lines.append(json.dumps({**line, "reason": p.reason}))
            continue
        line |= {"macs_share": round(p.macs_share, 4), "accuracy": {s: round(accuracy(p.share(s))[0], 2) for s in p.right}}
        if (b := base.get((p.net, p.ratio, p.replica))) and b is not p:
            gains = {s: paired(p.share(s), b.share(s)) for s in p.right}
            line["gain"] = {s: [round(g.value, 2), round(g.low, 2), round(g.high, 2)] for s, g in gains.items()}
        lines.append(json.dumps(line | {"seeds": p.seeds, "right": {s: encode_array(v) for s, v in p.right.items()}}))
    text = json.dumps({"format": FORMAT, **head}, indent=1)[:-2] + ',\n "points": [\n' + ",\n".join(lines) + "\n]}\n"
    write_whole(path, text.encode())


def read(path: Path) -> tuple[dict, list[Point]]:
    """(head, points) of a stored race; ({}, []) where there is none. StudyError: the file is damaged."""
    if not path.exists():
        return {}, []
    try:
        stored = json.loads(path.read_text(encoding="utf8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']} is not {FORMAT}")
        return {k: v for k, v in stored.items() if k not in ("format", "points")}, [_point(row) for row in stored["points"]]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, zlib.error) as error:
        raise StudyError(f"{path} is damaged ({type(error).__name__}: {error}); measure it again") from None


def _point(row: Mapping) -> Point:
    head = row["net"], row["criterion"], row["kind"], float(row["ratio"])
    if "reason" in row:
        return Point(*head, replica=row.get("replica", 0), reason=row["reason"])
    right = {name: decode_array(text) for name, text in row["right"].items()}
    if not right or any(answers.ndim != 1 or not answers.size or answers.max() > row["seeds"] for answers in right.values()):
        raise ValueError(f"{head[:2]} at {head[3]}: the answers are not 0 … {row['seeds']} per test item")
    return Point(*head, float(row["macs_share"]), right, int(row["seeds"]), row.get("replica", 0))
