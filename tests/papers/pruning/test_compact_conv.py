"""Compact convolution beyond what the common matrix tests: the layer and the exchange on the user's own nets, files, wrong input, and the sounds."""

import numpy as np
import pytest
import torch
from torch import nn

import workbench
from workbench.benches import sounds, vision
from workbench.contracts.model import load
from workbench.contracts.structure.macs import macs
from workbench.papers.pruning._compact_nets import CompactNet, Squeeze, members
from workbench.papers.pruning._compact_recipe import TASKS, VARIANTS, build, data, f1_and_error_rate
from workbench.papers.pruning._compact_track import correlation, effective_rank
from workbench.papers.pruning.compact_conv import CompactConv, CompactConv2d, compactify, cost_table, squeeze

X = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0))


def test_groups_are_neighbours_or_far_apart():
    x = torch.arange(8.0)[None, :, None, None]
    assert members(x, 2).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert members(x, 2, "strided").flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert members(x, 3).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7], "the last channel fills the last group"


def test_channels_last_gives_the_same():
    for op in ("max", "mean", "lp", "absmax", "median"):
        assert torch.equal(squeeze(X, 4, op), squeeze(X.to(memory_format=torch.channels_last), 4, op))


def test_lp_has_a_gradient_at_zero_and_product_refuses_to_overflow():
    x = torch.zeros(1, 2, 1, 1, requires_grad=True)
    squeeze(x, 2, "lp").sum().backward()
    assert torch.isfinite(x.grad).all()
    with pytest.raises(ValueError, match="float16"):
        squeeze(torch.full((1, 2, 1, 1), 300.0, dtype=torch.float16), 2, "product")


@pytest.mark.parametrize(("wrong", "says"), [({"op": "best"}, "op must be one of max"), ({"order": "random"}, "contiguous, strided"), ({"r": 9}, "8 channels"),
                                             ({"r": 3, "op": "product"}, "pairs, r = 2"), ({"r": 0}, "at least 1"), ({"place": "inside"}, "before, after")])
def test_wrong_settings_say_what_is_allowed(wrong, says):
    with pytest.raises(ValueError, match=says):
        CompactConv2d(8, 8, **wrong)


def test_a_layer_with_strides_and_any_kernel():
    assert CompactConv2d(8, 12, 5, r=4, op="mean", stride=2)(X).shape == (2, 12, 3, 3)
    assert CompactConv2d(8, 12, r=3, place="after").out_channels == 4


def test_exchange_keeps_what_was_skipped_and_says_what_it_cannot():
    net = vision.NETS["vgg-small"]()
    small = compactify(net, r=4, skip=("features.0",))
    assert small(vision.EXAMPLE).shape == (1, 10) and isinstance(small.features[0], nn.Conv2d) and isinstance(small.features[3][2], Squeeze)
    assert sum(isinstance(m, Squeeze) for m in small.modules()) == 5 and not any(isinstance(m, Squeeze) for m in net.modules())
    with pytest.raises(ValueError, match="no layer is called"):
        compactify(net, skip=("stem",))
    with pytest.raises(ValueError, match=r"features\.0.*3 input channels"):
        compactify(net, r=4)
    with pytest.raises(ValueError, match="no convolution"):
        compactify(nn.Linear(3, 3))


def test_cost_table_is_what_the_counter_finds():
    net = vision.NETS["vgg-small"]().eval()
    table = cost_table(net, vision.EXAMPLE, r=2)
    small = compactify(net, r=2, skip=("features.0",)).eval()
    assert macs(small, vision.EXAMPLE) == table.compact[1:].sum() + table.standard[0] + 640
    assert (table.compact < table.separable).all() and (table.separable < table.standard).all()


def test_compress_trains_saves_and_names_what_is_wrong(tmp_path):
    torch.manual_seed(0)
    net = vision.NETS["vgg-small"]()
    batch = [(torch.randn(8, 3, 32, 32), torch.arange(8) % 10)]
    result = workbench.compress(net, CompactConv(steps=2), 0.75, data=batch, probe=None)
    assert result.report.macs[1] <= 0.25 * result.report.macs[0] and result.report.bytes[1] < result.report.bytes[0]
    result.save(tmp_path / "small.wb")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small.wb", model=result.model)(batch[0][0]), result.model(batch[0][0]))
    with pytest.raises(ValueError, match="groups of 8 remove"):
        CompactConv().compress(net, 0.99, batch, vision.EXAMPLE)
    with pytest.raises(ValueError, match="data: "):
        CompactConv().compress(net, 0.5, None, vision.EXAMPLE)


def test_redundancy_of_known_maps():
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert effective_rank(x.expand(-1, 4, -1, -1)) == pytest.approx(0.25) and correlation(x.expand(-1, 4, -1, -1)) == pytest.approx(1)
    noise = torch.randn(50, 4, 20, 20, generator=torch.Generator().manual_seed(1))
    assert effective_rank(noise) > 0.99 and correlation(noise) < 0.05


def test_segment_metrics_of_a_hand_worked_case():
    true = np.array([[[1, 0], [1, 1], [0, 0], [1, 0]]], bool)
    said = np.array([[[1, 0], [1, 0], [0, 1], [0, 1]]], bool)
    f1, error_rate = f1_and_error_rate(said, true)  # 2 hits, 2 misses, 2 false alarms; one of each makes a substitution in the last segment
    assert f1 == pytest.approx(0.5) and error_rate == pytest.approx(3 / 4)


def test_variants_of_a_task_have_equal_or_smaller_cost():
    for task in TASKS:
        example = data(task, "train")[0][:1]
        cost = {name: macs(build(task, name).eval(), example) for name in VARIANTS}
        assert len({value for name, value in cost.items() if name.endswith("2")}) == 1 and cost["max 8"] < cost["max 4"] < cost["max 2"] < cost["separable"]
        assert abs(cost["narrower"] / cost["max 2"] - 1) < 0.03


def test_the_nets_take_their_inputs():
    assert CompactNet("images")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert CompactNet("scenes")(torch.zeros(2, 1, 40, 100)).shape == (2, 6) and CompactNet("events")(torch.zeros(2, 1, 40, 100)).shape == (2, 50, 4)
    with pytest.raises(ValueError, match="images, scenes, events"):
        CompactNet("video")


def test_sounds_are_the_same_everywhere():
    levels = np.arange(300)
    assert np.array_equal(sounds.level(sounds.power(levels)), levels), "the logarithm undoes the power exactly"
    made = sounds.generate("events", "validation")
    assert sounds.fingerprint(made) == sounds.EXPECTED["events", "validation"]
    assert made.levels.dtype == np.uint8 and made.labels.shape == (300, 100, 4) and 0.05 < made.labels.mean() < 0.2
    with pytest.raises(ValueError, match="scenes train"):
        sounds.clips("music", "train")


def test_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    sounds.clips.cache_clear()
    first = sounds.clips("scenes", "validation")
    file = next(tmp_path.rglob("levels.npy"))
    file.write_bytes(file.read_bytes()[:1000])
    sounds.clips.cache_clear()
    assert np.array_equal(sounds.clips("scenes", "validation").levels, first.levels)
    sounds.clips.cache_clear()
