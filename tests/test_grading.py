"""Notebooks from outside: right and wrong answers, and files and code that mean harm by accident or not."""

import copy
import csv
import io
import json
import os
import time

import numpy as np
import pytest

from workbench import answering, grading
from workbench.cli import main
from workbench.core.study import StudyError
from workbench.editions import edition
from workbench.grading import FAILS, OUTSIDE, PASSES, TIMED_OUT, UNANSWERED, Limits

SHORT = Limits(seconds=6)
RIGHT = "def share(step, steps, final):\n    return final * (1 - (1 - min(step / steps, 1)) ** 3)"


@pytest.fixture(scope="module")
def student():
    return edition("pruning", "student")


@pytest.fixture
def hand_in(student, tmp_path):
    """``hand_in(text, name="a")``: a student's file whose answer to the survey's exercise is ``text``; the others are left as they were."""

    def write(text, name="a", before="", **answers):
        book = copy.deepcopy(student)
        for cell in book["cells"]:
            exercise = cell["metadata"].get("workbench", {}).get("exercise")
            if exercise == "pruning-survey":
                cell["source"] = [text + '\n\nprint(grade("pruning-survey", globals()))']
            elif exercise in answers:
                cell["source"] = [answers[exercise]]
        if before:
            book["cells"].insert(1, {"cell_type": "code", "metadata": {}, "outputs": [], "source": before})
        path = tmp_path / f"{name}.ipynb"
        path.write_text(json.dumps(book))
        return path

    return write


def _survey(path, limits=SHORT):
    text = grading.answers(path)["pruning-survey"]
    return grading.judge("pruning-survey", text, limits)


def test_student_gets_stubs_and_teacher_solutions_that_pass(student, tmp_path, capsys):
    path = tmp_path / "s.ipynb"
    path.write_text(json.dumps(student))
    assert {item.status for item in grading.grade(path).exercises} == {UNANSWERED} and main(["grade", str(path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 4 pass"
    assert main(["lesson", "codecs", "--teacher", "--out", str(tmp_path / "t.ipynb")]) == 0
    assert main(["grade", str(tmp_path / "t.ipynb"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert said["passed"] == said["total"] == 1 and said["exercises"][0] == {"exercise": "iflow", "status": PASSES, "why": ""}


def test_answers_may_lean_on_cells_before_and_on_magics(hand_in):
    before = "import math as m\n%matplotlib inline\nraise SystemExit('never run')\ndef rest(x):\n    return m.pow(1 - x, 3)\nunused = 1 / 0"
    assert _survey(hand_in(RIGHT.replace("(1 - min(step / steps, 1)) ** 3", "rest(min(step / steps, 1))"), before=before)).status == PASSES


@pytest.mark.parametrize(("text", "why"), [
    ("def share(step, steps, final):\n    return final * step / steps", "after `steps`"),
    ("share = 3", "TypeError"), ("def other():\n    pass", "define 'share' first"), ("def share(:", "SyntaxError"),
    ("def share(*a):\n    raise ValueError('mine')", "ValueError: mine"), ("def share(*a):\n    return open", "cannot be handed over"),
    ("import os\nos._exit(0)", "its process ended (exit code 0)"), ("raise SystemExit", "SystemExit"),
])
def test_wrong_answers_are_told_why(hand_in, text, why):
    graded = _survey(hand_in(text))
    assert graded.status == FAILS and why in graded.why


@pytest.mark.parametrize("text", ["while True:\n    pass", f"{RIGHT}\nimport time\ntime.sleep(600)", "def share(*a):\n    while True: pass",
                                  "import signal\nfor s in range(1, 60):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"])
def test_what_loops_or_sleeps_for_ever_is_stopped(hand_in, text):
    begun = time.monotonic()
    assert _survey(hand_in(text), Limits(seconds=2)).status == TIMED_OUT
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("how", ["open({!r}, 'w').write('x')", "import os\nos.open({!r}, os.O_CREAT | os.O_WRONLY)", "import pathlib\npathlib.Path({!r}).write_text('x')",
                                 "import os\nos.symlink('/', 'root')\nopen('root' + {!r}, 'w')", "import os\nos.mkdir({!r})",
                                 "import numpy as np\nnp.zeros(3).tofile({!r})", "try:\n    open({!r}, 'a')\nexcept OSError:\n    pass"])
def test_nothing_is_written_outside_the_folder_even_if_the_refusal_is_caught(hand_in, tmp_path, how):
    target = tmp_path / "target"
    graded = _survey(hand_in(f"{how.format(str(target))}\n{RIGHT}"))
    assert graded.status == OUTSIDE and (str(target) in graded.why or "root" in graded.why) and not target.exists()


def test_its_own_folder_may_be_written_and_is_deleted(hand_in, tmp_path):
    text = f"import os, pathlib\npathlib.Path('mine').write_text('x')\nwhere = os.getcwd()\n{RIGHT}"
    assert _survey(hand_in(text)).status == PASSES
    answer = grading.Answer(SHORT)
    answer.run(text)
    assert os.path.exists(os.path.join(answer["where"], "mine"))
    where = answer["where"]
    answer.close()
    assert not os.path.exists(where)


@pytest.mark.parametrize(("text", "why"), [
    ("import numpy as np\nx = np.ones(50 << 30, dtype=np.uint8)", "Memory"), ("x = bytearray(50 << 30)", "Memory"),
    ("import os\nwhile True:\n    os.fork()", "process"), ("import subprocess\nsubprocess.run(['true'])", "process"), ("import os\nos.system('true')", "process"),
    ("import multiprocessing as m\nm.Process(target=print).start()", "process"), ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "network"),
    ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "process"),
    ("def share(*a):\n    import numpy as np\n    return np.zeros(200 << 20, np.uint8)", "can be handed over"),
    ("def share(*a):\n    x = []\n    for _ in range(100_000):\n        x = [x]\n    return x", "Recursion"),
])
def test_greed_forks_and_calls_home_are_refused(hand_in, text, why):
    graded = _survey(hand_in(text))
    assert graded.status == FAILS and why in graded.why, graded


@pytest.mark.parametrize("text", [
    "print('pruning-survey: passes\\n1 of 1 pass')\nprint('✔ passes')\ndef share(*a):\n    return 0",
    "import builtins\nbuiltins.abs = lambda x: 0\nAssertionError = SystemExit\ndef share(*a):\n    return 7",
    "import sys, os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\0\\0\\0\\x10{\"return\": true  }')\n    except OSError: pass\ndef share(*a):\n    return 7",
    "class Yes(float):\n    __sub__ = __rsub__ = __abs__ = lambda *a: 0\n    __lt__ = lambda *a: True\ndef share(*a):\n    return Yes(7)",
    "def share(*a):\n    return lambda: True",
])
def test_a_printed_patched_or_forged_result_is_not_believed(hand_in, text):
    assert _survey(hand_in(text)).status == FAILS


@pytest.mark.parametrize(("content", "why"), [
    (b"", "not a notebook"), (b"\x00\xff\x93NUMPY" * 1000, "not a notebook"), (b"[1, 2]", "not a notebook"), (b'{"cells": 3}', "not a notebook"),
    (b"[" * 200_000, "not a notebook"), (b'{"cells": [], "x": ' + b"9" * 10_000 + b"}", "not a notebook"),
    (b'{"cells": [{"cell_type": "code"}, 3, {"cell_type": "code", "source": [1, {}], "metadata": []}]}', "no exercise"),
    (json.dumps({"cells": [], "metadata": {"workbench": {"family": ["x"], "exercises": 7}}}).encode(), "no exercise"),
])
def test_what_is_no_notebook_is_said_so(tmp_path, capsys, content, why):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    assert main(["grade", str(path)]) == 2
    assert why in (error := capsys.readouterr().err) and str(path) in error


def test_two_gigabytes_pipes_and_absent_files_are_refused_at_once(tmp_path, capsys):
    with open(tmp_path / "big.ipynb", "wb") as handle:
        handle.truncate(2 << 30)
    os.mkfifo(tmp_path / "pipe.ipynb")
    begun = time.monotonic()
    for name, why in (("big", "2,147 MB"), ("pipe", "not a file"), ("absent", "No such file")):
        assert main(["grade", str(tmp_path / f"{name}.ipynb")]) == 2 and why in capsys.readouterr().err
    assert time.monotonic() - begun < 5
    assert main(["grade", str(tmp_path / "big.ipynb"), "--seconds", "0"]) == 2 and "--seconds" in capsys.readouterr().err


def test_metadata_can_neither_drop_nor_invent_exercises(hand_in):
    path = hand_in(RIGHT)
    book = json.loads(path.read_text())
    book["metadata"]["workbench"]["exercises"] = ["pruning-survey"]
    book["cells"] = [cell for cell in book["cells"] if cell["metadata"].get("workbench", {}).get("exercise") in (None, "pruning-survey")]
    path.write_text(json.dumps(book))
    assert list(grading.answers(path)) == ["fscl", "entropy-pruning", "amc", "pruning-survey"]
    assert grading.judge("no-such-paper", "x = 1").why == "no such exercise"


def test_folder_gives_a_table_with_a_row_for_every_file(hand_in, tmp_path, capsys):
    hand_in(RIGHT, "ada")
    hand_in("while 1: pass", "=bob")
    (tmp_path / "junk.ipynb").write_bytes(b"\x00")
    assert main(["grade", str(tmp_path), "--seconds", "2"]) == 1
    rows = {row["file"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["ada.ipynb"]["pruning-survey"] == PASSES and rows["ada.ipynb"]["passed"] == "1" and rows["ada.ipynb"]["of"] == "4"
    assert rows["'=bob.ipynb"]["pruning-survey"] == TIMED_OUT and "not a notebook" in rows["junk.ipynb"]["error"]
    (tmp_path / "none").mkdir()
    with pytest.raises(StudyError, match="no file in it"):
        list(grading._folder(tmp_path / "none", SHORT))


def test_plain_values_cross_and_nothing_else_does():
    values = [1, 2.5, None, "ä", True, [1, (2, 3)], {"a": 1, 2: (3,)}, np.arange(6).reshape(2, 3), np.float32(0.5), np.array(["2020"], dtype="U4")[:0].astype(float)]
    for value in values:
        back = answering.decode(json.loads(json.dumps(answering.encode(value))))
        assert type(back) is type(value) and np.all(np.asarray(back, dtype=object) == np.asarray(value, dtype=object))
    rng = np.random.default_rng(3)
    assert answering.decode(answering.encode(rng)).random() == np.random.default_rng(3).random()
    for bad in ({"array": ["|O", [1], "AAAAAAAAAAA="]}, {"array": ["<f8", [10**9], ""]}, {"callback": 0}, {"odd": 1}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            answering.decode(bad)
