"""Entropy pruning beyond what the common matrix tests: the user's own model and loader, artefacts, memory, and wrong input."""

import pytest
import torch
from torch import nn

from workbench import compress, load
from workbench.benches import activations, vgg_fc, vision
from workbench.contracts.structure.surgery import macs, parameters
from workbench.papers.pruning._entropy_method import pooled_responses, prunable, take, uniform_loss
from workbench.papers.pruning.entropy import ChannelEntropy, EntropyPruning, channel_entropy, entropy_prune, head_to_gap, leading_layers


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)).eval()


def loader(n=96, batch=32, labels=True, side=10):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 3, side, side, generator=generator), torch.randint(5, (n,), generator=generator)
    return list(zip(x.split(batch), y.split(batch))) if labels else list(x.split(batch))


def test_entropies_of_a_users_model_need_no_labels():
    with_labels, without = (channel_entropy(small_net(), loader(labels=flag), bins=20, images=80) for flag in (True, False))
    assert list(with_labels) == ["0", "3"] and with_labels["3"].shape == (12,)
    assert all(torch.equal(with_labels[name], without[name]) for name in with_labels)


def test_responses_are_pooled_behind_batchnorm_and_relu():
    net, data = small_net(), loader(labels=False)
    found = pooled_responses(prunable(net, data[0][:1])[:1], net, data)["0"]
    assert torch.allclose(found, net[:3](torch.cat(data)).mean((2, 3)).double(), atol=1e-6)


def test_batch_size_changes_nothing():
    a, b = (channel_entropy(small_net(), loader(batch=size), images=96) for size in (7, 96))
    assert all(torch.allclose(a[name], b[name], atol=0.03) for name in a)


def test_prune_calls_finetune_once_a_layer_and_leaves_the_model_alone():
    net, called = small_net(), []
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = entropy_prune(net, loader(), keep=0.5, images=64, finetune=lambda model: called.append([m.out_channels for m in model if isinstance(m, nn.Conv2d)]))
    assert called == [[4, 12], [4, 6]]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert {name: len(units) for name, units in result.dropped.items()} == {"0": 4, "3": 6} and result.model(torch.zeros(1, 3, 10, 10)).shape == (1, 5)


def test_by_name_through_the_contract_and_back_from_a_file(tmp_path):
    net = vision.dense("vgg-small")
    small = compress(net, "entropy-pruning", ratio=0.5, data=vision.labelled(1024, 128))
    assert abs(small.report.macs[1] / small.report.macs[0] - 0.5) < 0.02
    size = small.save(tmp_path / "small.wb")
    assert size == small.report.bytes[1] < small.report.bytes[0]
    x = vision.calibration()[:4]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small.wb")(x), small.model(x))


def test_folding_keeps_a_linear_readers_outputs():
    net, data = small_net(), loader()
    with torch.no_grad():
        net[3].weight[:4] = 0
        net[3].bias[:4] = torch.tensor([0.5, 1.0, -1.0, 2.0])  # constant maps, read by the linear layer through a flatten
    x = data[0][0]
    folded = EntropyPruning(images=64, fold=True).prune(net, {"3": 4}, data, x[:1], lambda model: None)
    assert folded.dropped["3"].tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        assert torch.allclose(folded.model(x), net(x), atol=1e-5)


def test_folding_into_a_grouped_layer_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    with pytest.raises(ValueError, match="fold: '2'"):
        EntropyPruning(images=64, fold=True).prune(net, {"0": 1}, loader(), torch.zeros(1, 3, 10, 10))


def test_a_head_becomes_pooling_and_one_layer_and_is_stored(tmp_path):
    net = vgg_fc.dense()
    pooled = head_to_gap(net, vision.EXAMPLE)
    assert pooled.config()["hidden"] == [] and parameters(net) / parameters(pooled) > 9
    result = EntropyPruning(images=64).vgg(net, 0.5, vision.labelled(64), vision.EXAMPLE)
    assert result.model.config()["widths"] == [4, 4, 8, 8, 16, 16] and parameters(net) / parameters(result.model) > 16.64
    from workbench.contracts.model import save_model

    save_model(tmp_path / "gap.wb", result.model, vision.EXAMPLE)
    x = vision.calibration()[:2]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "gap.wb")(x), result.model(x))


def test_leading_layers_hold_the_share_and_no_more_than_needed():
    net = vision.dense("vgg-small")
    assert leading_layers(net, vision.EXAMPLE, 0.5) == ["features.0", "features.3", "features.7", "features.10"]
    assert len(leading_layers(net, vision.EXAMPLE)) == 6


def test_memory_counts_the_batch_and_each_storage_once():
    net, x = small_net(), torch.zeros(4, 3, 10, 10)
    one, two = (activations.kept_for_backward(net, x[:n]) for n in (2, 4))
    assert 1.9 < two / one <= 2
    assert activations.peak_at_inference(net, x[:1]) == 4 * 100 * (12 + 12)  # the second ReLU
    assert activations.map_bytes(net, x[:1]) == 4 * 100 * (8 + 12)


def test_one_filter_always_stays():
    net = small_net()
    result = entropy_prune(net, loader(), keep=0.01, images=64)
    assert [m.out_channels for m in result.model if isinstance(m, nn.Conv2d)] == [1, 1] and macs(result.model, torch.zeros(1, 3, 10, 10)) > 0


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan")])
def test_wrong_share(keep):
    with pytest.raises(ValueError, match="keep"):
        entropy_prune(small_net(), loader(), keep=keep, images=64)


def test_wrong_input_says_what_is_wrong():
    with pytest.raises(ValueError, match="1024 are asked for, the loader yields 96"):
        channel_entropy(small_net(), loader())
    with pytest.raises(ValueError, match="bins: .* found 1"):
        ChannelEntropy(bins=1)
    with pytest.raises(ValueError, match="span"):
        ChannelEntropy(span="net")
    with pytest.raises(ValueError, match="images: a positive"):
        EntropyPruning(images=0)
    with pytest.raises(ValueError, match="data: "):
        take(None, 4)
    with pytest.raises(ValueError, match="share"):
        uniform_loss([], 1.0)
    with pytest.raises(ValueError, match="lose: .*nowhere"):
        EntropyPruning().prune(small_net(), {"nowhere": 1}, loader(), torch.zeros(1, 3, 10, 10))
    with pytest.raises(ValueError, match="features"):
        head_to_gap(small_net(), torch.zeros(1, 3, 10, 10))


def test_nan_activations_name_the_layer():
    data = loader()
    data[1][0][3] = float("nan")
    with pytest.raises(ValueError, match="'0' hold NaN"):
        channel_entropy(small_net(), data, images=96)


def test_layers_without_a_map_are_refused():
    from workbench.contracts.structure.surgery import channel_groups

    net, x = vgg_fc.dense(), vision.calibration()[:8]
    head = [g for g in channel_groups(net, vision.EXAMPLE) if g.name.startswith("classifier")]
    with pytest.raises(ValueError, match="'classifier.0' has shape .* without spatial positions"):
        ChannelEntropy().scores(head, net, [x])


def test_a_ratio_beyond_the_floor():
    with pytest.raises(ValueError, match="floor"):
        compress(vision.dense("vgg-small"), "entropy-pruning", ratio=0.9999, data=vision.labelled(64))
