"""3D-Reg beyond what the common matrix tests: other networks, its state on disk, the sparse file, and wrong input."""

import pytest
import torch
from torch import nn

import workbench
from workbench.benches import video
from workbench.benches.clips import fingerprint
from workbench.benches.video import data
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.files.sparse import load_sparse, save_sparse
from workbench.contracts.model import load
from workbench.contracts.structure.surgery import macs
from workbench.papers.pruning._reg3d_checks import CLIP, clips, toy, trained
from workbench.papers.pruning._reg3d_pruner import Pruner
from workbench.papers.pruning._reg3d_rivals import OneShot, randomly
from workbench.papers.pruning._reg3d_rules import redundancy, two_sided
from workbench.papers.pruning._reg3d_runs import prune_while_training, shipped
from workbench.papers.pruning.reg3d import STUDY, ColumnConv, Reg3D, RegPruner, gather


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def loader(*shape, classes=3):
    return [(images(*shape), torch.arange(shape[0]) % classes) for _ in range(2)]


def plain_2d():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 3))


def test_your_own_network_through_the_front_door(tmp_path):
    result = workbench.compress(plain_2d(), Reg3D(steps=20), ratio=0.5, data=loader(6, 3, 10, 10), probe=None)
    assert any(isinstance(m, ColumnConv) for m in result.model.modules())
    assert result.report.macs[1] <= 0.53 * result.report.macs[0]
    result.save(tmp_path / "small.wb")
    x = images(5, 3, 10, 10)
    assert torch.allclose(load(tmp_path / "small.wb")(x), result.model(x), atol=1e-6)


@pytest.mark.parametrize("group", ["filter", "channel"])
def test_filters_and_channels_are_really_gone(group):
    net = toy()
    pruner = trained(Reg3D(group=group), net, 40)
    small, x = pruner.finish(), clips()[0]
    assert pruner.done and torch.allclose(small(x), net.eval()(x), atol=1e-5)
    assert 0.3 < macs(small, CLIP) / macs(toy(), CLIP) < 0.7
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())


def separable(groups=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).eval()


def test_filters_in_front_of_a_depthwise_convolution_take_its_bias_along():
    net, x = separable(), images(6, 3, 10, 10)
    pruner = Reg3D(group="filter", steps=8).pruner(net, x, 1.6)
    prune_while_training(pruner, [(x, torch.arange(6) % 3)] * 8, 8)
    assert pruner.done and torch.allclose(pruner.finish()(x), net.eval()(x), atol=1e-6)


def test_residual_streams_lose_columns_but_no_channels():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.head = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 6, 3, padding=1), nn.Conv3d(6, 6, 3, padding=1), nn.Linear(6, 3)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.b(self.a(x).relu())).relu().mean((2, 3, 4)))

    net = Block()
    pruner = trained(Reg3D(), net, 60, speedup=3.0)
    small, x = pruner.finish(), clips()[0]
    assert torch.allclose(small(x), net(x), atol=1e-5) and small.b.weight.shape[0] == 6


def test_state_on_disk_goes_on_as_if_nothing_had_happened(tmp_path):
    def steps(pruner, count):
        for _ in range(count):
            pruner.step()

    settings = {"A": 1.0, "interval": 1}
    whole, first, second = (RegPruner(toy(), CLIP, 2, **settings) for _ in range(3))
    steps(whole, 6)
    steps(first, 3)
    assert first.save(tmp_path / "state") == (tmp_path / "state").stat().st_size
    steps(second.restore(tmp_path / "state"), 3)
    for a, b in zip(whole.layers, second.layers, strict=True):
        assert torch.equal(a.factor, b.factor) and torch.equal(a.history, b.history) and torch.equal(a.alive, b.alive)
    with pytest.raises(ValueError, match="another kind or network"):
        RegPruner(plain_2d(), images(1, 3, 8, 8), 2).restore(tmp_path / "state")
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="truncated"):
        second.restore(tmp_path / "state")


def test_the_file_holds_columns_and_comes_back(tmp_path):
    thing = shipped("reg", 5, 0)
    size = thing.save(tmp_path / "net")
    assert size < 0.5 * save_sparse(tmp_path / "dense", video.dense(0))
    back, x = gather(load_sparse(tmp_path / "net")), video.calibration(4)
    assert torch.equal(back(x), thing.model(x))


def test_the_shipped_nets_have_the_quotas_of_the_method():
    for speedup in (2, 5):
        masked = shipped("reg", speedup, 1).masked
        assert macs(gather(masked), video.EXAMPLE) <= 1.01 * macs(video.dense(1), video.EXAMPLE) / speedup


def test_what_is_due_at_the_deadline_goes_at_once():
    pruner = Reg3D(A=1e-9, steps=10, interval=1).pruner(toy(), CLIP, 2.0)
    for _ in range(7):
        pruner.step()
    assert pruner.done and pruner.forced == sum(layer.quota for layer in pruner.layers)


def test_damage_is_measured_around_each_removal():
    values = iter([1.0, 3.5])
    assert OneShot(toy(), CLIP, 2.0, randomly(0), measure=lambda: next(values)).damage == [2.5]


def test_second_scheme_of_increments_changes_sign_at_the_border():
    values = two_sided(torch.arange(12, dtype=torch.float64), 5, 1.0)
    assert values[0] == 1 and (values[:5] > 0).all() and (values[5:] < 0).all() and values[-1] == -1


def test_redundancy_of_copies_and_of_independent_filters():
    torch.manual_seed(0)
    assert redundancy(torch.eye(8).view(8, 8, 1, 1)) == pytest.approx(0.02) and redundancy(torch.randn(1, 30).repeat(10, 1)) == pytest.approx(0.9)


@pytest.mark.parametrize(("build", "says"), [
    (lambda: RegPruner(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4)), "no convolution"),
    (lambda: RegPruner(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), torch.zeros(1, 4, 8, 8)), "grouped or transposed"),
    (lambda: RegPruner(toy(), CLIP, 1000), "speedup: 1000 cannot be reached"),
    (lambda: RegPruner(toy(), CLIP, 0.5), "speedup: at least 1"),
    (lambda: RegPruner(toy(), CLIP, 2, group="row"), "column, filter, channel"),
    (lambda: RegPruner(toy(), CLIP, 2, A=0), "A: a positive number"),
    (lambda: Reg3D().compress(toy(), 0.5, None, CLIP), "data: batches"),
    (lambda: Reg3D().compress(toy(), 0.5, [clips()[0]], CLIP), "labels"),
    (lambda: Reg3D().compress(toy(), 0.5, [], CLIP), "yields no batch"),
    (lambda: Reg3D(steps=4).compress(toy(), 0.5, iter([clips()]), CLIP), "yields no batch"),
    (lambda: Reg3D(steps=1).compress(toy(), 0.5, [clips()], CLIP), "steps: 1, with an update every 2"),
    (lambda: RegPruner(separable(groups=2), images(1, 3, 10, 10), 1.5, group="channel"), "3 is grouped"),
    (lambda: ColumnConv(nn.Conv2d(4, 4, 3, groups=4)), "groups 1"),
    (lambda: data.split("dev"), "train, validation, test"),
])
def test_wrong_input_says_what_is_allowed(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_nan_weights_are_named():
    net = toy()
    with torch.no_grad():
        net[3].weight[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="'3.weight'"):
        Pruner(net, CLIP)


def test_speedup_one_changes_no_bit():
    net, x = video.dense(2), video.calibration(4)
    pruner = Reg3D().pruner(net, video.EXAMPLE, 1.0)
    assert pruner.done and torch.equal(pruner.finish()(x), net(x)) and torch.equal(Reg3D().compress(net, 0.0, None, video.EXAMPLE)(x), net(x))


def test_clips_are_pinned_and_balanced():
    part = data.split("test")
    assert fingerprint(part) == data.EXPECTED["test"] and part.clips.shape == (1000, 8, 24, 24)
    assert min((part.labels == k).sum() for k in range(8)) > 90


def test_the_picture_of_a_dense_net_says_so():
    assert "dense" in STUDY.picture({}, {}).layout.title.text
