"""What of a notebook that was handed in answers which exercise. The file is read as untrusted JSON, and nothing of it is run here.

Only the text of code cells counts: of the cell that answers an exercise all of it, of the cells before only what that text needs (imports, definitions,
values that it names). Outputs are not believed, and metadata only where it makes the list of exercises longer.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .core import registry
from .core.study import Exercise, StudyError

FILE_BYTES, CELLS, TEXT_BYTES = 20 << 20, 5_000, 200_000


def answers(path: Path) -> dict[str, str]:
    """Exercise → the text that answers it ("" where nothing does). StudyError: not a notebook, too large, or without exercises."""
    cells, said = _cells(Path(path))
    own = said.get("workbench") if isinstance(said.get("workbench"), dict) else {}
    found: dict[str, str] = {}
    family = own.get("family")
    claimed = exercises_of(family) if isinstance(family, str) and family in registry.families() else own.get("exercises", [])
    for name in claimed if isinstance(claimed, list) else []:
        found[str(name)[:80]] = ""
    for i, (text, tag) in enumerate(cells):
        name = tag or next(iter(re.findall(r"""\bgrade\(\s*["']([\w./-]{1,80})["']""", text)), "")
        if name:
            found[name] = _text(name, [text for text, _ in cells[: i + 1]])
    if not found:
        raise StudyError(f"{path}: no exercise in this notebook; `workbench lesson FAMILY --student` writes one that has them")
    return found


def _cells(path: Path) -> tuple[list[tuple[str, str]], dict]:
    """Text and exercise of each code cell, and the notebook's metadata."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}") from None
    with open(descriptor, "rb") as handle:
        if not path.is_file():
            raise StudyError(f"{path}: not a file")
        if (size := os.fstat(descriptor).st_size) > FILE_BYTES:
            raise StudyError(f"{path}: {size / 1e6:,.0f} MB; a notebook to be graded has at most {FILE_BYTES / 1e6:.0f} MB (clear its outputs)")
        content = handle.read(FILE_BYTES + 1)
    try:
        book = json.loads(content)
        cells = book["cells"]
        if not isinstance(cells, list) or len(cells) > CELLS:
            raise ValueError
        code = [cell for cell in cells if isinstance(cell, dict) and cell.get("cell_type") == "code"]
        return [(_source(cell), _tag(cell)) for cell in code], book["metadata"] if isinstance(book.get("metadata"), dict) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StudyError(f"{path}: not a notebook (JSON with a list of at most {CELLS} cells)") from None


def _source(cell: Mapping) -> str:
    source = cell.get("source", "")
    source = "".join(map(str, source)) if isinstance(source, list) else str(source)
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE) if len(source) <= TEXT_BYTES else ""


def _tag(cell: Mapping) -> str:
    own = cell["metadata"].get("workbench") if isinstance(cell.get("metadata"), dict) else None
    return str(own.get("exercise", ""))[:80] if isinstance(own, dict) else ""


def _text(name: str, texts: Sequence[str]) -> str:
    """What of the cells is the answer: the last without its calls of the workbench, and from those before what its names stand for."""
    try:
        own = [node for node in ast.parse(texts[-1]).body if not _of_the_workbench(node)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return texts[-1]  # it will say so itself when it is run
    if not own or _same(own, name):
        return ""
    earlier: list[ast.stmt] = []
    for text in texts[:-1]:
        try:
            earlier += ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    kept, needed = [], _names(own)
    for node in reversed(earlier):
        binds = _binds(node)
        if binds & needed and not _of_the_workbench(node):
            kept.insert(0, node)
            needed |= _names([node])
    return ast.unparse(ast.Module([*kept, *own], []))


def _same(nodes: Sequence[ast.stmt], name: str) -> bool:
    """Whether this is still the stub."""
    stub = exercise_of(name)
    return stub is not None and [ast.dump(node) for node in nodes] == [ast.dump(node) for node in ast.parse(stub.stub).body]


def _of_the_workbench(node: ast.stmt) -> bool:
    """Cells import the workbench, run the stub, grade and draw: nothing of that is an answer."""
    if isinstance(node, ast.ImportFrom | ast.Import):
        return (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0] == "workbench"
    return isinstance(node, ast.Expr) and bool({"grade", "draw", "show", "explore", "study", "browse"} & _names([node]))


def _names(nodes: Sequence[ast.AST]) -> set[str]:
    return {inner.id for node in nodes for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _binds(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return _names(targets)


def exercises_of(family: str) -> list[str]:
    """The exercises that the family's notebook holds, by the short names of their papers, in its order ([] where it has none yet)."""
    book = registry.notebook(family)
    return [] if book is None else list(dict.fromkeys(re.findall(r"""\bgrade\(\\?["']([\w./-]+?)\\?["']""", book.read_text(encoding="utf8"))))


def exercise_of(name: str) -> Exercise | None:
    """The exercise of a paper; None where there is no such paper."""
    try:
        return registry.find(name).study().exercise
    except StudyError:
        return None
