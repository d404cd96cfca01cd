"""Checks of transfer channel pruning, exact and on the method itself, and its variants that are wrong on purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches import domains
from ...benches.domains import data
from ...benches.domains.discrepancy import endless, features, joint_loss, mmd, narrowest, rising, squared_distances
from ...benches.domains.nets import DomainVGG
from ...contracts.structure.macs import parameters
from ...contracts.structure.surgery import mask
from ...core.study import Outcome
from ._tcp_method import TCP, convolutional


def _batch(n: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    return next(iter(domains.Pairs(3, n)))


def statistic(method) -> Outcome:
    """Against five double loops; 0 for equal batches; symmetric; not negative; rising with a shift of the mean; no gradient through the width."""
    def loops(a: Tensor, b: Tensor) -> Tensor:
        rows = [*a, *b]
        far = [[((x - y) ** 2).sum() for y in rows] for x in rows]
        width = sum(float(d.detach()) for row in far for d in row) / (len(rows) * (len(rows) - 1)) / 4
        total = 0
        for i in range(len(rows)):
            for j in range(len(rows)):
                sign = 1 if (i < len(a)) == (j < len(a)) else -1
                total = total + sign * sum(torch.exp(-far[i][j] / (width * 2**k)) for k in range(5))
        return total / len(a) ** 2

    draw = torch.Generator().manual_seed(4)
    a, b = (torch.randn(6, 4, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    ours, theirs = method.discrepancy(a, b), loops(a, b)
    slopes = [torch.autograd.grad(value, a)[0] for value in (ours, theirs)]
    with torch.no_grad():
        shifts = [float(method.discrepancy(a, a + shift)) for shift in (0.0, 0.3, 0.6, 1.2)]
        errors = {"double loop": float((ours - theirs).abs()), "its gradient": float((slopes[0] - slopes[1]).abs().max()), "equal batches": abs(shifts[0]),
                  "symmetry": float((method.discrepancy(b, a) - ours).abs()), "negative": max(0.0, -min(shifts))}
    worst = max(errors, key=errors.get)
    return Outcome(errors[worst] <= 1e-6 and shifts == sorted(shifts) and shifts[-1] > 0.1,
                   f"{worst}: off by {errors[worst]:.1e}; shifted means {', '.join(f'{s:.3f}' for s in shifts)}", "1e-6, rising")


def finite_differences(method) -> Outcome:
    """20 channels of the adapted net, float64: a filter scaled by 1 − ε changes L by −ε·(Δs + Δt). The kernels' width is held, as it is in the gradient."""
    model = domains.net("adapted", 0).double()
    source, labels, target = _batch(8)
    source, target, step = source.double(), target.double(), 1e-5  # at 1e-3 curvature and maps that change sign make up to 7 %
    with torch.no_grad(), features(model) as seen:
        model(torch.cat([source, target]))
        held = partial(mmd, width=narrowest(squared_distances(seen[0])))
    groups = convolutional(model, domains.EXAMPLE.double())
    totals = {name: rows.sum(0) for name, rows in method.products(groups, model, source, labels, target).items()}

    def loss(net: nn.Module) -> float:
        return float(joint_loss(net, source, labels, target, rising(method.progress), distance=held)[0].detach())

    before, changes = loss(model), []
    for group, most in ((groups[0], 7), (groups[3], 7), (groups[5], 6)):
        layer = model.get_submodule(group.name)
        for unit in [i for i in range(group.size) if abs(float(totals[group.name][i])) > 1e-6][:most]:
            with torch.no_grad():
                kept = layer.weight[unit].clone(), layer.bias[unit].clone()
                layer.weight[unit] *= 1 - step
                layer.bias[unit] *= 1 - step
                changes.append((loss(model) - before, -step * float(totals[group.name][unit])))
                layer.weight[unit], layer.bias[unit] = kept
    worst, tried = max(abs(found - predicted) / abs(predicted) for found, predicted in changes), len(changes)
    return Outcome(tried == 20 and worst < 0.05, f"{tried} channels, off by {worst:.1%} at most", "20 channels, 5 %")


def silent_without_discrepancy(method) -> Outcome:
    """No cross-entropy reaches the target images: with β = 0 their list is exactly zero and stays finite; with its own β it is not."""
    model = domains.net("adapted", 0)
    groups = convolutional(model, domains.EXAMPLE)
    silent = replace(method, mmd_weight=0.0)
    zero = silent.products(groups, model, *_batch())
    heard = min(float(rows[1].abs().max()) for rows in method.products(groups, model, *_batch()).values())
    largest = max(float(rows[1].abs().max()) for rows in zero.values())
    finite = all(torch.isfinite(score).all() for score in silent.merged(zero).values())
    return Outcome(largest == 0 and finite and heard > 0, f"β = 0: {largest:g}, {'finite' if finite else 'NaN'}; own β: {heard:.1e} at least", "0, finite; above 0")


def merged_by_hand(method) -> Outcome:
    """(3, 4, 0)/5 and (0, 6, 8)/10; (5, 0, 12)/13 and (4, 3, 0)/5; a layer of equals. The smaller score counts, each layer keeps two."""
    lists = {"a": torch.tensor([[3.0, -4.0, 0.0], [0.0, 6.0, 8.0]]), "b": torch.tensor([[5.0, 0.0, -12.0], [4.0, -3.0, 0.0]]),
             "c": torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])}
    want = {"a": torch.tensor([0.0, 0.6, 0.0]), "b": torch.tensor([5 / 13, 0.0, 0.0]), "c": torch.full((4,), 0.5)}
    got = method.merged(lists)
    error = max(float((got[name] - want[name]).abs().max()) for name in want)
    cut = {name: units.tolist() for name, units in method.lowest(want, 4).items()}
    return Outcome(error < 1e-6 and cut == {"a": [0], "b": [1], "c": [0, 1]}, f"scores off by {error:.1e}; cut {cut}", "1e-6; a 0, b 1, c 0 and 1")


def small_steps(method) -> Outcome:
    """Half of the MACs of an untrained net: never more than eight channels a round, two at least in each layer, and no further than asked."""
    torch.manual_seed(0)
    net = DomainVGG((8, 8, 8, 8, 8, 8), 16)
    done = replace(method, batches=1, round_steps=1, steps=9).prune(net, 0.5, domains.Pairs(1, 8), domains.EXAMPLE)
    widths = [net.config()["widths"], *(list(r.widths.values()) for r in done.rounds)]
    most = max(sum(a) - sum(b) for a, b in pairwise(widths))
    share, narrowest_layer = done.rounds[-1].macs_share, min(min(row) for row in widths)
    return Outcome(most <= 8 and narrowest_layer >= 2 and 0.4 < share <= 0.5 and len(done.rounds) > 1,
                   f"{len(done.rounds)} rounds, {most} channels at most, narrowest layer {narrowest_layer}, {share:.3f} of the MACs left", "8, 2, 0.4 to 0.5")


def rebuilt(method) -> Outcome:
    """Zeros and smaller tensors give the same answers, in the layer before the flatten too; nothing removed, nothing changed."""
    model = domains.net("adapted", 0)
    groups = convolutional(model, domains.EXAMPLE)
    drop = method.lowest(method.merged(method.lists(groups, model, [_batch(8)])), 40) | {groups[-1].name: torch.arange(5)}
    small, zeroed = method.surgery(model, drop, domains.EXAMPLE, groups), mask(model, drop, domains.EXAMPLE, groups)
    images = data.tensors(data.domain("target", "test"), 16)[0]
    same = method.prune(model, 0.0, [_batch(8)]).model
    with torch.no_grad():
        error = float((small(images) - zeroed(images)).abs().max())
        untouched = torch.equal(same(images), model(images))
    return Outcome(error < 1e-4 and untouched and parameters(small) < parameters(model),
                   f"off by {error:.1e}, {parameters(small)} of {parameters(model)} parameters; at share 0 {'identical' if untouched else 'changed'}", "1e-4, fewer; identical")


def refuses_target_labels(method) -> Outcome:
    source, labels, target = _batch(8)
    refused = []
    for name, theirs in (("labelled pairs", [(target, labels)]), ("a dict with labels", [{"pixel_values": target, "labels": labels}])):
        try:
            next(iter(method.join([(source, labels)], theirs)))
        except ValueError as error:
            refused.append(name if "target" in str(error) else "")
    plain = next(iter(method.join([(source, labels)], [target])))
    return Outcome(refused == ["labelled pairs", "a dict with labels"] and torch.equal(plain[2], target), f"refused: {', '.join(refused) or 'nothing'}", "both")


def schedule(method) -> Outcome:
    """β and rates at four moments; the first step moves linear layers by 0.01·(g + 5e-4·w) and convolutions by a fifth of that."""
    want = {0.0: (0.0, 0.01), 0.1: (0.4621172, 0.0059460), 0.5: (0.9866143, 0.0026085), 1.0: (0.9999092, 0.0016558)}
    method = replace(method, rate=0.01)
    error = max(abs(x - y) for p, pair in want.items() for x, y in zip((method.beta(p), method.learning_rate(p)), pair))
    model, batch = domains.net("source", 0), _batch(16)
    moved = domains.net("source", 0)
    method.tune(moved, endless([batch]), 1)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    for name, p in model.named_parameters():
        rate = 0.01 if name.startswith(("bottleneck", "classifier")) else 0.002
        error = max(error, float((dict(moved.named_parameters())[name] - (p - rate * (p.grad + 5e-4 * p))).detach().abs().max()))
    return Outcome(error < 1e-5, error, 1e-5)


# --- wrong on purpose -----------------------------------------------------------------------------------------------------------------------------


def too_wide(a: Tensor, b: Tensor) -> Tensor:
    """Wrong on purpose: kernels a million wide, in which everything lies together."""
    return mmd(a, b, width=torch.tensor(1e6, dtype=a.dtype))


@dataclass(frozen=True)
class SlopeAlone(TCP):
    """Wrong on purpose: the gradient's size without the activation."""

    def products(self, groups, model, source, labels, target):
        found = super().products(groups, model, source, labels, target)
        return {g.name: found[g.name] / (1e-12 + sum(g.spread(m, m.weights().norm(dim=1)) for m in g.producers)) for g in groups}


@dataclass(frozen=True)
class Shuffled(TCP):
    """Wrong on purpose: the target's scores belong to other channels of other layers."""

    def products(self, groups, model, source, labels, target):
        found = super().products(groups, model, source, labels, target)
        pool = torch.cat([rows[1] for rows in found.values()])
        pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))].split([rows.shape[1] for rows in found.values()])
        return {name: torch.stack([rows[0], other]) for (name, rows), other in zip(found.items(), pool)}


@dataclass(frozen=True)
class SteadyRate(TCP):
    """Wrong on purpose: the learning rate stays."""

    def learning_rate(self, progress):
        return self.rate


@dataclass(frozen=True)
class MasksOnly(TCP):
    """Wrong on purpose: zeros instead of smaller tensors."""

    def surgery(self, model, drop, example, groups):
        return mask(model, drop, example, groups)


@dataclass(frozen=True)
class Peeks(TCP):
    """Wrong on purpose: takes what the target loader yields, labels and all."""

    @staticmethod
    def join(source, target):
        return [(x, y, t[0] if isinstance(t, (tuple, list)) else t) for (x, y), t in zip(source, target)]


@dataclass(frozen=True)
class ByCriterion(TCP):
    """A rival: the channels' scores are another criterion's, everything else (rounds, tuning, surgery) is the same."""

    criterion: Any = None

    def lists(self, groups, model, data):
        return {name: torch.stack([score, score]) for name, score in self.criterion.scores(groups, model, None).items()}
