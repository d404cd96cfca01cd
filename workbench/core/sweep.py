"""Measures the points of a study on all cores, or on a Dask cluster: forked workers with torch loaded, one thread each, a time limit a point.

A finished point is stored at once under its key, so a sweep that is stopped or killed resumes and repeats nothing. A point that fails, runs out of
time or loses its worker is reported with paper and knobs, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.util
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, TimeoutError, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import registry
from .keys import point_key
from .measurements import Measurements, Stored, cache_folder, read_point, write_point
from .probe import busy
from .study import Contender, Point, Study, StudyError, measure


def store_folder() -> Path:
    return cache_folder() / "points"


@dataclass(frozen=True)
class Failure:
    """A point that could not be measured, and why."""

    paper: str
    point: Point
    reason: str

    def __str__(self) -> str:
        knobs = ", ".join(f"{name}={value:g}" for name, value in self.point.knobs)
        return f"{self.paper} · {self.point.contender} ({knobs}; replica {self.point.replica}, seed {self.point.seed}): {self.reason}"


@dataclass
class Sweep:
    """What came of a sweep: its measurements, the points that failed, how many were measured anew, and their CPU seconds. ``warnings``: workers of a
    cluster that were lost (with the points that they were at) or refused."""

    measurements: Measurements
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    measured: int = 0
    cpu_seconds: float = 0.0


def module_of(study: Study) -> str:
    return registry.find(study.paper).module


def path_of(study: Study, point: Point, module: str = "") -> tuple[Path, str]:
    """Where the point is stored, and its key; ``module`` is the study's (default: found in the registry)."""
    key = point_key(module or module_of(study), study.track.data_key(), point)
    return store_folder() / study.paper / f"{key}.point", key


def run_point(module: str, point: Point, visitor: bytes = b"", keep: bool = True) -> Stored:
    """Measures one point in a worker; the study is imported by its module's name. The point is stored if ``keep``, unless it belongs to a ``visitor``: a
    contender defined elsewhere (a notebook cell), sent as cloudpickle bytes from this machine's own kernel and measured on the study's track."""
    import cloudpickle

    study: Study = importlib.import_module(module).STUDY
    contender = cloudpickle.loads(visitor) if visitor else study.field[point.contender]
    path, key = path_of(study, point, module)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the answer of the command that runs the sweep
        result = measure(study.track, contender, point)
    after = resource.getrusage(resource.RUSAGE_SELF)
    stored = Stored(point, key, result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    if keep and not visitor:
        write_point(path, stored)
    return stored


def outcome(future: Future, seconds: float) -> Stored | str:
    """What came of a point given to a pool: its measurement or, in words, why there is none (its own error, the time limit, its worker's death)."""
    try:
        return future.result()
    except TimeoutError:
        return f"not finished after {seconds:g} s"
    except CancelledError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"


_pools: dict[int, tuple[dict, object]] = {}


def pool(jobs: int):
    """The pool of ``jobs`` workers of this process, from a forkserver that has torch loaded (``torch._dynamo`` too: some operators load it when first
    used, for 1.6 s a worker); a stopped task's worker is killed at once. It stays for the next sweep, so that a paper's imports and data are paid for once.

    Another value of a ``WORKBENCH_…`` variable makes it anew: the forkserver's children see the variables with which it was started.
    """
    import pebble

    settings = {name: value for name, value in os.environ.items() if name.startswith("WORKBENCH_")}
    before, workers = _pools.get(jobs, (None, None))
    if workers is None or not workers.active or before != settings:
        if workers is not None:
            stop(workers)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch._dynamo", "numpy", "pandas", "scipy.stats", "threadpoolctl", "cloudpickle", "workbench.core.sweep"])
        workers = pebble.ProcessPool(jobs, max_tasks=200, context=context, initializer=_start_worker, initargs=(settings,))  # 200: papers' data must not pile up
        _pools[jobs] = settings, workers
        multiprocessing.util.Finalize(None, stop, (workers,), exitpriority=10)  # before this process, itself perhaps a child, waits for its children
    return workers


def stop(workers) -> None:
    workers.stop()
    with contextlib.suppress(TimeoutError):
        workers.join(5)


def _start_worker(settings: dict[str, str]) -> None:
    """One thread, and the caller's settings as they are now."""
    import threadpoolctl
    import torch

    for name in [name for name in os.environ if name.startswith("WORKBENCH_")]:
        del os.environ[name]
    os.environ.update(settings)
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


def sweep(study: Study, profile: str = "quick", jobs: int | None = None, fresh: bool = False, points: Sequence[Point] | None = None,
          on_point: Callable[[int, int], None] | None = None, known: Iterable[Stored] = (), scheduler: str | None = None) -> Sweep:
    """Measures the study's points (``points``: only these). ``fresh`` ignores what is stored; ``on_point(done, total)`` reports progress.

    ``known`` are points from elsewhere (a golden file) that are used where their key is that of the current code. With the address of a Dask
    ``scheduler`` its workers measure, and what they measure is stored here, under the same keys; else ``jobs`` processes of this machine do.
    """
    from . import golden

    wanted = list(points if points is not None else study.points(profile))
    recorded = {name for name, contender in study.field.items() if contender.evidence == "recorded"}
    by_key = {stored.key: stored for stored in known}
    found: dict[Point, Stored] = {}
    if not fresh:
        for point in wanted:
            path, key = path_of(study, point)
            stored = read_point(path) or by_key.get(key)
            if stored is not None and stored.key == key:
                found[point] = stored
    todo = [point for point in wanted if point not in found]
    result = Sweep(Measurements(study, ()))
    report = (lambda done: on_point(len(wanted) - len(todo) + done, len(wanted))) if on_point else (lambda done: None)
    report(0)
    found |= {stored.point: stored for stored in _measured(study, {point: b"" for point in todo}, jobs, report, result, scheduler)}
    if profile == "quick" and points is None and recorded:
        for stored in golden.points(study):
            if stored.point.contender in recorded:
                found.setdefault(stored.point, stored)
    result.measurements = Measurements(study, tuple(found.values()))
    return result


def race(study: Study, against: Measurements, jobs: int | None = None, on_point: Callable[[int, int], None] | None = None,
         **mine: Contender) -> Sweep:
    """Your own contenders on the study's track, beside the points ``against``: measured now, at the study's quick values, and never stored, so that the
    code as it stands in the cell is the code that runs."""
    import cloudpickle

    visited = replace(study, contenders={**study.contenders, **mine})
    points = {point: cloudpickle.dumps(mine[point.contender]) for point in visited.points("quick", list(mine))}
    result = Sweep(against)
    new = _measured(visited, points, jobs, (lambda done: on_point(done, len(points))) if on_point else (lambda done: None), result)
    keyed = [replace(stored, key=f"{stored.point.contender}-{i}") for i, stored in enumerate(new)]
    result.measurements = Measurements(visited, (*against.points, *keyed))
    return result


def _measured(study: Study, todo: dict[Point, bytes], jobs: int | None, report: Callable[[int], None], result: Sweep,
              scheduler: str | None = None) -> list[Stored]:
    """Measures the points; failures and CPU seconds go into ``result``. A stop (Ctrl-C) kills the workers and keeps what is stored."""
    if not todo:
        return []
    measured: list[Stored] = []
    study.track.data_key()  # a missing checkpoint fails here, once, instead of in every worker
    if scheduler:
        from . import cluster

        outcomes = cluster.outcomes(study, todo, scheduler, result.warnings)
    else:
        outcomes = _outcomes(study, todo, jobs or os.cpu_count() or 1)
    with contextlib.closing(outcomes):
        for done, (point, came) in enumerate(outcomes, 1):
            if isinstance(came, Stored):
                measured.append(came)
                result.measured += 1
                result.cpu_seconds += came.seconds
            else:  # reported, and the rest goes on
                result.failures.append(Failure(study.paper, point, came))
            report(done)
    return measured


def _outcomes(study: Study, todo: dict[Point, bytes], jobs: int) -> Iterator[tuple[Point, Stored | str]]:
    """Each point with what came of it, in a pool on this machine; closed before its end, it kills the workers."""
    module = module_of(study)
    with busy():
        workers = pool(jobs)
        futures = {workers.schedule(run_point, args=(module, point, visitor), timeout=study.time_limit): point for point, visitor in todo.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], outcome(future, study.time_limit)
        except BaseException:
            stop(workers)
            raise


def require(result: Sweep) -> Measurements:
    """The measurements, or an error that lists the failed points."""
    if result.failures:
        raise StudyError("points failed:\n  " + "\n  ".join(map(str, result.failures)))
    return result.measurements
