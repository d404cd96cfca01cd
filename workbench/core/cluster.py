"""Measures a study's points on a Dask cluster, behind the same interface as the pool of this machine.

    here: todo ──► a point for each thread of each worker ──► there: `core.sweep.pool`, a process a thread ──► here: stored under the local keys

A worker must run the same code (its code key is compared with ours) on the same versions; one that does not is refused by name. It measures in child
processes, so that a point that hangs or dies takes no worker with it. Each point is sent to one worker by name: when that is lost (its process ended, or
nothing was heard of it for half a minute) it is known which points it was at, and these go to another worker, once.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from importlib import metadata
from typing import Any

from .keys import code_key
from .measurements import Stored, write_point
from .probe import busy
from .study import Point, Study, StudyError
from .sweep import Failure, module_of, outcome, path_of, pool, run_point

CONNECT, SILENT, EMPTY, LOOK = 10.0, 30.0, 60.0, 1.0  # seconds: to the scheduler; without a word from a worker; without any worker; between two looks
AHEAD = 1  # points that lie ready at a worker, so that it need not wait for the next one

_starting = threading.Lock()


class Refused(Exception):
    """A worker may not measure, and why."""


def identity(module: str) -> dict[str, str]:
    """What must be the same here and there: the code key of the study's module, and the versions that change results (whatever their build)."""
    return {"code key": code_key(module), **{name: metadata.version(name).partition("+")[0] for name in ("torch", "numpy")}}


def measure_there(module: str, point: Point, seconds: float, wanted: dict[str, str]) -> Stored | str:
    """At a worker: the point, measured in a child process within ``seconds``, or in words why not; ended when the client has let go of it."""
    from distributed import get_worker

    worker = get_worker()
    if other := [f"{name} {mine} instead of {wanted[name]}" for name, mine in identity(module).items() if mine != wanted[name]]:
        raise Refused(f"it runs another version of the workbench ({', '.join(other)}); update it and start it again")
    with _starting:
        multiprocessing.current_process().daemon = False  # Dask's nanny marks its workers so, and such a process may start no other
        workers = pool(worker.state.nthreads)
    with busy():
        future, key = workers.schedule(run_point, args=(module, point, b"", False), timeout=seconds), worker.get_current_task()
        while not wait([future], 0.2).done:
            if worker.state.tasks[key].state == "cancelled":
                future.cancel()
                return "stopped"
        return outcome(future, seconds)


def outcomes(study: Study, todo: Iterable[Point], scheduler: str, warnings: list[str]) -> Iterator[tuple[Point, Stored | str]]:
    """Each point with what came of it, stored here. Workers that are lost or refused are told on stderr at once and added to ``warnings``.

    StudyError: no scheduler at that address, it went away, or it has no worker that may measure; what was measured until then is kept.
    """
    from distributed import CancelledError, Client
    from distributed.client import ClosedClientError

    module, waiting, moved = module_of(study), deque(todo), {}
    try:
        client = Client(scheduler, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise StudyError(f"scheduler: no Dask scheduler answers at {scheduler!r} ({str(error).strip().splitlines()[0]}); "
                         "`dask scheduler` starts one and says its address") from None
    with client:
        crew = _Crew(client, scheduler, warnings, (module, study.time_limit, identity(module)))
        try:
            while waiting or crew.sent:
                crew.look()
                for point, address, begun in crew.lost():
                    if begun and point in moved:
                        yield point, f"its worker {address} was lost, as was {moved[point]} before"
                        continue
                    waiting.appendleft(point)
                    if begun:
                        moved[point] = address
                        crew.tell(str(Failure(study.paper, point, f"its worker {address} was lost; another one measures it")))
                crew.send(waiting)
                for point, address, came in crew.answers():
                    if isinstance(came, Stored):
                        path, key = path_of(study, point, module)
                        came = _kept(came, path) if came.key == key else Refused("its data or checkpoints are not those of this machine, or its code changed since it started")
                    if isinstance(came, Refused):
                        waiting.appendleft(point)
                        crew.refuse(address, str(came))
                    else:
                        yield point, came
        except (OSError, CancelledError, ClosedClientError):
            raise StudyError(f"scheduler: {scheduler} went away; what was measured is kept, the same command goes on once it is back") from None
        finally:
            if client.status == "running":
                client.cancel(list(crew.sent))


def _kept(stored: Stored, path) -> Stored | str:
    try:
        write_point(path, stored)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return stored


class _Crew:
    """The workers of a scheduler, and what was sent to them: ``threads`` of all ever seen, ``present`` those that may measure now."""

    def __init__(self, client: Any, scheduler: str, warnings: list[str], task: tuple):
        self.client, self.scheduler, self.warnings, self.task = client, scheduler, warnings, task
        self.sent: dict[Any, tuple[Point, str]] = {}  # future → point and worker, in the order of sending
        self.threads: dict[str, int] = {}
        self.present: set[str] = set()
        self.refused: dict[str, str] = {}
        self._heard: dict[str, tuple[float, float]] = {}  # its last word by the scheduler's clock, and when that was new by ours
        self._looked, self._manned = float("-inf"), time.monotonic()

    def look(self) -> None:
        """Asks the scheduler who is there, once in ``LOOK`` seconds."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        seen, self._looked = self.client.scheduler_info().get("workers"), now
        if seen is None:
            raise ConnectionError("the scheduler does not answer")
        for address, info in seen.items():
            self.threads[address] = info["nthreads"]
            if self._heard.get(address, (None, now))[0] != info["last_seen"]:
                self._heard[address] = info["last_seen"], now
        self.present = {address for address in seen if address not in self.refused and now - self._heard[address][1] < SILENT}
        if self.present:
            self._manned = now
        elif self.refused and set(seen) <= set(self.refused):
            raise StudyError("\n  ".join([f"scheduler: no worker of {self.scheduler} may measure:", *(f"{a}: {why}" for a, why in self.refused.items())]))
        elif now - self._manned > EMPTY:
            raise StudyError(f"scheduler: {self.scheduler} has no worker (`dask worker {self.scheduler}` starts one); what was measured is kept")

    def lost(self) -> Iterator[tuple[Point, str, bool]]:
        """What was sent to workers that are no longer there, the last first, and whether it had begun."""
        before, gone = Counter(), []
        for future, (point, address) in list(self.sent.items()):
            if address not in self.present:
                gone.append((point, address, address not in self.refused and before[address] < self.threads[address]))
                before[address] += 1
                del self.sent[future]
                future.cancel()
        yield from reversed(gone)

    def send(self, waiting: deque[Point]) -> None:
        load = Counter(address for _, address in self.sent.values())
        for address in self.present:
            for _ in range(min(self.threads[address] + AHEAD - load[address], len(waiting))):
                point, (module, *rest) = waiting.popleft(), self.task
                future = self.client.submit(measure_there, module, point, *rest, workers=[address], pure=False)
                self.sent[future] = point, address

    def answers(self) -> Iterator[tuple[Point, str, Stored | str | Refused]]:
        """What has come, waiting for it until the next look."""
        from distributed import CancelledError
        from distributed import wait as wait_for

        if not self.sent:
            return time.sleep(LOOK)
        try:
            with self.client.as_current():
                done = wait_for(list(self.sent), LOOK, "FIRST_COMPLETED").done
        except TimeoutError:
            return
        for future in done:
            try:
                came = future.result(LOOK)
            except TimeoutError:  # its worker was lost after it had measured, before it could say what: the next look finds that
                continue
            except CancelledError:  # the scheduler is gone
                raise
            except Exception as error:  # a point's own error comes in words; this worker cannot even begin
                came = error if isinstance(error, Refused) else Refused(f"{type(error).__name__}: {error}")
            yield *self.sent.pop(future), came

    def refuse(self, address: str, reason: str) -> None:
        self.present.discard(address)
        if address not in self.refused:
            self.refused[address] = reason
            self.tell(f"worker {address} is refused: {reason}")

    def tell(self, text: str) -> None:
        from tqdm import tqdm

        self.warnings.append(text)
        tqdm.write(f"warning: {text}", file=sys.stderr)
