"""Timing: every contender in turn in one process, alone on the machine, as a ratio with an interval.

Milliseconds from parallel points vary threefold, so latency is no metric of a point. A probe waits until every sweep on this machine has drained and keeps
new ones waiting, warms up, and times the contenders in alternating order; each round gives one paired ratio.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .golden import environment
from .measurements import write_whole
from .study import StudyError

FOLDER = Path(__file__).resolve().parents[2] / "data" / "probes"
LEVEL = 0.90


@dataclass(frozen=True)
class Timing:
    """What a probe found. ``rows``: per contender ``median_ms``, and ``ratio`` to ``first`` (above 1: slower) with the interval ``low … high``."""

    first: str
    rows: Mapping[str, Mapping[str, float]]
    rounds: int
    threads: int
    environment: Mapping[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{name} {row['median_ms']:.3g} ms" + ("" if name == self.first else f" ({row['ratio']:.2f}×, {row['low']:.2f} … {row['high']:.2f})")
                         for name, row in self.rows.items())


_held = threading.local()  # how often this thread holds the machine: `compare` inside `alone` must not wait for itself


@contextlib.contextmanager
def alone(timeout: float = 600) -> Iterator[None]:
    """Holds the machine: waits until every sweep has drained (see `busy`) and keeps others waiting. TimeoutError after ``timeout`` seconds."""
    if getattr(_held, "depth", 0):
        yield
        return
    with _machine(exclusive=True, timeout=timeout):
        _held.depth = 1
        try:
            yield
        finally:
            _held.depth = 0


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """What a sweep holds while its pool works: any number of sweeps at once, but no timing beside them."""
    with _machine(exclusive=False, timeout=3600):
        yield


@contextlib.contextmanager
def _machine(exclusive: bool, timeout: float) -> Iterator[None]:
    """A shared or exclusive lock on one file of this machine; the kernel lets go of it however its holder ends."""
    try:
        import fcntl
    except ImportError:  # no such locks here (Windows): timings are as good as the machine is quiet
        yield
        return
    path = Path(os.environ.get("WORKBENCH_LOCK", Path(tempfile.gettempdir()) / "workbench-machine.lock"))
    with contextlib.suppress(OSError):  # another user may have made it
        path.touch(0o666)
    with open(path) as handle:
        start, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - start
                if waited > timeout:
                    raise TimeoutError(f"other work has kept this machine busy for {timeout:g} s; timing beside it would mean nothing") from None
                if waited > 2 and not said:
                    print("waiting for " + ("the sweeps" if exclusive else "a timing") + " on this machine to end", file=sys.stderr)
                    said = True
                time.sleep(0.05)
        yield


def with_gradients(act: Callable[[], object]) -> Callable[[], object]:
    """A contender that trains: autograd is on while it is timed (`compare` turns it off)."""
    import torch

    return torch.inference_mode(False)(torch.enable_grad()(act))


def compare(contenders: Mapping[str, Callable[[], object]], rounds: int = 30, threads: int = 1, least_ms: float = 2.0,
            on_round: Callable[[int, int], None] | None = None) -> Timing:
    """Times callables without arguments against the first of them.

    A contender faster than ``least_ms`` is repeated within a round until it fills that time. The ratio is the median over rounds of paired ratios, its
    interval the 90 % one of that median (order statistics, no shape assumed).
    """
    import threadpoolctl
    import torch

    if len(contenders) < 2:
        raise StudyError(f"contenders: {len(contenders)} given; a ratio needs at least two")
    if rounds < 8 or threads < 1:
        raise StudyError(f"rounds must be at least 8 (is {rounds}) and threads at least 1 (is {threads})")
    names = list(contenders)
    before = torch.get_num_threads()
    times = np.zeros((rounds, len(names)))
    with alone(), threadpoolctl.threadpool_limits(threads), torch.inference_mode():
        torch.set_num_threads(threads)
        gc.collect()
        gc.disable()
        try:
            repeats = {name: max(1, round(least_ms / max(_milliseconds(contenders[name], 1), 1e-3))) for name in names for _ in range(2)}  # the first warms up
            for index in range(rounds):
                for column in (range(len(names)) if index % 2 == 0 else reversed(range(len(names)))):
                    times[index, column] = _milliseconds(contenders[names[column]], repeats[names[column]])
                if on_round:
                    on_round(index + 1, rounds)
        finally:
            gc.enable()
            torch.set_num_threads(before)
    rows = {}
    for column, name in enumerate(names):
        ratio, low, high = median_interval(times[:, column] / times[:, 0])
        rows[name] = {"median_ms": float(np.median(times[:, column])), "ratio": ratio, "low": low, "high": high}
    return Timing(names[0], rows, rounds, threads, environment())


def _milliseconds(function: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        function()
    return (time.perf_counter_ns() - start) / 1e6 / repeats


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its distribution-free interval: the order statistics that cover it with 90 %."""
    from scipy.stats import binom

    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    rank = max(int(binom.ppf((1 - LEVEL) / 2, n, 0.5)), 1)
    return float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[n - rank])


def save(timing: Timing, paper: str) -> Path:
    """Stores a timing as text, ``data/probes/<arxiv id>.json``."""
    path = FOLDER / f"{paper}.json"
    write_whole(path, (json.dumps(asdict(timing), indent=1) + "\n").encode())
    return path


def load(paper: str) -> Timing | None:
    """The stored timing of a paper, None where there is none."""
    path = FOLDER / f"{paper}.json"
    if not path.exists():
        return None
    try:
        return Timing(**json.loads(path.read_text(encoding="utf8")))
    except (ValueError, TypeError) as error:
        raise StudyError(f"{path} is damaged ({error}); `workbench probe {paper}` measures it again") from None
