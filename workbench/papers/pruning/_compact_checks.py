"""What must be exact about compact convolution. Each check gets the method: an object with ``squeeze(x)``, ``layer(c_in, c_out, **settings)``, ``r``, ``op``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ...contracts.structure.macs import macs, parameters
from ...core.study import Outcome
from ._compact_nets import OPERATIONS, PAIRS, CompactNet
from ._compact_recipe import data, shipped

IMAGE = torch.randn(2, 12, 9, 7, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def neutral(method) -> Outcome:
    """r = 1 is the depthwise-separable block, bit for bit, whatever the operation (but those that need pairs, and lp, which is |x|)."""
    torch.manual_seed(1)
    worst = 0.0
    for op in (op for op in OPERATIONS if op not in (*PAIRS, "lp")):
        block = replace(method, r=1, op=op).layer(12, 10).eval()
        x = F.conv2d(IMAGE, block.depthwise.weight, padding=1, groups=12)
        want = block.relu(block.norm2(block.pointwise(block.norm1(x))))
        worst = max(worst, float((block(IMAGE) - want).abs().max()))
    return Outcome(worst == 0, worst, 0)


def by_hand(method) -> Outcome:
    """Every operation against loops over groups and members, contiguous and strided, with a group that must be filled up by the last channel."""
    worst = 0.0
    for r in (2, 3, 4, 5):
        for order in ("contiguous", "strided"):
            count = -(-12 // r)
            for op in OPERATIONS:
                if op in PAIRS and r != 2:
                    continue
                got = replace(method, r=r, op=op, order=order).squeeze(IMAGE)
                for group in range(count):
                    index = [group * r + i if order == "contiguous" else i * count + group for i in range(r)]
                    parts = [IMAGE[:, min(i, 11)] for i in index]
                    stack = torch.stack(parts)
                    want = {"max": lambda s: s.amax(0), "min": lambda s: s.amin(0), "mean": lambda s: s.mean(0), "sum": lambda s: s.sum(0),
                            "lp": lambda s: (s * s).mean(0).sqrt(), "median": lambda s: s.median(0).values, "drop": lambda s: s[0],
                            "product": lambda s: s[0] * s[-1], "diff": lambda s: s[0] - s[-1],
                            "absmax": lambda s: torch.where(s.amax(0).abs() >= s.amin(0).abs(), s.amax(0), s.amin(0))}[op](stack)
                    worst = max(worst, float((got[:, group] - want).abs().max()))
    return Outcome(worst < 1e-6, worst, 1e-6)


def gradients(method) -> Outcome:
    """Finite differences in double precision, and a tie, whose gradient the members share."""
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    worst, step = 0.0, 1e-6
    for op in OPERATIONS:
        squeeze = replace(method, r=2, op=op).squeeze
        leaf = x.clone().requires_grad_()
        weights = torch.linspace(1, 2, 4, dtype=torch.float64)[None, :, None, None]
        (squeeze(leaf) * weights).sum().backward()
        for i in range(8):
            moved = [x.clone() for _ in range(2)]
            moved[0][0, i], moved[1][0, i] = x[0, i] + step, x[0, i] - step
            slope = ((squeeze(moved[0]) - squeeze(moved[1])) * weights).sum(1)[0] / (2 * step)
            worst = max(worst, float((slope - leaf.grad[0, i]).abs().max()))
    tie = torch.ones(1, 4, 1, 1, requires_grad=True)
    replace(method, r=4, op="max").squeeze(tie).sum().backward()
    shared = bool((tie.grad == 0.25).all())
    return Outcome(worst < 1e-4 and shared, f"slopes differ by {worst:.1e}; a tie of four gives {tie.grad.flatten().tolist()}", "1e-4; a quarter each")


def costs(method) -> Outcome:
    """MACs per pixel k²C + C·C_out/r by the counter, and parameters alike: the operation itself has none."""
    found, want = [], []
    for r in (1, 2, 4, 8):
        block = replace(method, r=r).layer(32, 48).eval()
        found += [macs(block, torch.zeros(1, 32, 8, 8)) // 64, parameters(block) - 2 * 32 - 2 * 48]
        want += [9 * 32 + 32 * 48 // r] * 2
    return Outcome(found == want, str(found), str(want))


def after(method) -> Outcome:
    """Placed after the 1×1 convolution, the squeeze makes the next layer narrower by r."""
    block = replace(method, r=4, place="after").layer(16, 32).eval()
    shape = tuple(block(torch.zeros(1, 16, 4, 4)).shape)
    return Outcome(shape == (1, 8, 4, 4) and block.out_channels == 8, str(shape), "(1, 8, 4, 4)")


@torch.no_grad()
def trained_with_the_operation(method) -> Outcome:
    """The shipped nets hold the operator they were trained with: another one in its place costs them their answers."""
    net = shipped("images", "max 2", 0)
    inputs, labels = (part[:500] for part in data("images", "test"))
    right = float((net(inputs).argmax(1) == labels).float().mean())
    swapped = CompactNet("images", r=2, op=replace(method, op="mean").op if method.op == "max" else "max", widths=net.config()["widths"]).eval()
    swapped.load_state_dict(net.state_dict())
    other = float((swapped(inputs).argmax(1) == labels).float().mean())
    return Outcome(right > 0.7 and other < right - 0.1, f"{100 * right:.1f} %, with another operation {100 * other:.1f} %", "above 70 %, at least 10 points less")


def swap(method) -> Outcome:
    """``compactify`` exchanges every 3×3 convolution but the skipped ones, keeps the shapes of all maps, and costs what the formula says."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    small = method.compactify(net, skip=("0",)).eval()
    x = torch.zeros(1, 3, 16, 16)
    kept = isinstance(small[0], nn.Conv2d) and isinstance(small[5], nn.Conv2d) and not isinstance(small[2], nn.Conv2d)
    layer = 64 * (9 * 8 + 8 * 16 // method.r)
    return Outcome(kept and small(x).shape == net(x).shape and macs(small[2], torch.zeros(1, 8, 16, 16)) == layer,
                   f"{macs(small[2], torch.zeros(1, 8, 16, 16))} MACs, output {tuple(small(x).shape)}", f"{layer} MACs, output {tuple(net(x).shape)}")
