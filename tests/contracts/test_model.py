"""The model contract: compress the user's own module, an honest report, and files that restore bit for bit in another process."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wirings
from torch import nn

from workbench.benches.vision.nets import NETS
from workbench.contracts.files import artifact
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.files.graph import GraphNet, NotCapturable, capture
from workbench.contracts.files.storage import describe, fit
from workbench.contracts.model import compress, inputs_and_labels, load, packed_bytes, save_model
from workbench.contracts.structure.surgery import channel_groups, forward, macs, parameters, remove

IMAGES = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(24) % 5
LOADER = [(IMAGES[:12], LABELS[:12]), (IMAGES[12:], LABELS[12:])]
PIXELS = [{"pixel_values": x, "labels": y} for x, y in LOADER]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


class Magnitude:
    def scores(self, groups, model, data):
        return {g.name: sum(g.spread(m, m.weights().abs().sum(1)) for m in g.producers) for g in groups}


class Halve:
    """A method that does everything itself."""

    def compress(self, model, ratio, data, example):
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
        return model


def right(model):
    with torch.no_grad():
        return (forward(model, IMAGES).argmax(1) == LABELS).numpy()


MODELS = {"vgg-small": (NETS["vgg-small"], LOADER, .4, "class"), "resnet20": (NETS["resnet20"], LOADER, .4, "class"),
          "mobilenet": (NETS["mobilenet"], LOADER, .4, "class"), "own": (wirings.FlattenVGG, LOADER, .4, "graph"),
          "dense": (wirings.Dense, LOADER, .4, "graph"), "gates": (wirings.Gates, LOADER, .4, "graph"),
          "vit": (lambda: wirings.hugging_face("vit"), PIXELS, .2, "transformers"),
          "resnet": (lambda: wirings.hugging_face("resnet"), PIXELS, .2, "transformers")}


@pytest.mark.parametrize("name", MODELS)
def test_compress_and_restore_bit_for_bit(name, tmp_path):
    build, data, ratio, kind = MODELS[name]
    model = build()
    before = copy.deepcopy(model.state_dict())
    result = compress(model, Magnitude(), ratio, data, evaluate=right, finetune_steps=3)
    report = result.report
    assert report.parameters == (parameters(model), parameters(result.model)) and report.parameters[1] < report.parameters[0]
    assert report.macs == (macs(model, IMAGES[:1]), macs(result.model, IMAGES[:1]))
    assert abs(1 - report.macs[1] / report.macs[0] - ratio) < .08
    assert report.quality == pytest.approx((right(model).mean() if not model.training else report.quality[0], right(result.model).mean()))
    assert report.gain.units == 24 and report.gain.low <= report.gain.value <= report.gain.high
    assert report.latency is None and "latency not measured" in str(report) and report.seconds > 0
    assert result.save(tmp_path / "small.wb") == os.path.getsize(tmp_path / "small.wb") == report.bytes[1] < report.bytes[0]
    assert artifact.read(tmp_path / "small.wb").meta["kind"] == kind
    net = load(tmp_path / "small.wb")
    for batch in (IMAGES, IMAGES[:1], IMAGES[:7]):  # any batch size
        with torch.no_grad():
            assert torch.equal(forward(net, batch), forward(result.model, batch))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


CHILD = """
import sys, pickle, torch
import workbench.contracts.model as contract
def refuse(*_, **__): raise AssertionError("something was unpickled")
torch.load = pickle.load = pickle.loads = refuse
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
for name in sys.argv[2:]:
    with torch.no_grad():
        out = contract.load(f"{sys.argv[1]}/{name}.wb")(load_file(f"{sys.argv[1]}/images.safetensors")["images"])
    save_file({"out": getattr(out, "logits", out)}, f"{sys.argv[1]}/{name}.out")
assert "wirings" not in sys.modules
"""


def test_another_process_without_the_classes_gives_the_same_bits(tmp_path):
    from safetensors.torch import load_file, save_file
    save_file({"images": IMAGES}, tmp_path / "images.safetensors")
    expected = {}
    for name, (build, _, _, _) in MODELS.items():
        model = wirings.settle(build())
        groups = [g for g in channel_groups(model, IMAGES[:2]) if not g.coupled]
        small = remove(model, {g.name: range(g.size // 2) for g in groups}, IMAGES[:2], groups)
        save_model(tmp_path / f"{name}.wb", small, IMAGES[:2])
        with torch.no_grad():
            expected[name] = forward(small, IMAGES)
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), *expected], cwd=Path(__file__).parents[2], capture_output=True, text=True,
                          timeout=200, check=False, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == 0, done.stderr[-2000:]
    for name, value in expected.items():
        assert torch.equal(load_file(tmp_path / f"{name}.out")["out"], value), name


def test_weights_only_asks_for_the_model_and_fits_it(tmp_path):
    model = wirings.settle(wirings.Branching())
    small = remove(model, {"a": [0, 5], "b": [1]}, IMAGES[:2])
    save_model(tmp_path / "a.wb", small, IMAGES[:2])
    with pytest.raises(ArtifactError, match=r"a.wb: the file holds weights only \(torch.export cannot trace it.*model=…\); its class was Branching"):
        load(tmp_path / "a.wb")
    again = load(tmp_path / "a.wb", model=model)
    assert again.a.out_channels == 14 and again.norm.num_features == 14 and model.a.out_channels == 16
    with torch.no_grad():
        assert torch.equal(again(IMAGES), small(IMAGES))
    with pytest.raises(ValueError, match="model: its tensors are not those of the file"):
        load(tmp_path / "a.wb", model=NETS["vgg-small"]())


@pytest.mark.parametrize("build", [NETS["mobilenet"], wirings.Dense, wirings.Branches, wirings.Signal, lambda: wirings.hugging_face("regnet")])
def test_any_pruned_network_fits_its_original(build):
    model = wirings.settle(build())
    example = torch.randn(2, 4, 16) if isinstance(model, wirings.Signal) else IMAGES[:2]
    groups = channel_groups(model, example)
    small = remove(model, {g.name: range(g.size // 3) for g in groups}, example, groups)
    again = fit(copy.deepcopy(model), small.state_dict())
    with torch.no_grad():
        assert torch.equal(forward(again, example), forward(small, example))


def test_general_method_and_neutral_ratio():
    model = NETS["vgg-small"]().eval()
    halved = compress(model, Halve(), .5, example=IMAGES[:2])
    assert halved.report.macs[0] == halved.report.macs[1] and halved.report.quality is None and not halved.dropped
    same = compress(model, Magnitude(), 0, LOADER)
    with torch.no_grad():
        assert torch.equal(same.model(IMAGES), model(IMAGES))  # the neutral knob changes nothing, batch-norm statistics included


def test_probe_is_handed_both_networks_and_its_answer_is_reported():
    def probe(contenders):
        assert [f().shape for f in contenders.values()] == [(2, 10), (2, 10)]
        return {"ratio": 1.5, "of": tuple(contenders)}

    report = compress(NETS["vgg-small"](), Magnitude(), .5, LOADER, probe=probe).report
    assert report.latency == {"ratio": 1.5, "of": ("before", "after")} and "1.5" in str(report)


def test_a_scalar_quality_has_no_interval():
    report = compress(NETS["vgg-small"](), Magnitude(), .3, LOADER, evaluate=lambda m: float(right(m).mean())).report
    assert report.gain.units == 1 and "interval" not in str(report)


def test_residual_streams_are_pruned_only_on_request():
    class Streams(Magnitude):
        coupled = True

    model = NETS["resnet20"]()
    assert compress(model, Magnitude(), .3, LOADER).model.stem[0].out_channels == 16
    assert compress(model, Streams(), .3, LOADER).model.config()["stages"] != [16, 32, 64]


def test_round_to_and_ignore():
    small = compress(NETS["vgg-small"](), Magnitude(), .5, LOADER, round_to=8, ignore=["features.0"]).model
    widths = small.config()["widths"]
    assert widths[0] == 16 and all(w % 8 == 0 for w in widths)


def poisoned():
    model = NETS["vgg-small"]()
    model.classifier.bias.data[3] = float("inf")
    return model


def failing(model):
    raise RuntimeError("the disk with the test images is gone")


@pytest.mark.parametrize(("change", "words"), [
    ({"ratio": 1}, r"ratio: must lie in \[0, 1\), found 1"), ({"ratio": .999}, "floor"), ({"method": object()}, "method: object has neither"),
    ({"data": []}, "data: the loader yields no batch"), ({"data": None}, "example: hand in"), ({"data": None, "finetune_steps": 3}, "data: fine-tuning needs"),
    ({"data": [(torch.zeros(4, 1, 32, 32), LABELS[:4])]}, r"data: the model does not run on one of shape \(2, 1, 32, 32\)"),
    ({"data": [IMAGES[:4]], "finetune_steps": 1}, r"data: fine-tuning needs batches of \(inputs, labels\)"),
    ({"data": [(IMAGES[:4], LABELS[:4] + 50)], "finetune_steps": 1}, "data: inputs of shape .* and labels of shape .* do not fit"),
    ({"data": [(IMAGES[:4] * float("nan"), LABELS[:4])], "finetune_steps": 1}, "finetune_steps: the loss is nan at step 0"),
    ({"data": [LOADER[0], (torch.zeros(4, 3, 2), LABELS[:4])]}, r"images: batch 2 of shape \(4, 3, 2\)"),
    ({"example": torch.zeros(2, 5)}, r"example: .* shape \(2, 5\)"), ({"model": poisoned}, "weights of 'classifier.bias' hold NaN or infinite"),
    ({"evaluate": failing}, "evaluate: it failed on the model before compression: RuntimeError: the disk"),
    ({"evaluate": lambda m: float("nan")}, "evaluate: one finite number"), ({"evaluate": lambda m: np.zeros((2, 2))}, "evaluate: one finite number"),
    ({"evaluate": lambda m: np.zeros(3 if m.features[0].out_channels == 16 else 4)}, "evaluate: 3 values before compression, 4 after"),
    ({"model": lambda: nn.Linear(3, 2), "data": [torch.zeros(2, 3)]}, "nothing to prune"), ({"round_to": 0}, "round_to"),
])
def test_wrong_input_is_named(change, words):
    arguments = {"model": NETS["vgg-small"], "method": Magnitude(), "ratio": .5, "data": LOADER} | change
    arguments["model"] = arguments["model"]()
    with pytest.raises(ValueError, match=words):
        compress(**arguments)


def test_batches_of_all_kinds():
    inputs, labels = inputs_and_labels({"pixel_values": IMAGES, "labels": LABELS})
    assert list(inputs) == ["pixel_values"] and labels is LABELS
    assert inputs_and_labels((IMAGES, LABELS)) == (IMAGES, LABELS) and inputs_and_labels(IMAGES)[1] is None


# ---------------------------------------------------------------------------------------------------------------- size

def test_packed_bytes_are_those_of_the_file(tmp_path):
    model = NETS["vgg-small"]()
    assert packed_bytes(model) == save_model(tmp_path / "a", model) == os.path.getsize(tmp_path / "a")
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert weights < packed_bytes(model) < weights + 8000  # names, shapes, class and configuration
    small = remove(model, {"features.0": range(8)}, IMAGES[:1])
    gone = sum(t.numel() * t.element_size() for t in model.state_dict().values()) - sum(t.numel() * t.element_size() for t in small.state_dict().values())
    assert abs(packed_bytes(model) - packed_bytes(small) - gone) < 64


def test_tied_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    x = torch.randn(3, 64)
    assert save_model(tmp_path / "a", Tied(), x) < 64 * 64 * 4 + 4000
    model = Tied()
    save_model(tmp_path / "a", model, x)
    assert torch.equal(load(tmp_path / "a")(x), model(x)) and torch.equal(load(tmp_path / "a", model=Tied())(x), model(x))


# ---------------------------------------------------------------------------------------------------------------- captured graphs

def test_a_graph_is_plain_json_and_can_be_fine_tuned():
    model = wirings.settle(wirings.FlattenVGG())
    graph, extra = capture(model, IMAGES[:1])
    assert not extra and graph["batch"] == [1, None] and json.loads(json.dumps(graph)) == graph
    net = GraphNet(graph, model.state_dict())
    assert parameters(net) == parameters(model)
    net(IMAGES).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(ValueError, match="inputs: 1 tensors are needed"):
        net()


def test_a_batch_that_the_graph_was_not_captured_for_is_refused():
    class Fixed(nn.Module):
        def __init__(self, wide):
            super().__init__()
            self.a, self.wide = nn.Linear(3, 4), wide

        def forward(self, x):
            y = self.a(x)
            if self.wide:
                return y.view(1, 2, 2)
            return y * 2 if x.shape[0] > 4 else y

    for wide, example, limits in ((True, torch.randn(1, 3), [1, 1]), (False, torch.randn(3, 3), [1, 4])):
        model = Fixed(wide)
        graph, _ = capture(model, example)
        assert graph["batch"] == limits
        net = GraphNet(graph, model.state_dict())
        assert torch.equal(net(example), model(example))
        with pytest.raises(ValueError, match=f"captured for batches of 1 to {limits[1]}, found 5"):
            net(torch.randn(5, 3))


def test_several_inputs_by_position_or_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, left, right):
            return self.a(left) + self.b(right), left

    model, left, right_ = Two().eval(), torch.randn(6, 3), torch.randn(6, 5)
    for example in ((left, right_), {"left": left, "right": right_}):
        net = GraphNet(capture(model, example)[0], model.state_dict())
        assert torch.equal(forward(net, example), model(left, right_)[0])


@pytest.mark.parametrize(("change", "words"), [
    (lambda g: g["steps"][0].__setitem__(1, "os.system"), "operation 'os.system' is not allowed"),
    (lambda g: g["steps"][0].__setitem__(1, "aten.__class__.mro"), "not allowed"),
    (lambda g: g["steps"][0].__setitem__(1, "aten.from_file.default"), "not one on tensors alone"),
    (lambda g: g["steps"][0].__setitem__(1, "aten.no_such.default"), "does not exist in torch"),
    (lambda g: g["steps"][0].__setitem__(1, "operator.attrgetter"), "is not allowed"),
    (lambda g: g["steps"][0][2].__setitem__(0, {"$": "later"}), "'later' is used before it is computed"),
    (lambda g: g["steps"][0][2].__setitem__(0, {"dtype": "load"}), "'load' is no dtype"),
    (lambda g: g["steps"][0][2].__setitem__(0, {"call": "x"}), "unknown constant 'call'"),
    (lambda g: g["tensors"].__setitem__("p", "no.such.tensor"), "no.such.tensor"), (lambda g: g.pop("steps"), "steps"),
    (lambda g: g.__setitem__("steps", 3), "malformed graph"), (lambda g: g.__setitem__("batch", "any"), "malformed graph"), (lambda g: g.__setitem__("output", {"$": "nothing"}), "before it is computed"),
])
def test_a_forged_graph_is_refused(change, words):
    model = wirings.settle(wirings.FlattenVGG())
    graph, _ = capture(model, IMAGES[:1])
    change(graph)
    with pytest.raises(ArtifactError, match=words):
        GraphNet(graph, model.state_dict())


@pytest.mark.parametrize(("meta", "words"), [
    ({"kind": "class", "class": "os:system", "config": {}}, "is not one of the workbench"),
    ({"kind": "class", "class": "workbench.contracts.model:os", "config": {}}, "is not a network of the workbench"),
    ({"kind": "class", "class": "workbench.no_such:Net", "config": {}}, "cannot be rebuilt"),
    ({"kind": "transformers", "class": "pipeline", "config_class": "ViTConfig", "config": {}, "attention": None}, "is no model of transformers"),
    ({"kind": "weights"}, "hand in the original"), ({"kind": "magic"}, "unknown kind 'magic'"), ({}, "unknown kind None"),
    ({"kind": "graph"}, "unknown kind|malformed"), ({"kind": "class"}, "cannot be rebuilt"),
])
def test_a_forged_description_is_refused(meta, words, tmp_path):
    artifact.save(tmp_path / "a.wb", {"w": torch.zeros(1)}, meta)
    with pytest.raises(ArtifactError, match=words):
        load(tmp_path / "a.wb")


@pytest.mark.parametrize("change", [
    {"attention": "someone/kernels"}, {"config": {"auto_map": {"AutoModel": "evil.Model"}}}, {"config": {"backbone_config": {"use_pretrained_backbone": True}}},
    {"config": {"parts": [{"_attn_implementation": "someone/kernels"}]}},
])
def test_a_configuration_that_would_fetch_something_is_refused(change, tmp_path):
    meta = {"kind": "transformers", "class": "ViTForImageClassification", "config_class": "ViTConfig", "config": {}, "attention": "sdpa"}
    artifact.save(tmp_path / "a.wb", {}, meta | change)
    with pytest.raises(ArtifactError, match="may fetch code or weights"):
        load(tmp_path / "a.wb")


@pytest.mark.parametrize("name", ["vgg-small", "vit", "own"])
def test_saving_and_loading_draw_no_random_numbers(name, tmp_path):
    model = MODELS[name][0]().eval()
    before = torch.get_rng_state()
    save_model(tmp_path / "a", model, IMAGES[:2])
    load(tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state())


def test_a_forged_width_costs_no_memory(tmp_path):
    artifact.save(tmp_path / "a", {"w": torch.zeros(1)}, {"kind": "class", "class": "workbench.benches.vision.nets:VGGSmall", "config": {"widths": [10**7] * 6}})
    with pytest.raises(ArtifactError, match="tensors are not those of the file"):
        load(tmp_path / "a")


def test_what_cannot_be_captured_says_why():
    with pytest.raises(NotCapturable, match=r"torch.export cannot trace it"):
        capture(wirings.Branching(), IMAGES[:2])
    assert "no example" in describe(wirings.FlattenVGG()).meta["reason"]
