"""Checks of RFC-HyPGCN: exact, on small networks and made-up features. A subject is a `HyPGCN` (see :mod:`.rfc_hypgcn`)."""

from __future__ import annotations

import copy
from collections import deque

import numpy as np
import torch
from torch import nn

from ...benches.skeleton.nets import AGCN, TAPS, GraphConv
from ...contracts.data import StreamError
from ...core.study import Outcome
from ._hypgcn_cycles import arrivals, dynamic, lockstep, static, temporal
from ._hypgcn_fixed import lower_block
from ._hypgcn_prune import LOOP, RATES, Preset, balanced, prune_channels, unbalanced
from ._hypgcn_runs import remade

PLAN = Preset((0, 0.4, 0.5, 0.6), 0.67, False)


def toy(residual: bool = True) -> AGCN:
    """Four small blocks whose batch norms and graphs are not trivial."""
    torch.manual_seed(4)
    net = AGCN((8, 8, 12, 12), (1, 2, 1, 1), residual).eval()
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.3, 0.3)
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
        if isinstance(m, GraphConv):
            nn.init.normal_(m.learnt, std=0.05)
    return net


def features(channels: int, frames: int, zeros: float, seed: int = 0) -> np.ndarray:
    """Words (C, T, 25) as a ReLU leaves them; channels differ in how often they are zero."""
    rng = np.random.default_rng(seed)
    share = np.clip(zeros + rng.uniform(-0.25, 0.25, (channels, 1, 1)), 0, 0.98)
    return (rng.integers(1, 2000, (channels, frames, 25)) * (rng.random((channels, frames, 25)) >= share)).astype(np.int16)


def clip(n: int = 3, frames: int = 10) -> torch.Tensor:
    return torch.randn(n, 3, frames, 25, generator=torch.Generator().manual_seed(0)) * 0.5


def order_of_products(method) -> Outcome:
    """Graph first with the pruned channels left out = weights first on zeroed channels (float64), and the loop nest counts what three nested loops count."""
    net = toy()
    block = net.blocks[2]
    gone = prune_channels(block.gcn, 0.5)
    f = torch.rand(2, 8, 5, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    double = copy.deepcopy(block.gcn).double()
    weight, graph, kept = double.weight.detach(), double.graph.detach(), double.kept
    first = torch.einsum("okc,nctv,kvw->notw", weight, f[:, kept], graph)
    with torch.no_grad():
        whole = double(f)
        last = sum(torch.einsum("oc,nctv->notv", weight[:, k], f[:, kept]) @ graph[k] for k in range(3))
    error = max(float((a - last).abs().max()) for a in (first, whole))
    fixed = remade(lower_block(block), method.block)
    fixed.spatial_sums(np.zeros((1, 8, 5, 25)))
    counted = {"graph": 0, "spatial": 0}
    for _ in range(3):
        for c in range(8):
            if c in gone:
                continue
            counted["graph"] += sum(25 for t in range(5) for w in range(25))
            counted["spatial"] += sum(5 for o in range(12) for v in range(25))
    same = {k: fixed.work[k] for k in counted} == counted
    return Outcome(error < 1e-12 and same, f"differs by {error:.1e}, {dict(fixed.work)} multiplications", f"1e-12, {counted}")


def integers_bit_for_bit(method) -> Outcome:
    """A pruned block in the simulator equals a torch reference on int64, product by product, rounding and saturation included."""
    net = toy()
    method.pruning.prune_stream(net, PLAN)
    f = torch.randint(0, 3000, (1, 8, 6, 25), generator=torch.Generator().manual_seed(2))
    f[0, 1, 2] = 32_000                                                                    # some sums must saturate
    wrong = 0
    for block in (net.blocks[1], net.blocks[2]):
        fixed = remade(lower_block(block), method.block)
        middle, out = fixed(f.numpy().astype(np.float64))
        want_middle, want = reference(fixed, f)
        wrong += int((middle != want_middle.numpy()).sum() + (out != want.numpy()).sum())
    return Outcome(wrong == 0, f"{wrong} words differ", "0 words")


def reference(block, f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The block once more, in int64, from its description: shifts instead of divisions, loops instead of products of matrices."""
    def narrow(sums):
        return ((sums.clamp(-(1 << 31), (1 << 31) - 1) + 128) >> 8).clamp(-(1 << 15), (1 << 15) - 1)

    def tensor(array):
        return torch.from_numpy(np.asarray(array, np.int64))

    def way(weight, x):
        return 0 if weight is None else x << 8 if weight is True else (tensor(weight)[None, :, :, None, None] * x[:, None]).sum(2)

    graph, spatial, rows = tensor(block.graph), tensor(block.spatial), tensor(block.rows)
    sums = tensor(block.bias1)[None, :, None, None] * 256 + way(block.inner, f)
    for k in range(3):
        for i, c in enumerate(block.kept):
            g = narrow((f[:, c, :, :, None] * graph[k]).sum(-2))
            sums = sums + spatial[:, k, i][None, :, None, None] * g[:, None]
    middle = narrow(sums).clamp_min(0)
    t = middle.shape[2]
    out = (t - 1) // block.stride + 1
    sums = torch.zeros(1, block.channels, out, 25, dtype=torch.int64) + tensor(block.bias2)[None, :, None, None] * 256 + way(block.outer, f[:, :, ::block.stride])
    for row, tap, o in zip(rows, block.taps, block.filters, strict=True):
        for frame in range(out):
            source = frame * block.stride + int(tap) - TAPS // 2
            if 0 <= source < t:
                sums[:, o, frame] += (row[None, :, None] * middle[:, :, source]).sum(1)
    return middle, narrow(sums).clamp_min(0)


def features_come_back(method) -> Outcome:
    """decode(encode(f)) = f bit for bit, for 16 to 48 channels, empty to full, with and without spill; random bytes are refused."""
    spilled = 0
    for channels, zeros, quantile in ((16, 0.6, 1.0), (24, 0.5, 0.0), (48, 0.8, 0.5), (16, 0.0, 1.0), (32, 1.2, 1.0)):
        calibration = np.stack([features(channels, 6, zeros, seed) for seed in range(6)])
        memory, feature = method.memory.fit(calibration, quantile), features(channels, 6, zeros - 0.05, 99)
        blob = memory.encode(feature)
        if not np.array_equal(memory.decode(blob), feature):
            return Outcome(False, f"{channels} channels, {zeros:.0%} zeros: other features come back", "the same, bit for bit")
        spilled += memory.bits(feature)["spill"]
    try:
        memory.decode(bytes(range(256)))
        return Outcome(False, "random bytes were taken for features", "StreamError")
    except StreamError:
        return Outcome(spilled > 0, f"bit for bit, {spilled // 128} rows spilled", "bit for bit, some rows spilled")


def features_are_small(method) -> Outcome:
    """With half of the words zero the memory has at most 0.75 of the dense bits, spill included, and mini-banks hold fewer words than 16 a vector."""
    calibration = np.stack([features(32, 12, 0.6, seed) for seed in range(8)])
    feature = features(32, 12, 0.6, 50)
    memory, bits = (m := method.memory.fit(calibration)), m.bits(feature)
    falling = bool((np.diff(memory.depths, axis=1) <= 0).all())
    share, zeros = (bits["masks"] + bits["minibanks"] + bits["spill"]) / bits["dense"], float((feature == 0).mean())
    return Outcome(share <= 0.75 and zeros >= 0.5 and falling and bits["minibanks"] < bits["full"] and bits["minibanks"] < bits["dense"],
                   f"{share:.3f} at {zeros:.0%} zeros, depths {'fall' if falling else 'do not fall'}", "0.75 at 50 % zeros or more, depths fall")


def coarse_changes_nothing(method) -> Outcome:
    """Without shortcuts, a temporal filter that only pruned channels read can go: the same scores, fewer weights."""
    def pruned(coarse: bool) -> AGCN:
        net = toy(residual=False)
        type(method.pruning)(method.pruning.patterns, coarse and method.pruning.coarse, method.pruning.largest).prune_stream(net, Preset(PLAN.channels, 0.0, False))
        return net
    with torch.no_grad():
        thin, thick = pruned(True), pruned(False)
        error = float((thin(clip()) - thick(clip())).abs().max())
        dense = thick(clip()).abs().max()
    fewer = sum(b.tcn.weight.numel() for b in thin.blocks) / sum(b.tcn.weight.numel() for b in thick.blocks)
    return Outcome(error < 1e-5 * float(dense) + 1e-6 and fewer < 0.8, f"scores move by {error:.1e}, {fewer:.2f} of the temporal weights", "1e-6, at most 0.8")


def patterns_are_balanced(method) -> Outcome:
    """At every rate each tap is kept equally often in a loop of eight filters (± 1), no filter has two taps more than another, and static PEs in step need at
    most 0.9 of the cycles that scattered taps of the same number need."""
    worst, slow = 0, 0.0
    for rate in RATES[1:]:
        loop = method.pruning.patterns(rate, LOOP)
        worst = max(worst, int(np.ptp(loop.sum(0))), int(np.ptp(loop.sum(1))))
        cycles = np.mean([lockstep(method.pruning.patterns(rate, 48, seed), 100) / lockstep(unbalanced(rate, 48, seed), 100) for seed in range(4)])
        slow = max(slow, float(cycles))
        if loop.sum() != balanced(rate, LOOP).sum():
            return Outcome(False, f"{loop.sum()} taps at {rate:.0%}", f"{balanced(rate, LOOP).sum()}")
    return Outcome(worst <= 1 and slow <= 0.9, f"counts differ by {worst}, {slow:.2f} of the cycles", "1, 0.9")


def smallest_channels_go(method) -> Outcome:
    """Channels that the graph convolution hardly reads are exactly those that go, for all three k."""
    net = toy()
    with torch.no_grad():
        net.blocks[2].gcn.weight[:, :, [1, 4, 6]] *= 1e-3
    method.pruning.prune_stream(net, Preset((0, 0, 3 / 8, 0), 0.0, False))
    kept = net.blocks[2].gcn.kept.tolist()
    return Outcome(kept == [0, 2, 3, 5, 7], f"kept {kept}", "kept [0, 2, 3, 5, 7]")


def queues(method) -> Outcome:
    """The simulated queues take as many cycles as a model with real queues, one lane after another; fewer multipliers than taps are busier than one for each tap."""
    rng = np.random.default_rng(0)
    for taps, dsps, depth in ((3, 2, 8), (3, 1, 2), (5, 3, 4), (2, 1, 1)):
        enters = rng.random((6, 40, taps)) < rng.uniform(0.1, 0.9, (6, 1, 1))
        slow = np.array([by_queues(lane, dsps, depth) for lane in enters])
        if not np.array_equal(dynamic(enters, dsps, depth), slow):
            return Outcome(False, f"{dynamic(enters, dsps, depth).tolist()} cycles", f"{slow.tolist()} cycles")
    feature, kept = features(16, 8, 0.5), balanced(0.67, 16)
    busy, fixed = (temporal(feature, kept, 1, how).efficiency for how in (method.scheduling, "static"))
    useful = int(arrivals(feature, np.flatnonzero(kept[0]), 1).sum())
    ideal = int(static(arrivals(feature, np.flatnonzero(kept[0]), 1), 3).sum()) * 3
    return Outcome(busy >= fixed + 0.05, f"busy {busy:.3f}, static {fixed:.3f} ({useful} of {ideal} slots in one pattern)", "static + 0.05")


def by_queues(enters: np.ndarray, dsps: int, depth: int) -> int:
    """Cycles of one lane, (positions, taps) bool."""
    waiting, at, cycles = [deque() for _ in range(enters.shape[1])], 0, 0
    while at < len(enters) or any(waiting):
        cycles += 1
        if at < len(enters) and all(len(queue) < depth for queue in waiting):
            for queue, hot in zip(waiting, enters[at], strict=True):
                if hot:
                    queue.append(at)
            at += 1
        for queue in sorted((q for q in waiting if q), key=lambda q: q[0])[:dsps]:
            queue.popleft()
    return cycles
