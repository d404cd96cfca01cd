"""SMOEA beyond what the common matrix tests: the user's own model, what can be taken from fronts, their file, and wrong input."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import workbench
from workbench.benches import vision
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.structure.surgery import channel_groups, parameters
from workbench.papers.pruning import inside_blocks
from workbench.papers.pruning._smoea_checks import toy
from workbench.papers.pruning._smoea_front import GroupFront
from workbench.papers.pruning._smoea_operators import FilterOrLayer
from workbench.papers.pruning._smoea_pieces import hypervolume, random_start, thinned
from workbench.papers.pruning._smoea_search import split_layers
from workbench.papers.pruning._smoea_subnet import SubNetwork
from workbench.papers.pruning.smoea import SMOEA, Front, smoea_prune

QUICK = SMOEA(layers=2, population=10, generations=3, images=16, tolerance=40)


@pytest.fixture(scope="module")
def found():
    net, images, labels = toy()
    return smoea_prune(net, [(images[:24], labels[:24]), (images[24:], labels[24:])], method=QUICK)


def test_a_front_gives_networks_of_any_size(found):
    total = parameters(found.model)
    sizes = [parameters(found.export(params=share)) for share in (0.3, 0.5, 0.8, 1.0)]
    assert sizes == sorted(sizes) and sizes[-1] == total
    assert all(size <= share * total for size, share in zip(sizes, (0.3, 0.5, 0.8, 1.0), strict=True))
    assert list(found.table().columns[:2]) == ["layers", "filters"] and (found.table().evaluations >= 20).all()
    assert len(found.fronts) == 2 and found.fronts[0].layers == ("6", "9"), "the walk begins with the last layers"


def test_same_seed_same_fronts(found):
    net, images, labels = toy()
    again = smoea_prune(net, [(images, labels)], method=QUICK)
    other = smoea_prune(net, [(images, labels)], method=QUICK, seed=1)
    assert all(np.array_equal(a.masks, b.masks) for a, b in zip(found.fronts, again.fronts, strict=True))
    assert any(a.masks.shape != b.masks.shape or not np.array_equal(a.masks, b.masks) for a, b in zip(found.fronts, other.fronts, strict=True))


def test_fronts_survive_their_file(found, tmp_path):
    size = found.save(tmp_path / "fronts.wb")
    assert size == (tmp_path / "fronts.wb").stat().st_size
    back = Front.load(tmp_path / "fronts.wb", found.model, found.example)
    x = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(back.export(params=0.5)(x), found.export(params=0.5)(x))
    assert back.points(tolerance=40) == found.points(tolerance=40) and back.table().equals(found.table())


def test_damaged_and_foreign_files_are_refused(found, tmp_path):
    path = tmp_path / "fronts.wb"
    found.save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="truncated"):
        Front.load(path, found.model, found.example)
    from workbench.contracts.model import save_model

    save_model(path, vision.dense("vgg-small"))
    with pytest.raises(ArtifactError, match="no fronts"):
        Front.load(path, found.model, found.example)
    found.save(path)
    with pytest.raises(ValueError, match="no prunable layer"):
        Front.load(path, vision.dense("vgg-small"), vision.EXAMPLE)


def test_the_contract_finds_it():
    small = workbench.compress(vision.dense("vgg-small"), replace(QUICK, layers=6, images=8, generations=2), ratio=0.4, data=vision.labelled(32))
    assert small.report.parameters[1] <= 0.6 * small.report.parameters[0]
    assert small.report.bytes[1] < 0.7 * small.report.bytes[0]


def test_residual_nets_keep_their_streams():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        front = smoea_prune(vision.dense("resnet20"), vision.labelled(32), method=replace(QUICK, layers=3, images=8))
    small = front.export(params=0.6)
    assert small.config()["stages"] == front.model.config()["stages"] and parameters(small) <= 0.6 * parameters(front.model)


def test_tuning_between_groups_is_kept():
    net, images, labels = toy()
    seen = []

    def tune(small):
        seen.append(parameters(small))
        with torch.no_grad():
            small[-1].bias += 1

    front = smoea_prune(net, [(images, labels)], method=QUICK, between=tune)
    assert len(seen) == 2 and seen[0] >= seen[1] and torch.allclose(front.small[-1].bias, net[-1].bias + 2)


def test_without_labels_its_own_answers_are_the_truth():
    net, images, _ = toy()
    front = smoea_prune(net, [images], method=QUICK)
    assert front.before == 0 and front.fronts[0].wrong[-1] == 0


def test_a_linear_layer_is_masked_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    groups, x = channel_groups(net, torch.zeros(2, 5)), torch.randn(9, 5)
    masks = np.ones((3, 14), bool)
    masks[1, 2], masks[2, 8:11] = False, False
    with torch.no_grad():
        y, first = net(x), net[1](net[0](x))
        first[:, 2] = 0
        by_hand = net[2:](first)
    errors = SubNetwork(net, groups, x).errors(masks)
    assert errors[0] < 1e-9 and errors[1] == pytest.approx(float((by_hand - y).square().sum() / y.square().sum()), rel=1e-4)


def test_decisions_by_hand():
    front = GroupFront(("a",), np.eye(4, dtype=bool), np.array([0.1, 0.2, 0.6, 1.0]), np.array([0.9, 0.3, 0.2, 0.0]), np.array([0.5, 0.3, 0.2, 0.2]))
    assert (front.smallest(error=0.3), front.smallest(wrong=0.21), front.smallest(error=-1.0)) == (1, 2, 3)
    assert front.knee() == 1, "below the line from (0.1, 0.9) to (1, 0) by 0.5, the next one by 0.2"
    assert hypervolume(np.array([[0.5, 0.5], [0.25, 0.75], [2.0, 0.0]])) == pytest.approx(0.25 + 0.25 * 0.25)
    assert thinned(np.stack([front.share, front.error], 1), 3).tolist() in ([0, 1, 3], [0, 2, 3])


def test_the_knee_is_a_network(found):
    small = found.export(knee=True)
    assert parameters(small) == found.parameters([front.knee() for front in found.fronts]) < parameters(found.model)


def test_children_are_of_their_parents():
    cross, rng = FilterOrLayer([4], 1.0), np.random.default_rng(0)
    pairs = np.stack([np.zeros((500, 10), bool), np.ones((500, 10), bool)])
    children = cross._do(None, pairs, random_state=rng)
    assert (children[0] ^ children[1]).all(), "what one child lacks the other has"
    by_layer = (children[0] == (np.arange(10) >= 4)).all(1).mean()
    assert 0.4 < by_layer < 0.6, "about half of the pairs cross at the border between layers"


def test_order_and_groups_by_hand():
    groups = inside_blocks(channel_groups(vision.dense("vgg-small"), vision.EXAMPLE))
    names = [group.name for group in groups]
    assert split_layers(groups, 4) == [names[4:], names[:4]] and split_layers(groups, 4, "first first") == [names[:4], names[4:]]
    assert split_layers(groups, 4, named=[[names[0]]]) == [[names[0]]]


@pytest.mark.parametrize(("wrong", "says"), [({"layers": 0}, "layers"), ({"population": 2}, "population"), ({"order": "random"}, "last first"),
                                             ({"tolerance": -1}, "tolerance"), ({"images": 1}, "images")])
def test_wrong_settings_say_what_is_allowed(wrong, says):
    with pytest.raises(ValueError, match=says):
        SMOEA(**wrong)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"data": []}, "data: .*empty"), ({"data": None}, "data: .*none"), ({"groups": [["features.0", "classifier"]]}, "classifier"), ({"groups": [[]]}, "without a layer"),
    ({"groups": "all"}, "auto"), ({"validation": []}, "validation"), ({"gens": 0}, "generations")])
def test_wrong_questions_say_what_is_allowed(arguments, says):
    with pytest.raises(ValueError, match=says):
        smoea_prune(vision.dense("vgg-small"), **({"data": vision.labelled(32), "method": QUICK} | arguments))


@pytest.mark.parametrize(("arguments", "says"), [({}, "one of params, tolerance and knee"), ({"params": 0.5, "tolerance": 1}, "one of"), ({"params": 0.5, "knee": True}, "one of"), ({"params": 0}, "params"),
                                                 ({"params": 0.001}, "smallest network"), ({"tolerance": -1}, "tolerance")])
def test_wrong_exports_say_what_is_allowed(found, arguments, says):
    with pytest.raises(ValueError, match=says):
        found.export(**arguments)


def test_unreachable_tolerance_warns_and_stays_whole():
    net, method = vision.dense("vgg-small"), replace(QUICK, layers=6, images=8, population=4, generations=1, tolerance=0, start=random_start)
    with pytest.warns(UserWarning, match="tolerance"):
        front = smoea_prune(net, vision.labelled(128), method=method)
    assert parameters(front.small) == parameters(net) and front.fronts[0].masks[-1].all(), "keeping everything is on offer though no seed had it"


def test_what_torch_fx_cannot_follow_is_refused():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 0 else self.b(self.a(-x))

    with pytest.raises(ValueError, match=r"torch\.fx"):
        SubNetwork(Branch(), channel_groups(Branch(), torch.ones(1, 3, 4, 4)), torch.ones(2, 3, 4, 4))


def test_masks_of_another_length_are_refused(found):
    network = SubNetwork(found.model, found.groups, torch.randn(4, 3, 6, 6))
    with pytest.raises(ValueError, match="24"):
        network.errors(np.ones((2, 7), bool))
