"""The races on public nets and against peers, as stored: frames, figures and sentences need neither data nor nets; damage is an error; points are
measured again."""

import json
from dataclasses import replace

import numpy as np
import pytest

from workbench.benches import public
from workbench.core import datasets
from workbench.core.study import StudyError
from workbench.papers.pruning import _public_race as racing
from workbench.papers.pruning import peers
from workbench.papers.pruning import public as results
from workbench.papers.pruning._public_points import Point, accuracy, paired, read, write
from workbench.papers.pruning.classics import L1


def answers(share: float, n: int = 200, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(np.uint8)


def race_file(path, **shares):
    """A race on one net at two ratios; ``shares``: kind_name → how often it is right."""
    points = [Point("net", name, kind, ratio, 1 - ratio, {"true": answers(share, seed=7)}) for label, share in shares.items()
              for kind, _, name in [label.partition("_")] for ratio in (0.1, 0.3)]
    write(path, {"nets": {"net": {"accuracy": {"true": 90.0}, "reestimated": {"true": 89.0}}}}, points)
    return points


def test_points_come_back_as_they_were(tmp_path):
    points = [Point("net", "l1", "classic", 0.5, 0.5031, {"true": answers(0.7), "jpeg": answers(0.4, 31)}),
              Point("net", "l2", "classic", 0.5, reason="cannot"),
              Point("net", "random", "control", 0.5, 0.5, {"true": 3 * answers(0.5), "jpeg": answers(0.5, 31)}, seeds=3, replica=1)]
    write(tmp_path / "race.json", {"environment": {"cpu": "x"}}, points)
    head, back = read(tmp_path / "race.json")
    assert head == {"environment": {"cpu": "x"}} and {p.key for p in back} == {p.key for p in points}
    for p in back:
        was = next(q for q in points if q.key == p.key)
        assert replace(p, right={}, macs_share=0) == replace(was, right={}, macs_share=0)
        assert all(np.array_equal(p.right[split], answers) for split, answers in was.right.items())
    assert read(tmp_path / "none.json") == ({}, [])


@pytest.mark.parametrize("damage", [lambda t: t[:-30], lambda t: t.replace('"format": 1', '"format": 9'),
                                    lambda t: t.replace('"macs_share"', '"macs"'),
                                    lambda t: t.replace('"uint8"', '"object"'), lambda t: t.replace('"seeds": 1', '"seeds": 0'),
                                     lambda t: t.replace("eNp", "AAA"), lambda t: "[]", lambda t: ""])
def test_a_damaged_text_is_an_error_that_names_it(tmp_path, damage):
    race_file(tmp_path / "race.json", classic_l1=0.5)
    text = (tmp_path / "race.json").read_text()
    assert damage(text) != text
    (tmp_path / "race.json").write_text(damage(text))
    for function in (results.public_frame, results.public_verdict, results.public_summary):
        with pytest.raises(StudyError, match="race.json is damaged"):
            function(tmp_path / "race.json")


def test_intervals():
    value, low, high = accuracy(np.ones(100))
    assert value == 100 and 97 < low < 98 and high == pytest.approx(100)
    assert accuracy(answers(0.5, 400))[2] - accuracy(answers(0.5, 400))[1] == pytest.approx(2 * 164.5 * 0.5 / 20, rel=0.02)
    same = paired(answers(0.5), answers(0.5))
    assert (same.value, same.low, same.high, results.verdict_of(same)) == (0, 0, 0, "tie")
    assert results.verdict_of(paired(answers(0.9), answers(0.5))) == "better" and results.verdict_of(paired(answers(0.1), answers(0.5))) == "worse"
    with pytest.raises(StudyError, match="cannot be compared in pairs"):
        paired(answers(0.5, 10), answers(0.5, 11))


@pytest.mark.parametrize("share, verdict, words", [(0.9, "better", "a paper beats the classics"), (0.6, "tie", "a tie"),
                                                   (0.2, "worse", "no paper beats the classics")])
def test_the_verdict_is_said_plainly(tmp_path, share, verdict, words):
    race_file(tmp_path / "race.json", classic_l1=0.5, classic_taylor=0.6, paper_new=share, survey_old=1.0, control_random=0.1)
    row, = results.public_verdict(tmp_path / "race.json").itertuples()
    assert (row.paper, row.classic, row.verdict, row.items) == ("new", "taylor", verdict, 200), "neither a survey nor a control is a paper"
    lines = results.public_summary(tmp_path / "race.json")
    assert words in lines[0] and f"on {int(share == 0.9)} of 1 public nets" in lines[-1]


def test_frame_and_figure(tmp_path):
    path = tmp_path / "race.json"
    race_file(path, classic_l1=0.5, paper_new=0.9)
    frame = results.public_frame(path)
    assert list(frame) == results.COLUMNS and len(frame) == 4 and (frame.low <= frame.accuracy).all() and (frame.accuracy <= frame.high).all()
    assert frame[frame.criterion == "l1"].gain.isna().all() and (frame[frame.criterion == "new"].verdict == "better").all()
    figure = results.public_figure("net", path=path)
    assert {trace.name for trace in figure.data} == {"l1", "new"} and all(len(trace.x) == 2 for trace in figure.data)
    for arguments, message in (({"net": "other"}, "nothing is stored of 'other'; there is net"), ({"net": "net", "split": "jpeg"}, "net has true")):
        with pytest.raises(StudyError, match=message):
            results.public_figure(path=path, **arguments)
    empty = tmp_path / "none.json"
    assert results.public_frame(empty).empty and "Nothing" in results.public_summary(empty)[0]


def test_peers_are_compared_on_the_same_items_and_over_replicas(tmp_path):
    race_file(tmp_path / "race.json", classic_l1=0.5, paper_new=0.9)
    folder = tmp_path / "peers"
    write(folder / "other.json", {"peer": "other",
                                  "speed": [{"net": "net", "ours_ms": 1.0, "peer_ms": 2.0, "ratio": 0.5, "low": 0.4, "high": 0.6, "whole_ms": 2.0, "search_ms": 9.0}],
                                  "kept": [{"net": "net", "equal": True}, {"net": "net", "equal": False}]},
          [Point("net", "its", "peer", ratio, 1 - ratio, {"true": answers(0.7, seed=7)}) for ratio in (0.1, 0.3)]
          + [Point("own", "its", "peer", 0.3, 0.7, {"test": answers(0.5 + 0.1 * r, 50, r)}, replica=r) for r in range(3)])
    write(folder / "house.json", {"peer": "house"},
          [Point("own", "l2", "classic", 0.3, 0.7, {"test": answers(0.9, 50, r)}, replica=r) for r in range(3)])
    write(folder / "gone.json", {"peer": "gone", "reason": "it prunes no filters"}, [])
    frame = peers.peers_frame(folder, tmp_path / "race.json")
    assert len(frame) == 5 and (frame[frame.net == "net"].house == "new").all() and (frame[frame.net == "net"].verdict == "better").all()
    table = peers.peers_verdict(folder, tmp_path / "race.json").set_index("net")
    assert table.units.to_dict() == {"net": "200 test items", "own": "3 replicas"} and (table.verdict == "better").all()
    assert peers.peers_speed(folder).ratio.tolist() == [0.5] and peers.peers_kept(folder).equal.sum() == 1
    text = "\n".join(peers.peers_summary(folder, tmp_path / "race.json"))
    for words in ("0.50× the CPU time of other", "1 of 2 cases", "gone: not raced: it prunes no filters", "on 1 of 1 public nets: net"):
        assert words in text
    assert peers.peers_summary(tmp_path / "nowhere", tmp_path / "race.json") == ["No peer has raced yet."]


def test_what_is_stored_is_complete_and_agrees_with_itself():
    head, points = read(results.PATH)
    assert set(head["nets"]) == set(head["data"]) == set(public.NETS) and head["environment"]["cpu"] and head["environment"]["torch"]
    for net in public.NETS:
        assert head["data"][net] == public.hashes(net), "the data are those of datasets.csv"
        for name in (*racing.CLASSICS, "random", "fscl"):
            assert {p.ratio for p in points if (p.net, p.criterion) == (net, name)} == set(racing.RATIOS_OF.get(net, racing.RATIOS)), (net, name)
    text = {(row["net"], row["criterion"], row["ratio"]): row for row in json.loads(results.PATH.read_text())["points"] if "accuracy" in row}
    frame = results.public_frame()
    for row in frame[frame.reason == ""].itertuples():
        shown = text[row.net, row.criterion, row.ratio]
        assert shown["accuracy"][row.split] == pytest.approx(row.accuracy, abs=0.006)
        assert abs(shown["macs_share"] - (1 - row.ratio)) < 0.02, "equal multiply-accumulates"
        assert row.criterion == "l1" or shown["gain"][row.split] == pytest.approx([row.gain, row.gain_low, row.gain_high], abs=0.006)
    assert len(results.public_summary()) == len(public.NETS) + 1
    assert all(results.public_figure(net).data for net in public.NETS)


def test_what_peers_stored_can_be_read():
    frame = peers.peers_frame()
    assert not frame.empty and frame.house.ne("").all()
    assert (frame.macs_share - (1 - frame.ratio)).max() < 0.03, "no peer has more multiply-accumulates than its budget"
    assert set(peers.peers_verdict().net) >= set(public.NETS) and len(peers.peers_speed()) >= 4 and peers.peers_kept().equal.any()


@pytest.mark.parametrize("net, ratio", [("tiny-dscnn", 0.3), ("tiny-mobilenet", 0.6)])
def test_a_stored_point_is_measured_again(net, ratio):
    if not public.here(net):
        pytest.skip(f"NO PUBLIC TIER for {net} (set WORKBENCH_MIRROR, or run `workbench data get`): the stored race was NOT measured again")
    course = replace(racing.public_course(net), ratios=(ratio,))
    now, = racing.points(course, "l1", "classic", L1())
    stored = next(p for p in read(results.PATH)[1] if p.key == now.key)
    assert now.macs_share == pytest.approx(stored.macs_share, abs=1e-4)
    for split in stored.right:
        flipped = int((now.right[split] != stored.right[split]).sum())
        assert flipped <= max(2, len(stored.right[split]) // 100), (split, flipped)


def test_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_MIRROR", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(results, "PATH", tmp_path / "race.json")
    monkeypatch.setattr(public, "_loaded", public._loaded.__wrapped__)
    assert results.main(["--net", "tiny-dscnn"]) == datasets.DataError.exit_code and "WORKBENCH_MIRROR" in capsys.readouterr().err
    assert results.main(["magic"]) == 2 and "no structured score magic; there are l1" in capsys.readouterr().err
    assert results.main(["--net", "other"]) == 2 and "no public net 'other'" in capsys.readouterr().err
    assert not (tmp_path / "race.json").exists()


def test_every_paper_with_a_structured_score_races():
    field = racing.contestants()
    assert field["fscl"][0] == "paper" and field["pruning-survey"][0] == "survey" and field["random"][0] == "control"
    assert {kind for kind, _ in field.values()} == {"paper", "survey", "control", "classic"}
    assert all(hasattr(method, "scores") for _, method in field.values())


def test_a_score_that_cannot_be_made_leaves_its_reason():
    class Refuses:
        def scores(self, groups, model, data=None):
            raise ValueError("criterion: not on this net")

    course = racing.own_course("vgg-small", 0, ratios=(0.3, 0.5))
    assert [p.reason for p in racing.points(course, "refuses", "paper", Refuses())] == ["criterion: not on this net"] * 2
    steep, = racing.points(replace(course, ratios=(0.999,)), "l1", "classic", L1())
    assert "cannot be removed" in steep.reason and np.isnan(steep.macs_share)
