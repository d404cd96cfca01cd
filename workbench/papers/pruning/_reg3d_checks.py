"""Checks of 3D-Reg: exact, on small networks, and the variants that are wrong on purpose. A subject is a `Reg3D` (see :mod:`.reg3d`), which builds the pruner under test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ...benches import video
from ...contracts.structure.surgery import macs, macs_by_layer
from ...core.study import Outcome
from ._reg3d_columns import ColumnConv, gather, kept_columns
from ._reg3d_pruner import RegPruner
from ._reg3d_rules import redundancy

CLIP = torch.zeros(1, 2, 4, 6, 6)
NEVER = 10**9   # steps: no deadline within a check


def toy(bias: bool = False) -> nn.Module:
    """Three 3-D convolutions in a row."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv3d(2, 6, 3, padding=1, bias=bias), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 8, 3, (2, 1, 1), 1, bias=bias), nn.BatchNorm3d(8),
                        nn.ReLU(), nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1), bias=bias), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3))
    for m in net:
        if isinstance(m, nn.BatchNorm3d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.running_mean, -0.3, 0.3)
    return net.eval()


def clips(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *CLIP.shape[1:], generator=generator), torch.randint(0, 3, (n,), generator=generator)


def trained(method, net: nn.Module, steps: int, speedup: float = 2.0, **changes) -> RegPruner:
    """The pruner after ``steps`` steps of SGD with momentum on random clips."""
    pruner = replace(method, A=1.0, interval=1, steps=NEVER, **changes).pruner(net, CLIP, speedup)
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    pruner.attach(optimizer)
    inputs, labels = clips()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
        pruner.step()
    return pruner


# --- wrong on purpose -----------------------------------------------------------------------------------------------------------------------------


class Forgetful(RegPruner):
    """Wrong on purpose: once all are gone, nothing keeps them at zero."""

    def hold(self) -> None:
        if not self.done:
            super().hold()


class Overeager(RegPruner):
    """Wrong on purpose: the pull does not know how strong it is (every factor counts as 1)."""

    def pull(self) -> None:
        kept = [layer.factor for layer in self.layers]
        for layer in self.layers:
            layer.factor = (layer.factor > 0).double()
        super().pull()
        for layer, factor in zip(self.layers, kept, strict=True):
            layer.factor = factor


def masks_only(model: nn.Module) -> nn.Module:
    """Wrong on purpose: zeros, and all the work as before."""
    return model


def next_channel(model: nn.Module) -> nn.Module:
    """Wrong on purpose: every row is gathered from the next channel."""
    small = gather(model)
    for module in small.modules():
        if isinstance(module, ColumnConv):
            module.channels = ((module.channels.long() + 1) % module.in_channels).to(module.channels.dtype)
    return small


# --- checks ---------------------------------------------------------------------------------------------------------------------------------------


def increments(method) -> Outcome:
    """Δλ: A at the front, falling, uA at J₁ = ⅔ P from both sides, zero at P, point-symmetric about J₁."""
    worst = 0.0
    for wanted in (6, 90, 3 * 2**8):
        def at(j, wanted=wanted):
            return method.increment(torch.as_tensor(j, dtype=torch.float64), wanted, 2.5e-4)
        j = torch.arange(0, 2 * wanted, dtype=torch.float64)
        knee = torch.tensor([2 * wanted / 3 - 1e-9, 2 * wanted / 3 + 1e-9], dtype=torch.float64)
        mirrored = at(4 * wanted / 3 - j[: wanted + 1])
        errors = [at([0.0])[0] - 2.5e-4, at([float(wanted)])[0], *(at(knee) - 0.25 * 2.5e-4), *(at(j[: wanted + 1]) + mirrored - 0.5 * 2.5e-4)]
        rise = at(j).diff().max()
        if rise >= 0:
            return Outcome(False, f"does not fall: a step of {float(rise):.1e} with P = {wanted}", "falls strictly")
        worst = max(worst, max(abs(float(e)) for e in errors))
    return Outcome(worst < 1e-12, worst, 1e-12)


def update_by_hand(method) -> Outcome:
    """Four columns, two to go, three updates with changing norms: averaged ranks, Δλ and λ worked out by hand (linear increments would differ)."""
    net = nn.Sequential(nn.Conv1d(4, 1, 1, bias=False))
    pruner = replace(method, A=1.0, target=2.5, interval=1, steps=NEVER).pruner(net, torch.zeros(1, 4, 3), 2.0)
    pruner.layers[0].quota = 2
    a = np.log(8) / 2
    def delta(j):  # P = 2, J₁ = 4/3
        return np.exp(-a * j) if j < 4 / 3 else 0.5 - np.exp(-a * (8 / 3 - j))
    # norms → ranks; the average over updates gives the order that counts
    rounds = [((1.0, 2.0, 3.0, 4.0), (0, 1, 2, 3)), ((4.0, 1.0, 2.0, 3.0), (1, 0, 2, 3)), ((1.0, 3.0, 2.0, 4.0), (0, 1, 2, 3))]
    # after round 2 the mean ranks are 1.5, 0.5, 1.5, 2.5; after round 3: 1, 1, 4/3, 8/3 (ties keep their order)
    rounds[1] = (rounds[1][0], (1, 0, 2, 3))
    factor = np.zeros(4)
    for norms, places in rounds:
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor(norms).view(1, 4, 1))
        pruner.step()
        factor = np.maximum(factor + [delta(j) for j in places], 0)
    error = float(np.abs(pruner.layers[0].factor.numpy() - factor).max())
    history = float(np.abs(pruner.layers[0].history.numpy() - [1, 1, 4 / 3, 8 / 3]).max())
    return Outcome(max(error, history) < 1e-12, f"λ differs by {error:.1e}, mean ranks by {history:.1e}", "1e-12")


def recovers(method) -> Outcome:
    """A column that was least important for five updates and then most important must lose its whole factor again."""
    net = nn.Sequential(nn.Conv1d(8, 1, 1, bias=False))
    pruner = replace(method, A=0.25, target=2.5, interval=1, steps=NEVER).pruner(net, torch.zeros(1, 8, 3), 2.0)
    pruner.layers[0].quota = 3
    seen = []
    for step in range(60):
        if pruner.done:
            break
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([0.1 if step < 5 else 9.0, *range(1, 8)]).view(1, 8, 1))
        factor = float(pruner.layers[0].factor[0])         # as it stands while there is still something to prune
        pruner.step()
        seen.append(factor)
    ok = bool(pruner.layers[0].alive[0]) and seen[5] > 0.5 and seen[-1] == 0
    return Outcome(ok, f"λ {seen[5]:.2f} after 5 updates, {seen[-1]:.2f} at the end; {'still there' if pruner.layers[0].alive[0] else 'gone'}", "above 0.5, then 0, still there")


def pulls_by_its_factor(method) -> Outcome:
    """The gradient of the penalty is λ_g W_g: one step of plain SGD on a zero loss multiplies each group by 1 − ηλ_g (columns, filters and channels)."""
    worst = 0.0
    for kind in ("column", "filter", "channel"):
        net = toy(bias=True)
        pruner = replace(method, group=kind).pruner(net, CLIP, 1.5)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        pruner.attach(optimizer)
        layer = pruner.layers[1]
        layer.factor[:] = torch.linspace(0, 2, layer.size, dtype=torch.float64)
        before = [slab.tensor.detach().clone() for slab in layer.slabs]
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for slab, old in zip(layer.slabs, before, strict=True):
            worst = max(worst, float((slab.tensor.detach() - old * (1 - 0.1 * slab.spread(layer.factor))).abs().max()))
    return Outcome(worst < 1e-6, worst, 1e-6)


def exact_and_permanent(method) -> Outcome:
    """Every layer loses ceil(r·G) groups, not one more or less; they are exactly zero after 10 more steps with momentum."""
    wrong = []
    for kind in ("column", "filter", "channel"):
        net = toy(bias=True)
        pruner = trained(method, net, 36, group=kind)
        gone = [layer.alive.clone() for layer in pruner.layers]
        inputs, labels = clips()
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_, pruner=pruner: pruner.hold())
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
            pruner.step()
        for layer, alive in zip(pruner.layers, gone, strict=True):
            left = int((~alive).sum())
            alive_now = layer.importance()[~alive].abs().sum()
            if left != layer.quota or not torch.equal(alive, layer.alive) or float(alive_now) != 0:
                wrong.append(f"{kind} {layer.name}: {left} of {layer.quota} gone, weights of {float(alive_now):.1e} there")
    return Outcome(not wrong, "; ".join(wrong[:2]) or "exact, and zero", "exact, and zero")


def target_met(method) -> Outcome:
    """On the bench's net the multiply–accumulates that are really done after `finish` (columns gathered, dead channels kept) are 1/speed-up ± 3 %."""
    worst = 0.0
    for speedup in (1.5, 5.0):
        net = video.dense(0)
        pruner = replace(method, steps=1, interval=1).pruner(net, video.EXAMPLE, speedup)
        dense = macs_by_layer(net, video.EXAMPLE)
        pruner.step()
        total = sum(n for name, n in dense.items() if name.startswith("features"))
        left = sum(n * (kept_columns(net.get_submodule(name)).double().mean().item() if name.startswith("features") else 0) for name, n in dense.items())
        counted, last = macs(pruner.finish(), video.EXAMPLE), dense["classifier"]
        if counted - last > left + 1e-6:
            return Outcome(False, f"{counted} multiplications done, {left:.0f} are those of the columns left", "no more than the columns left")
        worst = max(worst, abs(left / total * speedup - 1))
    return Outcome(worst < 0.03, f"off by {worst:.2%}", "3 %")


def ratios(method) -> Outcome:
    """A layer whose filters are copies of two loses a larger share than the same layer with independent filters; dear layers lose more than cheap ones."""
    net = video.dense(0)
    plain = method.pruner(net, video.EXAMPLE, 3.0).layers
    with torch.no_grad():
        weight = net.features[9].weight
        weight.copy_(weight[:2].repeat(16, 1, 1, 1, 1))
    copied = method.pruner(net, video.EXAMPLE, 3.0).layers
    rises = copied[3].quota / copied[3].size - plain[3].quota / plain[3].size
    r, share = redundancy(weight), [layer.quota / layer.size for layer in plain]
    return Outcome(rises > 0.02 and r > 0.9 and share[0] < max(share) / 2, f"+{rises:.3f}, ρ = {r:.2f}, first layer {share[0]:.2f} of {max(share):.2f}",
                   "above +0.02, 0.9, first layer below half of the largest")


def gathered_equals_masked(method) -> Outcome:
    """The gathered convolution and torch's on the weights with zeros, for one, two and three dimensions with strides, dilation and padding; then a whole net."""
    worst, generator = 0.0, torch.Generator().manual_seed(1)
    cases = [(nn.Conv1d(5, 7, 4, 2, 1), (5, 13)), (nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0), (1, 2)), (3, 9, 8)), (nn.Conv3d(4, 6, 3, (2, 1, 2), 1, bias=False), (4, 5, 6, 7)),
             (nn.Conv3d(3, 5, (1, 3, 3), padding=(0, 2, 2), dilation=(1, 2, 2)), (3, 4, 6, 6))]
    with torch.no_grad():
        for conv, shape in cases:
            conv.weight *= (torch.rand(conv.weight.shape[1:], generator=generator) < 0.3).float()
            x = torch.randn(3, *shape, generator=generator)
            worst = max(worst, float((method.compact(nn.Sequential(conv))(x) - conv(x)).abs().max()))
        net = toy(bias=True)
        net[3].weight[:, 2] = 0
        net[6].weight[:, [1, 5]] = 0                        # three channels that nobody reads
        pruner = method.pruner(net, CLIP, 1.0)
        small, x = pruner.finish(), clips(3)[0]
        worst = max(worst, float((small(x) - net(x)).abs().max()))
        widths = [small[i].weight.shape[0] for i in (0, 3)]
    return Outcome(worst < 1e-5 and widths == [5, 6], f"{worst:.1e}, filters left {widths}", "1e-5, filters left [5, 6]")


def does_only_what_is_left(method) -> Outcome:
    """Counted while it runs: a convolution with a quarter of its columns multiplies N · K · positions times, no more."""
    conv = nn.Conv3d(8, 16, 3, padding=1, bias=False)
    with torch.no_grad():
        keep = torch.rand(conv.weight.shape[1:], generator=torch.Generator().manual_seed(2)) < 0.25
        conv.weight *= keep.float()
    x = torch.zeros(1, 8, 4, 6, 6)
    done, want = macs(method.compact(nn.Sequential(conv)), x), 16 * int(keep.sum()) * 4 * 6 * 6
    return Outcome(done == want, done, want)
