"""Papers by name: boards with ties, the ledger, graded answers, methods for things of one's own."""

import numpy as np
import pytest
import toy

import workbench
from workbench import api, lessons
from workbench.core.study import Contender, StudyError


@pytest.fixture(scope="module")
def m():
    return toy.measurements()


def test_the_board_ranks_at_equal_cost_and_calls_ties_ties(m):
    rows = api.board(m).set_index("contender")
    assert list(rows.index) == ["oracle", "untouched", "Plain", "Steep"]
    # 10 … 100 units of cost, on average .45 removed: 20·.45 + .25 for the second seed − .1·0 against 60·.45
    assert rows["quality against Ours"]["Steep"] == pytest.approx(-(40 * .45 + .25))
    assert list(rows.verdict[["oracle", "Plain", "Steep"]]) == ["better", "worse", "worse"]
    assert "no slope" not in rows.index, "ablations do not race"
    assert "Ours" in set(api.board(m, against="Plain").contender)
    assert list(api.board(m, contenders=["Ours", "Plain"]).contender) == ["Plain"]


def test_a_board_of_equals_is_a_tie():
    twin = toy.study(contenders={**toy.study().contenders, "Noisy": Contender(
        lambda removed, replica: toy.SimpleNamespace(cost=100 * (1 - removed), quality=90 - 20 * removed + 3 * (replica - 1), exhibits={}))})
    rows = api.board(toy.measurements(twin)).set_index("contender")
    assert rows.verdict["Noisy"] == "tie" and rows.low["Noisy"] < 0 < rows.high["Noisy"]


def test_answers_are_graded():
    assert lessons.grade("fscl", api.study("fscl").exercise.solution) == "✔ passes"
    assert lessons.grade("fscl", api.study("fscl").exercise.stub).startswith("✘ channel 2 is read by nobody")
    assert lessons.grade("fscl", "x = 1") == "✘ define 'consecutive_similarity' first"
    assert lessons.grade("fscl", "def consecutive_similarity(").startswith("✘ SyntaxError")


def test_every_other_paper_of_the_family_has_a_reason():
    rows = api.not_raced("pruning", api.study("fscl").track.name).set_index("arxiv")
    raced = {c.source for c in api.study(api.study("fscl").track.name).contenders.values()} - {""}
    papers = set(api.papers("pruning").arxiv[lambda ids: ids.str.match(r"\d{4}\.\d+$")])
    assert "2304.13397" in raced and set(rows.index) == papers - raced
    assert (rows.because.str.len() > 10).all()


def test_the_ledger_has_failures_first():
    rows = api.ledger("fscl")
    assert len(rows) == len(api.study("fscl").claims)
    order = ["not reproduced", "undecided", "needs hardware", "holds"]
    assert list(rows.status) == sorted(rows.status, key=order.index)


def test_sections_print_outside_a_notebook(capsys):
    workbench.show("fscl", "exercise", "code", "parts")
    text = capsys.readouterr().out
    assert "consecutive_similarity" in text and "class FSCL" in text and "loop = factored" in text
    with pytest.raises(ValueError, match="no section 'poem'; there are lesson"):
        workbench.show("fscl", "poem")


def test_a_race_needs_a_free_name_and_workers(m, monkeypatch):
    monkeypatch.setenv("WORKBENCH_JOBS", "0")
    with pytest.raises(StudyError, match="WORKBENCH_JOBS is 0"):
        api.race(m, mine=Contender(toy.cut(1)))


def test_codecs_by_name_give_the_data_back():
    data = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert np.array_equal(workbench.decode(workbench.encode(data, "iflow")), data)
    assert workbench.decode(workbench.encode(b"some bytes")) == b"some bytes"
    with pytest.raises(StudyError, match="no paper 'iflo'; the nearest are iflow"):
        workbench.encode(data, "iflo")


@pytest.mark.parametrize(("method", "says"), [("iflow", "iflow: it compresses another kind of thing: compress"), ("speech-separator", "neither `scores` nor `compress`"),
                                              (object(), "method: object is no method")])
def test_what_does_not_compress_networks_says_so(method, says):
    import torch

    from workbench import compress

    with pytest.raises(StudyError, match=says):
        compress(torch.nn.Linear(2, 2), method, 0.5, example=torch.zeros(1, 2), probe=None)
