"""Reports that go wrong: each fault is told, the other pages are made, and what was there before stays whole."""

import os
import re
import signal
import time

import pytest
import report_tree

from workbench.views.reports import notebooks, render

PAPER = f"{report_tree.PAPER}.html"


@pytest.fixture
def tree(tmp_path):
    return report_tree.make(tmp_path)


def _run(tmp_path, *cells, **limits):
    (tmp_path / "notebooks").mkdir(exist_ok=True)
    return notebooks.execute(report_tree.notebook(tmp_path, "n", *cells), **limits)


def _texts(nb):
    return [[output.get("text", output.get("evalue", "")) for output in cell.outputs] for cell in nb.cells]


# --- one notebook ------------------------------------------------------------------------------------------------------------------------


def test_cell_that_never_ends_is_stopped_at_its_limit(tmp_path):
    begin = time.monotonic()
    executed = _run(tmp_path, "print('before')", "while True: pass", "print('after')", cell_seconds=2)
    assert "did not end within 2 s" in executed.error and time.monotonic() - begin < 60
    assert _texts(executed.nb) == [["before\n"], [executed.error], []]


def test_dead_kernel_is_told_within_five_seconds(tmp_path):
    stamp = tmp_path / "died"
    executed = _run(tmp_path, "print('before')", f"import os, time; open({str(stamp)!r}, 'w').write(str(time.time())); os._exit(3)", "print('after')")
    assert time.time() - float(stamp.read_text()) < 5
    assert "the kernel died" in executed.error and _texts(executed.nb) == [["before\n"], [executed.error], []]


def test_exception_keeps_its_traceback(tmp_path):
    executed = _run(tmp_path, "def f():\n    raise ValueError('this one')\nf()", "print('after')")
    assert executed.error == "ValueError: this one"
    assert "raise ValueError('this one')" in render.traceback_of(executed.nb.cells[0].outputs[0]) and _texts(executed.nb)[1] == []


def test_kernel_that_cannot_start_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "ipykernel_launcher.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "notebooks"))
    executed = _run(tmp_path, "1", start_seconds=2)
    assert executed.error, "a kernel that only sleeps has not started"
    assert re.search("did not start within 2 s|kernel died", executed.error)


def test_file_that_is_no_notebook_is_refused(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{not json")
    with pytest.raises(ValueError):
        notebooks.execute(tmp_path / "broken.ipynb")


def test_kernel_opens_no_port_and_knows_that_nobody_slides(tmp_path):
    executed = _run(tmp_path, "import os, pathlib\nfrom ipykernel.kernelapp import IPKernelApp\napp = IPKernelApp.instance()\n"
                              "print(app.transport, os.environ['WORKBENCH_STATIC'], pathlib.Path.cwd().name)")
    assert executed.error == "" and _texts(executed.nb) == [["ipc 1 notebooks\n"]]


# --- a whole report ------------------------------------------------------------------------------------------------------------------------


def test_bad_notebooks_have_pages_that_say_so_and_the_others_are_made(tree):
    report_tree.notebook(tree, "raises", "# A notebook that raises", "1 / 0", "print('never')")
    report_tree.notebook(tree, "fine", "# A notebook that runs", "print('all', 'well')")
    (tree / "notebooks" / "torn.ipynb").write_text("{torn")
    result = report_tree.report(tree)
    assert result.returncode == 1
    assert "raises.html: ZeroDivisionError: division by zero" in result.stderr and "torn.html" in result.stderr and "fine.html" not in result.stderr
    out = tree / "reports"
    page = (out / "raises.html").read_text()
    assert "stopped with an error" in page and "ZeroDivisionError" in page and "Traceback" in page
    assert "could not be made" in (out / "torn.html").read_text()
    assert "all well" in (out / "fine.html").read_text() and (out / "papers" / PAPER).exists() and (out / "index.html").exists()


def test_paper_that_raises_or_dies_has_a_page_that_says_so(tree):
    source = tree / "workbench" / "papers" / "pruning" / "toy_paper.py"
    text = source.read_text()
    source.write_text(text.replace("    kept = exhibits[\"kept\"]\n", "    raise KeyError('no such exhibit')\n"))
    result = report_tree.report(tree)
    assert result.returncode == 1 and "no such exhibit" in result.stderr
    page = (tree / "reports" / "papers" / PAPER).read_text()
    assert "could not be made" in page and "no such exhibit" in page
    source.write_text(text.replace("    kept = exhibits[\"kept\"]\n", "    import os\n    os._exit(9)\n"))
    result = report_tree.report(tree)
    assert result.returncode == 1 and PAPER in result.stderr and (tree / "reports" / "index.html").exists()


@pytest.mark.parametrize("obstacle", ["a file where the folder should be", "a folder that cannot be made"])
def test_folder_that_cannot_be_written(tree, obstacle):
    out = tree / "taken"
    out.write_text("mine")
    result = report_tree.report(tree, out=str(out if obstacle.startswith("a file") else out / "below"))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"cannot write {out}" in result.stderr and "--out" in result.stderr and out.read_text() == "mine"


FULL = """
import errno, os
from workbench.core import measurements
def full(handle, sync=os.fsync):
    if os.environ.get("TOY_FULL") in os.readlink(f"/proc/self/fd/{handle}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sync(handle)
os.fsync = full
"""


def test_full_disk_keeps_what_was_there(tree, monkeypatch):
    report_tree.notebook(tree, "fine", "# First title", "1")
    assert report_tree.report(tree).returncode == 0
    out = tree / "reports"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    report_tree.notebook(tree, "fine", "# Second title", "1")
    monkeypatch.setenv("TOY_FULL", "fine.")
    result = report_tree.report(tree, before=FULL)
    assert result.returncode == 1 and "No space left on device" in result.stderr and "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before, "a page changed, or half a file stayed"
    assert report_tree.report(tree).returncode == 0 and "Second title" in (out / "fine.html").read_text()


def _whole(path):
    text = path.read_text()
    return text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")


def test_killed_report_leaves_whole_pages_and_the_next_one_finishes(tree):
    for i in range(3):
        report_tree.notebook(tree, f"n{i}", f"# Old {i}", "1")
    assert report_tree.report(tree).returncode == 0
    out = tree / "reports"
    for i in range(3):
        report_tree.notebook(tree, f"n{i}", f"# New {i}", "1" if i == 0 else "import time; time.sleep(5)")
    process = report_tree.start(tree)
    deadline = time.monotonic() + 120
    while "New 0" not in (out / "n0.html").read_text() and time.monotonic() < deadline:
        time.sleep(.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pages = sorted(out.rglob("*.html"))
    assert len(pages) == 6 and all(map(_whole, pages))
    assert "New 0" in (out / "n0.html").read_text() and "Old 2" in (out / "n2.html").read_text()
    (out / f".n2.html.{os.getpid()}.part").write_text("half a pa")
    again = report_tree.report(tree)
    assert again.returncode == 0, again.stderr
    assert "New 2" in (out / "n2.html").read_text() and not list(out.rglob(".*.part"))
