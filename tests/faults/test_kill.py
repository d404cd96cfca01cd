"""kill -9: a sweep resumes and repeats nothing, a golden file is the old one or the new one, and no worker outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POINTS = 27


def start(tmp_path, *argv, seconds="0"):
    where = {"WORKBENCH_CACHE": str(tmp_path / "cache"), "WORKBENCH_SWEPT_LOG": str(tmp_path / "log"), "WORKBENCH_SWEPT_SECONDS": seconds}
    return subprocess.Popen([sys.executable, "-m", "tests.core.swept", *argv, "--jobs", "2"], cwd=ROOT, env=os.environ | where, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for(condition, what, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def session_of(leader: int) -> list[int]:
    """Processes of the session that ``leader`` began."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_killed_sweep_resumes_repeats_nothing_and_leaves_no_worker(tmp_path):
    log = tmp_path / "log"
    process = start(tmp_path, "run", "swept", seconds="0.2")
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 6, "no point was measured")
    process.kill()
    process.wait()
    wait_for(lambda: not session_of(process.pid), "workers outlive their parent", 20)
    stored = list((tmp_path / "cache").rglob("*.point"))
    assert 5 <= len(stored) < POINTS and not [p for p in stored if not p.read_bytes()]
    before = {path: path.stat().st_mtime_ns for path in stored}

    done = start(tmp_path, "run", "swept")
    out, _ = done.communicate(timeout=120)
    assert done.returncode == 0 and f"{POINTS} points, {POINTS - len(stored)} of them measured now" in out, out
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished point was measured again"
    lines = log.read_text().splitlines()
    assert len(set(lines)) == POINTS and len(lines) <= POINTS + 2, "at most the two points that were under way are measured twice"


def test_a_golden_file_is_whole_whenever_its_writer_dies(tmp_path):
    """The writer is killed at growing delays around the moment of writing, until it once comes through."""
    process = start(tmp_path, "run", "swept", "--golden")
    assert process.wait(timeout=120) == 0
    path = tmp_path / "golden" / "0000.00000.json"
    whole = json.loads(path.read_text())
    writer = ("import sys; from pathlib import Path; from workbench.core import measurements as m\n"
              "path = Path(sys.argv[1]); text = path.read_bytes(); print('ready', flush=True)\n"
              "while True: m.write_whole(path, text.replace(b'\"format\": 1', b'\"format\": 2')); m.write_whole(path, text)\n")
    for delay in (0.0, 0.002, 0.01, 0.03, 0.1):
        process = subprocess.Popen([sys.executable, "-c", writer, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = json.loads(path.read_text())
        assert found.pop("format") in (1, 2) and found == {name: value for name, value in whole.items() if name != "format"}
        path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    from workbench.core.measurements import write_whole

    write_whole(path, path.read_bytes())
    assert [p.name for p in path.parent.iterdir()] == [path.name], "what the killed writers left half written is still there"


def test_a_killed_golden_run_keeps_its_points(tmp_path):
    log = tmp_path / "log"
    process = start(tmp_path, "run", "swept", "--golden", seconds="0.1")
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 10, "no point was measured")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "golden").exists()
    stored = len(list((tmp_path / "cache").rglob("*.point")))
    done = start(tmp_path, "run", "swept", "--golden")
    out, _ = done.communicate(timeout=120)
    assert done.returncode == 0 and f"69 points, {69 - stored} of them measured now" in out and (tmp_path / "golden" / "0000.00000.json").exists()
