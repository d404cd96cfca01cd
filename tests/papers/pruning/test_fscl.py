"""FSCL beyond what the common matrix tests: the score on every topology of the card, the user's own model, and wrong input."""

import pytest
import torch
from torch import nn

from workbench.benches import vision
from workbench.contracts.structure.surgery import channel_groups
from workbench.papers.pruning import inside_blocks, score_and_remove
from workbench.papers.pruning.fscl import FSCL, batchnorm_scales, kernels, same_size


class Branching(nn.Module):
    """One stem read by two convolutions, and a concatenation read by a third: consumers add, offsets count."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.join, self.head = nn.Conv2d(9, 7, 3, padding=1), nn.Linear(7, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.join(torch.cat([self.left(x), self.right(x)], 1)).relu().mean((2, 3)))


def image(side=8):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def groups_of(model, example):
    return {group.name: group for group in channel_groups(model.eval(), example)}


def test_branching_consumers_add():
    torch.manual_seed(0)
    model, example = Branching(), image()
    stem = groups_of(model, example)["stem"]
    p = kernels(stem.producers[0])
    by_hand = torch.zeros(6)
    for reader in (model.left, model.right):
        q = reader.weight.detach().transpose(0, 1).flatten(2)
        written, read = same_size(p, q)
        by_hand += torch.bmm(written, read.transpose(1, 2)).abs().sum((1, 2))
    assert torch.allclose(FSCL().scores([stem], model)["stem"], by_hand, rtol=1e-5)


def test_concatenation_reads_its_own_columns():
    torch.manual_seed(0)
    model, example = Branching(), image()
    with torch.no_grad():
        model.join.weight[:, 4 + 2] = 0  # nothing reads channel 2 of the right branch, which starts at column 4
    scores = FSCL().scores(list(groups_of(model, example).values()), model)
    assert int(scores["right"].argmin()) == 2 and float(scores["right"][2]) == 0


def test_flatten_reads_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 4))
    group = channel_groups(model, image())[0]
    read = kernels(group.consumers[0])
    assert read.shape == (5, 4, 9)  # 4 readers, 3×3 positions each, like a kernel
    assert torch.equal(read[2, 1], model[4].weight.detach()[1, 18:27])


def test_depthwise_between_multiplies():
    model = vision.dense("mobilenet").eval()
    group = next(g for g in channel_groups(model, vision.EXAMPLE) if g.depthwise)
    before = FSCL().scores([group], model)[group.name]
    with torch.no_grad():
        group.depthwise[0].module.weight[0] = 0
    after = FSCL().scores([group], model)[group.name]
    assert float(before[0]) > 0 and float(after[0]) == 0 and torch.equal(before[1:], after[1:])


def test_residual_streams_are_kept_by_default_and_scored_when_asked():
    model = vision.dense("resnet20")
    groups = channel_groups(model, vision.EXAMPLE)
    coupled = next(g for g in groups if g.coupled)
    assert coupled not in inside_blocks(groups)
    assert FSCL().scores([coupled], model)[coupled.name].shape == (coupled.size,)
    small = score_and_remove(FSCL(), model, 0.4).model
    assert small.config()["stages"] == model.config()["stages"] and small.config()["inner"] != model.config()["inner"]


def test_batchnorm_scale_is_gamma_over_sigma():
    model = vision.dense("vgg-small")
    group = channel_groups(model, vision.EXAMPLE)[0]
    norm = model.features[1]
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    assert torch.allclose(batchnorm_scales(group, order)["features.0"], norm.weight.abs() / (norm.running_var + norm.eps).sqrt())


@pytest.mark.parametrize(("wrong", "says"), [({"similarity": "l2"}, "dot, cos, fro"), ({"mode": "best"}, "global, uniform")])
def test_wrong_settings_say_what_is_allowed(wrong, says):
    with pytest.raises(ValueError, match=says):
        FSCL(**wrong)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_wrong_ratio(ratio):
    with pytest.raises(ValueError, match="ratio"):
        score_and_remove(FSCL(), vision.dense("vgg-small"), ratio)


def test_beyond_the_floor_says_the_floor():
    with pytest.raises(ValueError, match="floor"):
        score_and_remove(FSCL(), vision.dense("resnet20"), 0.995)


def test_nan_weights_are_named():
    model = vision.dense("vgg-small")
    with torch.no_grad():
        model.features[3].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="features.3"):
        score_and_remove(FSCL(), model, 0.5)


def test_channel_rounding():
    small = score_and_remove(FSCL(), vision.dense("vgg-small"), 0.5, round_to=8).model
    assert all(width % 8 == 0 for width in small.config()["widths"])
