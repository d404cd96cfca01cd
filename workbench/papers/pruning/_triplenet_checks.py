"""What must be exact about a TripleNet. Each check gets a design: an object with ``build``, ``deploy``, ``learning_rate`` and its settings."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches import designs, vision
from ...contracts.structure.macs import parameters
from ...core.study import Outcome
from ._triplenet_deploy import activation_megabytes, scripted
from ._triplenet_nets import Bottleneck, HarDBlock, stage
from ._triplenet_rivals import NETS, file_of

# (size, classes) -> parameters of the authors' code; 9.67 M and 12.63 M in their table are the thousand-class nets
PUBLISHED = {("S", 10): 8_965_434, ("S", 1000): 9_679_224, ("B", 10): 14_142_526, ("B3", 1000): 12_638_064}
WIDTHS = [16, 28, 16, 46, 16, 28, 16, 78, 16, 28, 16, 46, 16, 28, 16, 134]
READ = {1: [0], 2: [1, 0], 3: [2], 4: [3, 2, 0], 5: [4], 6: [5, 4], 7: [6], 8: [7, 6, 4, 0], 12: [11, 10, 8], 15: [14], 16: [15, 14, 12, 8, 0]}
PUBLISHED_MEGABYTES = 90.25


def parameter_counts(design) -> Outcome:
    with torch.device("meta"):
        found = {key: parameters(replace(design, size=key[0]).build(key[1])) for key in PUBLISHED}
    wrong = {f"{size}, {classes} classes": found[size, classes] for (size, classes), n in PUBLISHED.items() if found[size, classes] != n}
    return Outcome(not wrong, f"differ: {wrong}" if wrong else ", ".join(f"{n:,d}" for n in found.values()), ", ".join(f"{n:,d}" for n in PUBLISHED.values()))


def links_and_widths(design) -> Outcome:
    with torch.device("meta"):
        block = stage(128, ("hard", 16, 16), design.multiplier, design.kind)[0]
    right = block.widths[1:] == WIDTHS and all(block.links[layer - 1] == read for layer, read in READ.items())
    return Outcome(right, f"widths {block.widths[1:]}, layer 8 reads {block.links[7]}", f"widths {WIDTHS}, layer 8 reads {READ[8]}")


def activation_memory(design) -> Outcome:
    with torch.device("meta"):                                      # shapes are enough
        found = activation_megabytes(design.build(1000), 224)
    return Outcome(round(found, 2) == PUBLISHED_MEGABYTES, found, PUBLISHED_MEGABYTES)


def shapes(design) -> Outcome:
    net, found = replace(design, width=0.125).build(10).eval(), []
    with torch.no_grad():
        for side in (32, 224):
            images = torch.zeros(2, 3, side, side)
            found.append((tuple(net.features(images).shape[2:]), tuple(net(images).shape)))
    return Outcome(found == [((1, 1), (2, 10)), ((7, 7), (2, 10))], str(found), "1×1 and 7×7 maps, (2, 10) logits")


def _norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    shape = (1, -1, 1, 1)
    return (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def _harmonic(block: HarDBlock, x: Tensor) -> Tensor:
    """By recursion over the published rule: no list of links, each layer asks for those before it."""
    @cache
    def made(layer: int) -> Tensor:
        if layer == 0:
            return x
        sources, step = [], 1
        while layer % step == 0 and step <= layer:
            sources.append(made(layer - step))
            step *= 2
        conv, norm, _ = block.layers[layer - 1]
        return _norm(F.conv2d(torch.cat(sources, 1), conv.weight, padding=1), norm).clamp(0, 6)

    last = len(block.layers)
    return torch.cat([made(layer) for layer in range(1, last + 1) if layer % 2 == 1 or layer == last], 1)


def _dense(layers: nn.Sequential, x: Tensor) -> Tensor:
    for layer in layers:
        inside = F.conv2d(_norm(x, layer.norm1).clamp(min=0), layer.conv1.weight)
        x = torch.cat([x, F.conv2d(_norm(inside, layer.norm2).clamp(min=0), layer.conv2.weight, padding=1)], 1)
    return x


def _residual(blocks: nn.Sequential, x: Tensor) -> Tensor:
    for block in blocks:
        a, b, c = (block.body[i] for i in (0, 3, 6))
        y = _norm(F.conv2d(x, a.weight), block.body[1]).clamp(min=0)
        y = _norm(F.conv2d(y, b.weight, padding=1), block.body[4]).clamp(min=0)
        y = _norm(F.conv2d(y, c.weight), block.body[7])
        x = (y + (_norm(F.conv2d(x, block.shortcut[0].weight, block.shortcut[0].bias), block.shortcut[1]) if len(list(block.shortcut.children())) else x)).clamp(min=0)
    return x


def _random_statistics(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2)):
                nn.init.uniform_(tensor, low, high)
    return net.eval()


@torch.no_grad()
def functional_reference(design) -> Outcome:
    torch.manual_seed(3)
    images, worst = torch.randn(2, 12, 8, 8), 0.0
    for plan, reference in ((("dense", 3, 4, 16), _dense), (("hard", 16, 6), _harmonic), (("hard", 10, 4), _harmonic), (("residual", 4, 8, 8), _residual)):
        module = _random_statistics(stage(12, plan, design.multiplier, design.kind)[0])
        want = reference(module, images)
        worst = max(worst, float((module(images) - want).abs().max() / want.abs().max()))
    assert Bottleneck(24, 8).shortcut(images) is images, "a bottleneck of equal widths has no convolution in its shortcut"
    return Outcome(worst < 1e-6, worst, 1e-6)


def harmonic_reads(design) -> Outcome:
    """Bytes that the kernels of one block read: harmonic as designed, against every link with equal widths."""
    torch.manual_seed(0)
    example = torch.zeros(1, 128, 8, 8)
    ours = stage(128, ("hard", 16, 16), design.multiplier, design.kind)[0].eval()
    share = _bytes_read(ours, example) / _dense_reads()
    return Outcome(share <= 0.5, share, 0.5)


def _bytes_read(block: nn.Module, example: Tensor) -> int:
    return sum(kernel.read for kernel in designs.kernels(designs.deployed(block), example))


@cache
def _dense_reads() -> int:
    return _bytes_read(stage(128, ("hard", 16, 16), 1.0, "all")[0].eval(), torch.zeros(1, 128, 8, 8))


@cache
@torch.no_grad()
def _as_trained() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A trained net, digits, its logits as trained, and those of its TorchScript."""
    net = designs.shipped(file_of("TripleNet"), NETS["TripleNet"], 0)
    images = vision.calibration(100, designs.DIGITS).expand(-1, 3, -1, -1)
    return net, images, net(images), scripted(net)(images)


@torch.no_grad()
def deployment(design) -> Outcome:
    """On a trained net and digits: the statistics that are folded are those of training."""
    net, images, want, script = _as_trained()
    folded = design.deploy(net)
    answers = [folded(images), script]
    worst = max(float((got - want).abs().max()) for got in answers)
    same = all(bool((got.argmax(1) == want.argmax(1)).all()) for got in answers)
    before, after = (len(designs.kernels(module)) for module in (net, folded))
    return Outcome(worst <= 1e-3 and same and after < before, f"logits move by {worst:.1e}, {before} kernels become {after}",
                   "1e-3, the same answers, fewer kernels")


def schedule(design) -> Outcome:
    found = [design.learning_rate(epoch) for epoch in (1, 74, 75, 149, 150, 200)] + [design.learning_rate(epoch, 8) for epoch in (2, 3, 6)]
    want = [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4, 1e-3, 5e-4, 2.5e-4]
    return Outcome(found == want, str(found), str(want))
