"""The classic criteria beyond the survey's checks: other topologies, planted cases with a known answer, models left as they were, wrong input."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workbench.benches import vision
from workbench.contracts.structure.surgery import channel_groups
from workbench.papers.pruning import inside_blocks
from workbench.papers.pruning.classics import L1, L2, BatchNormScale, Clusters, Random
from workbench.papers.pruning.classics_of_data import CRITERIA, OBD, SNIP, Activation, Taylor, ThiNet, criterion


def chain(inplace=False):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.ReLU(inplace),
                        nn.Flatten(), nn.Linear(6 * 16, 4)).eval()
    nn.init.uniform_(net[1].weight, 0.5, 1.5)
    return net


def loader(batches=2, size=6, side=8):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 3, side, side, generator=generator), torch.randint(4, (size,), generator=generator)) for _ in range(batches)]


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("net", ["vgg-small", "resnet20", "mobilenet"])
def test_every_criterion_ranks_every_net_and_leaves_it_as_it_was(name, net):
    model, data = vision.dense(net), [(x[:4], y[:4]) for x, y in vision.labelled()[:2]]
    before = copy.deepcopy(model.state_dict())
    groups = inside_blocks(channel_groups(model, vision.EXAMPLE))
    scores = criterion(name).scores(groups, model, data)
    assert {g.name: (g.size,) for g in groups} == {key: tuple(value.shape) for key, value in scores.items()}
    assert all(torch.isfinite(value).all() and value.std() > 0 for value in scores.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()) and not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())


def test_criteria_are_different_rankings():
    model = vision.dense("vgg-small")
    groups = channel_groups(model, vision.EXAMPLE)
    orders = {name: tuple(criterion(name).scores(groups, model, vision.labelled())[groups[4].name].argsort().tolist()) for name in CRITERIA}
    assert len(set(orders.values())) == len(orders)


def test_taylor_is_the_same_for_inplace_relu():
    data = loader()
    plain, inplace = (Taylor().scores(channel_groups(net, data[0][0]), net, data) for net in (chain(), chain(inplace=True)))
    assert all(torch.allclose(plain[name], inplace[name], rtol=1e-4) for name in plain)


def test_taylor_is_first_order_loss_of_removing_a_map():
    net, data = chain(), loader(1, 1)
    groups = channel_groups(net, data[0][0])
    product = Taylor().products(groups, net, *data[0])[groups[0].name][0]
    with torch.no_grad():
        base = F.cross_entropy(net(data[0][0]), data[0][1])
        for channel in range(8):
            a = net[2](net[1](net[0](data[0][0])))
            a[:, channel] *= 1 - 1e-3
            change = (F.cross_entropy(net[3:](a), data[0][1]) - base) / -1e-3
            assert float(change) == pytest.approx(float(product[channel]), abs=2e-3)


def test_obd_predicts_the_loss_of_a_quadratic_better_where_curvature_differs():
    """Two equal weights, one of which the loss does not feel: magnitude cannot tell them apart, OBD and SNIP can."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(2))
        net[3].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # nothing reads the second unit
    data = [(torch.rand(8, 2, 1, generator=torch.Generator().manual_seed(0)) + 0.5, torch.tensor([0, 1] * 4))]
    assert L1().saliency(net)["1"][0, 0] == L1().saliency(net)["1"][1, 1]
    for method in (OBD(), SNIP()):
        value = method.saliency(net, data)["1"]
        assert value[0, 0] > 0 and value[1, 1] == 0


def test_activation_statistics_by_hand():
    net, data = chain(), loader(1)
    with torch.no_grad():
        net[1].weight[0], net[1].bias[0] = 0, -1.0  # always silent
        net[1].weight[1], net[1].bias[1] = 0, 2.0  # always the same
    groups = channel_groups(net, data[0][0])
    zeros, mean, entropy = (Activation(kind).scores(groups, net, data)[groups[0].name] for kind in ("zeros", "mean", "entropy"))
    assert zeros[0] == -1 and zeros[1] == 0 and mean[0] == 0 and mean[1] == pytest.approx(2, rel=1e-5)
    assert entropy[0] == pytest.approx(0, abs=1e-6) and entropy[1] == pytest.approx(0, abs=1e-6) and entropy[2:].min() > 0.1


def test_thinet_drops_first_what_nothing_reads_and_reads_positions_behind_a_flatten():
    net, data = chain(), loader()
    with torch.no_grad():
        net[3].weight[:, 5] = 0
        net[6].weight.view(4, 6, 16)[:, 2] = 0
    groups = channel_groups(net, data[0][0])
    scores = ThiNet().scores(groups, net, data)
    assert [int(scores[g.name].argmin()) for g in groups] == [5, 2]


def test_thinet_scales_only_the_readers():
    net, data = chain(), loader()
    groups = channel_groups(net, data[0][0])
    repaired = ThiNet().repair(net, {groups[0].name: torch.tensor([1, 4])}, groups, data)
    ratio = (repaired[3].weight / net[3].weight).detach()
    assert torch.allclose(ratio, ratio[:1, :, :1, :1].expand_as(ratio), rtol=1e-4)  # one factor a channel
    assert torch.equal(repaired[0].weight, net[0].weight) and torch.equal(repaired[6].weight, net[6].weight)
    assert torch.allclose(ratio[0, [1, 4]], torch.ones(2, 3, 3))


def test_clusters_keep_one_of_each():
    centres = torch.eye(6)[:3]
    points = torch.cat([centres, centres + 0.02 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0))])
    kept = Clusters(share=0.5).score(points).argsort()[3:].tolist()
    assert sorted(i % 3 for i in kept) == [0, 1, 2]


def test_random_differs_between_layers_and_repeats():
    model = vision.dense("vgg-small")
    groups = channel_groups(model, vision.EXAMPLE)
    a, b, c = Random(1).scores(groups, model), Random(1).scores(groups, model), Random(2).scores(groups, model)
    name, other = groups[0].name, groups[1].name
    assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name]) and not torch.equal(a[name], a[other])


def test_l2_ranks_as_the_norm():
    net = chain()
    group = channel_groups(net, loader()[0][0])[0]
    assert L2().scores([group], net)[group.name].argsort().tolist() == net[0].weight.flatten(1).norm(dim=1).argsort().tolist()


@pytest.mark.parametrize("name", ["taylor", "obd", "snip", "apoz", "thinet"])
def test_data_is_needed(name):
    net = chain()
    groups = channel_groups(net, loader()[0][0])
    with pytest.raises(ValueError, match="data: the criterion .* hand in a loader"):
        criterion(name).scores(groups, net, None)
    with pytest.raises(ValueError, match="yields no batch"):
        criterion(name).scores(groups, net, [])


def test_labels_are_needed():
    net, images = chain(), [loader()[0][0]]
    groups = channel_groups(net, images[0])
    with pytest.raises(ValueError, match="inputs alone"):
        Taylor().scores(groups, net, images)
    assert Activation().scores(groups, net, images)  # looks at inputs only


def test_what_cannot_be_ranked_is_refused():
    grouped, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)), loader()[0][0]
    with pytest.raises(ValueError, match="ThiNet reads plain"):
        ThiNet().scores(channel_groups(grouped, images), grouped, [images])
    net = chain()
    with pytest.raises(ValueError, match="no normalisation with a scale follows"):
        BatchNormScale().scores(channel_groups(net, loader()[0][0]), net)
    with pytest.raises(ValueError, match="criterion: one of random, l1"):
        criterion("magnitud")
    with pytest.raises(ValueError, match="statistic must be"):
        Activation("median")
