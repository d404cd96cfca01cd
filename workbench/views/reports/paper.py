"""The page of one paper: what was measured, when, on what, by which code; the lesson; sliders over the stored points; every claim and what breaks it.

    golden file ─┐
                 ├─► evidence ─► verdicts, payload (numbers + pictures for the sliders) ─► page, CSV
    sweep (live) ┘

The sliders need no kernel: the payload holds the mean and interval of every metric at every measured knob value, and the paper's picture of each of its
points, drawn here once by `Study.picture`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core import claims, golden
from .. import figures
from ...core.measurements import Measurements, Stored
from ...core.registry import ROOT, Entry
from ...core.study import Study
from ...core.sweep import path_of
from . import render

PICTURE_BYTES = 1_400_000
BUDGET = re.compile(r"^[A-Z_]*(STEPS|EPOCHS|RATE|EPISODES|TRIALS|EVALUATIONS)[A-Z_]*$")
LIVE, STORED, STALE = "measured now", "stored", "stale"


@dataclass(frozen=True)
class Evidence:
    """The points that a page shows and where they come from: ``state``, the environment that measured them, and what did not go as stored."""

    measurements: Measurements
    state: str
    environment: Mapping[str, str]
    data_key: str
    stale: int = 0
    notes: list[str] = field(default_factory=list)


def evidence(study: Study, live: Sequence[Stored] | None, failures: Sequence[str] = ()) -> Evidence:
    """Golden points, with those measured now (``live``) in their place; beside live points only golden points of today's code and data are kept."""
    stored = golden.points(study)
    current = [item for item in stored if path_of(study, item.point)[1] == item.key]
    stale = len(stored) - len(current)
    if live is None:
        m = Measurements(study, tuple(stored))
        return Evidence(m, STALE if stale else STORED, golden.read(study).get("environment", {}), golden.read(study).get("data", ""), stale)
    m = Measurements(study, tuple({item.point: item for item in (*current, *live)}.values()))
    notes = [*failures, *golden.compare(study, Measurements(study, tuple(live)))]
    return Evidence(m, LIVE, golden.environment(), study.track.data_key(), stale, notes)


def flips(study: Study, verdicts: Sequence[claims.Verdict]) -> list[str]:
    """Claims that hold now and did not in the golden file, or the other way round."""
    before, pair = golden.read(study).get("verdicts", {}), {claims.HOLDS, claims.NOT_REPRODUCED}
    return [f"{v.name}: was {before[v.name]}, is now {v.status}" for v in verdicts if {before.get(v.name), v.status} == pair]


def payload(m: Measurements) -> dict:
    """What the page's sliders draw from: knobs, metrics, and per contender and knob the mean, low and high of every metric at every measured value."""
    study, styles = m.study, figures.palette(m.study)
    metrics = {name: metric for name, metric in study.track.metrics.items() if name in m.frame and m.frame[name].notna().any()}
    contenders = [{"name": name, "role": study.field[name].role, "note": study.field[name].note, **asdict(styles[name]),
                   "curves": [_curve(m, name, knob.name, list(metrics)) for knob in study.knobs]}
                  for name in study.field if len(m.rows(name))]
    return {"name": study.name, "subject": study.subject, "cost": study.track.cost, "quality": study.track.quality,
            "metrics": {name: asdict(metric) for name, metric in metrics.items()},
            "knobs": [{"name": knob.name, "label": figures.label(study, knob.name), "grid": knob.grid, "default": knob.default, "slides": knob.slides}
                      for knob in study.knobs],
            "contenders": contenders, **_pictures(m), "series": _series(m)}


def _curve(m: Measurements, name: str, knob: str, metrics: list[str]) -> dict:
    """``at``: the knob's values (``[null]`` where the contender lacks it); per metric three lists: mean over replicas, low and high of its interval."""
    own = {k.name: k.default for k in m.study.knobs_of(name)}
    rows = m.rows(name, **{other: value for other, value in own.items() if other != knob})
    groups = [(float(value), group) for value, group in rows.groupby(knob)] if knob in own else [(None, rows)]
    curve: dict[str, Any] = {"at": [value for value, _ in groups], "replicas": max((g.replica.nunique() for _, g in groups), default=0)}
    for metric in metrics:
        estimates = [claims.estimate(group.groupby("replica")[metric].mean().dropna(), 0) for _, group in groups]
        curve[metric] = [[_short(getattr(e, bound)) for e in estimates] for bound in ("value", "low", "high")]
    return curve


def _short(value: float) -> float | int | None:
    """Six significant digits; null for what is not finite."""
    value = float(value)
    return None if not math.isfinite(value) else int(value) if value.is_integer() else float(f"{value:.6g}")


def _settings(study: Study) -> list[tuple[str, dict]]:
    """The address (``knob index:value index``) and knob values of every point of the paper's contender that a slider can reach; quick values first."""
    own = study.knobs_of(study.subject)
    defaults = {knob.name: knob.default for knob in own}
    found = [(value not in (knob.default, *knob.quick), f"{study.knobs.index(knob)}:{knob.grid.index(value)}", {**defaults, knob.name: value})
             for knob in own for value in knob.grid]
    return [(address, setting) for _, address, setting in sorted(found, key=lambda item: item[0])] or [("", {})]


def _pictures(m: Measurements) -> dict:
    """The paper's picture per slider position. Traces and layouts that several pictures share stand once; pictures past the page's limit are left out."""
    pool: dict[str, int] = {}
    frames: dict[str, list[int]] = {}
    left_out = 0
    for address, setting in _settings(m.study):
        if sum(map(len, pool)) > PICTURE_BYTES:
            left_out += 1
        elif (drawn := figures.picture(m, setting)) is not None:
            bundle = json.loads(drawn.to_json())
            bundle["layout"].pop("template", None)
            frames[address] = [pool.setdefault(json.dumps(part), len(pool)) for part in (bundle["layout"], *bundle["data"])]
    return {"parts": [json.loads(text) for text in pool], "frames": frames, "leftOut": left_out}


def _series(m: Measurements) -> dict:
    """The curves that the paper's points carry (loss per step, …), thinned to 160 values, per slider position."""
    stored = {item.point.knobs: item.result.series for item in reversed(m.points)
              if item.point.contender == m.subject and item.point.replica == item.point.seed == 0}
    found: dict[str, dict] = {}
    for address, setting in _settings(m.study):
        for name, values in stored.get(tuple(sorted(setting.items())), {}).items():
            at = np.unique(np.linspace(0, len(values) - 1, min(len(values), 160)).astype(int)) if len(values) else []
            found.setdefault(name, {})[address] = [[int(i) for i in at], [_short(values[i]) for i in at]]
    return found


def source_of(function: Callable) -> tuple[str, int, str]:
    """File (from the repository's root), line and name of a function; an empty file where there is no Python source to show."""
    function = inspect.unwrap(getattr(function, "func", function))
    try:
        path = Path(inspect.getsourcefile(function)).resolve().relative_to(ROOT.parent)
        return str(path), inspect.getsourcelines(function)[1], function.__qualname__
    except (TypeError, OSError, ValueError):
        return "", 0, getattr(function, "__qualname__", repr(function))


def context(entry: Entry, shown: Evidence, verdicts: Sequence[claims.Verdict]) -> dict:
    """All that the template needs, as plain values."""
    study, m = shown.measurements.study, shown.measurements
    module = importlib.import_module(entry.module)
    where = str(Path(module.__file__).resolve().relative_to(ROOT.parent))
    status = {v.name: v for v in verdicts}
    tests = {claim.name: (claim, claim.test(m) if claim.test and status[claim.name].measured is not None else None) for claim in study.claims}
    parts = [{"label": label, "file": file, "line": line, "function": name, "here": file == where, "proof": status[part.proof], "ablation": part.ablation,
              "reconstructed": part.reconstructed}
             for label, part in study.parts.items() for file, line, name in [source_of(part.function)]]
    ablations = [{"name": name, "part": ablation.part, "breaks": [v for v in verdicts if name in v.broken_by]}
                 for name, ablation in study.ablations.items()]
    spent = {name: [item.seconds for item in m.points if item.point.contender == name] for name in study.field}
    rows = [{"name": name, "role": c.role, "evidence": c.evidence, "note": c.note, "points": len(m.rows(name)), "replicas": m.rows(name).replica.nunique(),
             "seeds": m.rows(name).seed.nunique(), "knobs": [figures.label(study, k.name) for k in study.knobs_of(name)],
             "effort": _short(np.mean(spent[name])) if spent[name] else None}
            for name, c in study.field.items()]
    return {"entry": entry, "study": study, "evidence": shown, "verdicts": verdicts, "tests": tests, "parts": parts, "ablations": ablations,
            "contenders": rows, "reference": _reference(m), "budgets": _budgets(study, module.__name__), "cpu_seconds": sum(item.seconds for item in m.points), "file": where,
            "lesson": render.markdown(inspect.getdoc(module) or "", 2), "code": render.code(inspect.getsource(module), anchor="line"),
            "beside": _beside(entry), "payload": render.embed(payload(m)), "description": figures.describe(m)}


def _budgets(study: Study, module: str) -> list[str]:
    """What training and search may cost: the constants that say so in the modules that the paper's parts and contenders come from."""
    functions = [*(part.function for part in study.parts.values()), *(c.make for c in study.field.values())]
    modules = dict.fromkeys([module, *(getattr(inspect.unwrap(getattr(f, "func", f)), "__module__", module) for f in functions)])
    found = {f"{name} = {value}": where.removeprefix("workbench.") for where in modules if where.startswith("workbench.") and where in sys.modules
             for name, value in vars(sys.modules[where]).items() if BUDGET.search(name) and isinstance(value, int | float | dict) and len(str(value)) < 80}
    return [f"{text} ({where})" for text, where in found.items()]


def _beside(entry: Entry) -> list[dict]:
    """The paper on other nets and data, side by side, where its family has a module ``beside`` with a function of that name: rows of plain values."""
    module = f"workbench.papers.{entry.family}.beside"
    if importlib.util.find_spec(module) is None:
        return []
    frame = importlib.import_module(module).beside(entry.arxiv)
    return frame.to_dict("records")


def _reference(m: Measurements) -> list[dict]:
    """The bench before compression, per replica: the paper's points where its knobs are neutral (none if it has no such value)."""
    knobs = m.study.knobs_of(m.subject)
    neutral = {knob.name: knob.neutral for knob in knobs if knob.neutral is not None}
    if not neutral or not len(m.frame):
        return []
    first = dict([next(iter(neutral.items()))])
    rows = m.rows(**{**{k.name: k.default for k in knobs}, **first})
    return rows.sort_values(["replica", "seed"]).drop_duplicates("replica").to_dict("records")
