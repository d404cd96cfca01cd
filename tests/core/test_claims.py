"""Claims: the three verdicts, pairing, equal cost, and what may count as breaking a claim."""

from types import SimpleNamespace

import numpy as np
import pytest

from workbench.core.claims import (
    HOLDS,
    NEEDS_HARDWARE,
    NOT_REPRODUCED,
    UNDECIDED,
    Estimate,
    better,
    better_per_item,
    bound,
    estimate,
    judge,
    ledger,
    monotone,
    run_checks,
)
from workbench.core.measurements import Measurements, Stored
from workbench.core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Metric, Outcome, Part, Result, Study, StudyError, Track

METRICS = {"cost": Metric("cost", False), "quality": Metric("quality"), "loss": Metric("loss", False)}


def study(contenders=("ours", "theirs"), knobs=(), ablations=("none", "other"), **changes):
    """A study of which only names matter; its points are given to `measured`."""
    def make(a=0, b=0, replica=0, seed=0):
        raise AssertionError("nothing is measured here")

    roles = {"ours": "paper", "oracle": "bound", "dense": "control"}
    parts = {"paper": "0000.00001", "name": "paper", "track": Track("t/cost", "cost", "quality", METRICS, lambda thing: None, lambda: ""),
             "knobs": knobs,
             "contenders": contenders if isinstance(contenders, dict) else {n: Contender(make, roles.get(n, "rival"), subject=n) for n in contenders},
             "ablations": {name: Ablation("1", Contender(make, subject=name)) for name in ablations}, "checks": (), "claims": (),
             "parts": {}, "picture": None, "exercise": Exercise("", "", (), lambda names: None, "")}
    return Study(**{**parts, **changes})


def measured(of, table):
    """``table``: (contender, knobs, replica, seed) → metrics."""
    from workbench.core.study import Point

    return Measurements(of, tuple(Stored(Point(name, tuple(sorted(knobs.items())), replica, seed), f"k{i}", Result(metrics))
                                  for i, (name, knobs, replica, seed, metrics) in enumerate(table)))


@pytest.mark.parametrize(("low", "high", "margin", "at_least", "status"), [
    (1, 3, 0.5, True, HOLDS), (1, 3, 1, True, HOLDS), (1, 3, 2, True, UNDECIDED), (1, 3, 3, True, UNDECIDED), (1, 3, 3.1, True, NOT_REPRODUCED),
    (1, 3, 3.5, False, HOLDS), (1, 3, 2, False, UNDECIDED), (1, 3, 0.9, False, NOT_REPRODUCED), (np.nan, 3, 0, True, UNDECIDED), (-np.inf, 3, 0, True, UNDECIDED)])
def test_status(low, high, margin, at_least, status):
    assert Estimate((low + high) / 2, low, high, margin, at_least).status == status


def test_interval_is_students():
    found = estimate([1.0, 2.0, 3.0], 0)
    half = 2.9199856 * 1 / np.sqrt(3)  # t(0.95; 2 degrees of freedom), standard deviation 1
    assert found.value == 2 and np.isclose([found.low, found.high], [2 - half, 2 + half]).all() and found.units == 3
    assert estimate([], 0).status == UNDECIDED and estimate([4.0], 4).status == HOLDS and estimate([1.0, np.nan], 0).status == UNDECIDED


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [e.low <= 0 <= e.high for e in (estimate(rng.standard_normal(5), 0) for _ in range(2000))]
    assert 0.88 < np.mean(inside) < 0.92


def test_pairs_over_replicas_and_knows_the_direction():
    of = study()
    table = [("ours", {}, r, 0, {"cost": 1, "quality": 50 + 10 * r, "loss": 1}) for r in range(3)]
    table += [("theirs", {}, r, 0, {"cost": 1, "quality": 48 + 10 * r, "loss": 3}) for r in range(4)]
    m = measured(of, table)
    quality, loss = better("quality", "theirs", by=2)(m), better("loss", "theirs", by=1)(m)
    assert quality.units == 3 and quality.value == quality.low == quality.high == 2 and quality.status == HOLDS, "replicas differ by 10, pairs by nothing"
    assert loss.value == 2 and loss.status == HOLDS, "less loss is better"


def test_equal_cost_not_equal_knob():
    of = study(knobs=(Knob("a", (0, 1, 2, 3), 0),))
    table = []
    for a in range(4):  # theirs is as good at equal cost, but costs one unit more at an equal knob
        table += [("ours", {"a": a}, r, 0, {"cost": 10 - a, "quality": 5 * (10 - a)}) for r in range(3)]
        table += [("theirs", {"a": a}, r, 0, {"cost": 11 - a, "quality": 5 * (11 - a)}) for r in range(3)]
    m = measured(of, table)
    assert better("quality", "theirs")(m).value == -5
    assert np.isclose(better("quality", "theirs", at_equal="cost")(m).value, 0)
    assert np.isclose(better("quality", "theirs", at_equal="cost", over=(8.2, 9.4))(m).value, 0)
    nowhere = better("quality", "theirs", at_equal="cost", over=(20, 30))(m)
    assert nowhere.units == 0 and nowhere.status == UNDECIDED, "outside the measured range there is nothing to say"


def test_curves_of_several_seeds_are_averaged_within_a_replica():
    of = study(knobs=(Knob("a", (0, 1), 0),))
    table = [("ours", {"a": a}, r, s, {"cost": 2 - a, "quality": 10 + s}) for a in range(2) for r in range(3) for s in range(2)]
    table += [("theirs", {"a": a}, r, 0, {"cost": 2 - a, "quality": 10}) for a in range(2) for r in range(3)]
    found = better("quality", "theirs", at_equal="cost")(measured(of, table))
    assert np.isclose(found.value, 0.5) and found.units == 3


def test_what_diverged_leaves_a_claim_undecided():
    of = study()
    table = [(name, {}, r, 0, {"cost": 1, "quality": 50.0}) for name in ("ours", "theirs") for r in range(3)]
    table[1] = ("ours", {}, 1, 0, {"cost": 1, "quality": np.nan})
    assert better("quality", "theirs", by=-1)(measured(of, table)).status == UNDECIDED
    assert judge(of, Claim("c", "", better("quality", "theirs", by=-1)), measured(of, table)).interval is None


def test_bound_and_ratio():
    of = study()
    m = measured(of, [(name, {}, r, 0, {"cost": 2.0 if name == "ours" else 8.0, "quality": 1}) for name in ("ours", "theirs") for r in range(3)])
    assert bound("cost", at_most=2)(m).status == HOLDS and bound("cost", at_most=1.9)(m).status == NOT_REPRODUCED
    assert bound("cost", at_most=0.25, relative_to="theirs")(m).status == HOLDS
    assert bound("cost", at_least=8, of="theirs")(m).status == HOLDS
    for wrong in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(StudyError, match="one of"):
            bound("cost", **wrong)


def test_monotone_holds_other_knobs_at_their_defaults():
    of = study(knobs=(Knob("a", (0, 1, 2), 0), Knob("b", (0, 1, 2), 0)))
    table = [("ours", {"a": a, "b": 0}, r, 0, {"cost": 1, "quality": 10 - a}) for a in range(3) for r in range(3)]
    table += [("ours", {"a": 0, "b": b}, r, 0, {"cost": 1, "quality": 10 + b}) for b in (1, 2) for r in range(3)]
    m = measured(of, table)
    assert monotone("quality", "a", rising=False)(m).value == 1 and monotone("quality", "b")(m).value == 1
    assert monotone("cost", "a")(m).status == NOT_REPRODUCED, "what does not move has no trend"


def test_per_item():
    from workbench.core.study import Point

    of = study()
    values = {"ours": np.array([1, 1, 1, 0]), "theirs": np.array([0, 1, 0, 0])}
    m = Measurements(of, tuple(Stored(Point(name, ()), name, Result({"cost": 1, "quality": 1}, {"right": v})) for name, v in values.items()))
    found = better_per_item("right", "theirs")(m)
    assert found.units == 4 and found.value == 0.5 and found.unit == "items"
    assert better_per_item("right", "theirs", more_is_better=False)(m).value == -0.5


def ranked(**quality):
    of = study(("ours", "theirs", "oracle", "dense"), claims=())
    return of, measured(of, [(name, {}, r, 0, {"cost": 1, "quality": value + r}) for name, value in quality.items() for r in range(3)])


def test_what_breaks_a_claim():
    of, m = ranked(ours=50, theirs=40, dense=45, oracle=60, none=50, other=30)
    verdict = judge(of, Claim("c", "beats theirs by 5", better("quality", "theirs", by=5)), m)
    assert verdict.status == HOLDS and verdict.kind == "comparative"
    assert verdict.broken_by == ("other",), "neither the rival that it names, nor an oracle, nor an ablation without effect, nor a control that passes"
    assert judge(of, Claim("c", "", bound("quality", at_least=48)), m).broken_by == ("theirs", "dense", "other")
    assert judge(of, Claim("c", "", better("quality", "theirs", by=30)), m).broken_by == (), "a claim that does not hold cannot be broken"


def test_a_claim_about_another_contender_is_broken_in_its_place():
    of, m = ranked(ours=50, theirs=52, dense=40, none=60, other=30)
    verdict = judge(of, Claim("c", "theirs beats the dense net", better("quality", "dense", by=5, of="theirs")), m)
    assert verdict.status == HOLDS and verdict.measured == 12 and verdict.broken_by == ("other",)


def test_an_ablation_that_was_not_measured_breaks_nothing():
    of, m = ranked(ours=50, theirs=40, other=30)
    assert judge(of, Claim("c", "", bound("quality", at_least=45)), m).broken_by == ("theirs", "other")


def test_judging_goes_on_when_one_claim_cannot_be_judged():
    def wrong(m):
        raise ZeroDivisionError("by nothing")

    of, m = ranked(ours=50, theirs=40)
    for claim, note in ((Claim("c", "", wrong), "ZeroDivisionError"), (Claim("c", "", better("quality", "nobody")), "no contender 'nobody'"),
                        (Claim("c", "", better("speed", "theirs")), "no metric 'speed'"), (Claim("c", "", better("quality", "dense")), "nothing to compare")):
        verdict = judge(of, claim, m)
        assert verdict.status == UNDECIDED and note in verdict.note and verdict.measured is None
    assert judge(of, Claim("c", "", None, needs="an FPGA"), m).status == NEEDS_HARDWARE


def test_the_weakest_evidence_counts():
    of, m = ranked(ours=50, theirs=40)
    for name, evidence in (("theirs", "recorded"), ("ours", "checkpoint")):
        object.__setattr__(of.contenders[name], "evidence", evidence)
    assert judge(of, Claim("c", "", better("quality", "theirs")), m).evidence == "recorded"
    assert judge(of, Claim("c", "", bound("quality", at_least=1)), m).evidence == "checkpoint"


def test_checks_are_broken_by_stand_ins_and_red_with_a_reason():
    def like_ours(subject):
        if subject == "other":
            raise RuntimeError("cannot run")
        return Outcome(subject in ("ours", "theirs"), subject, "ours")

    of = study(checks=(Check("c", "", like_ours),))
    verdict, = run_checks(of)
    assert verdict.status == "green" and verdict.broken_by == ("none", "other")
    red, = run_checks(study(checks=(Check("c", "", lambda subject: SimpleNamespace().missing),)))
    assert red.status == "red" and "AttributeError" in red.measured


def test_the_ledger_puts_failures_first():
    of, m = ranked(ours=50, theirs=40)
    object.__setattr__(of, "claims", (Claim("good", "", bound("quality", at_least=1)), Claim("bad", "", bound("quality", at_least=99), reason="too much"),
                                      Claim("open", "", bound("quality", at_least=51)), Claim("chip", "", None, needs="an FPGA")))
    object.__setattr__(of, "checks", (Check("green", "", lambda s: Outcome(True, 1, 1)), Check("red", "", lambda s: Outcome(False, 0, 1))))
    assert [v.name for v in ledger(of, m)] == ["red", "bad", "open", "chip", "good", "green"]
    assert ledger(of, m)[1].note == "too much"


@pytest.mark.parametrize(("changes", "message"), [
    ({"contenders": {"theirs": Contender(lambda: 1)}}, "role 'paper'"),
    ({"ablations": ("one",), "claims": (Claim("c", "", None, needs="a chip"),)}, "at least two"),
    ({"checks": (Check("c", "", None), Check("c", "", None))}, "share a name"), ({"parts": {"1": Part(len, "nothing")}}, "unknown proof"),
    ({"contenders": {"ours": Contender(lambda speed: 1, "paper")}}, r"make\(\) needs speed")])
def test_a_wrong_study_says_so_at_once(changes, message):
    if "ablations" in changes:
        changes = changes | {"ablations": {name: Ablation("1") for name in changes["ablations"]}}
    with pytest.raises(StudyError, match=message):
        study(**changes)


def test_wrong_knobs_tracks_and_roles_say_so():
    with pytest.raises(StudyError, match="not in its grid"):
        Knob("a", (0, 1), 0.5)
    with pytest.raises(StudyError, match="not in its metrics"):
        Track("t", "price", "quality", METRICS, len, str)
    with pytest.raises(StudyError, match="role must be one of"):
        Contender(len, "hero")
