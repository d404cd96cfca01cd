"""Sweeps: what is stored is used, what fails is reported, what is stopped resumes."""

from pathlib import Path

import numpy as np
import pytest

from workbench.core import golden
from workbench.core.claims import run_checks
from workbench.core.measurements import Measurements, decode_array, encode_array, read_point, write_whole
from workbench.core.study import StudyError
from workbench.core.sweep import path_of, require, sweep


def log(tmp_path) -> list[str]:
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_measures_once_and_reports_progress(swept, tmp_path):
    seen = []
    first = sweep(swept, jobs=2, on_point=lambda done, total: seen.append((done, total)))
    total = len(swept.points("quick"))
    assert first.measured == total == len(first.measurements.points) == len(log(tmp_path))
    assert seen == [(done, total) for done in range(total + 1)]
    again = sweep(swept, jobs=2)
    assert again.measured == 0 and len(log(tmp_path)) == total, "a second sweep measured again"
    left, right = (result.measurements.frame.sort_values("key", ignore_index=True) for result in (first, again))
    assert left.equals(right)
    assert sweep(swept, jobs=2, fresh=True).measured == total


def test_a_longer_profile_measures_only_what_is_new(swept, tmp_path):
    quick = sweep(swept, "quick").measured
    full = sweep(swept, "full")
    assert full.measured == len(set(swept.points("full")) - set(swept.points("quick"))) and quick
    assert len(set(log(tmp_path))) == len(log(tmp_path)), "a point was measured twice"


def test_known_points_are_used_only_with_todays_key(swept, tmp_path):
    points = sweep(swept).measurements.points
    for path in (tmp_path / "cache").rglob("*.point"):
        path.unlink()
    assert sweep(swept, known=points).measured == 0
    from dataclasses import replace
    assert sweep(swept, known=[replace(point, key="0" * 20) for point in points]).measured == len(points)


@pytest.mark.parametrize(("fault", "reason"), [("raise", "ArithmeticError: no such luck"), ("die", "ProcessExpired"), ("hang", "not finished after 2 s")])
def test_a_bad_point_is_reported_and_the_rest_goes_on(swept, monkeypatch, fault, reason):
    monkeypatch.setenv("WORKBENCH_SWEPT_FAULT", fault)
    object.__setattr__(swept, "time_limit", 2.0)
    try:
        result = sweep(swept, jobs=2)
    finally:
        object.__setattr__(swept, "time_limit", 30.0)
    assert len(result.failures) == 1 and reason in str(result.failures[0])
    assert str(result.failures[0]).startswith("0000.00000 · ours (share=0.5; replica 1, seed 0)")
    assert result.measured == len(swept.points("quick")) - 1
    with pytest.raises(StudyError, match="share=0.5"):
        require(result)
    monkeypatch.delenv("WORKBENCH_SWEPT_FAULT")
    assert sweep(swept, jobs=2).measured == 1, "only the failed point is measured again"


def test_a_damaged_point_is_measured_again(swept):
    sweep(swept)
    path, _ = path_of(swept, swept.points("quick")[0])
    whole = path.read_bytes()
    for damaged in (b"", whole[:-7], whole[:20] + bytes([whole[20] ^ 64]) + whole[21:], b"\x80\x04N."):
        path.write_bytes(damaged)
        assert read_point(path) is None
    assert sweep(swept).measured == 1 and read_point(path) is not None


def test_stop_keeps_what_is_finished(swept, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_SWEPT_SECONDS", "0.1")  # so that some are not finished when it stops

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(swept, jobs=1, on_point=stop)
    kept = len(list((tmp_path / "cache").rglob("*.point")))
    assert 4 <= kept < len(swept.points("quick"))
    assert sweep(swept, jobs=1).measured == len(swept.points("quick")) - kept


def test_a_paper_that_prints_does_not_reach_stdout(swept, monkeypatch, capfd):
    monkeypatch.setenv("WORKBENCH_SWEPT_PRINTS", "1")
    sweep(swept, jobs=1, fresh=True)
    assert "a paper that prints" not in capfd.readouterr().out


@pytest.mark.parametrize("array", [np.arange(12, dtype=np.int16).reshape(3, 4), np.array([True, False, True]), np.zeros((0, 3), np.uint8), np.float32(1.5),
                                   np.array([np.nan, -np.inf]), np.arange(5)[::2], np.arange(4, dtype=">i4")])
def test_arrays_come_back(array):
    back = decode_array(encode_array(array))
    assert back.shape == np.shape(array) and np.array_equal(back, array, equal_nan=np.asarray(array).dtype.kind == "f")


def test_arrays_of_objects_or_text_are_refused():
    for array in (np.array([None]), np.array(["text"])):
        with pytest.raises(StudyError, match="plain numbers"):
            encode_array(array)


def test_a_stored_array_cannot_fill_the_memory():
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()
    with pytest.raises(StudyError, match="damaged"):
        decode_array(["uint8", [10], bomb])


def test_write_whole_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".file.999999999.part").write_bytes(b"half")
    (tmp_path / ".file.1.part").write_bytes(b"of a living process")
    write_whole(tmp_path / "file", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".file.1.part", "file"]


def test_rows_pin_what_they_are_told_and_hold_the_rest_at_default():
    from tests.core.toy import measurements, study

    m = measurements(study())
    assert set(m.rows().rounding) == {1} and m.rows().removed.nunique() == 10, "the first knob varies, the second stands at its default"
    assert set(m.rows(removed=0.5).rounding) == {1, 4, 8}, "the only knob not named varies"
    assert set(m.rows(rounding=1).removed) == set(m.rows().removed)
    assert len(m.rows("untouched", removed=0.5)) == len(m.rows("untouched")), "a contender without the knob is a reference"
    for wrong in ({"contender": "Oursss"}, {"speed": 1}):
        with pytest.raises(StudyError, match="it has"):
            m.rows(**wrong)


def test_checks_see_ablations_and_rivals(swept):
    verdict, = run_checks(swept)
    assert verdict.status == "green" and set(verdict.broken_by) == {"steeper", "no check", "theirs"}


def test_golden_folder_is_the_tests_own(swept, tmp_path):
    assert golden.path_of(swept).is_relative_to(tmp_path) and isinstance(Path(golden.path_of(swept)), Path)
    assert Measurements(swept, ()).frame.empty
