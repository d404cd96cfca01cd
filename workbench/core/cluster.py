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
from pathlib import Path

from .keys import code_key
from .measurements import Stored, write_point
from .probe import busy
from .study import Point, Study, StudyError
from .sweep import Failure, module_of, outcome, path_of, pool, run_point

CONNECT, SILENT, EMPTY, LOOK = 10.0, 30.0, 60.0, 1.0  # seconds: to the scheduler; without a word from a worker; without any worker; between two looks
_alone = threading.Lock()


class Refused(Exception):
    """A worker may not measure, and why."""


def identity(module: str) -> dict[str, str]:
    """What must be the same here and there: the code key of the study's module, and the versions that change results (whatever their build)."""
    return {"code key": code_key(module), **{name: metadata.version(name).partition("+")[0] for name in ("torch", "numpy")}}


def measure_there(module: str, point: Point, seconds: float, wanted: dict[str, str]) -> Stored | str:
    """At a worker: the point, measured in a child process within ``seconds``, or in words why not; ended when the client has let go of it."""
    from distributed import get_worker

    worker = get_worker()
    with _alone:  # the threads of a worker: neither Python's parser nor the pool may be entered by two at once
        if other := [f"{name} {mine} instead of {wanted[name]}" for name, mine in identity(module).items() if mine != wanted[name]]:
            raise Refused(f"it runs another version of the workbench ({', '.join(other)}); update it and start it again")
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
    from tqdm import tqdm

    def tell(text: str) -> None:
        warnings.append(text)
        tqdm.write(f"warning: {text}", file=sys.stderr)

    module, waiting, sent, moved, refused = module_of(study), deque(todo), {}, {}, {}  # sent: future → (point, worker)
    wanted = identity(module)
    try:
        client = Client(scheduler, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise StudyError(f"scheduler: no Dask scheduler answers at {scheduler!r} ({str(error).strip().splitlines()[0]}); "
                         "`dask scheduler` starts one and says its address") from None
    with client:
        try:
            for present in _looks(client, scheduler, refused):
                for future, (point, address) in [item for item in sent.items() if item[1][1] not in present]:
                    del sent[future]
                    future.cancel()
                    if point in moved and address not in refused:
                        yield point, f"its worker {address} was lost, as was {moved[point]} before"
                        continue
                    waiting.appendleft(point)
                    if address not in refused:
                        moved[point] = address
                        tell(str(Failure(study.paper, point, f"its worker {address} was lost; another one measures it")))
                load = Counter(address for _, address in sent.values())
                for address, threads in present.items():
                    for _ in range(min(threads - load[address], len(waiting))):
                        point = waiting.popleft()
                        future = client.submit(measure_there, module, point, study.time_limit, wanted, workers=[address], pure=False)
                        sent[future] = point, address
                for future, came in _finished(client, list(sent)):
                    point, address = sent.pop(future)
                    if isinstance(came, Stored):
                        came = _kept(came, *path_of(study, point, module))
                    if not isinstance(came, Refused):
                        yield point, came
                        continue
                    waiting.appendleft(point)
                    if address not in refused:
                        refused[address] = str(came)
                        tell(f"worker {address} is refused: {came}")
                if not waiting and not sent:
                    return
        except (OSError, CancelledError, ClosedClientError):
            raise StudyError(f"scheduler: {scheduler} went away; what was measured is kept, the same command goes on once it is back") from None
        finally:
            if client.status == "running":
                client.cancel(list(sent))


def _kept(stored: Stored, path: Path, key: str) -> Stored | str | Refused:
    if stored.key != key:
        return Refused("its data or checkpoints are not those of this machine, or its code changed since it started")
    try:
        write_point(path, stored)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return stored


def _finished(client, sent: list) -> Iterator[tuple]:
    """The futures that have come, each with its result or a refusal; waits for the first no longer than until the next look."""
    from distributed import CancelledError
    from distributed import wait as wait_for

    try:
        with client.as_current():
            done = wait_for(sent, LOOK, "FIRST_COMPLETED").done if sent else time.sleep(LOOK) or ()
    except TimeoutError:
        return
    for future in done:
        try:
            yield future, future.result(LOOK)
        except TimeoutError:  # its worker was lost after it had measured, before it could say what: the next look finds that
            continue
        except CancelledError:
            raise
        except Exception as error:  # what a point raises comes in words; this worker cannot even begin
            yield future, error if isinstance(error, Refused) else Refused(f"{type(error).__name__}: {error}")


def _looks(client, scheduler: str, refused: dict[str, str]) -> Iterator[dict[str, int]]:
    """Who is there, again and again (asked once in ``LOOK`` seconds): address → threads of the workers that may measure."""
    heard: dict[str, tuple[float, float]] = {}  # a worker's last word by the scheduler's clock, and when that was new by ours
    manned, looked, seen = time.monotonic(), float("-inf"), {}
    while True:
        now = time.monotonic()
        if now - looked >= LOOK:
            seen, looked = client.scheduler_info().get("workers"), now
            if seen is None:
                raise ConnectionError("the scheduler does not answer")
            heard |= {a: (info["last_seen"], now) for a, info in seen.items() if a not in heard or heard[a][0] != info["last_seen"]}
        present = {a: info["nthreads"] for a, info in seen.items() if a not in refused and now - heard[a][1] < SILENT}
        if refused and set(seen) <= set(refused):
            raise StudyError("\n  ".join([f"scheduler: no worker of {scheduler} may measure:", *(f"{a}: {why}" for a, why in refused.items())]))
        manned = now if present else manned
        if now - manned > EMPTY:
            raise StudyError(f"scheduler: {scheduler} has no worker (`dask worker {scheduler}` starts one); what was measured is kept")
        yield present
