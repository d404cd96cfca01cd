"""One notebook, many parameter sets: what may be asked, one page a set, one summary; a set that fails stops no other, and what is finished is not run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from workbench import cli
from workbench.core.study import StudyError
from workbench.views.reports import matrix

ROOT = Path(__file__).resolve().parents[2]
BODY = """
import os, time
open(os.environ["WORKBENCH_RAN"], "a").write(f"{name} {os.getpid()}\\n")
if name == "bad": raise ValueError("this set <b>fails</b>")
if name == "dies": os._exit(3)
if name == "loops": time.sleep(600)
print("the square of", number, "is", number ** 2)
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A notebook with parameters of four kinds, which notes every run; ``run(text)`` runs it on a CSV."""
    cells = [new_code_cell('name = "fine"\nnumber: float = 2.0\ncount = 1\nloud = False\nwhatever = 1 / 3', metadata={"tags": ["parameters"]}), new_code_cell(BODY)]
    path = tmp_path / "squares.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), path)
    monkeypatch.setenv("WORKBENCH_RAN", str(tmp_path / "ran"))
    return path


def parameters(book, text, ending="csv"):
    path = book.with_name(f"sets.{ending}")
    path.write_text(text)
    return path


def ran(book):
    path = book.with_name("ran")
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def rows_of(page):
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in re.findall(r"<tr.*?</tr>", page.read_text().partition("<tbody>")[2], re.DOTALL)]


def test_values_are_of_the_kind_that_stands_in_the_notebook(book):
    csv = parameters(book, "name,number,count,loud,whatever\n2304.10,3,2,true,half\n007,1e-3,,False,0.5\n\n")
    assert matrix.read_sets(book, csv) == [{"name": "2304.10", "number": 3, "count": 2, "loud": True, "whatever": "half"},
                                           {"name": "007", "number": 0.001, "loud": False, "whatever": 0.5}]
    sets = [{"name": "a", "whatever": [1, 2]}, {}]
    assert matrix.read_sets(book, parameters(book, json.dumps(sets), "json")) == sets


@pytest.mark.parametrize(("ending", "text", "said"), [
    ("csv", "", "has no set"), ("csv", "name\n", "has no set"), ("json", "[]", "has no set"), ("json", "{torn", "is no JSON"),
    ("json", '{"name": "a"}', "must be a list of objects"), ("yaml", "- a", "must end in .csv or .json"), ("csv", "nam\na\n", "row 1 .* sets nam; the notebook has name, number"),
    ("csv", "name,name\na,b\n", "stands twice"), ("csv", "name,number\na\n", "row 1 .* has 1 cells, the header 2"),
    ("csv", "count\n1\n1.5\n", "row 2 .*count: 1.5 is no int, as 1 in"), ("csv", "loud\n1\n", "loud: 1 is no bool"), ("json", '[{"name": 2304.1}]', "name: 2304.1 is no str"),
    ("csv", "number\nmuch\n", "number: 'much' is no float"), ("csv", "name\na\nb\na\n", "row 3 .* repeats row 1")])
def test_wrong_parameters_name_the_row_and_what_is_allowed(book, capsys, ending, text, said):
    assert cli.main(["papermill", str(book), str(parameters(book, text, ending)), "--out", str(book.parent / "out")]) == 2
    assert re.search(said, capsys.readouterr().err) and not (book.parent / "out").exists() and ran(book) == []


def test_wrong_notebooks_and_numbers(book, capsys):
    sets, here = parameters(book, "name\na\n"), book.parent
    (here / "torn.ipynb").write_text("{torn")
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), here / "plain.ipynb")
    for notebook, said in ((here / "none.ipynb", "cannot read"), (here / "torn.ipynb", "is no notebook"), (here / "plain.ipynb", "no cell with the tag 'parameters'")):
        with pytest.raises(StudyError, match=said):
            matrix.read_sets(notebook, sets)
    with pytest.raises(StudyError, match="cannot read .*none.csv"):
        matrix.read_sets(book, here / "none.csv")
    for option, said in ((["--jobs", "0"], "at least 1"), (["--cell-seconds", "0"], "above 0")):
        assert cli.main(["papermill", str(book), str(sets), *option]) == 2 and said in capsys.readouterr().err


def test_sets_that_fail_stop_no_other_and_what_is_finished_is_not_run_again(book, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["papermill", str(book), "SETS", "--out", str(out), "--jobs", "2", "--cell-seconds", "20"]
    command[2] = str(parameters(book, "name,number\nfine,3\nbad,1\ndies,1\nfine,5\n"))
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "4 sets, 4 run now, 2 failed" in said.out and "name=bad, number=1: ValueError: this set <b>fails</b>" in said.err and "name=dies, number=1: the kernel died" in said.err
    rows = rows_of(out / "index.html")
    assert len(rows) == 4 and re.match(r"fine 3 ✓ finished \d+\.\d fine-3-", rows[0]) and "ValueError: this set &lt;b&gt;fails" in rows[1] and "kernel died" in rows[2]
    pages = re.findall(r'<a href="([\w.-]+\.html)">', (out / "index.html").read_text().partition("<tbody>")[2])
    assert len(set(pages)) == 4 and all((out / page).exists() for page in pages) and "the square of 5 is 25" in (out / pages[3]).read_text()
    assert "this set" in (out / pages[1]).read_text() and (out / "assets" / "style.css").exists() and len(list((out / "notebooks").iterdir())) == 4
    assert not list(out.rglob(".*.part"))

    command[2] = str(parameters(book, "name,number\nfine,5\nbad,1\nfine,3\n"))
    assert cli.main(command) == 1, "a failed set is tried again; rows may change places"
    assert sorted(ran(book)) == ["bad", "bad", "dies", "fine", "fine"] and "3 sets, 1 run now, 1 failed" in capsys.readouterr().out
    assert [row.split()[:2] for row in rows_of(out / "index.html")] == [["fine", "5"], ["bad", "1"], ["fine", "3"]]
    book.write_text(book.read_text().replace("the square of", "the SQUARE of"))
    command[2] = str(parameters(book, "name,number\nfine,3\n"))
    assert cli.main(command) == 0 and ran(book).count("fine") == 3 and "the SQUARE of 3 is 9" in (out / pages[0]).read_text(), "another notebook is another result"


def test_a_cell_that_never_ends_is_stopped_at_its_limit(book, tmp_path, capsys):
    out = tmp_path / "out"
    assert matrix.matrix(book, parameters(book, "name\nloops\n"), out, 1, cell_seconds=3) == 1
    assert "name=loops: the cell did not end within 3 s" in capsys.readouterr().err and "did not end within 3 s" in rows_of(out / "index.html")[0]


def test_stop_keeps_what_is_finished_and_leaves_no_kernel(book, tmp_path):
    sets, out = parameters(book, "name,number\nfine,3\nloops,1\nloops,2\n"), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "workbench", "papermill", str(book), str(sets), "--out", str(out), "--jobs", "1"], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 120
    while ran(book) != ["fine", "loops"]:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on where this stopped" in err and "Traceback" not in err
    rows = rows_of(out / "index.html")
    assert "✓ finished" in rows[0] and "not yet run" in rows[1] and "not yet run" in rows[2]
    kernel = int(book.with_name("ran").read_text().split()[-1])
    while Path(f"/proc/{kernel}").exists():
        assert time.monotonic() < end, "a kernel outlives the command"
        time.sleep(0.1)


def test_a_folder_that_cannot_be_written(book, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert cli.main(["papermill", str(book), str(parameters(book, "name\na\n")), "--out", str(tmp_path / "taken")]) == 1
    assert f"cannot write {tmp_path / 'taken'}" in capsys.readouterr().err and (tmp_path / "taken").read_text() == "mine" and ran(book) == []
