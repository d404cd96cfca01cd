"""PFGDF beyond what the common matrix tests: the user's own model and loaders, single weights, the search's log, and wrong input."""

import math

import pytest
import torch
from torch import nn

from workbench import compress, load
from workbench.benches import vision
from workbench.contracts.model import save_model
from workbench.contracts.structure.surgery import channel_groups, macs
from workbench.papers.pruning._pfgdf_method import PFGDF, WidthSearch, filter_statistic, standardised
from workbench.papers.pruning.pfgdf import accuracy, normality, pfgdf_mask, pfgdf_prune, predicted_share

X = torch.zeros(1, 3, 10, 10)


def small_net(width=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)).eval()


def loader(n=64):
    """Two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 2
    images = torch.randn(n, 3, 10, 10, generator=generator) + 1.5 * labels[:, None, None, None]
    return list(zip(images.split(32), labels.split(32)))


@pytest.mark.parametrize("shape", [(40, 6, 3, 3), (40, 6), (40, 6, 5)])
def test_mask_of_any_weight(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    s = weight.flatten(1).mean(1)
    assert torch.equal(pfgdf_mask(weight, 1.0), (s - s.mean()).abs() <= s.std())
    assert torch.equal(pfgdf_mask(weight, 1.0, keep="tails"), ~pfgdf_mask(weight, 1.0))


def test_statistics_are_per_weight_so_that_layers_compare():
    weight = torch.tensor([[1.0, -3.0], [2.0, 2.0]])
    assert filter_statistic(weight).tolist() == [-1, 2]
    assert filter_statistic(weight, "l1").tolist() == [2, 2]
    assert torch.allclose(filter_statistic(weight, "l2"), torch.tensor([math.sqrt(5), 2.0]).double())


def test_a_quantile_plot_is_in_order():
    found = normality(torch.randn(30, generator=torch.Generator().manual_seed(3)))
    assert found.quantiles.shape == (2, 30) and (found.quantiles[1, 1:] >= found.quantiles[1, :-1]).all() and abs(found.quantiles.mean()) < 0.1
    assert predicted_share(0.43) == pytest.approx(1 / 3, abs=0.003)


def test_by_name_through_the_contract_and_back_from_a_file(tmp_path):
    net = vision.dense("vgg-small")
    small = compress(net, "pfgdf", ratio=0.5, example=vision.EXAMPLE)  # no data is needed
    assert abs(small.report.macs[1] / small.report.macs[0] - 0.5) < 0.02
    assert small.save(tmp_path / "small.wb") == small.report.bytes[1] < small.report.bytes[0]
    x = vision.calibration()[:4]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small.wb")(x), small.model(x))


def test_scores_rank_by_the_distance_from_the_mean():
    groups, _ = PFGDF().eligible(small_net(), X)
    inside, tails = (PFGDF(keep=side).scores(groups, small_net()) for side in ("inside", "tails"))
    z = PFGDF().distance(groups[0])
    assert torch.equal(inside["0"].argsort(), (-z).argsort()) and torch.allclose(inside["0"] + tails["0"], torch.ones(12, dtype=torch.float64))


def test_coupled_streams_lose_only_what_every_writer_would_delete():
    net = vision.dense("resnet20")
    method = PFGDF(coupled=True)
    stream = next(g for g in method.eligible(net, vision.EXAMPLE)[0] if g.coupled)
    deleted = [set((~pfgdf_mask(m.weights(), 0.5)).nonzero().flatten().tolist()) for m in stream.producers]
    assert set(method.drop([stream], 0.5).get(stream.name, torch.tensor([])).tolist()) == set.intersection(*deleted)
    assert all(not g.coupled for g in PFGDF().eligible(net, vision.EXAMPLE)[0])


def test_a_width_for_each_layer():
    net = small_net()
    small = PFGDF().prune(net, {"0": 0.5, "3": 8.0}, X).model
    assert small[0].out_channels < 12 and small[3].out_channels == 16


def test_the_search_on_a_users_model(tmp_path):
    net = small_net()
    data = loader()
    from workbench.contracts.model import finetune

    finetune(net, data, 40, 1e-2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = pfgdf_prune(net, data, data, tol=3.0, steps=5)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert accuracy(result.model, data) >= accuracy(net, data) - 3 and macs(result.model, X) < macs(net, X)
    assert list(result.alpha) == ["3", "0"] and result.skipped == []
    assert [result.model[0].out_channels, result.model[3].out_channels] == [result.kept["0"], result.kept["3"]]
    assert all(step.accuracy >= accuracy(net, data) - 3 for step in result.history if step.accepted)
    save_model(tmp_path / "found.wb", result.model, X)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "found.wb")(data[0][0]), result.model(data[0][0]))


def test_small_layers_are_skipped_and_named():
    result = WidthSearch(tolerance=100).run(small_net(6), X, lambda net: None, lambda net: 90.0)
    assert result.skipped == ["0"] and list(result.alpha) == ["3"] and result.model[0].out_channels == 6


def test_a_search_that_accepts_everything_leaves_at_least_one_filter():
    result = WidthSearch(tolerance=0).run(small_net(), X, lambda net: None, lambda net: 90.0)
    assert all(n >= 1 for n in result.kept.values()) and result.model(X).shape == (1, 2)


def test_the_order_of_layers():
    asked = []
    WidthSearch(order="first").run(small_net(), X, lambda net: asked.append((net[0].out_channels, net[3].out_channels)), lambda net: 90.0)
    assert asked[0][0] < 12 and asked[0][1] == 16


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_wrong_width(alpha):
    with pytest.raises(ValueError, match="alpha"):
        pfgdf_mask(torch.randn(10, 3), alpha)
    with pytest.raises(ValueError, match="alpha"):
        PFGDF().prune(small_net(), alpha, X)


def test_wrong_input_says_what_is_wrong():
    with pytest.raises(ValueError, match="sum, l1, l2"):
        PFGDF("median")
    with pytest.raises(ValueError, match="'inside' or 'tails'"):
        PFGDF(keep="middle")
    with pytest.raises(ValueError, match="σ = 0, all 9 filters"):
        standardised(torch.ones(9))
    with pytest.raises(ValueError, match="widths"):
        WidthSearch(widths=(1.0, 2.0))
    with pytest.raises(ValueError, match="order"):
        WidthSearch(order="random")
    with pytest.raises(ValueError, match="tolerance"):
        WidthSearch(tolerance=-1)
    with pytest.raises(ValueError, match="8 filters or more"):
        PFGDF().prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), 1.0, X)
    with pytest.raises(ValueError, match="val_loader"):
        accuracy(small_net(), [X])


def test_alike_filters_name_the_layer():
    net = small_net()
    with torch.no_grad():
        net[3].weight.fill_(0.1)
    with pytest.raises(ValueError, match="'3': σ = 0"):
        PFGDF().prune(net, 1.0, X)


def test_a_tolerance_that_cannot_be_met():
    accuracies = iter([95.0] + [20.0] * 50)
    with pytest.raises(ValueError, match="tol: no width .* best trial has 20.00 %"):
        WidthSearch(tolerance=0.5).run(small_net(), X, lambda net: None, lambda net: next(accuracies))


def test_groups_are_not_touched():
    net = small_net()
    groups = channel_groups(net, X)
    before = net[0].weight.clone()
    PFGDF().scores(groups, net)
    assert torch.equal(net[0].weight, before)
