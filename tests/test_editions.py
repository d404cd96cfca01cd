"""The student's and the teacher's edition of a family's notebook."""

import json

import nbformat
import pytest

from workbench import editions
from workbench.cli import main
from workbench.core import registry
from workbench.core.study import StudyError


def _text(book):
    return "\n".join("".join(cell["source"]) for cell in book["cells"])


@pytest.mark.parametrize("family", [name for name in registry.families() if registry.notebook(name)])
def test_student_edition_holds_stubs_and_no_solution(family):
    book = editions.edition(family, "student")
    nbformat.validate(nbformat.from_dict(book))
    said = book["metadata"]["workbench"]
    assert said["family"] == family and said["edition"] == "student" and said["exercises"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in book["cells"])
    for name in said["exercises"]:
        exercise = registry.find(name).study().exercise
        assert exercise.stub.strip() in _text(book) and exercise.solution.strip() not in _text(book)
        assert exercise.solution.strip() in _text(editions.edition(family, "teacher"))
    assert "<details>" not in _text(book).partition("## Quiz")[2] and "Your answer" in _text(book)
    assert "<details>" in _text(editions.edition(family)).partition("## Quiz")[2]


def test_solution_cells_and_outputs_go(monkeypatch, tmp_path):
    cell = {"cell_type": "code", "id": "a", "execution_count": 3, "outputs": [{"output_type": "stream", "name": "stdout", "text": "secret"}], "metadata": {}}
    cells = [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# T"}, {**cell, "source": "1 + 1"}, {**cell, "source": 'show("fscl", "solution")'},
             {**cell, "source": "secret_answer = 1", "metadata": {"tags": ["solution"]}}]
    (tmp_path / "01_pruning.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    monkeypatch.setattr(registry, "notebook", lambda family: tmp_path / "01_pruning.ipynb")
    text = json.dumps(editions.edition("pruning", "student"))
    assert "secret" not in text and "solution" not in text and "1 + 1" in text
    assert "secret_answer" in json.dumps(editions.edition("pruning", "teacher"))


def test_wrong_requests_are_named_and_no_file_is_overwritten(tmp_path, capsys):
    for family, why in (("prunning", "no family"), ("tokens", "no notebook yet; these have: codecs, pruning")):
        with pytest.raises(StudyError, match=why):
            editions.edition(family)
    out = tmp_path / "mine.ipynb"
    assert main(["lesson", "codecs", "--student", "--out", str(out)]) == 0 and out.exists()
    before = out.read_bytes()
    assert main(["lesson", "codecs", "--student", "--out", str(out)]) == 2 and "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["lesson", "codecs", "--out", str(tmp_path / "x.txt")]) == 2 and "ends in .ipynb" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["lesson", "codecs", "--out", str(tmp_path / "file" / "x.ipynb")]) == 2 and "cannot write" in capsys.readouterr().err
