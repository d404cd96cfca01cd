"""Timing: right ratios, one at a time on the machine, never beside a sweep, and stored as text."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from workbench import cli
from workbench.core import probe
from workbench.core.study import StudyError

ROOT = Path(__file__).resolve().parents[2]


def spin(ms):
    def work():
        end = time.perf_counter() + ms / 1000
        while time.perf_counter() < end:
            pass
    return work


def test_ratio_of_known_work_on_a_drifting_clock(monkeypatch):
    """Time as the probe sees it is ours here: the machine slows down threefold meanwhile, now and then something else runs, and the ratio stays."""
    rng, now = np.random.default_rng(0), [0.0]

    def work(ms):
        def run():
            now[0] += 1e6 * ms * (1 + now[0] / 2e8) * (20 if rng.random() < 0.05 else rng.uniform(0.95, 1.05))
        return run

    monkeypatch.setattr(probe.time, "perf_counter_ns", lambda: int(now[0]))
    seen = []
    found = probe.compare({"dense": work(1), "double": work(2), "same": work(1)}, rounds=41, on_round=lambda done, total: seen.append((done, total)))
    assert found.first == "dense" and found.rows["dense"]["ratio"] == found.rows["dense"]["low"] == 1
    for name, truth in (("double", 2), ("same", 1)):
        row = found.rows[name]
        assert row["low"] <= row["ratio"] <= row["high"] and abs(row["ratio"] / truth - 1) < 0.1, name
    assert seen[-1] == (41, 41) and found.threads == 1 and found.environment["cpu"]


def test_contenders_alternate_and_warm_up():
    calls = []
    probe.compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=8, least_ms=0)
    assert "".join(calls) == "aabb" + "abba" * 4


def test_the_interval_of_a_median_covers_it():
    rng = np.random.default_rng(0)
    inside = [low <= 0 <= high for _, low, high in (probe.median_interval(rng.standard_normal(15)) for _ in range(2000))]
    assert 0.88 < np.mean(inside) <= 0.97


def test_wrong_questions():
    for contenders, options, said in (({"a": len}, {}, "at least two"), ({"a": len, "b": len}, {"rounds": 3}, "at least 8"), ({"a": len, "b": len}, {"threads": 0}, "threads")):
        with pytest.raises(StudyError, match=said):
            probe.compare(contenders, **options)


@pytest.mark.parametrize("holder", ["alone", "busy"])
def test_waits_for_other_processes(holder):
    code = f"from workbench.core import probe; import sys\nwith probe.{holder}(): print('held', flush=True); sys.stdin.readline()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(TimeoutError, match="busy"), probe.alone(timeout=0.2):
        pass
    threading.Timer(0.3, lambda: other.communicate("\n")).start()
    with probe.alone(timeout=30):
        assert other.poll() is not None or other.wait(10) == 0


def test_a_killed_holder_lets_go_and_sweeps_do_not_exclude_each_other():
    code = "from workbench.core import probe; import time\nwith probe.alone(): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    other.kill()
    other.wait()
    with probe.busy(), probe.busy():
        pass
    with probe.alone(timeout=5), probe.alone(timeout=5):  # within itself it does not wait
        pass


def test_stored_as_text_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "FOLDER", tmp_path)
    assert probe.load("1") is None
    found = probe.compare({"a": spin(0.5), "b": spin(0.5)}, rounds=8)
    path = probe.save(found, "1")
    assert probe.load("1") == found and json.loads(path.read_text())["environment"]["torch"]
    path.write_text("{")
    with pytest.raises(StudyError, match="damaged"):
        probe.load("1")


def test_command(swept, tmp_path, monkeypatch, capsys):
    from tests.core import swept as module

    monkeypatch.setattr(probe, "FOLDER", tmp_path)
    assert cli.main(["probe", "swept"]) == 2 and "no PROBE" in capsys.readouterr().err
    monkeypatch.setattr(module, "PROBE", lambda: {"dense": spin(0.5), "ours": spin(0.5)}, raising=False)
    assert cli.main(["probe", "swept", "--rounds", "8"]) == 0
    assert "ratio to dense" in capsys.readouterr().out and (tmp_path / "0000.00000.json").exists()
