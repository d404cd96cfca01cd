"""A network for places where there is neither the workbench nor torch: one ONNX file, checked against the model before it is there."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...core.measurements import write_whole
from ..structure.trace import forward
from .graph import NotCapturable, exported

TOLERANCE = 1e-4  # largest difference from the model's outputs, relative to their largest magnitude (or 1)


def export(path: str | os.PathLike, model: nn.Module, example) -> int:
    """Writes the model's evaluation mode as ONNX, weights included, batch of any size where its code allows it; returns the bytes.

    The file is run by onnxruntime on ``example`` (a tensor, a tuple or a dict of tensors) before it takes its place. ValueError: the reason why the model
    cannot be written (an operation that ONNX does not have, control flow that depends on data, other outputs than the model's).
    """
    import onnxruntime

    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: it must end in .onnx, not {path.suffix!r}")
    try:
        program, _ = exported(model, example)
        data = _onnx(program)
    except NotCapturable as error:
        raise ValueError(f"model: it cannot be written as ONNX: {error}") from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    inputs = example.values() if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)
    got = session.run(None, {slot.name: value.detach().cpu().numpy() for slot, value in zip(session.get_inputs(), inputs, strict=True)})[0]
    with torch.no_grad():
        want = forward(model.eval(), example).cpu().numpy()
    away = float(np.abs(got - want).max() / max(1.0, np.abs(want).max())) if got.shape == want.shape else np.inf
    if not away <= TOLERANCE:
        raise ValueError(f"model: as ONNX its outputs {f'differ by {away:.1e}' if np.isfinite(away) else f'have shape {got.shape}, not {want.shape}'}; nothing was written")
    write_whole(path, data)
    return len(data)


def _onnx(program: torch.export.ExportedProgram) -> bytes:
    muted, logging.root.manager.disable = logging.root.manager.disable, logging.WARNING  # it warns of torchvision's absence
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(program, dynamo=True, verbose=False).model_proto.SerializeToString()
    except Exception as error:  # the exporter raises dozens of kinds, each with pages of text
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise NotCapturable(f"{type(error.__cause__ or error).__name__}: {lines[0] if lines else 'no reason given'}") from error
    finally:
        logging.root.manager.disable = muted
