"""What a net costs where it runs: a table of its layers, the folded net, and a file that runs without Python."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ...benches import designs
from ...contracts.model import save_model
from ...core.measurements import write_whole

KINDS = ("torchscript", "workbench")


def deploy(net: nn.Module) -> nn.Module:
    """Batch norms folded into the convolutions before them, channels-last memory; (N, 3, H, W) → (N, classes) as before."""
    return designs.deployed(net).to(memory_format=torch.channels_last)


def export(net: nn.Module, path: str | os.PathLike, kind: str = "torchscript", shape: tuple[int, ...] = (1, 3, 32, 32)) -> int:
    """Writes the folded net, returns the bytes of the file. ``torchscript`` runs in any libtorch, ``workbench`` is read by `contracts.model.load`.

    ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if kind == "workbench":
        return save_model(path, net, torch.zeros(shape))
    with tempfile.TemporaryDirectory() as folder:
        scripted(net, shape).save(str(Path(folder) / "net.pt"))
        data = (Path(folder) / "net.pt").read_bytes()
    write_whole(Path(path), data)
    return len(data)


def scripted(net: nn.Module, shape: tuple[int, ...] = (1, 3, 32, 32)) -> torch.jit.ScriptModule:
    """The folded net as frozen TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)         # TorchScript is old, but it is what small machines run
        return torch.jit.freeze(torch.jit.trace(deploy(net), torch.zeros(shape)))


def profile(net: nn.Module, shape: tuple[int, ...] = (1, 3, 32, 32), runs: int = 30, threads: int = 1) -> pd.DataFrame:
    """One row per layer that computes: ``layer, operator, macs, bytes, ms, low, high``.

    ``bytes``: activations read and written; ``ms`` with its quartiles is the median of ``runs`` timed passes after two that warm up. The last row is
    the rest of the pass (concatenations, additions, Python). ValueError: fewer than 30 runs, or a shape that the net does not take.
    """
    if runs < 30:
        raise ValueError(f"runs must be at least 30 for a median with spread, found {runs}")
    x, rows, spent, started, whole = torch.zeros(shape), {}, {}, {}, []
    leaves = {name: module for name, module in net.eval().named_modules() if not list(module.children())}

    def after(name, module, inputs, output):
        spent.setdefault(name, np.zeros(runs + 2))[len(whole)] += (time.perf_counter_ns() - started[name]) / 1e6
        row = rows.setdefault(name, {"layer": name, "operator": type(module).__name__, "macs": 0, "bytes": 0})
        if not whole:                                               # a layer may be called more than once a pass: the first pass counts its calls
            row["bytes"] += inputs[0].nbytes + output.nbytes
            row["macs"] += output.numel() * module.weight[0].numel() if isinstance(module, (nn.Conv2d, nn.Linear)) else 0

    hooks = []
    for name, module in leaves.items():
        hooks.append(module.register_forward_pre_hook(lambda module, inputs, name=name: started.update({name: time.perf_counter_ns()})))
        hooks.append(module.register_forward_hook(partial(after, name)))
    held = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for _ in range(runs + 2):
                start = time.perf_counter_ns()
                net(x)
                whole.append((time.perf_counter_ns() - start) / 1e6)
    except RuntimeError as error:
        raise ValueError(f"shape: the net does not run on {tuple(shape)}: {error}") from error
    finally:
        torch.set_num_threads(held)
        for hook in hooks:
            hook.remove()
    spent["(between layers)"] = np.array(whole) - sum(spent.values())
    rows["(between layers)"] = {"layer": "(between layers)", "operator": "concatenation, addition, calls", "macs": 0, "bytes": 0}
    spread = {name: np.percentile(values[2:], (25, 50, 75)) for name, values in spent.items()}
    return pd.DataFrame([row | dict(zip(("low", "ms", "high"), spread[name], strict=True)) for name, row in rows.items()])


def activation_megabytes(net: nn.Module, side: int) -> float:
    """MiB that all layers put out for one image of ``side`` pixels (not the ReLUs of bottlenecks, which work in place): the "Memory" of the paper's table."""
    total = 0

    def add(module, inputs, output: Tensor) -> None:
        nonlocal total
        total += output.nbytes

    inside = {id(part) for module in net.modules() if type(module).__name__ == "Bottleneck" for part in module.modules() if isinstance(part, nn.ReLU)}
    hooks = [m.register_forward_hook(add) for m in net.modules() if not list(m.children()) and id(m) not in inside and not isinstance(m, nn.Identity)]
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    return total / 2**20
