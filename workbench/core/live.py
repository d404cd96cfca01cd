"""Measures points beside a notebook: in worker processes, the latest request wins, and what it replaces is stopped within 200 ms.

``WORKBENCH_JOBS`` caps the workers (default: one a core; 0: none, only stored results are shown), which suits hubs that many people share.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, as_completed
from functools import lru_cache

from . import golden, registry
from .measurements import Stored, read_point
from .study import Contender, Point, Study, StudyError
from .sweep import Failure, module_of, outcome, path_of, pool, run_point


def jobs() -> int:
    """How many workers a notebook may use."""
    text = os.environ.get("WORKBENCH_JOBS", "")
    if text and not text.isdigit():
        raise StudyError(f"WORKBENCH_JOBS must be a whole number from 0 on, not {text!r}")
    return int(text) if text else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _workers():
    """The one pool of this process, started when first needed and stopped with it."""
    workers = pool(jobs())
    atexit.register(workers.stop)
    return workers


def known(study: Study) -> tuple[Stored, ...]:
    """The stored points of the design: the golden file's; where there is none, those that earlier sweeps left with today's code and data."""
    points = tuple(golden.points(study))
    if points:
        return points
    places = [path_of(study, point) for point in study.points("full")]
    return tuple(stored for path, key in places if (stored := read_point(path)) is not None and stored.key == key)


class Live:
    """Background measurement for one study. Callbacks come from another thread: ``on_point(stored, done, total)`` (None for
    a point that failed), then ``on_end(failures)``."""

    def __init__(self, study: Study, on_point: Callable[[Stored | None, int, int], None], on_end: Callable[[list[Failure]], None]):
        self.study, self.on_point, self.on_end = study, on_point, on_end
        self._lock = threading.Lock()
        self._request: object | None = None
        self._futures: dict = {}
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._request is not None

    def request(self, points: Sequence[Point]) -> None:
        """Measures these points instead of whatever was asked before; returns at once."""
        self.stop()
        with self._lock:
            request = self._request = object()
        self._thread = threading.Thread(target=self._run, args=(request, list(points)), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Forgets the current request and kills its workers; no callback comes after this."""
        with self._lock:
            self._request = None
            futures, self._futures = self._futures, {}
        for future in futures:
            future.cancel()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the current request is finished (for scripts and tests; notebooks do not wait)."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self, request: object, points: list[Point]) -> None:
        failures: list[Failure] = []
        done = 0
        try:
            for point in points:
                if not self._current(request):
                    return
                stored = self._read(point)
                if stored is None:
                    self._submit(request, point)
                elif self._current(request):
                    done += 1
                    self.on_point(stored, done, len(points))
            futures = dict(self._futures)
            for future in as_completed(futures):
                try:
                    came = outcome(future, self.study.time_limit)
                except CancelledError:
                    return
                if isinstance(came, str):
                    failures.append(Failure(self.study.paper, futures[future], came))
                done += 1
                if not self._current(request):
                    return
                self.on_point(None if isinstance(came, str) else came, done, len(points))
        except (OSError, ValueError, RuntimeError) as error:  # no checkpoint, no memory for workers: said beside the slider, not lost in a thread
            failures.append(Failure(self.study.paper, points[0], f"{type(error).__name__}: {error}"))
        finally:
            with self._lock:
                finished = self._current(request)
                if finished:
                    self._request, self._futures = None, {}
            if finished:
                self.on_end(failures)

    def _current(self, request: object) -> bool:
        return self._request is request

    def _read(self, point: Point) -> Stored | None:
        if point.contender not in self._own():
            return None
        path, key = path_of(self.study, point)
        stored = read_point(path)
        return stored if stored is not None and stored.key == key else None

    def _submit(self, request: object, point: Point) -> None:
        import cloudpickle

        visitor = b"" if point.contender in self._own() else cloudpickle.dumps(self.study.field[point.contender])
        future = _workers().schedule(run_point, args=(module_of(self.study), point, visitor), timeout=self.study.time_limit)
        with self._lock:  # not around the line above: the first worker takes seconds to start, and `stop` must not wait for it
            if self._current(request):
                self._futures[future] = point
            else:
                future.cancel()

    def _own(self) -> dict[str, Contender]:
        """The contenders of the paper's file; others come from notebook cells and are sent to the workers by value."""
        return registry.find(self.study.paper).study().field


def points_at(study: Study, contenders: Iterable[str], current: dict[str, float]) -> list[Point]:
    """The points of these contenders at ``current`` knob values, the subject's and the first replicas first; recorded contenders stay out."""
    names = sorted((n for n in contenders if study.knobs_of(n) and study.field[n].evidence != "recorded"), key=lambda n: n != study.subject)
    setting = {name: tuple(sorted((knob.name, current[knob.name]) for knob in study.knobs_of(name))) for name in names}
    replicas = {name: min(study.field[name].replicas or study.track.replicas, study.track.replicas) for name in names}
    return [Point(name, setting[name], replica) for replica in range(study.track.replicas) for name in names if replica < replicas[name]]
