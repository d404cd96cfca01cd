"""ASCAI beyond what the common matrix tests: the user's own model and entries, resuming, files, and wrong input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import workbench
from workbench.benches import vision
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.structure.surgery import macs, parameters
from workbench.papers.pruning import ascai as module
from workbench.papers.pruning._amc_environment import error_rate as real
from workbench.papers.pruning._ascai_factors import Factored, factor, is_factorable, ranks_of
from workbench.papers.pruning._ascai_search import Samples, random_search, rule, sensitivity_box
from workbench.papers.pruning._ascai_space import METHODS, Space, load
from workbench.papers.pruning.ascai import ASCAI, Param, ascai

QUICK = ASCAI(population=6, iterations=3, bearable=30, max_drop=40, loose=60)


@pytest.fixture(scope="module")
def toy():
    """A small net that has learnt a little, and labelled batches of its own answers."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 1),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4)).eval()
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return net, [(part, net(part).argmax(1)) for part in images.split(32)]


@pytest.fixture(scope="module")
def found(toy):
    return ascai(*toy, method=QUICK)


def test_search_exports_what_it_judged(toy, found):
    net, _ = toy
    assert len(found.samples.cost) == 18 and len(found.pareto) >= 1 and list(found.pareto.columns[:3]) == ["sample", "cost", "accuracy"]
    row = int(found.pareto["sample"].iloc[-1])
    made = found.realise(row)
    assert len(made.packed()) / found.space.total["bytes"] == pytest.approx(found.samples.cost[row], abs=0.02)
    assert parameters(made.model) < parameters(net)
    assert found.samples.accuracy[found.best] >= found.samples.dense - 0.4


def test_a_stopped_search_goes_on(toy, found, tmp_path, monkeypatch):
    size = found.save(tmp_path / "search.wb")
    assert size == (tmp_path / "search.wb").stat().st_size
    judged = []
    monkeypatch.setattr("workbench.papers.pruning._ascai_result.error_rate", lambda *a: judged.append(1) or real(*a))
    again = ascai(*toy, method=QUICK, resume=tmp_path / "search.wb")
    assert np.array_equal(np.array(again.samples.thetas), np.array(found.samples.thetas)) and again.samples.accuracy == found.samples.accuracy
    assert len(judged) == 1, "only the dense network was judged again"
    longer = ascai(*toy, method=QUICK, iters=4, resume=tmp_path / "search.wb")
    assert len(longer.samples.cost) == 24
    with pytest.raises(ValueError, match="resume"):
        ascai(*toy, methods=("filters",), method=QUICK, resume=tmp_path / "search.wb")
    (tmp_path / "search.wb").write_bytes(b"nothing")
    with pytest.raises(ArtifactError):
        ascai(*toy, method=QUICK, resume=tmp_path / "search.wb")


def test_the_file_brings_every_form_back(toy, tmp_path):
    net, batches = toy
    rng, images = np.random.default_rng(0), batches[0][0]
    for methods in (*((m,) for m in METHODS), METHODS):
        space = Space(net, methods, images[:1])
        made = space.decode(rng.uniform(0.2, 0.7, len(space.params)))
        assert made.save(tmp_path / "net") == (tmp_path / "net").stat().st_size
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "net", net)(images), made.model(images)), methods
    with pytest.raises(ArtifactError, match="not one made of this model"):
        load(tmp_path / "net", vision.dense("vgg-small"))
    data = (tmp_path / "net").read_bytes()
    (tmp_path / "net").write_bytes(data[:-9])
    with pytest.raises(ArtifactError, match="truncated"):
        load(tmp_path / "net", net)


def test_entries_of_your_own(toy):
    net, batches = toy

    def shrink(model, value):
        with torch.no_grad():
            model[9].weight.mul_(1 - value)

    result = ascai(net, batches, methods=(), space=[Param("9", "scale", 0.0, 0.5, apply=shrink)], method=QUICK)
    assert [p.high for p in result.space.params] == [0.5]
    made = result.space.decode([0.5])
    assert torch.allclose(made.model[9].weight, net[9].weight / 2) and torch.equal(result.space.decode([0.0]).model[9].weight, net[9].weight)


def test_the_contract_finds_it():
    method = replace(module.STUDY.method, population=4, iterations=2, methods=("filters", "weights"), seed=1)
    small = workbench.compress(vision.dense("vgg-small"), method, ratio=0.3, data=vision.labelled(32))
    assert small.report.macs[1] < small.report.macs[0]


def test_residual_and_depthwise_nets(tmp_path):
    for net in ("resnet20", "mobilenet"):
        model, x = vision.dense(net), vision.calibration()[:2]
        space = Space(model, METHODS, vision.EXAMPLE)
        assert all(p.kind == "weights" or is_factorable(model.get_submodule(p.layer)) or p.kind == "filters" for p in space.params)
        made = space.decode(np.full(len(space.params), 0.4))
        assert np.array_equal(space.decode(made.theta).theta, made.theta)
        made.save(tmp_path / net)
        with torch.no_grad():
            assert torch.equal(load(tmp_path / net, model)(x), made.model(x))
        assert macs(made.model, vision.EXAMPLE) < macs(model, vision.EXAMPLE)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 9, 3, 2, 1), nn.Conv2d(6, 9, (1, 3), bias=False), nn.Conv2d(20, 2, 3), nn.Conv2d(6, 9, 1, 2), nn.Linear(6, 9, bias=False)])
def test_more_rank_less_error(layer):
    x = torch.randn(4, *((layer.in_channels, 8, 8) if isinstance(layer, nn.Conv2d) else (6,)), generator=torch.Generator().manual_seed(0))
    whole, errors = ranks_of(layer), []
    for gone in (0.7, 0.4, 0):
        small = factor(layer, tuple(max(1, round((1 - gone) * rank)) for rank in whole))
        with torch.no_grad():
            errors.append(float((small(x) - layer(x)).norm()))
    assert errors[0] > errors[1] > errors[2] == 0 and small is layer
    almost = factor(layer, (whole[0] - 1, *whole[1:]))
    assert isinstance(almost, Factored) and almost(x).shape == layer(x).shape
    with pytest.raises(ValueError, match="ranks"):
        factor(layer, (0, *whole[1:]))


def test_picks_by_hand():
    samples = Samples(0.9, [], [0.9, 0.7, 0.86, 0.86, 0.5], [1.0, 0.2, 0.5, 0.4, 0.3], [])
    assert samples.pareto() == [1, 3, 0]
    assert (samples.most_accurate(0.45), samples.most_accurate(0.3), samples.most_accurate(0.1)) == (3, 1, 1)
    assert (samples.cheapest(5), samples.cheapest(0), samples.cheapest(30)) == (3, 0, 1)


def test_thresholds_tighten_until_half():
    method = ASCAI(iterations=10, loose=20, max_drop=5)
    assert [round(method.threshold(i, 0.9), 3) for i in (0, 5, 9)] == [0.7, 0.85, 0.85]
    assert method.threshold(1, 0.9) == pytest.approx(0.73)


def test_rivals_spend_what_they_are_given():
    params = [Param(str(i), "x", high=0.8) for i in range(4)]
    calls = []

    def judge(theta):
        calls.append(theta)
        return 0.9 - 0.2 * float(theta[0] ** 2), 1 - float(np.mean(theta))

    box = sensitivity_box(params, judge, 0.9, 5)
    assert box[0].high == 0.4 and box[1].high == 0.8, "entry 0 costs 20·θ² points; the others cost nothing"
    for rival in (lambda: random_search(box, judge, 0.9, 18, 0), lambda: rule(params, judge, 0.9, np.ones_like, 18)):
        calls.clear()
        samples = rival()
        assert len(calls) == len(samples.cost) == 18
        assert all(0 <= theta.min() and theta.max() <= 0.99 for theta in samples.thetas)


@pytest.mark.parametrize(("wrong", "says"), [({"population": 1}, "population"), ({"cross": 1.2}, "cross"), ({"objective": "ms"}, "bytes or macs"), ({"max_drop": -1}, "max_drop"),
                                             ({"workers": 0}, "workers")])
def test_wrong_settings_say_what_is_allowed(wrong, says):
    with pytest.raises(ValueError, match=says):
        ASCAI(**wrong)


def test_wrong_questions_say_what_is_allowed(toy, found):
    net, batches = toy
    for arguments, says in (({"data": None}, "none"), ({"data": []}, "none"), ({"data": [batches[0][0]]}, "unlabelled"), ({"methods": ("bits",)}, "filters, ranks, weights"),
                            ({"methods": ()}, "nothing to compress"), ({"space": [Param("99", "x")]}, "no layer 99")):
        with pytest.raises(ValueError, match=says):
            ascai(net, **({"data": batches, "method": QUICK} | arguments))
    with pytest.raises(ValueError, match="theta"):
        found.space.decode([0.1, 0.2])
    with pytest.raises(ValueError, match="theta"):
        found.space.decode(np.full(len(found.space.params), np.nan))


def test_infeasible_threshold_says_what_is_reached(found):
    strict = replace(found, method=replace(found.method, max_drop=0))
    strict.samples = Samples(1.0, found.samples.thetas, [0.5] * len(found.samples.cost), found.samples.cost, found.samples.scores)
    with pytest.raises(ValueError, match=r"loses 50\.0"):
        _ = strict.best
