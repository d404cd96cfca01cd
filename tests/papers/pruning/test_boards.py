"""Boards: who races, what a visitor may bring, that code edited in a cell is the code that runs, export, who is absent and why."""

from dataclasses import dataclass

import pandas as pd
import pytest

from workbench import board, not_raced, race, save_table
from workbench.api import study
from workbench.core import golden, registry
from workbench.core.study import StudyError
from workbench.lessons import lesson

BOARDS = ("vgg-small/macs", "vgg-small/bytes", "resnet20/macs", "vit-tiny/macs")


class Widest:
    """A score: filters whose weights vary most."""

    def scores(self, groups, model, data=None):
        return {g.name: sum(g.spread(p, p.weights().std(dim=1)) for p in g.producers) for g in groups}


class Deep:
    """An allocation: the later a layer, the more it loses."""

    def allocate(self, groups, model, data=None):
        return {g.name: i + 1 for i, g in enumerate(groups)}


class Late:
    """A schedule: nothing for half of the steps, then everything."""

    def schedule(self, step, steps, ratio):
        return ratio * (step >= steps / 2)


class Whole:
    """A whole method: half of every layer's channels, whatever was asked for."""

    def compress(self, model, ratio, data, example):
        from workbench.contracts.structure.surgery import channel_groups, remove

        return remove(model, {g.name: range(g.size // 2) for g in channel_groups(model, example)}, example)


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_found_by_its_track_and_has_stored_points(name):
    of = study(name)
    assert registry.find(name).kind == "board" and of.track.name == name == of.name
    assert golden.path_of(of).exists(), f"`workbench run {name} --golden` makes it"
    assert {p.point.contender for p in golden.points(of)} == set(of.field)
    frame = board(name, contenders=[n for n, c in of.contenders.items() if c.evidence != "recorded"])
    assert len(frame) >= 10 and {"better", "worse", "tie"} >= set(frame.verdict) - {"no common range of cost", "one replica"}


def test_every_paper_that_scores_channels_races_where_it_can():
    """Either it is on the board, or the board says why not."""
    of = study("vgg-small/macs")
    raced = {c.source for c in of.contenders.values()}
    for entry in registry.select("pruning"):
        if hasattr(entry.study().method, "scores"):
            assert entry.arxiv in raced or entry.arxiv in of.absent, f"{entry.name} scores channels"


@pytest.mark.parametrize("mine", [Widest, Deep, Whole, Late], ids=lambda thing: thing.__name__)
def test_a_visitor_brings_a_score_an_allocation_a_schedule_or_a_whole_method(mine):
    m = race("vgg-small/macs", mine=mine)
    rows = m.rows("mine", round_to=1)
    assert set(rows.replica) == {0, 1, 2} and rows.accuracy.between(0, 100).all()
    if mine in (Widest, Deep):
        assert (rows.macs_share - (1 - rows.macs_removed)).abs().max() < 0.06
    frame = board(m, against="mine", cost="macs_share", contenders=["mine", "L1", "random", "dense"])
    assert set(frame.contender) <= {"L1", "random", "dense"} and len(frame) >= 2


def test_weights_have_a_board_of_their_own():
    class Smallest:
        def saliency(self, model, data=None):
            from workbench.papers.pruning.classics import weights

            return {name: weight.detach().abs() for name, weight in weights(model).items()}

    m = race("vgg-small/bytes", mine=Smallest)
    mine, ours = m.rows("mine"), m.rows("magnitude")
    both = mine.merge(ours, on=["replica", "ratio"])
    assert len(both) and (both.accuracy_x - both.accuracy_y).abs().max() < 1e-9 and (both.bytes_x == both.bytes_y).all()


def test_the_code_as_it_stands_is_the_code_that_runs():
    """A class of the same name, edited, is measured anew."""
    seen = []
    for sign in (1, -1):
        @dataclass(frozen=True)
        class Edited:
            sign: int

            def scores(self, groups, model, data=None):
                return {g.name: self.sign * sum(g.spread(p, p.weights().norm(dim=1)) for p in g.producers) for g in groups}

        seen.append(race("vgg-small/macs", mine=Edited(sign)).rows("mine", round_to=1).accuracy.mean())
    assert seen[0] != seen[1]


def test_what_cannot_race_is_told_what_can():
    with pytest.raises(StudyError, match="none of scores, allocate, schedule and compress"):
        race("vgg-small/macs", mine=object())
    with pytest.raises(StudyError, match="none of saliency, scores, schedule and compress"):
        race("vgg-small/bytes", mine=3)
    with pytest.raises(StudyError, match="nothing to race"):
        race("vgg-small/macs")
    with pytest.raises(StudyError, match="races contenders only, not Widest"):
        race("fscl", mine=Widest())
    with pytest.raises(StudyError, match="no paper 'vgg/macs'; the nearest are"):
        race("vgg/macs", mine=Widest)

    class Wrong:
        def allocate(self, groups, model, data=None):
            return {"nowhere": 1}

    with pytest.raises(StudyError, match="one number from 0 on for each of features.0"):
        race("vgg-small/macs", mine=Wrong)


def test_tables_are_saved_whole(tmp_path):
    frame = pd.DataFrame({"contender": ["L1 & co", "FSCL"], "difference": [1.234, float("nan")]})
    save_table(frame, tmp_path / "a.csv")
    assert pd.read_csv(tmp_path / "a.csv").contender.tolist() == ["L1 & co", "FSCL"]
    save_table(frame, tmp_path / "a.tex")
    text = (tmp_path / "a.tex").read_text()
    assert r"L1 \& co" in text and "1.23" in text and r"\toprule" in text
    with pytest.raises(ValueError, match="must end in .csv or .tex, not '.xls'"):
        save_table(frame, tmp_path / "a.xls")


def test_absent_papers_have_a_reason():
    frame = not_raced("pruning", "vgg-small/macs")
    assert len(frame) and (frame.because.str.len() > 10).all() and "2304.13397" not in set(frame.arxiv)


@pytest.mark.parametrize("key", [e.arxiv for e in registry.catalogue() if e.kind == "classic" and e.family == "pruning"])
def test_every_classic_has_a_lesson_and_a_source(key):
    text = lesson(key)
    assert len(text.split()) >= 12 and any(str(year) in text for year in range(1989, 2024)), text
