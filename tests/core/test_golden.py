"""Golden files: what they keep, what counts as a difference, and what damage says."""

from dataclasses import replace

import numpy as np
import pytest

from workbench.core import golden
from workbench.core.measurements import Measurements
from workbench.core.study import StudyError
from workbench.core.sweep import sweep


@pytest.fixture
def measured(swept):
    found = sweep(swept).measurements
    golden.write(swept, found, [])
    return found


def changed(m, index, metrics=None, **fields):
    """The measurements with one point's result changed."""
    item = m.points[index]
    result = replace(item.result, metrics={**item.result.metrics, **(metrics or {})}, **fields)
    return Measurements(m.study, (*m.points[:index], replace(item, result=result), *m.points[index + 1:]))


def test_comes_back_as_written_and_sorted(swept, measured):
    back = {item.point: item for item in golden.points(swept)}
    assert set(back) == {item.point for item in measured.points}
    for item in measured.points:
        old = back[item.point]
        assert old.key == item.key and dict(old.result.metrics) == dict(item.result.metrics)
        assert isinstance(old.result.metrics["bytes"], int) and (old.result.samples["right"] == item.result.samples["right"]).all()
    text = golden.path_of(swept).read_bytes()
    golden.write(swept, Measurements(swept, measured.points[::-1]), [])
    assert golden.path_of(swept).read_bytes() == text, "the order of measuring must not show"
    assert max(map(len, text.splitlines())) < 2000 and len(text.splitlines()) > len(measured.points), "one point a line, so that a change can be reviewed"


def test_agrees_with_itself_and_knows_what_is_stale(swept, measured, monkeypatch):
    assert golden.compare(swept, measured) == [] and golden.stale(swept, golden.points(swept)) == 0
    object.__setattr__(swept.track, "data_key", lambda: "other data")
    try:
        assert golden.stale(swept, golden.points(swept)) == len(measured.points)
    finally:
        object.__setattr__(swept.track, "data_key", lambda: "swept")


@pytest.mark.parametrize(("name", "factor", "counts"), [("bytes", 1.00001, True), ("cost", 1.00005, False), ("cost", 1.001, True), ("cost", np.nan, True)])
def test_tolerance_of_metrics(swept, measured, name, factor, counts):
    old = measured.points[0].result.metrics[name]
    new = old + 1 if name == "bytes" else old * factor
    found = golden.compare(swept, changed(measured, 0, {name: new}))
    assert bool(found) == counts and all(name in line and "ours" in line for line in found)


@pytest.mark.parametrize(("flips", "counts"), [(2, False), (3, True)])
def test_a_thousandth_of_the_samples_may_flip(swept, measured, flips, counts):
    right = measured.points[0].result.samples["right"].copy()
    right[:flips] ^= True
    assert bool(golden.compare(swept, changed(measured, 0, samples={"right": right}))) == counts


def test_flips_move_only_the_metric_that_is_their_mean(swept, measured):
    old = measured.points[0].result
    mean = 100 * float(old.samples["right"].mean())
    m = changed(measured, 0, {"accuracy": mean, "loss": 1.0})
    golden.write(swept, m, [])
    assert golden.compare(swept, changed(m, 0, {"accuracy": mean - 0.2})) == []
    assert golden.compare(swept, changed(m, 0, {"accuracy": mean - 0.31}))
    assert golden.compare(swept, changed(m, 0, {"loss": 1.002}))


def test_missing_or_reshaped_samples_count(swept, measured):
    assert golden.compare(swept, changed(measured, 0, samples={}))
    assert golden.compare(swept, changed(measured, 0, samples={"right": np.ones(3, bool)}))


def test_trained_contenders_are_not_compared_by_points(swept, measured):
    object.__setattr__(swept.contenders["ours"], "evidence", "recorded")
    try:
        assert golden.compare(swept, changed(measured, 0, {"cost": -1})) == []
    finally:
        object.__setattr__(swept.contenders["ours"], "evidence", "live")


@pytest.mark.parametrize("damage", [lambda t: t[:-40], lambda t: t.replace('"format": 1', '"format": 9'), lambda t: t.replace('["bool"', '["blob"', 1),
                                    lambda t: t.replace('"samples"', '"simples"', 1), lambda t: t.replace('"bool", [1000], "eN', '"bool", [1000], "AA', 1)])
def test_damage_is_named(swept, measured, damage):
    path = golden.path_of(swept)
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(StudyError, match=str(path)):
        golden.points(swept)


def test_contenders_that_are_gone_are_left_out(swept, measured):
    path = golden.path_of(swept)
    path.write_text(path.read_text().replace('"contender": "theirs"', '"contender": "forgotten"'))
    assert {item.point.contender for item in golden.points(swept)} == {"ours", "steeper"}
