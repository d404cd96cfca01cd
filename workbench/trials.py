"""Trials in a worker process: `contracts.model.compress` with one method at one ratio, stopped when its time is up.

    sample(loader) ──► packed ──► Worker ──► trial ──► row, values of ``evaluate``, the `Compressed` as bytes

The worker belongs to the sweep's pool: one thread, torch loaded before it starts, killed at once. What a job needs is sent to it once.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError
from functools import partial
from typing import Any

import numpy as np

from .core import sweep


def sample(data: Iterable, samples: int) -> tuple[list, bool]:
    """The loader's first batches, so many samples that they are enough, and whether some of it is left out."""
    from .contracts.model import inputs_and_labels

    try:
        batches, source, count = [], iter(data), 0
    except TypeError:
        raise ValueError(f"data: a loader is needed (any iterable of batches), found {type(data).__name__}") from None
    for batch in source:
        batches.append(_alone(batch))
        inputs = inputs_and_labels(batch)[0]
        count += len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
        if count >= samples:
            break
    if not count:
        raise ValueError("data: the loader yields no batch")
    return batches, next(source, None) is not None


def _alone(batch: Any) -> Any:
    """The batch without what it is a view of, which would travel with it."""
    if isinstance(batch, Mapping):
        return {name: _alone(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(map(_alone, batch)) if not hasattr(batch, "_fields") else type(batch)(*map(_alone, batch))
    return batch.detach().clone() if hasattr(batch, "detach") else batch


def packed(**parts: Any) -> bytes:
    """What a trial needs, for the worker process: classes and functions of a script or notebook go by value."""
    import cloudpickle

    for name, part in parts.items():
        try:
            cloudpickle.dumps(part)
        except Exception as error:
            raise ValueError(f"{name}: it cannot be sent to another process, where trials run: {type(error).__name__}: {error}") from error
    return cloudpickle.dumps(parts)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hides the program's file: worker processes would run it again, and with it this very call, where it has no ``if __name__ == "__main__"``."""
    main = sys.modules["__main__"]
    hidden = {} if getattr(main, "__spec__", None) else {name: vars(main).pop(name) for name in ("__file__",) if name in vars(main)}
    try:
        yield
    finally:
        vars(main).update(hidden)


# --- in the worker ------------------------------------------------------------------------------------------------------------------------------------


_job: dict = {}         # of this worker: the parts of the one job that it works for


class _Untouched:
    def compress(self, model, ratio, data, example):
        return model


def trial(name: str, ratio: float, before: np.ndarray | None, wait: float) -> tuple[dict, np.ndarray, bytes]:
    """One row, the values of ``evaluate``, and the `Compressed` itself; without ``before`` of the network as it is. ``wait``: seconds for a quiet machine."""
    import cloudpickle
    import torch

    from . import api
    from .contracts.model import compress

    job, known = _job, [] if before is None else [before]

    def judge(net):
        """`compress` asks before and after compression: the network as it is is judged once."""
        judge.asked += 1
        if len(known) < (judge.asked if before is not None else 1):
            known.append(np.atleast_1d(np.asarray(job["evaluate"](net), dtype=float)))
        return known[-1]

    judge.asked = 0
    torch.manual_seed(0)
    method = api.by_name(name) if before is not None else _Untouched()
    found = compress(job["model"], method, ratio, job["data"], judge, job["finetune_steps"] if before is not None else 0, job["example"],
                     probe=partial(api.timed, wait=wait, rounds=8))
    report = found.report
    timed = not isinstance(report.latency, str)
    spread = report.gain.units > 1
    row = {"ratio": ratio, "quality": report.quality[1], "low": report.quality[0] + report.gain.low if spread else np.nan,
           "high": report.quality[0] + report.gain.high if spread else np.nan, "bytes": report.bytes[1], "macs": report.macs[1],
           "ms": report.latency.rows["after"]["median_ms"] if timed else np.nan, "seconds": report.seconds}
    return row, known[-1], cloudpickle.dumps(found)


def kind(name: str) -> str:
    """``scores`` or ``compress``, the function by which the method compresses networks; StudyError says why it does not."""
    from . import api

    return api.for_networks(name)[1]


def _guarded(token: str, payload: bytes, function: Callable, *arguments: Any) -> tuple[bool | None, Any]:
    """(True, the answer) or (False, what was raised, in one line), whatever it was: it says why a method does not apply. (None, None): a worker that
    does not know the job yet, named by ``token``, needs the ``payload``; it is sent once, for it may be large."""
    import cloudpickle

    if _job.get("token") != token:
        if not payload:
            return None, None
        _job.clear()
        _job.update(cloudpickle.loads(payload), token=token)
    try:
        return True, function(*arguments)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        return False, (text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}")[:300]


# --- beside it ----------------------------------------------------------------------------------------------------------------------------------------


class Worker:
    """Runs functions in the worker process, one at a time, each with a limit and none past the deadline."""

    def __init__(self, payload: bytes, deadline: float, bar: Any):
        self.payload, self.deadline, self.bar, self.killed = payload, deadline, bar, False
        self.start, self.token = time.monotonic(), uuid.uuid4().hex

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def __call__(self, function: Callable, *arguments: Any, limit: float = math.inf) -> tuple[bool, Any]:
        """What `_guarded` says; TimeoutError after ``limit`` seconds or at the deadline: what ran is killed then."""
        end = min(time.monotonic() + limit, self.deadline)
        ok, found = self._wait(end, b"", function, *arguments)
        return (ok, found) if ok is not None else self._wait(end, self.payload, function, *arguments)

    def close(self) -> None:
        """Stops a worker that follows on one that was killed: it must not start when the program's file can be seen again."""
        if self.killed:
            sweep.stop(sweep.pool(1))

    def _wait(self, end: float, payload: bytes, function: Callable, *arguments: Any) -> tuple[bool | None, Any]:
        future = sweep.pool(1).schedule(_guarded, args=(self.token, payload, function, *arguments))
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    return future.result(timeout=max(min(0.2, end - time.monotonic()), 0))
                self.bar.update(min(time.monotonic() - self.start, self.bar.total) - self.bar.n)
                if time.monotonic() >= end:
                    raise TimeoutError
        except BaseException as error:
            self.killed = True
            future.cancel()
            if isinstance(error, Exception) and not isinstance(error, TimeoutError):     # the worker died: of memory, say
                return False, f"{type(error).__name__}: {error}"
            raise
