"""Golden results: the ``full`` profile of a study as one reviewable text, ``data/golden/<arxiv id>.json``, which opens its notebook at once.

Comparison: integers and counts equal; other inference metrics to a relative 1e-4, and at most max(2, 0.1 %) of the samples differ; points of contenders
that train something (`evidence="recorded"`) are compared by claim status alone; timing never. It changes by ``workbench run ID --profile full --golden`` only.
"""

from __future__ import annotations

import json
import platform
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from .measurements import Measurements, Stored, write_whole
from .study import Study, StudyError

FOLDER = Path(__file__).resolve().parents[2] / "data" / "golden"
FORMAT = 1


def path_of(study: Study) -> Path:
    return FOLDER / f"{study.paper.replace(' ', '-').replace('/', '-')}.json"


def environment() -> dict[str, str]:
    """Versions and the processor's name, kept beside results so that differences can be explained."""
    from importlib import metadata

    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn", "scikit-image", "torch-pruning", "pillow")}
    return {"python": platform.python_version(), "cpu": cpu_name(), **versions}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(study: Study, m: Measurements, verdicts: list) -> Path:
    """Writes the golden file: one point a line, sorted, with the claims' verdicts of that run. Pictures show the first replica and seed, so the exhibits
    of the others are left out: a reviewable text, not an archive."""
    lean = [item if (item.point.replica, item.point.seed) == (0, 0) else replace(item, result=replace(item.result, exhibits={})) for item in m.points]
    stored = sorted(lean, key=lambda s: (s.point.tier, s.point.contender, s.point.knobs, s.point.replica, s.point.seed))
    head = {"format": FORMAT, "paper": study.paper, "environment": environment(), "data": study.track.data_key(),
            "verdicts": {v.name: v.status for v in verdicts}}
    lines = ",\n".join(json.dumps(item.to_json()) for item in stored)
    text = json.dumps(head, indent=1)[:-2] + ',\n "points": [\n' + lines + "\n]}\n"
    write_whole(path_of(study), text.encode())
    return path_of(study)


def read(study: Study) -> dict:
    """The golden file as written (empty where there is none)."""
    path = path_of(study)
    if not path.exists():
        return {"points": [], "verdicts": {}}
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}); restore it, or `workbench run {study.name} --golden` makes it again") from None
    if data.get("format") != FORMAT:
        raise StudyError(f"{path} has format {data.get('format')}; this version reads {FORMAT}")
    return data


def points(study: Study) -> list[Stored]:
    """The golden points of contenders that still exist."""
    try:
        return [Stored.from_json(point) for point in read(study)["points"] if point["contender"] in study.field]
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise StudyError(f"{path_of(study)} is damaged ({type(error).__name__}: {error}); `workbench run {study.name} --golden` makes it again") from None


def stale(study: Study, stored: list[Stored]) -> int:
    """How many golden points were made by code or data that differ from today's."""
    from .sweep import path_of as where

    return sum(where(study, item.point)[1] != item.key for item in stored)


def compare(study: Study, m: Measurements) -> list[str]:
    """The differences between freshly measured points and the golden ones that matter; an empty list means that they agree."""
    golden = {item.point: item.result for item in points(study)}
    differences = []
    for item in m.points:
        if item.point not in golden or study.field[item.point.contender].evidence == "recorded":
            continue
        old, where = golden[item.point], f"{item.point.contender} {dict(item.point.knobs)} replica {item.point.replica}"
        derived: dict[str, float] = {}  # what flipped samples may move a metric that is their mean (as a share or in per cent)
        for name, samples in old.samples.items():
            if samples.dtype.kind not in "biu" or not samples.size:
                continue
            new = np.asarray(item.result.samples.get(name, np.empty(0)))
            changed = samples.size if new.shape != samples.shape else int((new != samples).sum())
            allowed = max(2, samples.size // 1000)
            if changed > allowed:
                differences.append(f"{where}: {changed} of {samples.size} samples of {name} differ (at most {allowed})")
            mean, step = float(samples.mean()), allowed * max(1.0, float(np.ptp(samples.astype(float)))) / samples.size
            derived |= {metric: step * scale for metric, value in old.metrics.items() for scale in (1, 100) if np.isclose(value, scale * mean, rtol=1e-9)}
        for name, value in old.metrics.items():
            new = item.result.metrics.get(name, np.nan)
            exact = isinstance(value, int)
            if exact and new != value or not exact and not np.isclose(new, value, rtol=1e-4, atol=derived.get(name, 1e-12), equal_nan=True):
                differences.append(f"{where}: {name} is {new}, golden {value}")
    return differences
