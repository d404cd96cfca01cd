"""Transfer channel pruning beyond its checks: a user's own nets and loaders, residual blocks, artefacts, wrong input."""

import pytest
import torch
from torch import nn

import workbench
from workbench.benches import domains
from workbench.benches.domains import data
from workbench.benches.domains.discrepancy import adapt, endless, features, joint_loss
from workbench.contracts.structure.macs import macs
from workbench.papers.pruning._tcp_method import checked, convolutional
from workbench.papers.pruning.tcp import TCP, Joined, mmd_rbf

FAST = TCP(batches=1, round_steps=1, steps=4, per_round=4)


def images(n, seed=0, side=12):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """A stem, one block with batch norm, a linear head: only the inside of the block is no residual stream."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.outer, self.neck, self.head = nn.Conv2d(12, 8, 3, padding=1), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.outer(self.norm(self.inner(x)).relu())).relu()
        return self.head(self.neck(x.mean((2, 3))).relu())


def loaders(n=6, count=3):
    return [(images(n, i), torch.arange(n) % 4) for i in range(count)], [images(n, 10 + i) for i in range(count)]


@pytest.fixture
def residual():
    torch.manual_seed(0)
    return Residual().eval()


def test_only_the_inside_of_a_residual_block_is_pruned(residual):
    done = FAST.prune(residual, 0.3, Joined(*loaders()))
    assert done.model.stem.out_channels == done.model.outer.out_channels == 8 and done.model.neck.out_features == 6
    assert done.model.inner.out_channels < 12 and done.model.norm.num_features == done.model.inner.out_channels
    assert macs(done.model, images(1)) <= 0.7 * macs(residual, images(1))
    assert residual.inner.out_channels == 12, "the model handed in must stay as it was"


def test_compress_by_name_saves_a_file_that_loads(residual, tmp_path):
    import workbench.papers.pruning.tcp as paper

    result = workbench.compress(residual, "tcp", ratio=0.3, data=Joined(*loaders()))
    assert paper.STUDY.method == TCP()
    assert result.report.macs[1] <= 0.7 * result.report.macs[0] and result.report.bytes[1] < result.report.bytes[0]
    size = result.save(tmp_path / "small.wb")
    assert size == (tmp_path / "small.wb").stat().st_size
    loaded = workbench.load(tmp_path / "small.wb")
    with torch.no_grad():
        assert torch.equal(loaded(images(2)), result.model(images(2)))


def test_batch_norm_reads_behind_the_norm_and_scores_leave_the_model_alone(residual):
    group = next(g for g in convolutional(residual, images(1)) if g.name == "inner")
    with torch.no_grad():
        residual.norm.weight[3] = residual.norm.bias[3] = 0  # batch norm switches it off
    before = {k: v.clone() for k, v in residual.state_dict().items()}
    rows = FAST.lists([group], residual, Joined(*loaders()))["inner"]
    assert rows.shape == (2, 12) and float(rows[:, 3].abs().max()) == 0
    assert all(torch.equal(before[k], v) for k, v in residual.state_dict().items()) and not residual.training


def test_all_merges_rank_and_a_feature_layer_can_be_named(residual):
    groups = convolutional(residual, images(1))
    for merge in ("min", "sum", "max", "source", "target"):
        scores = TCP(merge=merge, feature="neck", batches=2).merged(TCP(feature="neck", batches=2).lists(groups, residual, Joined(*loaders())))
        assert scores["inner"].shape == (12,) and torch.isfinite(scores["inner"]).all()


def test_the_default_feature_is_what_the_last_linear_layer_reads(residual):
    with torch.no_grad(), features(residual) as default, features(residual, "neck") as named:
        residual(images(3))
    assert torch.equal(default[0], named[0].relu())


def test_one_pass_equals_two(residual):
    (source, labels), target = loaders()[0][0], loaders()[1][0]
    loss, entropy, apart = joint_loss(residual, source, labels, target, 0.5)
    with torch.no_grad(), features(residual) as seen:
        apart_by_hand = nn.functional.cross_entropy(residual(source), labels), residual(target)
    assert torch.allclose(entropy, apart_by_hand[0], atol=1e-5) and torch.allclose(apart, mmd_rbf(*seen), atol=1e-5)
    assert torch.allclose(loss, entropy + 0.5 * apart)


def test_unequal_batches_are_cut_with_a_notice():
    with pytest.warns(UserWarning, match="6 and 4"):
        source, labels, target = next(iter(Joined(loaders()[0], [images(4)])))
    assert len(source) == len(labels) == len(target) == 4


def test_a_short_target_loader_is_repeated():
    assert len(list(Joined(loaders(count=5)[0], loaders(count=2)[1]))) == 5


@pytest.mark.parametrize(("source", "target", "says"), [
    ([images(4)], [images(4)], "source: batches of"),
    ([(images(4), torch.zeros(4))], [(images(4), torch.zeros(4))], "target labels must not be seen"),
    ([(images(4), torch.zeros(4))], [], "yields no batch"),
])
def test_wrong_loaders(source, target, says):
    with pytest.raises(ValueError, match=says):
        list(Joined(source, target))


@pytest.mark.parametrize(("wrong", "says"), [(None, "two domains"), ([], "no batch"), ([(images(2), torch.zeros(2))], "source inputs, source labels, target"),
                                             ([(images(2), torch.zeros(2), images(3))], "equally many"), ([images(2)], "equally many")])
def test_wrong_data(wrong, says):
    with pytest.raises(ValueError, match=says):
        checked(wrong)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_wrong_ratio(residual, ratio):
    with pytest.raises(ValueError, match="ratio"):
        FAST.prune(residual, ratio, Joined(*loaders()))


def test_beyond_the_floor(residual):
    with pytest.raises(ValueError, match="least = 2"):
        FAST.prune(residual, 0.97, Joined(*loaders()))


def test_unknown_feature_lists_the_layers(residual):
    with pytest.raises(ValueError, match=r"feature.*'nack'.*neck"):
        TCP(feature="nack", batches=1).prune(residual, 0.2, Joined(*loaders()))


@pytest.mark.parametrize("wrong", [{"merge": "mean"}, {"per_round": 0}, {"least": 0}, {"round_steps": -1}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TCP(**wrong)


def test_mmd_wants_equal_shapes():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        mmd_rbf(torch.zeros(3, 2), torch.zeros(4, 2))
    assert float(mmd_rbf(torch.zeros(3, 2), torch.zeros(3, 2))) == 0, "a batch of equal rows has no width, and no distance"


def test_a_generator_is_used_up_and_says_so(residual):
    with pytest.raises(ValueError, match="list or a loader"):
        list(endless(x for x in range(3)))


def test_adapting_brings_the_domains_together(residual):
    source, target = [(images(16), torch.arange(16) % 4)], [images(16, 5) + 1]
    residual.train()
    optimizer, seen = torch.optim.SGD(residual.parameters(), 0.05), []
    adapt(residual, endless(Joined(source, target)), 60, optimizer, beta=lambda p: 1.0, on_step=lambda entropy, apart: seen.append(apart))
    assert seen[-1] < 0.5 * seen[0]


def test_domains_are_drawn_apart_and_repeatable():
    source, target = data.domain("source", "test"), data.domain("target", "test")
    assert source.images.shape == target.images.shape == (1000, 1, 16, 16)
    assert source.images.min() == 0 and (target.images.mean() > source.images.mean() * 0.5)
    a, b = (next(iter(domains.Pairs(4, 8))) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    with pytest.raises(ValueError, match="'source' or 'target'"):
        data.domain("both", "test")
