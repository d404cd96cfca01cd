"""The far side of `grading`: one student's code in a process of its own, and the plain values that cross to and from the checker.

    grading (trusted) ── {"text": …} ───────────────► this file, run as a script: limits, then the student's text
                      ── {"get": name} ─────────────►
                      ◄─ {"return": …} {"callable": 1} ┘
                      ── {"call": name, "args": …} ──►
                      ◄─ {"callback": 0, "args": …} ── (a function that the check handed over is called where it lives)
                      ◄─ {"return": …} | {"raise": "ValueError: …"} | {"refused": "…"}

The check runs over there: nothing that is printed, patched or returned here can stand in for its verdict, and what comes back is JSON that is read as
numbers, never as code. The limits (time, memory, files, processes, network) keep accidents from hurting. They are no jail: Python code that is written to break
out of Python can. Grade strangers' work in a container or on a machine that holds nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

FRAME_BYTES = 64 << 20
PLAIN = (bool, int, float, str, type(None))


def encode(value: Any, callbacks: list | None = None) -> Any:
    """A value as JSON: numbers, text, lists, tuples, dicts, numpy arrays and generators, torch tensors; functions only towards the student."""
    kind, module = type(value), type(value).__module__.partition(".")[0]
    if kind in PLAIN:
        return value
    if kind is list:
        return [encode(item, callbacks) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, callbacks) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, callbacks), encode(v, callbacks)] for k, v in value.items()]}
    if module == "torch" and hasattr(value, "detach"):
        return {"tensor": encode(value.detach().cpu().numpy(force=True))}
    if module == "numpy" and hasattr(value, "dtype"):
        array = value if hasattr(value, "__array_interface__") and value.dtype.kind in "biufc" else None
        if array is None:
            raise TypeError(f"an array of {value.dtype} cannot be handed over; numbers and truth values can")
        if array.nbytes > FRAME_BYTES // 2:
            raise ValueError(f"{array.nbytes >> 20} MB in one value; at most {FRAME_BYTES >> 21} MB can be handed over")
        return {"array": [array.dtype.str, list(array.shape), base64.b64encode(array.tobytes()).decode()], "scalar": kind.__name__ != "ndarray"}
    if module == "numpy" and kind.__name__ == "Generator":
        return {"rng": value.bit_generator.state["state"] | {"kind": type(value.bit_generator).__name__}}
    if callable(value) and callbacks is not None:
        callbacks.append(value)
        return {"callback": len(callbacks) - 1}
    if hasattr(value, "__iter__") and not callable(value):  # a generator, a range, a set: what it holds
        return [encode(item, callbacks) for item in value]
    raise TypeError(f"a {kind.__name__} cannot be handed over; numbers, text, lists, dicts, arrays and tensors can")


def decode(value: Any, callback: Callable[[int], Callable] | None = None) -> Any:
    """What `encode` was given. ValueError (or KeyError, TypeError): it is not of that form."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, list):
        return [decode(item, callback) for item in value]
    if "tuple" in value:
        return tuple(decode(item, callback) for item in value["tuple"])
    if "dict" in value:
        return {decode(k, callback): decode(v, callback) for k, v in value["dict"]}
    if "tensor" in value:
        import torch

        return torch.from_numpy(decode(value["tensor"]))
    if "callback" in value and callback is not None:
        return callback(int(value["callback"]))
    import numpy as np

    if "rng" in value:
        bits = np.random.PCG64()
        bits.state = {**bits.state, "state": {k: v for k, v in value["rng"].items() if k != "kind"}}
        return np.random.Generator(bits)
    kind, shape, text = value["array"]
    if np.dtype(kind).kind not in "biufc":
        raise ValueError(f"an array of {kind!r}")
    array = np.frombuffer(base64.b64decode(text), dtype=kind).reshape(shape).copy()
    return array[()] if value.get("scalar") and array.ndim == 0 else array


def frame(message: Mapping) -> bytes:
    body = json.dumps(message).encode()
    if len(body) > FRAME_BYTES:
        raise ValueError(f"{len(body) >> 20} MB in one value; at most {FRAME_BYTES >> 20} MB can be handed over")
    return len(body).to_bytes(4, "big") + body


# --------------------------------------------------------------------------------------------------------- in the student's process

class Line:
    """The socket to the checker, used through plain reads and writes so that sockets as such can be refused."""

    def __init__(self, fd: int):
        self.fd = fd

    def send(self, message: Mapping) -> None:
        left = memoryview(frame(message))
        while left:
            left = left[os.write(self.fd, left):]

    def receive(self) -> dict:
        return json.loads(self._exactly(int.from_bytes(self._exactly(4), "big")))

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.fd, min(size, 1 << 20))
            if not part:
                os._exit(0)  # the checker has gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def limit(seconds: int, memory: int) -> None:
    """Bounds of this process: CPU seconds, address space, size of a file, number of open files; no core file; no network where the kernel lets us."""
    import resource

    for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 16 << 20), (resource.RLIMIT_NOFILE, 128),
                       (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        unshare = ctypes.CDLL(None).unshare
        unshare(0x50000000) and unshare(0x40000000)  # a name space of users and networks, or of networks alone, where the kernel allows it


def guard(folder: str, told: Callable[[str], None]) -> None:
    """From now on refuses, and tells: files opened for writing, changed or removed outside ``folder``; processes; sockets; foreign functions."""
    inside = os.path.realpath(folder)
    here = os.getcwd
    writes = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
    changing = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.")
    outside = ("os.fork", "os.forkpty", "os.exec", "os.system", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn", "os.kill", "os.killpg")
    foreign = ("ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function")

    def free(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open file, by its number
        real = os.path.realpath(os.path.join(here(), os.fsdecode(path)))
        return real == "/dev/null" or (real + "/").startswith(inside + "/")

    def refuse(what: str) -> None:
        told(what)
        raise PermissionError(what)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if ((isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & writes) and not free(path):
                refuse(f"wrote outside: {os.fsdecode(path)}")
        elif event.startswith(changing):
            for path in arguments[1 if event == "os.symlink" else 0:2]:  # where a link leads is looked at when it is opened
                if isinstance(path, str | bytes | os.PathLike) and not free(path):
                    refuse(f"wrote outside: {os.fsdecode(path)}")
        elif event in outside:
            refuse(f"tried to start or end a process ({event})")
        elif event.startswith("socket.") and event != "socket.gethostname":
            refuse(f"tried to use the network ({event})")
        elif event in foreign:
            refuse(f"tried to call foreign code ({event})")

    sys.addaudithook(hook)


def serve(line: Line, text: str, seconds: int, memory: int) -> None:
    """Loads what the text needs, sets the limits, runs the text, then answers the checker until it hangs up."""
    names: dict[str, Any] = {"__name__": "answer"}
    try:
        import numpy

        names["np"] = numpy
        if "torch" in text:
            import torch

            names["torch"] = torch
            torch.set_num_threads(1)
        limit(seconds + int(time.process_time()), memory)
        guard(os.getcwd(), lambda what: line.send({"refused": what}))
        line.send({"ready": 1})
        exec(compile(text, "<answer>", "exec"), names)  # noqa: S102 (what this process is for)
        line.send({"return": None})
    except BaseException as error:
        line.send({"raise": said(error)})

    def elsewhere(number: int) -> Callable:
        def call(*arguments: Any) -> Any:
            line.send({"callback": number, "args": encode(list(arguments))})
            reply = line.receive()
            if "raise" in reply:
                raise RuntimeError(reply["raise"])
            return decode(reply["return"])
        return call

    while True:
        asked = line.receive()
        try:
            if "get" in asked:
                value = names[asked["get"]]
                line.send({"callable": 1} if callable(value) else {"return": encode(value)})
            else:
                positional, named = decode(asked["args"], elsewhere)
                line.send({"return": encode(names[asked["call"]](*positional, **named))})
        except KeyError as error:
            line.send({"missing": str(error.args[0])} if "get" in asked else {"raise": said(error)})
        except BaseException as error:
            line.send({"raise": said(error)})


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


if __name__ == "__main__":
    _, number, cpu, space, root = sys.argv
    sys.dont_write_bytecode = True
    sys.path.append(root)
    checker = Line(int(number))
    serve(checker, checker.receive()["text"], int(cpu), int(space))
