"""Measured points of one study: a tidy frame, and beside it the samples, series and exhibits of each point by key.

On disk a point is one small file: a JSON head and plain arrays, nothing that is unpickled. A set of points (a golden file) is one JSON text.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from .study import Point, Result, Study, StudyError

FIXED = ["paper", "contender", "role", "track", "tier", "replica", "seed", "key"]


@dataclass(frozen=True)
class Stored:
    """A point as measured: where it stands, what came out, and the CPU seconds it took."""

    point: Point
    key: str
    result: Result
    seconds: float = 0.0

    def to_json(self) -> dict:
        point, result = self.point, self.result
        return {"contender": point.contender, "knobs": dict(point.knobs), "replica": point.replica, "seed": point.seed, "tier": point.tier,
                "key": self.key, "seconds": round(self.seconds, 3), "metrics": {name: _number(v) for name, v in result.metrics.items()},
                "samples": {name: encode_array(v) for name, v in result.samples.items()},
                "series": {name: encode_array(np.asarray(v, np.float32)) for name, v in result.series.items()},
                "exhibits": {name: encode_array(v) for name, v in result.exhibits.items()}}

    @classmethod
    def from_json(cls, data: Mapping) -> Stored:
        point = Point(data["contender"], tuple(sorted(data["knobs"].items())), data["replica"], data["seed"], data["tier"])
        arrays = {name: {k: decode_array(v) for k, v in data[name].items()} for name in ("samples", "series", "exhibits")}
        metrics = {name: float("nan") if value is None else value for name, value in data["metrics"].items()}
        return cls(point, data["key"], Result(metrics, **arrays), data["seconds"])


def _number(value: float) -> float | int | None:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def encode_array(array: np.ndarray) -> list:
    """An array as ``[dtype, shape, base64 of its deflated little-endian bytes]``; booleans are packed to bits."""
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise StudyError(f"samples, series and exhibits must be plain numbers, not {array.dtype}")
    raw = np.packbits(array) if array.dtype == bool else array.astype(array.dtype.newbyteorder("<"))
    return [array.dtype.name, list(array.shape), base64.b64encode(zlib.compress(raw.tobytes(), 9)).decode()]


def decode_array(text: list) -> np.ndarray:
    name, shape, packed = text
    count = int(np.prod(shape, dtype=np.int64)) if shape else 1
    size = (count + 7) // 8 if name == "bool" else count * np.dtype(name).itemsize
    decoder = zlib.decompressobj()
    raw = decoder.decompress(base64.b64decode(packed), size + 1)  # one more than is right: enough to notice, too little to fill the memory
    if len(raw) != size:
        raise StudyError(f"stored array is damaged: {size} bytes were expected")
    if name == "bool":
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(bool).reshape(shape)
    return np.frombuffer(raw, np.dtype(name).newbyteorder("<")).astype(name).reshape(shape)


def cache_folder() -> Path:
    """Where generated data and measured points are kept: ``$WORKBENCH_CACHE``, or ``.cache`` beside the package."""
    return Path(os.environ.get("WORKBENCH_CACHE", Path(__file__).resolve().parents[2] / ".cache"))


def write_whole(path: Path, data: bytes, lasting: bool = True) -> None:
    """Writes a file whole or not at all: into a temporary file beside it, then renamed. ``lasting`` waits until the disk has it (a power cut loses
    nothing); without it only the death of the process is survived, which is enough for what can be measured again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):  # by a process that was killed; one that lives is at work on it
        if not _alive(int(left.name.split(".")[-2])):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            if lasting:
                handle.flush()
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's, so alive
        pass
    return True


def write_point(path: Path, stored: Stored) -> None:
    write_whole(path, zlib.compress(json.dumps(stored.to_json()).encode(), 6), lasting=False)


def read_point(path: Path) -> Stored | None:
    """The stored point, or None where there is none or the file is damaged (it is then measured again)."""
    try:
        return Stored.from_json(json.loads(zlib.decompress(path.read_bytes())))
    except (OSError, zlib.error, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Measurements:
    """The points of one study, as claims see them. ``subject`` names the contender that the claims speak of."""

    study: Study
    points: tuple[Stored, ...]
    subject: str = ""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if not self.subject:
            object.__setattr__(self, "subject", self.study.subject)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a point: ``paper, contender, role, track, tier, replica, seed, key``, the knobs (NaN where a contender lacks one), the metrics."""
        if "frame" not in self._cache:
            self._cache["frame"] = tidy(self.study, self.points)
        return self._cache["frame"]

    def by_key(self, key: str) -> Stored:
        if "index" not in self._cache:
            self._cache["index"] = {stored.key: stored for stored in self.points}
        return self._cache["index"][key]

    def standing_in(self, contender: str, instead_of: str = "") -> Measurements:
        """The same points with ``contender`` in the place of the subject (or of ``instead_of``): does the claim still hold of an ablation, a rival?"""
        return Measurements(self.study, self.points, self.subject if instead_of else contender, {instead_of: contender} if instead_of else {}, self._cache)

    def rows(self, contender: str | None = None, tier: str = "embedded", **knobs: float) -> pd.DataFrame:
        """Rows of a contender (default: the subject) where one knob varies: ``knobs`` pin values; the first knob, or the only one not pinned, is free; the
        others stand at their defaults. A contender without a pinned knob gives its rows all the same (a reference)."""
        name = contender or self.subject
        name = self.stand_ins.get(name, name)
        if name not in self.study.field:
            raise StudyError(f"{self.study.name} has no contender {name!r}; it has {', '.join(self.study.field)}")
        unknown = set(knobs) - {knob.name for knob in self.study.knobs}
        if unknown:
            raise StudyError(f"{self.study.name} has no knob {', '.join(unknown)}; it has {', '.join(k.name for k in self.study.knobs)}")
        own = self.study.knobs_of(name)
        open_ = [knob for knob in own if knob.name not in knobs]
        free = open_[0].name if open_ and (len(open_) == 1 or open_[0] is own[0]) else ""
        rows = self.frame[(self.frame.contender == name) & (self.frame.tier == tier)]
        for knob in own:
            if knob.name != free:
                rows = rows[np.isclose(rows[knob.name].astype(float), knobs.get(knob.name, knob.default))]
        return rows

    def samples(self, rows: pd.DataFrame, name: str) -> list[np.ndarray]:
        """The per-item samples of each row."""
        return [self.by_key(key).result.samples[name] for key in rows.key]

    def series(self, rows: pd.DataFrame, name: str) -> list[np.ndarray]:
        return [np.asarray(self.by_key(key).result.series[name], dtype=float) for key in rows.key]


def tidy(study: Study, points: Iterable[Stored]) -> pd.DataFrame:
    rows = []
    for stored in points:
        point = stored.point
        contender = study.field.get(point.contender)
        rows.append({"paper": study.paper, "contender": point.contender, "role": contender.role if contender else "unknown",
                     "track": study.track.name, "tier": point.tier, "replica": point.replica, "seed": point.seed, "key": stored.key,
                     **{knob.name: np.nan for knob in study.knobs}, **dict(point.knobs), **stored.result.metrics})
    columns = [*FIXED, *(knob.name for knob in study.knobs), *study.track.metrics]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))
