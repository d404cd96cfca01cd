"""SlimNets beyond the common matrix: one's own networks through the steps and their file, every kind of convolution, and wrong input."""

import pytest
import torch
from torch import nn

import workbench
from workbench.benches import vision
from workbench.benches.students import PLANS, Student
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.model import save_model
from workbench.contracts.structure.macs import macs, parameters
from workbench.papers.pruning._slim_file import Slim, load_slim, merged, round_to_8_bits, save_slim
from workbench.papers.pruning._slim_lowrank import (
    candidates,
    full_rank,
    lowrank,
    lowrank_conv,
    rank_for_energy,
    ranks_by_energy,
    ranks_by_share,
    saved,
)
from workbench.papers.pruning._slim_method import SlimNets, slim
from workbench.papers.pruning.slimnets import distil


def pictures(n=60, side=8, classes=3, seed=0):
    """Squares whose brightness is their class, in batches of 20."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    images = torch.randn(n, 3, side, side, generator=generator) + labels[:, None, None, None]
    return list(zip(images.split(20), labels.split(20), strict=True))


def network(width=8, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)).eval()


def test_three_steps_on_ones_own_network(tmp_path):
    method = SlimNets(tuning_steps=8)
    found, table = slim(network(), pictures(), ("lowrank:share=0.5", "prune:0.75", "int8"), method=method)
    assert list(table.step) == ["as it was", "lowrank:share=0.5", "prune:0.75", "int8"] and table["not zero"].is_monotonic_decreasing
    assert found.save(tmp_path / "s") == (tmp_path / "s").stat().st_size == table.bytes.iloc[-1]
    images = pictures(seed=1)[0][0]
    assert torch.equal(load_slim(tmp_path / "s")(images), found.model(images))


def test_a_teacher_can_tune_every_step():
    found, table = slim(network(), pictures(), ("prune:0.5", "tune"), teacher=network(16, seed=1), method=SlimNets(tuning_steps=4))
    assert list(table.step) == ["as it was", "prune:0.5", "tune"] and found.model is not None


def test_low_rank_by_name_makes_smaller_tensors():
    before = vision.dense("vgg-small")
    result = workbench.compress(before, "slimnets", ratio=0.5, example=vision.EXAMPLE)
    assert parameters(result.model) <= 0.5 * parameters(before) and macs(result.model, vision.EXAMPLE) < macs(before, vision.EXAMPLE)
    assert result.report.bytes[1] < result.report.bytes[0]


def test_energy_keeps_what_it_says_and_leaves_what_does_not_pay():
    conv = nn.Conv2d(6, 6, 3)
    rank = rank_for_energy(conv, 0.9)
    squares = torch.linalg.svdvals(conv.weight.detach().permute(1, 2, 0, 3).reshape(18, 18).double()) ** 2
    assert squares[:rank].sum() >= 0.9 * squares.sum() > squares[:rank - 1].sum()
    assert rank_for_energy(conv, 1.0) == full_rank(conv) == 18 and saved(conv, 8) == 36 and saved(conv, 9) == 0
    assert ranks_by_energy(network(), 1.0) == {}


def test_merged_is_the_inverse_at_full_rank():
    model = network()
    whole, ranks = merged(lowrank(model, ranks_by_share(model, 1.0)))
    assert ranks == {"0": 9, "3": 24} and torch.allclose(whole[3].weight, model[3].weight, atol=1e-6)
    assert set(candidates(model)) == {"0", "3"}


def test_students_are_rebuilt_from_their_plan(tmp_path):
    for name, plan in PLANS.items():
        student = Student(plan).eval()
        Slim(student).save(tmp_path / name)
        assert torch.equal(load_slim(tmp_path / name)(vision.EXAMPLE), student(vision.EXAMPLE))
    with pytest.raises(ValueError, match="plan: words begin with"):
        Student(("convolution 3",))


def test_distil_leaves_both_alone_and_learns():
    student, teacher = network(4), network(8, seed=1)
    before = [p.clone() for p in student.parameters()]
    taught = distil(student, teacher, pictures(), steps=6)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert not torch.equal(taught[0].weight, student[0].weight)


@pytest.mark.parametrize(("call", "says"), [
    (lambda: lowrank_conv(nn.Conv2d(4, 4, 3, groups=2), 1), "without groups"),
    (lambda: lowrank_conv(nn.Conv2d(4, 4, 3, dilation=2), 1), "undilated"),
    (lambda: lowrank_conv(nn.Conv2d(4, 4, 3, padding="same"), 1), "padding in numbers"),
    (lambda: lowrank_conv(nn.Conv2d(4, 4, 3), 13), "rank: 1 to 12"),
    (lambda: lowrank(network(), {"7": 2}), "7 cannot be factorised; the model has 0, 3"),
    (lambda: ranks_by_share(network(), 0.0), "share: of the full rank"),
    (lambda: ranks_by_energy(network(), 1.5), "energy: a share"),
    (lambda: distil(network(), network(classes=4), pictures()), "equally many classes are needed, found 3 and 4"),
    (lambda: distil(network(), network(), pictures(), temperature=0), "temperature, alpha"),
    (lambda: slim(network(), pictures(), ("prune",)), "steps: .* found 'prune'"),
    (lambda: slim(network(), pictures(), ("int8", "tune")), "int8 comes last"),
    (lambda: slim(network(), []), "no batch"),
    (lambda: SlimNets().compress(nn.Sequential(nn.Linear(3, 3)), 0.5, None, None), "model: low rank needs"),
    (lambda: SlimNets().compress(network(), 0.99, None, None), "more than low rank can remove"),
])
def test_wrong_input_says_what_is_allowed(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_damaged_and_foreign_files(tmp_path):
    save_model(tmp_path / "other", vision.dense("vgg-small"))
    with pytest.raises(ArtifactError, match="no slim network"):
        load_slim(tmp_path / "other")
    model = lowrank(vision.dense("vgg-small"), ranks_by_share(vision.dense("vgg-small"), 0.2)).eval()
    save_slim(tmp_path / "s", round_to_8_bits(model), 8)
    raw = bytearray((tmp_path / "s").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "s").write_bytes(bytes(raw))
    with pytest.raises(ArtifactError, match="damaged"):
        load_slim(tmp_path / "s")
