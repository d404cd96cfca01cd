"""A family's notebook as a lesson to hand out: ``workbench lesson FAMILY --student`` without solutions, ``--teacher`` with them.

The family's notebook in ``notebooks/`` is the source of both. A cell that grades an exercise gets the exercise's stub (or its solution) as text to be edited; it is marked with
the exercise's name, by which `grading` finds it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .core import registry
from .core.measurements import write_whole
from .core.study import StudyError

EDITIONS = ("student", "teacher")
GRADES = re.compile(r"""\bgrade\(\s*["']([\w./-]+)["']""")
SHOWS_SOLUTION = re.compile(r"""\bshow\([^)\n]*["']solution["'][^)\n]*\)""")
QUIZ_ANSWER = re.compile(r"<details>\s*<summary>(.*?)</summary>.*?</details>", re.DOTALL)


def edition(family: str, kind: str = "teacher") -> dict:
    """The notebook of one edition as nbformat's JSON: without outputs, with stubs or solutions, and with the list of its exercises."""
    if kind not in EDITIONS:
        raise StudyError(f"edition must be one of {', '.join(EDITIONS)}, not {kind!r}")
    names = list(registry.families())
    if family not in names:
        raise StudyError(f"no family {family!r}; there are {', '.join(names)}")
    path = registry.notebook(family)
    if path is None:
        raise StudyError(f"the family {family} has no notebook yet; these have: {', '.join(name for name in names if registry.notebook(name))}")
    book = json.loads(path.read_text(encoding="utf8"))
    cells, exercises, quiz = [], [], False
    for cell in book["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
            found = GRADES.search(text)
            if found:
                exercises.append(found[1])
                cell["metadata"] = {**cell["metadata"], "workbench": {"exercise": found[1]}}
                text = _answer(found[1], kind, text)
            elif kind == "student" and ("solution" in cell["metadata"].get("tags", []) or SHOWS_SOLUTION.search(text)):
                continue
        elif kind == "student":
            quiz = text.startswith("## Quiz") or quiz and not re.match("#{1,2} ", text)
            text = QUIZ_ANSWER.sub(r"\1\n\n*Your answer:*\n", text) if quiz else text
        cells.append({**cell, "source": text.splitlines(keepends=True)})
    head = {"cell_type": "markdown", "id": "edition", "metadata": {}, "source": _head(kind, path.stem, exercises).splitlines(keepends=True)}
    said = {"family": family, "edition": kind, "exercises": exercises}
    return {**book, "metadata": {**book["metadata"], "workbench": said}, "cells": [cells[0], head, *cells[1:]]}


def _answer(name: str, kind: str, cell: str) -> str:
    """The text of an exercise's cell: stub or solution, then whatever of the cell grades and draws."""
    exercise = registry.find(name).study().exercise
    rest = "\n".join(line for line in cell.splitlines() if re.search(r"\b(grade|draw)\(", line))
    return f"{(exercise.stub if kind == 'student' else exercise.solution).strip()}\n\n\n{rest}\n"


def _head(kind: str, stem: str, exercises: list[str]) -> str:
    count = f"{len(exercises)} exercise{'s' * (len(exercises) != 1)}"
    if kind == "teacher":
        return f"*Teacher's edition: {count}, solved. Grade what comes back with `workbench grade FILE` or `workbench grade FOLDER`.*"
    return (f"*Student's edition: {count}. In each, edit the definition that its cell begins with and run the cell until it passes; keep its `grade` line. "
            f"Hand in this file. (`workbench grade FILE` tells you what your teacher will see.)*")


def write(family: str, kind: str, out: Path | None) -> Path:
    """Writes an edition into the file ``out`` (default: named after the notebook, in this folder) and returns its path. A file that is there is left alone."""
    book = edition(family, kind)
    path = out or Path(f"{registry.notebook(family).stem}-{kind}.ipynb")
    if path.exists():
        raise StudyError(f"{path} is there already, perhaps with somebody's answers; move it away or name another file with --out")
    if path.suffix != ".ipynb":
        raise StudyError(f"--out: a notebook's name ends in .ipynb, not {path.suffix or path.name!r}")
    try:
        write_whole(path, json.dumps(book, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise StudyError(f"--out: cannot write {path}: {error.strerror or error}") from None
    return path


def main(family: str, student: bool, out: Path | None) -> int:
    """The body of ``workbench lesson``: writes the notebook and prints its path."""
    print(write(family, "student" if student else "teacher", out))
    return 0
