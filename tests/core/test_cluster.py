"""A sweep on a Dask cluster of separate processes: the same points and keys as here, and nothing is lost with a worker, a scheduler or a stop."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench import cli
from workbench.core import cluster
from workbench.core.measurements import write_whole
from workbench.core.study import StudyError
from workbench.core.sweep import path_of, sweep

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = """
import sys
from workbench.core import cluster
from workbench.core.measurements import write_whole
cluster.identity = lambda module: {"code key": "0123456789abcdef", "torch": "2.13.0", "numpy": "2.4.6"}
from distributed.cli.dask_worker import main
main([sys.argv[1], "--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"])
"""


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    """Two workers with two threads each, under nannies, and with a store that is not the client's; they log what they measure."""
    from distributed import LocalCluster

    folder = tmp_path_factory.mktemp("there")
    there = {"WORKBENCH_CACHE": folder / "cache", "WORKBENCH_SWEPT_LOG": folder / "log", "PYTHONPATH": ROOT}
    made = LocalCluster(n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0", local_directory=str(folder / "dask"),
                        env={name: str(value) for name, value in there.items()}, silence_logs=50)
    made.log_of_points = folder / "log"
    with made:
        yield made


@pytest.fixture
def there(dask, swept):
    """The cluster as a sweep meets it: ``set(SECONDS=…, FAULT=…)`` changes how its points behave, ``lines()`` are those that it measured."""
    from distributed import Client

    log = dask.log_of_points
    log.unlink(missing_ok=True)

    def set_(**values):
        write_whole(log.with_name("log.settings"), json.dumps(values).encode())
        end = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):  # a worker that a test killed may still be thought alive
                if len(client.run(os.getpid)) >= 2:
                    return
            assert time.monotonic() < end, "the workers do not come back"
            time.sleep(0.2)

    with Client(dask, set_as_default=False) as client:
        set_()
        yield SimpleNamespace(address=dask.scheduler_address, client=client, set=set_, lines=lambda: log.read_text().splitlines())


def points_here(tmp_path):
    return list((tmp_path / "cache").rglob("*.point"))


def test_the_same_points_under_the_same_keys_as_here(swept, there, tmp_path, monkeypatch):
    seen = []
    far = sweep(swept, scheduler=there.address, on_point=lambda done, total: seen.append((done, total)))
    total = len(swept.points("quick"))
    assert far.measured == total == len(points_here(tmp_path)) and not far.failures and not far.warnings
    assert seen == [(done, total) for done in range(total + 1)] and len(there.lines()) == total
    assert all(path_of(swept, point)[0].exists() for point in swept.points("quick")), "the client stores them where a local sweep looks"
    assert sweep(swept, scheduler="tcp://127.0.0.1:1").measured == 0, "where all is stored, no scheduler is asked"
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "again"))
    near = sweep(swept, jobs=2)
    left, right = (result.measurements.frame.sort_values("key", ignore_index=True) for result in (far, near))
    assert left.equals(right)


@pytest.mark.parametrize(("fault", "reason"), [("raise", "ArithmeticError: no such luck"), ("die", "ProcessExpired"), ("hang", "not finished after 6 s")])
def test_a_bad_point_is_reported_and_takes_no_worker_with_it(swept, there, fault, reason):
    there.set(FAULT=fault)
    before = set(there.client.scheduler_info()["workers"])
    object.__setattr__(swept, "time_limit", 6.0)
    try:
        result = sweep(swept, scheduler=there.address)
    finally:
        object.__setattr__(swept, "time_limit", 30.0)
    assert [str(failure).partition(":")[0] for failure in result.failures] == ["0000.00000 · ours (share=0.5; replica 1, seed 0)"]
    assert reason in result.failures[0].reason and result.measured == len(swept.points("quick")) - 1 and not result.warnings
    assert set(there.client.scheduler_info()["workers"]) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_a_lost_worker_is_named_with_its_point_and_the_rest_goes_on(swept, there, tmp_path, monkeypatch, capsys, how):
    if how == signal.SIGSTOP:
        monkeypatch.setattr(cluster, "SILENT", 10.0)
    there.set(SECONDS=0.3)
    process = there.client.run(os.getpid)
    address, victim = min(process.items())
    struck = []

    def strike(done, total):
        if done == 5:
            os.kill(victim, how)
            struck.append((time.monotonic(), {path: path.stat().st_mtime_ns for path in points_here(tmp_path)}))
        elif struck and len(struck) == 1 and address in capsys.readouterr().err:
            struck.append(time.monotonic())

    try:
        result = sweep(swept, scheduler=there.address, on_point=strike)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    total = len(swept.points("quick"))
    assert result.measured == total == len(points_here(tmp_path)) and not result.failures, "what the lost worker was at is measured by another"
    assert 1 <= len(result.warnings) <= 2, "the points that it was at, and no other"
    assert all(address in warning and warning.startswith("0000.00000 · ") and "share=" in warning for warning in result.warnings)
    assert struck[1] - struck[0][0] < 60
    assert {path: path.stat().st_mtime_ns for path in struck[0][1]} == struck[0][1] and len(struck[0][1]) == 5, "a stored point was measured again"
    assert len(set(there.lines())) == total and len(there.lines()) <= total + 2, "only the points that were under way are begun again"


def test_a_point_that_loses_two_workers_is_a_failure(swept, there, monkeypatch):
    """Whatever it is that it does to them: it gets no third."""
    there.set(SECONDS=60)
    point, real = swept.points("quick")[0], cluster._finished

    def finished(client, sent):
        with contextlib.suppress(OSError):
            for pid in there.client.run(lambda dask_worker: os.getpid() if dask_worker.state.executing else 0).values():
                if pid:
                    os.kill(pid, signal.SIGKILL)
        return real(client, sent)

    monkeypatch.setattr(cluster, "_finished", finished)
    result = sweep(swept, scheduler=there.address, points=[point])
    failure, = result.failures
    assert failure.point == point and "was lost, as was tcp://" in failure.reason and len(result.warnings) == 1


def test_a_worker_with_other_code_is_refused_by_name(swept, there, tmp_path):
    there.set(SECONDS=0.1)
    foreign = subprocess.Popen([sys.executable, "-c", FOREIGN, there.address], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    try:
        there.client.wait_for_workers(3, timeout=60)
        result = sweep(swept, scheduler=there.address)
        warning, = result.warnings
        address = warning.split()[1]
        assert "is refused" in warning and "0123456789abcdef" in warning and cluster.identity("tests.core.swept")["code key"] in warning
        assert address in there.client.scheduler_info()["workers"]
        assert result.measured == len(swept.points("quick")) and not result.failures
    finally:
        foreign.kill()
        foreign.wait()


def test_no_worker_that_may_measure_is_an_error(swept, there, monkeypatch):
    monkeypatch.setattr(cluster, "identity", lambda module: {"code key": "another", "torch": "1", "numpy": "1"})
    with pytest.raises(StudyError, match="(?s)no worker of .* may measure:.*instead of another.*instead of another"):
        sweep(swept, scheduler=there.address)


def test_stop_keeps_what_is_finished_and_frees_the_workers(swept, there, tmp_path):
    there.set(SECONDS=0.3)

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(swept, scheduler=there.address, on_point=stop)
    assert len(points_here(tmp_path)) == 4
    there.set(SECONDS=60)
    with pytest.raises(KeyboardInterrupt):
        sweep(swept, scheduler=there.address, on_point=_interrupt_after(3))
    end = time.monotonic() + 60
    while any(there.client.run(lambda dask_worker: len(dask_worker.state.tasks)).values()):
        assert time.monotonic() < end, "a worker is still at a point that nobody waits for"
        time.sleep(0.1)
    there.set()
    assert sweep(swept, scheduler=there.address).measured == len(swept.points("quick")) - 4


def _interrupt_after(seconds):
    """As Ctrl-C does while all points take long: this process gets the signal."""
    def start(done, total):
        import threading

        threading.Timer(seconds, signal.raise_signal, (signal.SIGINT,)).start()
    return start


def test_no_scheduler_is_said_soon(swept, monkeypatch, capsys):
    assert cluster.CONNECT <= 10
    monkeypatch.setattr(cluster, "CONNECT", 1.0)
    for address in ("tcp://127.0.0.1:1", "127.0.0.1:1", "carrier-pigeon://loft"):
        assert cli.main(["run", "swept", "--scheduler", address]) == 2
        said = capsys.readouterr().err
        assert f"no Dask scheduler answers at '{address}'" in said and "Traceback" not in said
    assert cli.main(["run", "swept", "--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"]) == 2 and "--jobs" in capsys.readouterr().err


def test_a_scheduler_that_goes_away_is_said_and_what_was_measured_is_kept(swept, there, dask, tmp_path):
    there.set(SECONDS=0.3)

    def close(done, total):
        if done == 4:
            dask.close()

    with pytest.raises(StudyError, match="went away; what was measured is kept"):
        sweep(swept, scheduler=there.address, on_point=close)
    assert len(points_here(tmp_path)) >= 4
