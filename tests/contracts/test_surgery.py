"""Channel surgery: what is coupled, masked = removed, predicted MACs = those of the rebuilt net, and every refusal."""

import copy
import time

import pytest
import torch
import torch_pruning
import wirings
from torch import nn

from workbench.benches.vision.nets import NETS
from workbench.contracts.structure.surgery import (
    channel_groups,
    forward,
    left_alone,
    macs,
    macs_by_layer,
    mask,
    parameters,
    reestimate_batchnorm,
    remove,
    select,
)

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
WORDS = {"input_ids": torch.arange(10).view(2, 5)}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def magnitude(groups):
    return {g.name: sum(g.spread(m, m.weights().abs().sum(1)) for m in g.producers) for g in groups}


def by_name(model, example):
    return {g.name: g for g in channel_groups(model, example)}


def members(group, role):
    return {m.name: tuple(m.index.shape) for m in group.members if m.role == role}


CASES = {**{name: (lambda cls=cls: wirings.settle(cls()), IMAGES) for name, cls in NETS.items()},
         "dense": (lambda: wirings.settle(wirings.Dense()), IMAGES), "branches": (lambda: wirings.settle(wirings.Branches()), IMAGES),
         "gates": (lambda: wirings.settle(wirings.Gates()), IMAGES), "halves": (lambda: wirings.settle(wirings.Halves()), IMAGES),
         "flatten-vgg": (lambda: wirings.settle(wirings.FlattenVGG()), IMAGES), "signal": (lambda: wirings.settle(wirings.Signal()), torch.randn(2, 4, 16)),
         "shuffle": (lambda: wirings.settle(wirings.Shuffle()), IMAGES), "mixer": (lambda: wirings.settle(wirings.Mixer()), IMAGES),
         **{name: (lambda name=name: wirings.hugging_face(name), WORDS if name in ("bert", "llama") else IMAGES)
            for name in ("vit", "resnet", "regnet", "mobilenet", "swin", "bert", "llama")}}
CASES["mobilenet-v2"] = CASES.pop("mobilenet")
CASES["mobilenet"] = (lambda: wirings.settle(NETS["mobilenet"]()), IMAGES)


@pytest.mark.parametrize("mode", ["global", "uniform"])
@pytest.mark.parametrize("name", CASES)
def test_masked_equals_removed_and_macs_are_those_predicted(name, mode):
    """All groups, residual streams included, at the largest of three ratios that the floor allows."""
    build, example = CASES[name]
    model = build()
    before = copy.deepcopy(model.state_dict())
    groups = channel_groups(model, example)
    for ratio in (.6, .4, .2):
        try:
            drop = select(groups, magnitude(groups), model, example, ratio, mode)
            break
        except ValueError as error:
            assert "floor" in str(error)
    small, masked = remove(model, drop, example, groups), mask(model, drop, example, groups)
    with torch.no_grad():
        a, b, dense = forward(small, example), forward(masked, example), forward(model, example)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    assert not torch.allclose(a, dense, rtol=1e-3, atol=1e-3 * float(dense.abs().max()))  # something was really taken out
    assert parameters(small) < parameters(masked) <= parameters(model)
    largest = max(v for v in macs_by_layer(model, example).values())
    assert abs(1 - macs(small, example) / macs(model, example) - ratio) < max(.12, largest / macs(model, example) / 4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model handed in is as it was


@pytest.mark.parametrize("name", ["vgg-small", "resnet20", "mobilenet", "flatten-vgg", "dense", "branches", "vit", "regnet"])
def test_prediction_is_exact_for_any_choice(name):
    from workbench.contracts.structure.surgery import _Predictor
    build, example = CASES[name]
    model = build()
    groups = channel_groups(model, example)
    predict = _Predictor(groups, macs_by_layer(model, example))
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        gone = [torch.randperm(g.size, generator=generator)[:int(torch.randint(0, g.size, (), generator=generator))] for g in groups]
        small = remove(model, {g.name: units for g, units in zip(groups, gone, strict=True) if len(units)}, example, groups)
        assert predict(gone) == macs(small, example)


@pytest.mark.parametrize("name", sorted(set(NETS) - {"vit-tiny"}))  # whose stream and attention hold most of its MACs
@pytest.mark.parametrize("ratio", [.1, .3, .5, .7, .9])
def test_ratio_is_met_within_one_unit(name, ratio):
    model = NETS[name]().eval()
    groups = channel_groups(model, IMAGES)
    drop = select(groups, magnitude(groups), model, IMAGES, ratio)
    layers = macs_by_layer(model, IMAGES)
    dense = sum(layers.values())
    unit = max(sum(layers[m.name] for m in g.members if m.name in layers) / g.size for g in groups) / dense  # the dearest; a LeNet has few
    assert abs(1 - macs(remove(model, drop, IMAGES, groups), IMAGES) / dense - ratio) < max(.02, unit / 2)


def test_wiring_of_a_residual_stream():
    groups = by_name(NETS["resnet20"](), IMAGES)
    stem = groups["stem.0"]
    assert stem.coupled and set(members(stem, "producer")) == {"stem.0", "blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2"}
    assert "blocks.3.shortcut.0" in members(stem, "consumer")
    assert not groups["blocks.0.conv1"].coupled and len([g for g in groups.values() if not g.coupled]) == 9


def test_wiring_of_depthwise_and_flatten():
    group = by_name(NETS["mobilenet"](), IMAGES)["features.1.3"]
    assert set(members(group, "depthwise")) == {"features.2.0"} and set(members(group, "norm")) == {"features.1.4", "features.2.1"}
    flat = by_name(wirings.FlattenVGG(), IMAGES)["features.8"]
    assert members(flat, "consumer") == {"classifier.0": (64, 16)}
    assert flat.consumers[0].index[3].tolist() == list(range(48, 64)) and flat.consumers[0].weights().shape == (64, 16 * 40)


def test_wiring_of_concatenation():
    groups = by_name(wirings.Dense(), IMAGES)
    assert [g.size for g in groups.values()] == [8, 12, 4, 12, 4, 12, 4] and not any(g.coupled for g in groups.values())
    second = next(m for m in groups["layers.1.5"].consumers if m.name == "layers.2.2")
    assert second.index.flatten().tolist() == [12, 13, 14, 15]


def test_wiring_of_grouped_split_and_gated_layers():
    groups = by_name(wirings.Branches(), IMAGES)
    assert groups["grouped"].size == 6 and members(groups["grouped"], "producer") == {"grouped": (6, 4)}
    gates = by_name(wirings.Gates(), IMAGES)
    assert members(gates["a"], "producer") == {"a": (8, 2)} and gates["a"].producers[0].index[1].tolist() == [1, 9]
    assert not gates["b"].coupled  # two producers, but multiplied: no residual stream
    assert "spatial" not in members(gates["b"], "producer")


def test_wiring_of_transformers():
    groups = by_name(wirings.hugging_face("vit"), IMAGES)
    assert groups["vit.layers.0.mlp.fc1"].size == 96 and not any("q_proj" in name for name in groups)
    assert "attention heads" in left_alone(wirings.hugging_face("vit"), IMAGES)["vit.layers.0.attention.q_proj"]


@pytest.mark.parametrize(("build", "layer", "words"), [
    (NETS["vgg-small"], "classifier", "output"), (wirings.TiedToInput, "same", "input"), (wirings.Shuffle, "stem", "shuffles"),
    (wirings.Mixer, "patches", "another dimension"), (wirings.Mixer, "channels_out", "another dimension"),
])
def test_layers_that_must_stay_are_left_alone(build, layer, words):
    model = build()
    assert words in left_alone(model, IMAGES)[layer]
    with pytest.raises(ValueError, match=f"{layer!r} is no prunable group: .*{words}"):
        remove(model, {layer: [0]}, IMAGES)


def test_weights_of_members_are_rows_columns_and_gammas():
    model = wirings.settle(NETS["vgg-small"]())
    first = channel_groups(model, IMAGES)[0]
    assert torch.equal(first.producers[0].weights(), model.features[0].weight.flatten(1))
    assert torch.equal(first.consumers[0].weights(), model.features[3].weight.transpose(0, 1).flatten(1))
    assert torch.equal(first.norms[0].weights(), model.features[1].weight[:, None])
    gradient = torch.randn_like(model.features[0].weight)
    assert torch.equal(first.producers[0].weights(gradient), gradient.flatten(1))


def test_ignore_takes_names_and_modules():
    model = NETS["vgg-small"]()
    assert {g.name for g in channel_groups(model, IMAGES, ignore=["features.0", model.features[3]])} == \
        {"features.7", "features.10", "features.14", "features.17"}
    with pytest.raises(ValueError, match="ignore: the model has no layer nonsense"):
        channel_groups(model, IMAGES, ignore=["nonsense"])


def test_tracing_leaves_modes_flags_and_gradients_alone():
    model = NETS["vgg-small"]().train()
    model.features[0].weight.requires_grad_(False)
    model.features[1].eval()
    with torch.no_grad():  # callers often are
        groups = channel_groups(model, IMAGES)
    assert len(groups) == 6 and model.training and not model.features[1].training
    assert not model.features[0].weight.requires_grad and all(p.grad is None for p in model.parameters())
    small = remove(model, {"features.0": [1]}, IMAGES, groups)
    assert not small.features[0].weight.requires_grad and small.features[3].weight.requires_grad and small.training


def test_shared_weights_are_left_alone():
    model = NETS["vgg-small"]((16, 16, 16, 32, 64, 64))
    model.features[3].weight = model.features[7].weight
    reasons = left_alone(model, IMAGES)
    assert all("belong to another layer too" in reasons[name] for name in ("features.0", "features.3", "features.7"))
    assert {g.name for g in channel_groups(model, IMAGES)} == {"features.10", "features.14", "features.17"}


class Unusual(nn.Module):
    """One operation between two convolutions."""

    def __init__(self, between, width=8):
        super().__init__()
        self.a, self.b, self.head, self.between = nn.Conv2d(3, 8, 3), nn.Conv2d(width, 6, 1), nn.Linear(6, 4), between
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return self.head(self.b(self.between(self, self.a(x))).mean((2, 3)))


@pytest.mark.parametrize(("between", "width", "words"), [
    (lambda m, y: y[:, 2:6], 4, "slices"), (lambda m, y: nn.functional.pad(y, (0, 0, 0, 0, 2, 2)), 12, "makes 12 channels of 8"),
    (lambda m, y: y.repeat(1, 2, 1, 1), 16, "makes 16 channels of 8"), (lambda m, y: y.softmax(1), 8, "Softmax"), (lambda m, y: y.flip(1), 8, "Flip"),
    (lambda m, y: y.roll(1, 1), 8, "Roll"), (lambda m, y: y[:, torch.tensor([3, 1, 0, 2, 4, 5, 6, 7])], 8, "Index"), (lambda m, y: y.cumsum(1), 8, "Cumsum"),
    (lambda m, y: y - y.mean(1, keepdim=True), 8, "combined across channels"), (lambda m, y: y / y.amax(1, keepdim=True), 8, "combined across channels"),
    (lambda m, y: nn.functional.pixel_shuffle(y, 2), 2, "PixelShuffle|regroups"), (lambda m, y: torch.einsum("nchw,cd->ndhw", y, m.matrix), 8, "Bmm|no layer|view"),
    (lambda m, y: nn.functional.linear(y.movedim(1, -1), m.matrix).movedim(-1, 1), 8, "belongs to no layer|Bmm"), (lambda m, y: y.transpose(1, 2).reshape(y.shape), 8, "view"),
    (lambda m, y: nn.functional.conv2d(y, m.matrix[:, :, None, None]), 8, "belongs to no layer"), (lambda m, y: torch.cat(y.split([3, 5], 1)[::-1], 1), 8, "parts of .3, 5."),
    (lambda m, y: y[:, 3:4] * y, 8, "slices"), (lambda m, y: torch.stack([y[:, i] for i in range(8)], 1), 8, "picked"), (lambda m, y: torch.nn.functional.normalize(y, dim=1), 8, "Norm"),
    (lambda m, y: torch.stack(y.unbind(1), 1), 8, "picked"), (lambda m, y: nn.functional.glu(y, 1), 4, "makes 4 channels of 8"),
])
def test_operations_that_mix_channels_keep_them(between, width, words):
    import re
    assert re.search(words, left_alone(Unusual(between, width), IMAGES)["a"])


@pytest.mark.parametrize("between", [
    lambda m, y: y * m.matrix[0, 0], lambda m, y: nn.functional.interpolate(y, scale_factor=2.), lambda m, y: y.mean((2, 3), keepdim=True) + y,
    lambda m, y: y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), lambda m, y: y.flatten(2).softmax(2).view(y.shape), lambda m, y: y.contiguous().clone(),
    lambda m, y: torch.stack([y, y]).sum(0), lambda m, y: y.transpose(1, 3).relu().transpose(3, 1), lambda m, y: torch.cat(y.chunk(2, 1), 1), lambda m, y: y[:, :, 1:, ::2],
    lambda m, y: torch.cat(y.chunk(4, 1)[::-1], 1), lambda m, y: y.unsqueeze(1).squeeze(1),
])
def test_operations_that_keep_channels_apart_let_them_go(between):
    model = Unusual(between)
    groups = channel_groups(model, IMAGES)
    drop = {"a": range(by_name(model, IMAGES)["a"].size // 2)}
    with torch.no_grad():
        torch.testing.assert_close(remove(model, drop, IMAGES, groups)(IMAGES), mask(model, drop, IMAGES, groups)(IMAGES))


def test_bare_parameters_go_with_their_channels():
    class Scaled(nn.Module):
        """Layer scale, and an embedding of positions that has as many rows and columns as there are channels."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 5, stride=4), nn.Conv2d(8, 6, 1)
            self.scale, self.place = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.randn(1, 8, 8, 8))

        def forward(self, x):
            return self.b(self.a(nn.functional.pad(x, (0, 1, 0, 1))) * self.scale + self.place).mean((2, 3))

    model = Scaled()
    small = remove(model, {"a": [1, 5, 6]}, IMAGES)
    assert small.scale.shape == (5, 1, 1) and small.place.shape == (1, 5, 8, 8)
    torch.testing.assert_close(small(IMAGES), mask(model, {"a": [1, 5, 6]}, IMAGES)(IMAGES))


def test_select_at_zero_rounding_and_floor():
    model = NETS["vgg-small"]()
    groups = channel_groups(model, IMAGES)
    scores = magnitude(groups)
    assert select(groups, scores, model, IMAGES, 0) == {}
    small = remove(model, select(groups, scores, model, IMAGES, .5, round_to=8), IMAGES, groups)
    assert all(m.out_channels % 8 == 0 for m in small.modules() if isinstance(m, nn.Conv2d))
    with pytest.raises(ValueError, match=r"the floor, 8 channel\(s\) left in each of 6 groups, removes 0\.881"):
        select(groups, scores, model, IMAGES, .99, round_to=8)
    tiny = remove(model, {g.name: range(1, g.size) for g in groups}, IMAGES, groups)
    assert {m.out_channels for m in tiny.modules() if isinstance(m, nn.Conv2d)} == {1}


def test_select_drops_the_lowest_scores():
    model = NETS["vgg-small"]()
    groups = channel_groups(model, IMAGES)
    scores = {g.name: torch.arange(g.size, 0, -1.) for g in groups}
    for mode in ("global", "uniform"):
        for name, units in select(groups, scores, model, IMAGES, .4, mode).items():
            size = next(g.size for g in groups if g.name == name)
            assert units.tolist() == list(range(size - len(units), size))


def test_uniform_takes_the_same_share_of_every_group():
    model = NETS["resnet20"]()
    groups = [g for g in channel_groups(model, IMAGES) if not g.coupled]
    drop = select(groups, magnitude(groups), model, IMAGES, .5, "uniform")
    shares = [len(drop[g.name]) / g.size for g in groups]
    assert max(shares) - min(shares) <= 1 / 16


@pytest.mark.parametrize(("change", "words"), [
    ({"ratio": 1.0}, r"ratio: .* \[0, 1\), found 1.0"), ({"ratio": -.1}, "ratio"), ({"mode": "layer"}, "mode: 'global' or 'uniform', found 'layer'"),
    ({"round_to": 0}, "round_to"), ({"scores": {"features.0": torch.ones(3)}}, "'features.0' needs 16 finite numbers, found shape"),
    ({"scores": {"features.0": torch.full((16,), float("nan"))}}, "with NaN"), ({"scores": {}}, "scores: no group has one"), ({"scores": {"nowhere": torch.ones(16)}}, "no group is called"),
])
def test_select_refuses(change, words):
    model = NETS["vgg-small"]()
    groups = channel_groups(model, IMAGES)
    arguments = {"scores": magnitude(groups), "model": model, "example": IMAGES, "ratio": .5} | change
    with pytest.raises(ValueError, match=words):
        select(groups, **arguments)


@pytest.mark.parametrize(("drop", "words"), [
    ({"features.0": range(16)}, "would lose all of its 16 channels"), ({"features.0": [16]}, "has units 0 … 15, found 16"),
    ({"features.0": [-1]}, "has units 0 … 15"), ({"nowhere": [0]}, "'nowhere' is no prunable group: the groups are features.0"),
])
def test_remove_refuses(drop, words):
    for act in (remove, mask):
        with pytest.raises(ValueError, match=words):
            act(NETS["vgg-small"](), drop, IMAGES)


def test_uneven_share_of_a_grouped_convolution_is_refused():
    class Uneven(nn.Module):
        """A quarter of what enters the grouped layer comes straight from the input."""

        def __init__(self):
            super().__init__()
            self.a, self.grouped, self.head = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(12, 8, 3, groups=4), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(torch.relu(self.grouped(torch.cat([self.a(x), x], 1))).mean((2, 3)))

    model = Uneven()
    assert "its groups would differ in width" in left_alone(model, IMAGES)["a"]
    with pytest.raises(ValueError, match="groups would differ in width"):
        remove(model, {"a": [0]}, IMAGES)


def test_a_model_that_spells_out_its_widths_is_named():
    with pytest.raises(ValueError, match="its own code fixes the number of channels of grow .*ignore"):
        remove(wirings.FixedView(), {"grow": [0]}, torch.randn(3, 10))


class Stubborn(nn.Module):
    """Raises depending on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        if x.mean() > -100:
            raise KeyError("routing table empty")
        return self.b(self.a(x))


class Argmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.b(self.a(x)).argmax(1)


def poisoned():
    model = NETS["vgg-small"]()
    model.features[3].weight.data[0, 0, 0, 0] = float("nan")
    return model


@pytest.mark.parametrize(("model", "example", "words"), [
    (Stubborn, IMAGES, r"cannot be traced with an example of shape \(2, 3, 32, 32\): 'routing table empty'"), (Argmax, IMAGES, "no output depends on a weight"),
    (lambda: nn.Linear(4, 2), torch.randn(2, 4), "nothing to prune .*output"), (nn.ReLU, IMAGES, "nothing to prune .no convolution"),
    (NETS["vgg-small"], torch.randn(2, 1, 32, 32), r"example: .* \(2, 1, 32, 32\)"), (poisoned, IMAGES, "weights of 'features.3.weight' hold NaN"),
])
def test_channel_groups_refuses(model, example, words):
    with pytest.raises(ValueError, match=words):
        channel_groups(model(), example)


def test_macs_are_counted_by_hand():
    conv = nn.Sequential(nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2), nn.Flatten(), nn.Linear(6 * 5 * 4, 7))
    assert macs_by_layer(conv, torch.zeros(3, 4, 10, 10)) == {"0": 5 * 4 * 6 * 2 * 15, "2": 120 * 7}
    assert macs(nn.ConvTranspose2d(4, 6, 3, stride=2), torch.zeros(2, 4, 5, 5)) == 25 * 4 * 6 * 9
    assert macs(nn.Conv1d(4, 6, 3), torch.zeros(2, 4, 10)) == 8 * 6 * 4 * 3
    assert macs(nn.Conv3d(2, 3, 3), torch.zeros(1, 2, 5, 5, 5)) == 27 * 3 * 2 * 27
    assert macs(nn.Linear(4, 5), torch.zeros(2, 7, 4)) == 7 * 20
    assert macs(NETS["vgg-small"](), IMAGES) == macs(NETS["vgg-small"](), IMAGES[:1]) == 9_880_192
    attention = macs_by_layer(wirings.hugging_face("vit"), IMAGES)["(functional)"]
    assert attention == 2 * 2 * 17 * 17 * 48  # two layers, Q·Kᵀ and P·V
    with pytest.raises(ValueError, match=r"example: .* shape \(1, 5\)"):
        macs(NETS["vgg-small"](), torch.zeros(1, 5))


def test_batchnorm_statistics_are_those_of_the_images():
    model = NETS["vgg-small"]().train()
    images = torch.randn(64, 3, 32, 32)
    reestimate_batchnorm(model, images, batch=32)
    first = model.features[0](images)
    torch.testing.assert_close(model.features[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not model.training and not any(m.training for m in model.modules()) and model.features[1].momentum == .1
    with pytest.raises(ValueError, match="images: no batch"):
        reestimate_batchnorm(model, [])
    with pytest.raises(ValueError, match=r"images: batch 2 of shape \(4, 1, 8, 8\)"):
        reestimate_batchnorm(model, [images, torch.zeros(4, 1, 8, 8)])
    reestimate_batchnorm(nn.Linear(2, 2).train(), torch.zeros(1, 2))  # nothing to do


def test_as_fast_as_the_pruner_of_the_library_it_builds_on():
    """Scoring and surgery, CPU seconds, best of three, against torch-pruning's own pruner with its magnitude importance."""
    model = wirings.FlattenVGG((64, 128, 256, 512))

    def ours():
        groups = channel_groups(model, IMAGES[:1])
        scores = magnitude(groups)
        remove(model, {g.name: scores[g.name].argsort()[:g.size // 3] for g in groups}, IMAGES[:1], groups)

    def theirs():
        net = copy.deepcopy(model)
        torch_pruning.pruner.BasePruner(net, IMAGES[:1], importance=torch_pruning.importance.MagnitudeImportance(p=1), pruning_ratio=1 / 3,
                                        ignored_layers=[net.classifier[2]]).step()

    def seconds(act):
        start = time.process_time()
        act()
        return time.process_time() - start

    taken = [(seconds(ours), seconds(theirs)) for _ in range(4)][1:]
    assert min(a for a, _ in taken) <= min(b for _, b in taken)
