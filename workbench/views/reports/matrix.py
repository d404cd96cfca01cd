"""One notebook, many parameter sets: executed side by side, a page for each, and one summary page.

    notebook ─┐
              ├─► papermill, a kernel a set ─► a page and an executed notebook each ─► index.html (parameters, outcome, seconds, link)
    CSV, JSON ┘

A set that fails has a page that says so, and the others go on. What is finished is not run again while the notebook, its parameters and the code and data
of the workbench are the same; the name of a set's page follows from its parameters, so that rows may be added, removed and put in another order.
"""

from __future__ import annotations

import ast
import csv
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.study import StudyError
from . import CannotWrite, _hash, _notebook_key, _Report, _written, made, write
from .notebooks import CELL_SECONDS

Parameters = Mapping[str, Any]


def matrix(notebook: str | Path, parameters: str | Path, out: str | Path, jobs: int | None = None, cell_seconds: float = CELL_SECONDS, fresh: bool = False,
           on_set: Callable[[int, int], None] | None = None) -> int:
    """Executes ``notebook`` once for each set of the file ``parameters`` (see `read_sets`) into the folder ``out``. Returns 1 if a set failed, else 0.

    ``cell_seconds`` limits each cell, ``fresh`` runs finished sets too, ``on_set(done, total)`` reports progress.
    """
    jobs = jobs if jobs is not None else os.cpu_count() or 1
    if jobs < 1:
        raise StudyError(f"--jobs must be at least 1, not {jobs}")
    if not cell_seconds > 0:
        raise StudyError(f"--cell-seconds must be above 0, not {cell_seconds:g}")
    source = Path(notebook).resolve()
    sets = read_sets(source, Path(parameters))
    try:
        return _Matrix(Path(out).resolve(), fresh, jobs).make_sets(source, sets, cell_seconds, on_set or (lambda done, total: None))
    except CannotWrite as error:
        print(f"papermill: {error}; pages written before are kept", file=sys.stderr)
        return 1


# ---------------------------------------------------------------------------------------------------------------- parameters

def defaults(notebook: Path) -> dict[str, Any]:
    """The names that the notebook's cell with the tag ``parameters`` sets, and their values there (None for what is no plain literal)."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except OSError as error:
        raise StudyError(f"notebook: cannot read {notebook} ({error.strerror})") from None
    except Exception as error:  # nbformat raises its own kinds, json's and more
        raise StudyError(f"notebook: {notebook} is no notebook ({type(error).__name__}: {str(error).splitlines()[0]})") from None
    found = [cell for cell in cells if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])]
    if not found:
        raise StudyError(f"notebook: {notebook} has no cell with the tag 'parameters', so there is nothing to set")
    names: dict[str, Any] = {}
    for node in ast.parse(found[0].source).body:
        for target in node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []:
            if isinstance(target, ast.Name):
                try:
                    names[target.id] = ast.literal_eval(node.value)
                except (ValueError, TypeError):
                    names[target.id] = None
    return names


def read_sets(notebook: Path, path: Path) -> list[dict[str, Any]]:
    """The parameter sets of a file: a CSV with a header of names (an empty cell leaves the notebook's value), or a JSON list of objects.

    Every name must be one that the notebook's parameter cell sets, and every value of the kind that stands there: text stays text (``2304.10``), a number
    where a number is. StudyError names the row.
    """
    known = defaults(notebook)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"parameters: cannot read {path} ({getattr(error, 'strerror', None) or error})") from None
    if path.suffix.lower() == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise StudyError(f"parameters: {path} is no JSON ({error})") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise StudyError(f"parameters: {path} must be a list of objects, as in [{{\"paper\": \"fscl\"}}, …]")
    elif path.suffix.lower() == ".csv":
        table = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
        header = [name.strip() for name in table[0]] if table else []
        if len(set(header)) < len(header):
            raise StudyError(f"parameters: a name stands twice in the header of {path}: {', '.join(header)}")
        for number, row in enumerate(table[1:], 1):
            if len(row) != len(header):
                raise StudyError(f"parameters: row {number} of {path} has {len(row)} cells, the header {len(header)}")
        rows = [{name: cell.strip() for name, cell in zip(header, row, strict=True) if cell.strip()} for row in table[1:]]
    else:
        raise StudyError(f"parameters: {path} must end in .csv or .json")
    if not rows:
        raise StudyError(f"parameters: {path} has no set")
    sets: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        if unknown := [name for name in row if name not in known]:
            raise StudyError(f"parameters: row {number} of {path} sets {', '.join(unknown)}; the notebook has {', '.join(known)}")
        sets.append({name: _typed(value, known[name], path.suffix.lower() == ".csv", f"row {number} of {path}, {name}") for name, value in row.items()})
        if sets[-1] in sets[:-1]:
            raise StudyError(f"parameters: row {number} of {path} repeats row {sets.index(sets[-1]) + 1}")
    return sets


def _typed(value: Any, default: Any, from_text: bool, where: str) -> Any:
    """The value as the kind of thing that ``default`` is; a parameter without a plain default takes anything."""
    if from_text and not isinstance(default, str):
        try:
            value = json.loads(value.lower() if value in ("True", "False", "None") else value)
        except ValueError:
            pass
    value = None if from_text and value == "none" else value
    wanted = float if isinstance(default, float) else type(default)
    fits = isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool) or wanted is float and type(value) in (int, float)
    if default is not None and not fits:
        raise StudyError(f"parameters: {where}: {value!r} is no {wanted.__name__}, as {default!r} in the notebook is")
    return value


# ---------------------------------------------------------------------------------------------------------------------- pages

def page_of(parameters: Parameters) -> str:
    """The file name of a set's page: its values, as far as they are short, and a digest of all of them."""
    from .render import slug

    return f"{slug('-'.join(map(str, parameters.values())))[:40].strip('-')}-{_hash(json.dumps(parameters, sort_keys=True).encode())[:8]}.html"


@dataclass
class _Matrix(_Report):
    def make_sets(self, source: Path, sets: list[Parameters], cell_seconds: float, on_set: Callable[[int, int], None]) -> int:
        from ...core.sweep import pool

        self._open()
        pages = {page_of(parameters): parameters for parameters in sets}
        keys = {page: _hash(_notebook_key(source).encode(), json.dumps(parameters, sort_keys=True).encode()) for page, parameters in pages.items()}
        todo = [page for page in pages if self._changed(page, keys[page]) or self.state[page]["failed"]]
        self.state = {page: said for page, said in self.state.items() if page in pages and page not in todo}
        self._summary(source, pages)
        on_set(len(pages) - len(todo), len(pages))
        if todo:
            workers = pool(min(self.jobs, len(todo)))
            futures = {workers.schedule(_execute, args=(source, pages[page], self.folder / page, keys[page], cell_seconds)): page for page in todo}
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    page = futures[future]
                    self._keep(page, _words(pages[page]), future.result)
                    self._summary(source, pages)
                    on_set(len(pages) - len(todo) + done, len(pages))
            except BaseException:  # Ctrl-C, a full disk: kernels end with the workers that started them
                workers.stop()
                workers.join()
                raise
        failed = [page for page in pages if self.state[page]["failed"]]
        for page in failed:
            print(f"{_words(pages[page])}: {'; '.join(self.state[page]['failed'])}", file=sys.stderr)
        print(f"{self.folder / 'index.html'}: {len(pages)} sets, {len(todo)} run now, {len(failed)} failed")
        return int(bool(failed))

    def _summary(self, source: Path, pages: Mapping[str, Parameters]) -> None:
        from . import render

        names = list(dict.fromkeys(name for parameters in pages.values() for name in parameters))
        rows = [{"page": page, "parameters": [parameters.get(name, "") for name in names], **self.state.get(page, {"failed": None})}
                for page, parameters in pages.items()]
        write(self.folder / "index.html", render.page("matrix.html", root="", made=made(), source=source.name, names=names, rows=rows))


def _execute(source: Path, parameters: Parameters, path: Path, key: str, cell_seconds: float) -> dict:
    """Runs one set (in a worker), writes its page and executed notebook, and returns what the summary says of it."""
    import nbformat

    from . import notebooks, render

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    start = time.monotonic()
    executed = notebooks.execute(source, parameters, cell_seconds)
    seconds = time.monotonic() - start
    write(path.parent / "notebooks" / f"{path.stem}.ipynb", nbformat.writes(executed.nb))
    page = render.notebook(executed.nb, source.stem)
    text = render.page("notebook.html", page=page, error=executed.error, made=made(), source=f"notebooks/{path.stem}.ipynb", root="")
    return {**_written(path, text, key), "title": page.title, "seconds": seconds, "failed": [executed.error] if executed.error else []}


def _words(parameters: Parameters) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items()) or "the notebook's own values"
