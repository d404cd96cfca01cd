"""TripleNet beyond what the common matrix tests: the public functions on the user's own data, files, wrong input, and the bench that counts."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import workbench
from workbench.benches import designs, vision
from workbench.contracts.model import load
from workbench.contracts.structure.macs import macs
from workbench.papers.pruning._triplenet_nets import HarDBlock, links, width_of
from workbench.papers.pruning._triplenet_rivals import NETS, GhostModule
from workbench.papers.pruning.triplenet import Design, deploy, export, fit_classifier, profile, triplenet

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def narrow():
    torch.manual_seed(0)
    return triplenet("S", width=0.125, layers=4).eval()


def test_links_are_logarithmic_and_widths_even():
    assert all(len(links(layer)) == (layer & -layer).bit_length() for layer in range(1, 300))
    assert links(3, "all") == [2, 1, 0] and links(3, "previous") == [2]
    assert all(width_of(layer, growth) % 2 == 0 and width_of(layer, growth) >= growth for layer in range(1, 65) for growth in (2, 16, 40))


def test_block_puts_out_odd_layers_and_the_last():
    block = HarDBlock(8, 6, 4)
    assert block.out == [1, 3, 5, 6] and block(torch.zeros(1, 8, 4, 4)).shape[1] == block.out_channels
    assert HarDBlock(8, 5, 4).out == [1, 3, 5]


def test_rivals_have_equal_macs():
    counts = {name: macs(build().eval(), designs.EXAMPLE) for name, build in NETS.items()}
    assert all(abs(count / counts["TripleNet"] - 1) < 0.03 for count in counts.values()), counts
    design = Design(width=0.125, layers=8).build()
    assert design.config() == NETS["TripleNet"]().config(), "the shipped net is the published design at an eighth of its width"


def test_ghost_module_makes_half_of_its_channels_cheaply():
    module = GhostModule(6, 8)
    assert module(torch.zeros(1, 6, 5, 5)).shape == (1, 8, 5, 5)
    assert module.cheap[0].weight.numel() == 4 * 9 < module.primary[0].weight.numel() * 2


@pytest.mark.parametrize(("wrong", "says"), [({"size": "XL"}, "size must be one of S, B, B3"), ({"width": 0}, "0 channels"), ({"width": float("nan")}, "width"),
                                             ({"in_size": 31}, "in_size: 31 pixels"), ({"num_classes": 0}, "num_classes"), ({"layers": 0}, "layers")])
def test_wrong_settings_say_what_is_allowed(wrong, says):
    with pytest.raises(ValueError, match=says):
        triplenet(**wrong)


def test_profile_counts_and_times_every_layer():
    net = narrow()
    table = profile(net, (1, 3, 32, 32))
    assert table.macs.sum() == macs(net, IMAGES[:1]) and (table.ms >= 0).all() and (table.low <= table.high).all()
    assert len(table) == 1 + sum(not list(m.children()) for m in net.modules())
    with pytest.raises(ValueError, match="at least 30"):
        profile(net, runs=3)
    with pytest.raises(ValueError, match="shape"):
        profile(net, (1, 4, 32, 32))


def test_profile_of_a_net_that_uses_a_layer_twice():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), relu, nn.Conv2d(4, 4, 1), relu)
    table = profile(net, (1, 3, 8, 8)).set_index("layer")
    assert table.loc["1", "bytes"] == 2 * 2 * 4 * 64 * 4 and table.macs.sum() == macs(net, IMAGES[:1, :, :8, :8])


def test_a_net_is_judged_as_it_will_be_used():
    torch.manual_seed(0)
    net = NETS["TripleNet"]()                                       # in training mode: dropout draws, batch norms look at the batch
    first, second = (designs.measure(net.train()).samples["right"] for _ in range(2))
    assert (first == second).all()


def test_exported_files_give_the_same_logits(tmp_path):
    net = narrow()
    with torch.no_grad():
        want = net(IMAGES)
    assert export(net, tmp_path / "net.pt") == (tmp_path / "net.pt").stat().st_size
    assert torch.allclose(torch.jit.load(str(tmp_path / "net.pt"))(IMAGES), want, atol=1e-4)
    export(net, tmp_path / "net.wb", "workbench")
    assert torch.equal(load(tmp_path / "net.wb")(IMAGES), want)
    with pytest.raises(ValueError, match="torchscript, workbench"):
        export(net, tmp_path / "net.onnx", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt", "net.wb"], "nothing is left half written"


def test_exported_file_needs_no_workbench(tmp_path):
    export(narrow(), tmp_path / "net.pt")
    code = f"import torch, sys; print(tuple(torch.jit.load({str(tmp_path / 'net.pt')!r})(torch.zeros(3, 3, 32, 32)).shape), 'workbench' in sys.modules)"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert out.strip() == "(3, 10) False"


def test_folding_halves_the_kernels():
    net = narrow()
    assert len(designs.kernels(deploy(net))) < 0.75 * len(designs.kernels(net))
    ran = designs.kernels(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.ReLU()), torch.zeros(1, 3, 2, 2))
    assert [designs.OPERATORS[k.operator] for k in ran] == ["convolution", "activation"], "a view is no kernel"
    assert (ran[0].read, ran[0].written, ran[0].macs) == (3 * 4 * 4, 4 * 4 * 4, 48), "weights are no activations"


def batches(n=2):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 3) for _ in range(n)]


def test_fit_classifier_learns_and_refuses():
    net = narrow()
    losses = fit_classifier(net, batches(), epochs=6)
    assert losses[-1] < losses[0] and not net.training
    with pytest.raises(ValueError, match="images alone"):
        fit_classifier(net, [batches()[0][0]], epochs=1)
    with pytest.raises(ValueError, match="no batch"):
        fit_classifier(net, [], epochs=1)


def test_compress_replaces_a_classifier_within_its_budget(tmp_path):
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 3))
    result = workbench.compress(own, Design(steps=2), 0.4, data=batches(), probe=None)
    assert 0.3 < macs(result.model, IMAGES[:1]) / macs(own, IMAGES[:1]) <= 0.6
    result.save(tmp_path / "small.wb")
    assert torch.equal(load(tmp_path / "small.wb")(IMAGES), result.model(IMAGES)) and result.model(IMAGES).shape == (2, 3)


def test_compress_names_what_is_wrong():
    own = vision.NETS["vgg-small"]((4, 4, 4, 4, 4, 4))
    with pytest.raises(ValueError, match="narrowest TripleNet-S needs"):
        Design().compress(own, 0.99, batches(), IMAGES)
    with pytest.raises(ValueError, match="data: "):
        Design().compress(own, 0.5, None, IMAGES)
    with pytest.raises(ValueError, match="at least 32×32"):
        Design().compress(own, 0.5, batches(), IMAGES[..., :16, :16])


def test_a_checkpoint_of_another_design_is_refused():
    with pytest.raises(ValueError, match="another design"):
        designs.shipped("triplenet-triplenet", NETS["pure dense"], 0)
    with pytest.raises(ValueError, match="no checkpoint"):
        designs.shipped("triplenet-triplenet", NETS["TripleNet"], 99)
