"""Grades notebooks that students hand in: ``workbench grade FILE|FOLDER [--json]``. The file is never trusted.

    file ──► `handed_in`: the text of each exercise ──► `answering`, a process with limits ◄──► the exercise's check, here ──► verdict

Outputs, metadata and everything printed are not believed; the check sees values that came back as plain numbers.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from . import answering
from .core import registry
from .core.study import StudyError
from .handed_in import answers, exercise_of

PASSES, FAILS, TIMED_OUT, OUTSIDE, UNANSWERED = "passes", "fails", "timed out", "wrote outside", "not answered"
START_SECONDS = 120  # for Python and torch to be loaded, which is not the student's doing


@dataclass(frozen=True)
class Limits:
    """What one exercise may use: seconds on the clock and of the processor, bytes of address space."""

    seconds: float = 20
    memory: int = 4 << 30


@dataclass(frozen=True)
class Graded:
    """One exercise of one file: what became of it, and why."""

    exercise: str
    status: str
    why: str = ""


@dataclass(frozen=True)
class Report:
    """One file; ``error`` says why it could not be read (then it has no exercises)."""

    file: str
    exercises: list[Graded] = field(default_factory=list)
    error: str = ""

    @property
    def passed(self) -> int:
        return sum(item.status == PASSES for item in self.exercises)

    @property
    def ok(self) -> bool:
        return bool(self.exercises) and self.passed == len(self.exercises)


# ----------------------------------------------------------------------------------------------------------------- judging one answer

_FUNCTION = object()


class _Ended(Exception):
    """The student's process is not to be talked to any more; ``args``: status and reason."""


class Answer(Mapping):
    """What the student's text defines, once it was `run`, living in a process of its own: functions are called there, values come back as plain numbers."""

    def __init__(self, limits: Limits):
        self.refused, self.seconds, self.ready = "", limits.seconds, False
        self.until = time.monotonic() + START_SECONDS
        self.callbacks: list = []
        self.folder = tempfile.TemporaryDirectory(prefix="answer-", ignore_cleanup_errors=True)
        self.line, far = socket.socketpair()
        environment = {"PATH": os.defpath, "HOME": self.folder.name, "TMPDIR": self.folder.name, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with far:
            self.process = subprocess.Popen(
                [sys.executable, "-I", answering.__file__, str(far.fileno()), str(int(limits.seconds) + 1), str(limits.memory), str(registry.ROOT.parent)],
                cwd=self.folder.name, env=environment, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True)

    def run(self, text: str) -> None:
        self._ask({"text": text})

    def close(self) -> None:
        """Ends the process and whatever it left running, and deletes its folder."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.line.close()
        self.folder.cleanup()

    def __getitem__(self, name: str) -> Any:
        reply = self._ask({"get": name})
        return (lambda *given, **named: self._call(name, given, named)) if reply is _FUNCTION else reply

    def __iter__(self) -> Iterator[str]:
        raise TypeError("an answer's names can be asked for, not listed")

    def __len__(self) -> int:
        raise TypeError("an answer's names can be asked for, not listed")

    def _call(self, name: str, given: tuple, named: dict) -> Any:
        self.callbacks = []
        return self._ask({"call": name, "args": answering.encode((list(given), named), self.callbacks)})

    def _ask(self, message: dict) -> Any:
        self._send(message)
        while True:
            try:
                reply = json.loads(self._receive())
                if "ready" in reply and not self.ready:  # once: the student's seconds begin when torch is loaded
                    self.ready, self.until = True, time.monotonic() + self.seconds
                elif "refused" in reply:
                    self.refused = self.refused or str(reply["refused"])[:300]
                elif "callback" in reply:
                    self._send(self._callback(reply))
                elif "missing" in reply:
                    raise KeyError(str(reply["missing"])[:80])
                elif "raise" in reply:
                    raise _Raised(str(reply["raise"])[:500])
                else:
                    return _FUNCTION if "callable" in reply else answering.decode(reply["return"])
            except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
                if isinstance(error, KeyError) and "missing" in reply:
                    raise
                raise _Ended(FAILS, f"what it gave back cannot be read ({type(error).__name__})") from None

    def _callback(self, asked: Mapping) -> dict:
        try:
            return {"return": answering.encode(self.callbacks[asked["callback"]](*answering.decode(asked["args"])))}
        except Exception as error:
            return {"raise": answering.said(error)}

    def _send(self, message: dict) -> None:
        self._within(lambda: self.line.sendall(answering.frame(message)))

    def _receive(self) -> bytes:
        size = int.from_bytes(self._exactly(4), "big")
        if size > answering.FRAME_BYTES:
            raise _Ended(FAILS, f"it gave back {size >> 20} MB; at most {answering.FRAME_BYTES >> 20} MB are read")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            content += self._within(partial(self.line.recv, min(size - len(content), 1 << 20))) or self._gone()
        return bytes(content)

    def _within(self, act) -> Any:
        left = self.until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self.line.settimeout(left)
            return act()
        except TimeoutError:
            raise _Ended(TIMED_OUT, "") from None
        except OSError:
            self._gone()

    def _gone(self) -> bytes:
        code = self.process.wait(10)
        if code == -signal.SIGXCPU or code == -signal.SIGKILL and time.monotonic() > self.until:
            raise _Ended(TIMED_OUT, "")
        raise _Ended(FAILS, f"its process ended ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})")


class _Raised(Exception):
    """What the student's code raised, in words."""


def judge(name: str, text: str, limits: Limits = Limits()) -> Graded:
    """Runs one answer within the limits and has the exercise's check look at what comes back."""
    if not text.strip():
        return Graded(name, UNANSWERED)
    exercise = exercise_of(name)
    if exercise is None:
        return Graded(name, FAILS, "no such exercise")
    started, answer = time.monotonic(), None
    try:
        answer = Answer(limits)
        answer.run(text)
        exercise.check(answer)
        status, why = PASSES, ""
    except _Ended as end:
        status, why = end.args
    except KeyError as missing:
        status, why = FAILS, f"define {missing} first"
    except AssertionError as wrong:
        status, why = FAILS, str(wrong)
    except _Raised as raised:
        status, why = FAILS, str(raised)
    except Exception as error:  # the check met a value of another kind than it asked for
        status, why = FAILS, f"{type(error).__name__}: {error}"
    finally:
        if answer is not None:
            answer.close()
    if answer is not None and answer.refused:
        outside = answer.refused.startswith(OUTSIDE)
        status, why = OUTSIDE if outside else FAILS, answer.refused.removeprefix(f"{OUTSIDE}: ")
    return Graded(name, status, f"after {time.monotonic() - started:.0f} s" if status == TIMED_OUT else re.sub(r"\s+", " ", why)[:300])


def grade(path: Path, limits: Limits = Limits()) -> Report:
    """Every exercise of one notebook. StudyError: the file cannot be graded."""
    return Report(str(path), [judge(name, text, limits) for name, text in answers(path).items()])


# ------------------------------------------------------------------------------------------------------------------------- the command

def main(where: Path, as_json: bool, seconds: float) -> int:
    """The body of ``workbench grade``: lines for a file, a CSV table for a folder, JSON on demand; 0 if every exercise passes."""
    if seconds <= 0:
        raise StudyError(f"--seconds must be more than 0, not {seconds:g}")
    limits = Limits(seconds)
    if not where.is_dir():
        report = grade(where, limits)
        if as_json:
            print(json.dumps(_plain(report), indent=1, ensure_ascii=False))
        else:
            for item in report.exercises:
                print(f"{item.exercise}: {item.status}" + (f": {item.why}" if item.why else ""))
            print(f"{report.passed} of {len(report.exercises)} pass")
        return int(not report.ok)
    reports = list(_folder(where, limits))
    print(json.dumps([_plain(report) for report in reports], indent=1, ensure_ascii=False) if as_json else table(reports), end="\n" if as_json else "")
    return int(not all(report.ok for report in reports))


def _plain(report: Report) -> dict:
    return asdict(report) | {"passed": report.passed, "total": len(report.exercises)}


def _folder(where: Path, limits: Limits) -> Iterator[Report]:
    """A report for each file ending in .ipynb; Ctrl-C ends it and keeps those that are done."""
    from tqdm import tqdm

    files = sorted(where.glob("*.ipynb"))
    if not files:
        raise StudyError(f"{where}: no file in it ends in .ipynb")
    try:
        for path in tqdm(files, desc="grade", file=sys.stderr, disable=None, leave=False):
            try:
                yield grade(path, limits)
            except StudyError as error:
                yield Report(str(path), error=str(error))
    except KeyboardInterrupt:
        print("stopped; the files graded so far follow", file=sys.stderr)


def table(reports: Sequence[Report]) -> str:
    """One row a file as CSV: what became of each exercise, how many pass, what was wrong with the file. A cell that a spreadsheet would compute is quoted."""
    names = list(dict.fromkeys(item.exercise for report in reports for item in report.exercises))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["file", *names, "passed", "of", "error"])
    for report in reports:
        said = {item.exercise: item.status for item in report.exercises}
        row = [Path(report.file).name, *(said.get(name, "") for name in names), report.passed, len(report.exercises), report.error]
        writer.writerow([f"'{value}" if str(value)[:1] in tuple("=+-@\t\r") else value for value in row])
    return out.getvalue()
