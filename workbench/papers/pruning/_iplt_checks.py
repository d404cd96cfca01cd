"""Checks of incremental pruning during training, exact and on the method itself, and its variants that are wrong on purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...benches import training
from ...benches.vision.nets import VGGSmall
from ...contracts.structure.macs import macs, parameters
from ...contracts.structure.surgery import mask
from ...core.study import Outcome
from ._iplt_surgery import convolutional, kept, lowest
from ._iplt_trainer import IPLT, Trainer, training_macs
from .classics import Random

IMAGE = torch.zeros(1, 3, 8, 8)


def _net() -> nn.Module:
    torch.manual_seed(2)
    return VGGSmall((6, 6, 8, 8, 10, 10))


def _batches(number: int = 0, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(number)
    return [(torch.randn(16, 3, 8, 8, generator=draw), torch.randint(0, 10, (16,), generator=draw)) for _ in range(count)]


def _trained(model: nn.Module) -> torch.optim.SGD:
    """One epoch, so that there is momentum."""
    optimizer = training.sgd(model)
    training.train_epoch(model, optimizer, iter(_batches()), 0.1)
    return optimizer


def dead_filters(method) -> Outcome:
    """Filters whose weights, γ and β are zero are the lowest of all; taking them out changes no logit, and the net is smaller."""
    model = _net().eval()
    dead = {"features.0": [1, 4], "features.3": [0], "features.17": [2, 7]}
    with torch.no_grad():
        for name, units in dead.items():
            norm = model.features[int(name.split(".")[1]) + 1]
            for tensor in (model.get_submodule(name).weight, norm.weight, norm.bias):
                tensor[units] = 0
    groups = [g for g in convolutional(model, IMAGE) if g.name in dead]
    scores = method.criterion.scores(groups, model, None)
    drop = lowest(scores, {g.name: g.size - len(dead[g.name]) for g in groups})
    small, _ = method.shrink(model, training.sgd(model), drop, IMAGE, groups)
    with torch.no_grad():
        change = float((small.eval()(_batches()[0][0]) - model(_batches()[0][0])).abs().max())
    found = {name: units.tolist() for name, units in drop.items()}
    return Outcome(found == dead and change <= 1e-6 and parameters(small) < parameters(model), f"found {found}; logits move by {change:.1e}", "those planted; 1e-6")


def momentum_slices(method) -> Outcome:
    """Every entry of the cut momentum is the matching one of the old buffer, worked out by index: rows that stay, columns of the layer before."""
    model = _net()
    optimizer = _trained(model)
    old = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    drop = {"features.0": torch.tensor([0, 5]), "features.7": torch.tensor([2]), "features.17": torch.tensor([1, 3, 4])}
    small, fresh = method.shrink(model, optimizer, drop, IMAGE, convolutional(model, IMAGE))
    now = {name: fresh.state[p].get("momentum_buffer", torch.zeros_like(p)) for name, p in small.named_parameters()}
    before, worst = torch.arange(3), 0.0
    for number in (0, 3, 7, 10, 14, 17):
        size = model.features[number].out_channels
        stays = torch.tensor([i for i in range(size) if i not in drop.get(f"features.{number}", torch.zeros(0)).tolist()])
        want = {f"features.{number}.weight": old[f"features.{number}.weight"][stays][:, before],
                **{f"features.{number + 1}.{part}": old[f"features.{number + 1}.{part}"][stays] for part in ("weight", "bias")}}
        before = stays
        worst = max(worst, *(float((now[name] - value).abs().max()) if now[name].shape == value.shape else torch.inf for name, value in want.items()))
    worst = max(worst, float((now["classifier.weight"] - old["classifier.weight"][:, before]).abs().max()) if len(before) == now["classifier.weight"].shape[1] else torch.inf)
    held = {id(p) for g in fresh.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    return Outcome(worst == 0 and held, f"off by {worst:g}; the optimiser holds {'the new' if held else 'other'} parameters", "0; the new")


def one_round_is_the_old_way(method) -> Outcome:
    """K = 1 after two whole epochs, then one more: bit for bit what a plain loop gives that trains, cuts network and momentum once, and trains on."""
    plan = replace(method, pretrain=2, rounds=1, per_round=1, keep=0.4)
    model = _net()
    trainer = Trainer(model, training.sgd(model), _batches, plan, IMAGE)
    ours, _ = trainer.fit(3, lambda number: 0.1)

    model = _net()
    optimizer = training.sgd(model)
    for number in range(2):
        training.train_epoch(model, optimizer, iter(_batches(number)), 0.1)
    groups = convolutional(model, IMAGE)
    drop = {g.name: g.producers[0].module.weight.detach().abs().sum((1, 2, 3)).argsort(stable=True)[: g.size - kept(trainer.sizes, trainer.shares)[g.name]].sort().values
            for g in groups}
    small, optimizer = IPLT().shrink(model, optimizer, drop, IMAGE, groups)
    training.train_epoch(small, optimizer, iter(_batches(2)), 0.1)
    a, b = ours.state_dict(), small.state_dict()
    same = all(a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in b)
    return Outcome(same, "equal bit for bit" if same else "differs", "equal bit for bit")


def schedule_by_hand(method) -> Outcome:
    """Ten and four filters, R = 0.6, three rounds, two epochs of pre-training: widths and moments."""
    plan = replace(method, pretrain=2, rounds=3, per_round=2, keep=0.3)
    cuts = {number: plan.cut_before(number) for number in range(9) if plan.cut_before(number)}
    model = _net()
    trainer = Trainer(model, training.sgd(model), lambda number: _batches(number, 1), plan, IMAGE)
    trainer.shares = dict.fromkeys(trainer.sizes, 0.6)
    _, log = trainer.fit(9, lambda number: 0.01)
    rows = [[e.widths[name] for name in ("features.0", "features.7", "features.14")] for e in log]
    want = [[6, 8, 10]] * 2 + [[5, 6, 8]] * 2 + [[4, 5, 6]] * 2 + [[2, 3, 4]] * 3
    phases = [e.phase for e in log]
    right = cuts == {2: [1], 4: [2], 6: [3]} and rows == want and phases == ["pre-training"] * 2 + ["pruning"] * 6 + ["final"]
    return Outcome(right, f"cuts before epochs {sorted(cuts)}, widths {rows[2]}, {rows[4]}, {rows[6]}", "2, 4, 6; [5, 6, 8], [4, 5, 6], [2, 3, 4]")


def cost_is_counted(method) -> Outcome:
    """3·MACs·images, recounted from the widths; it falls with every round; the end has 12 % of the parameters at most, and nearly so many."""
    model = _net()
    dense, images = parameters(model), 64
    trainer = Trainer(model, training.sgd(model), _batches, replace(method, pretrain=1, rounds=4, per_round=1, keep=0.12), IMAGE)
    small, log = trainer.fit(6, lambda number: 0.01)
    want = sum(3 * images * macs(VGGSmall(tuple(e.widths.values())).eval(), IMAGE) for e in log)
    falls = all(b.training_macs < a.training_macs for a, b in pairwise(log[:5]))
    share = parameters(small) / dense
    return Outcome(training_macs(log) == want and falls and 0.08 < share <= 0.12, f"{training_macs(log)} of {want}; {'falls' if falls else 'does not fall'}; {share:.3f} of the parameters",
                   "equal; falls; at most 0.12")


def ranks_by_hand(method) -> Outcome:
    """Fan-in counts: the score is the mean of |w| over a filter, with the lowest going first."""
    model = _net()
    with torch.no_grad():
        for unit, size in enumerate((0.3, 0.1, 0.6, 0.2, 0.5, 0.4)):
            model.features[3].weight[unit] = size * model.features[3].weight[unit].sign()
    group = next(g for g in convolutional(model, IMAGE) if g.name == "features.3")
    scores = method.criterion.scores([group], model, None)["features.3"]
    gone = lowest({"features.3": scores}, {"features.3": 3})["features.3"].tolist()
    error = float((scores - torch.tensor([0.3, 0.1, 0.6, 0.2, 0.5, 0.4])).abs().max())
    return Outcome(error < 1e-6 and gone == [0, 1, 3], f"off by {error:.1e}, filters {gone} go", "1e-6; 0, 1 and 3")


# --- wrong on purpose -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MasksOnly(IPLT):
    """Wrong on purpose: zeros in a network that stays as large; training gets no cheaper."""

    def shrink(self, model, optimizer, drop, example, groups):
        masked = mask(model, drop, example, groups)
        return masked, training.sgd(masked)


@dataclass(frozen=True)
class OthersMomentum(IPLT):
    """Wrong on purpose: the network loses one set of filters, the momentum another of the same size."""

    def shrink(self, model, optimizer, drop, example, groups):
        size = {g.name: g.size for g in groups}
        small, _ = super().shrink(model, optimizer, drop, example, groups)
        other, wrong = super().shrink(model, optimizer, {name: (size[name] - 1 - units).sort().values for name, units in drop.items()}, example, groups)
        fresh = training.sgd(small)
        for p, q in zip(small.parameters(), other.parameters(), strict=True):
            fresh.state[p] = dict(wrong.state[q])
        return small, fresh


@dataclass(frozen=True)
class AllAtFirst(IPLT):
    """Wrong on purpose: the whole cut falls into the first round."""

    def cut_before(self, number):
        return list(range(1, self.rounds + 1)) if number == self.pretrain else []


def by_chance() -> IPLT:
    return IPLT(criterion=Random())
