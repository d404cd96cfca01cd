"""Executes notebooks with papermill: a time limit for every cell and for the kernel's start, no network port, and a clear word on how it ended.

papermill empties its output file before it writes, so it gets a file of its own in a temporary folder; what is published is renamed into place whole.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CELL_SECONDS, START_SECONDS = 300, 60


@dataclass(frozen=True)
class Executed:
    """A notebook as far as it ran, and one line on what went wrong ("" if nothing did); the traceback stands in the failing cell's outputs."""

    nb: Any
    error: str = ""


def execute(source: Path, parameters: Mapping | None = None, cell_seconds: float = CELL_SECONDS, start_seconds: float = START_SECONDS) -> Executed:
    """Runs the notebook at ``source`` in its own folder with ``WORKBENCH_STATIC=1``; cells after the first failing one are not run.

    Raises nothing for what happens in the notebook: an exception, a cell that does not end within ``cell_seconds`` and a kernel that dies all come
    back in `Executed.error`. A file that is no notebook raises ValueError.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source = Path(source).resolve()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would log is told in `Executed.error`
    before = nbformat.read(source, as_version=4)  # raises here, by name, if it is no notebook
    with tempfile.TemporaryDirectory(prefix="nb-") as folder:
        written, error, told = Path(folder) / "executed.ipynb", "", False
        try:
            papermill.execute_notebook(
                str(source), str(written), dict(parameters or {}), progress_bar=False, execution_timeout=cell_seconds, start_timeout=start_seconds,
                kernel_manager_class=_local_kernel(Path(folder)), resources={"metadata": {"path": str(source.parent)}})
        except PapermillExecutionError as raised:
            error, told = f"{raised.ename}: {raised.evalue}".strip().splitlines()[0], True
        except CellTimeoutError:
            error = f"the cell did not end within {cell_seconds:g} s and was stopped"
        except DeadKernelError:
            last = (Path(folder) / "kernel.log").read_text(errors="replace").strip().splitlines()[-1:]
            error = "the kernel died while it ran the cell (killed, out of memory, or the process ended itself)" + "".join(f"; it last said: {x}" for x in last)
        except RuntimeError as raised:  # nbclient's word on a kernel that does not answer at its start
            error = f"the kernel did not start within {start_seconds:g} s ({raised})"
        nb = nbformat.read(written, as_version=4) if written.exists() else before
    return Executed(_tidy(nb, "" if told else error), error)


def _local_kernel(folder: Path) -> type:
    """A kernel manager that speaks over IPC sockets in ``folder`` (no network port) and tells its kernel that nobody will be there to slide."""
    from jupyter_client import AsyncKernelManager

    class LocalKernel(AsyncKernelManager):
        def __init__(self, **options: Any):
            super().__init__(transport="ipc", ip=str(folder / "kernel"), connection_file=str(folder / "kernel.json"), **options)

        async def _async_pre_start_kernel(self, **options: Any):
            environment = options.pop("env", None) or os.environ
            path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[3]), environment.get("PYTHONPATH", "")]))
            said = os.open(folder / "kernel.log", os.O_WRONLY | os.O_CREAT)
            return await super()._async_pre_start_kernel(
                env={"OMP_NUM_THREADS": "1", **environment, "WORKBENCH_STATIC": "1", "PYTHONPATH": path}, stdout=said, stderr=said, **options)

        pre_start_kernel = _async_pre_start_kernel

    return LocalKernel


def _tidy(nb: Any, untold: str) -> Any:
    """Drops papermill's own notes and widget state, and puts an ``untold`` error (one that left no traceback) into the cell where it happened."""
    from nbformat.v4 import new_output

    nb.metadata.pop("widgets", None)
    nb.metadata.pop("papermill", None)
    nb.cells = [cell for cell in nb.cells if not any(tag.startswith("papermill-error-cell") for tag in cell.metadata.get("tags", []))]
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    if untold and cells:
        begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
        stopped = (begun or cells[:1])[-1]
        stopped.outputs = [output for output in stopped.outputs if output.output_type != "error"]
        stopped.outputs.append(new_output("error", ename="NotebookStopped", evalue=untold, traceback=[f"NotebookStopped: {untold}"]))
    for cell in nb.cells:
        cell.metadata.pop("papermill", None)
    return nb
