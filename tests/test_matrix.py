"""What every implemented paper owes, derived from the registry: a new paper file is tested here without a new line.

Each paper's quick profile is measured once, from nothing, and shared by the tests below.
"""

import ast
import importlib
import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest

from workbench.core import claims, golden, registry
from workbench.core.study import ROLES, Point
from workbench.core.sweep import sweep

ROOT = Path(__file__).resolve().parents[1]
QUICK_CPU_SECONDS = 10
PAPERS = [pytest.param(entry, id=entry.name) for entry in registry.implemented()]
pytestmark = [pytest.mark.parametrize("entry", PAPERS), pytest.mark.timeout(600)]


@pytest.fixture
def paper(entry, fresh):
    """(study, sweep, verdicts, CPU seconds) of a fresh quick sweep."""
    return fresh(entry.arxiv)


def test_quick_measures_every_point_from_nothing(entry, paper):
    study, result, _, seconds = paper
    assert result.failures == [], "\n".join(map(str, result.failures))
    live = [point for point in study.points("quick") if study.field[point.contender].evidence != "recorded"]
    assert result.measured == len(live) > 0
    print(f"\n{study.name}: {len(live)} points, {seconds:.1f} CPU seconds with checks and claims")
    if seconds > QUICK_CPU_SECONDS:
        warnings.warn(f"{study.name}: the quick profile took {seconds:.1f} CPU seconds here; {QUICK_CPU_SECONDS} are meant", stacklevel=1)


def test_quick_is_a_part_of_the_full_profile(entry):
    study = entry.study()
    assert set(study.points("quick")) <= set(study.points("full"))
    for knob in study.knobs:
        assert list(knob.grid) == sorted(set(knob.grid)), f"{knob.name}: the grid does not rise"


def test_every_check_is_green(entry, paper):
    red = [f"{v.name}: {v.measured} (allowed {v.margin})" for v in paper[2] if v.status == "red"]
    assert not red, "\n".join(red)


def test_claims_can_be_judged_and_agree_with_the_golden_file(entry, paper):
    study, _, verdicts, _ = paper
    before = golden.read(study)["verdicts"]
    found = {v.name: v for v in verdicts if v.what == "claim"}
    assert len(found) >= 3 and any(v.kind == "comparative" and v.evidence != "recorded" for v in found.values()), "a claim must rest on more than records"
    assert {v.status for v in found.values()} <= {claims.HOLDS, claims.NOT_REPRODUCED, claims.UNDECIDED, claims.NEEDS_HARDWARE}
    unjudged = [f"{v.name}: {v.note}" for v in found.values() if v.measured is None and v.status == claims.UNDECIDED]
    assert not unjudged, "\n".join(unjudged)
    pair = {claims.HOLDS, claims.NOT_REPRODUCED}
    turned = [f"{name}: golden {before.get(name)!r}, now {v.status!r}" for name, v in found.items() if {before.get(name), v.status} == pair]
    assert not turned, "\n".join(turned)
    for name, v in found.items():
        if before and before.get(name) != v.status:
            warnings.warn(f"{study.name}, {name}: golden {before.get(name)!r}, now {v.status!r}", stacklevel=1)


def test_what_does_not_reproduce_gives_a_reason(entry, paper):
    silent = [v.name for v in paper[2] if v.status == claims.NOT_REPRODUCED and not v.note]
    assert not silent, f"not reproduced, without a reason: {silent}"
    unnamed = [claim.name for claim in entry.study().claims if claim.test is None and not claim.needs]
    assert not unnamed, f"neither a test nor the hardware it needs: {unnamed}"


def test_every_ablation_breaks_something_that_held(entry, paper):
    study, _, verdicts, _ = paper
    broken = {name for v in verdicts for name in v.broken_by}
    idle = [name for name in study.ablations if name not in broken]
    assert not idle, f"these ablations break nothing, so what they disable is not shown to matter: {idle}"


def test_whatever_holds_could_have_failed(entry, paper):
    safe = [v.name for v in paper[2] if v.status in ("green", claims.HOLDS) and not v.broken_by]
    assert not safe, f"no ablation and no rival breaks these, so they cannot fail: {safe}"


def test_golden_file(entry):
    study = entry.study()
    assert golden.path_of(study).exists(), f"`workbench run {study.name} --golden` makes it"
    kept = golden.read(study)
    assert {"format", "paper", "environment", "data", "verdicts", "points"} <= set(kept) and kept["paper"] == entry.arxiv
    assert {"python", "cpu", "torch", "numpy"} <= set(kept["environment"])
    named = {item.name for item in (*study.checks, *study.claims)}
    assert set(kept["verdicts"]) == named, f"the golden file judges {set(kept['verdicts']) ^ named}"
    assert golden.path_of(study).stat().st_size < 5e6, "a golden file is text to be reviewed"
    points = golden.points(study)
    assert {p.point for p in points} <= set(study.points("full")) and len(points) == len({p.point for p in points})
    assert {p.point.contender for p in points} == set(study.field), "every contender has golden points"
    exhibits = sum(array.nbytes for p in points for array in p.result.exhibits.values())
    assert exhibits <= 600_000, f"{exhibits} bytes of exhibits"


def test_fresh_points_agree_with_the_golden_file(entry, paper):
    study, result, _, _ = paper
    differences = golden.compare(study, result.measurements)
    assert not differences, "\n".join(differences[:20])
    stale = golden.stale(study, golden.points(study))
    if stale:
        warnings.warn(f"{study.name}: {stale} golden points were made by other code or data", stacklevel=1)


def test_parts_are_functions_of_the_workbench(entry):
    study = entry.study()
    assert study.parts
    for label, part in study.parts.items():
        function = inspect.unwrap(getattr(part.function, "__func__", part.function))
        module = getattr(function, "__module__", type(function).__module__)
        assert callable(function) and module.startswith("workbench."), f"part {label}: {function} is not ours"


def test_lesson(entry):
    import importlib

    text = inspect.cleandoc(importlib.import_module(entry.module).__doc__ or "")
    assert len(text.split()) >= 120, f"a lesson of {len(text.split())} words"
    assert text.count("$") >= 4 and text.count("$") % 2 == 0, "a lesson has its maths between dollar signs"


def test_roles_and_replicas(entry):
    study = entry.study()
    roles = {c.role for c in study.contenders.values()}
    assert roles <= set(ROLES) and roles & {"rival", "control"}, "a paper is raced against something"
    for name, contender in study.field.items():
        assert contender.evidence == "recorded" or contender.make.__module__.startswith("workbench.") or callable(contender.make), name


def test_imports_point_one_way(entry):
    order = {"core": 0, "contracts": 1, "benches": 2, "papers": 3}
    path = ROOT / Path(*entry.module.split(".")).with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            parts = (name or "").split(".")
            if parts[0] == "workbench" and len(parts) > 2 and order.get(parts[1]) == 3:
                assert parts[2] == entry.family, f"{path.name} imports {name}: a paper never imports another family"


def test_exercise(entry):
    exercise = entry.study().exercise
    assert exercise.question and exercise.hints
    names = {"np": np}
    exec(compile(exercise.solution, "solution", "exec"), names)  # noqa: S102 - our own text
    exercise.check(names)
    right = exercise.picture(names).to_json() if exercise.picture else ""
    names = {"np": np}
    with pytest.raises((AssertionError, NotImplementedError, NameError, TypeError, KeyError)):
        exec(compile(exercise.stub, "stub", "exec"), names)  # noqa: S102
        exercise.check(names)
    if exercise.picture:
        assert exercise.picture(names).to_json() != right, "a wrong answer must look wrong"


def test_picture_is_pure(entry):
    import plotly.graph_objects as go

    study = entry.study()
    shown = [item for item in golden.points(study) if item.result.exhibits]
    assert shown, "no stored point has exhibits, so a page without a kernel shows no picture"
    by_contender = {item.point.contender: item for item in shown}
    for item in list(by_contender.values())[:4]:
        point = {"contender": item.point.contender, "replica": item.point.replica, "seed": item.point.seed, **dict(item.point.knobs), **item.result.metrics}
        before = {name: array.copy() for name, array in item.result.exhibits.items()}
        first, second = (study.picture(point, item.result.exhibits) for _ in range(2))
        assert isinstance(first, go.Figure) and first.to_json() == second.to_json()
        assert all((before[name] == array).all() for name, array in item.result.exhibits.items()), "a picture changed its exhibits"


def test_neutral_changes_nothing(entry):
    """Where the bench has a reference, the paper's contender at a neutral knob measures exactly as it does."""
    study = entry.study()
    knobs = {knob.name: knob.neutral if knob.neutral is not None else knob.default for knob in study.knobs_of(study.subject)}
    neutral = [knob for knob in study.knobs_of(study.subject) if knob.neutral is not None]
    if not neutral:
        pytest.skip("no knob of this paper has a neutral value")
    if study.track.reference is None or study.field[study.subject].evidence == "recorded":
        pytest.skip("no reference to compare with on this track, or too long to make here: the paper's own neutral check stands for it")
    result = sweep(study, points=[Point(study.subject, tuple(sorted({**knobs, neutral[0].name: neutral[0].neutral}.items())))])
    assert not result.failures, result.failures
    from workbench.core.study import Contender, measure

    reference = measure(study.track, Contender(lambda replica=0: study.track.reference(replica)), Point("reference", ()))
    row = result.measurements.points[0].result
    for name, samples in reference.samples.items():
        assert np.array_equal(row.samples[name], samples), f"{name} differs from the uncompressed one"
    assert row.metrics[study.track.quality] == reference.metrics[study.track.quality]


def test_what_the_probe_times_runs(entry):
    """Once each, as `core.probe.compare` calls it: without autograd."""
    import torch

    make = getattr(importlib.import_module(entry.module), "PROBE", None)
    if make is None:
        pytest.skip("nothing of this paper is worth timing here")
    timed = make()
    with torch.inference_mode():
        for act in timed.values():
            act()
