"""EnSyth's checks, and what is wrong on purpose so that they can fail. ``method`` is an `EnSyth`."""

from __future__ import annotations

import copy
import itertools
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...benches import ensembles, vision
from ...core.study import Outcome
from ._ensyth_ensemble import UNIT, Ensemble, pack, probabilities, votes
from ._ensyth_method import EnSyth, bench_pool, pool_of
from ._ensyth_pool import read_pool
from ._gradual import GradualPruner, Schedule

IMAGES = 500


def _shares(method: EnSyth, every: int = 1) -> tuple[Tensor, Tensor]:
    """Probabilities in whole units (members, 500, 10) of every n-th member of replica 0, and labels, of validation images."""
    logits = bench_pool(method.pool, 0).logits
    return probabilities(logits[::every, :IMAGES]), ensembles.images("lenet5", "validation")[1][:IMAGES]


def schedule(method: EnSyth) -> Outcome:
    plan = method.schedule(final=0.9, initial=0.3, begin=10, every=5, end=60)
    by_hand = {9: 0.0, 10: 0.3, 35: 0.9 - 0.6 * 0.5**3, 60: 0.9, 80: 0.9}
    wrong = {step: plan.sparsity(step) for step, value in by_hand.items() if abs(plan.sparsity(step) - value) > 1e-12}
    if wrong or any(plan.sparsity(t + 1) < plan.sparsity(t) for t in range(80)):
        return Outcome(False, str(wrong), str(by_hand))
    model, generator = vision.dense("lenet5"), torch.Generator().manual_seed(0)
    pruner, layer = GradualPruner(model, plan, ["classifier.2"]), model.classifier[2].weight
    for step in range(70):
        before = layer == 0
        with torch.no_grad():
            layer += 0.01 * torch.randn(layer.shape, generator=generator)
        pruner.step(step)
        due = max((t for t in range(step + 1) if plan.due(t)), default=None)
        wanted = 0 if due is None else round(plan.sparsity(due) * layer.numel())
        if int((layer == 0).sum()) != wanted or bool((before & (layer != 0)).any()):
            return Outcome(False, f"step {step}: {int((layer == 0).sum())} zeros", wanted)
    return Outcome(True, int((layer == 0).sum()), round(0.9 * layer.numel()))


@lru_cache(maxsize=1)
def copies(replica: int) -> list[nn.Module]:
    """Ablation: no other hyper-parameters, one member six times with a little noise in its weights."""
    return noisy(read_pool(replica)[0], 6)


@torch.no_grad()
def noisy(model: nn.Module, count: int) -> list[nn.Module]:
    made = [copy.deepcopy(model) for _ in range(count)]
    for seed, member in enumerate(made):
        generator = torch.Generator().manual_seed(seed)
        for weight in member.parameters():
            weight *= 1 + 1e-3 * torch.randn(weight.shape, generator=generator)
    return made


def members_differ(method: EnSyth) -> Outcome:
    answers = np.array([[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]])
    found = ensembles.diversity(answers, np.array([0, 0, 1, 1, 0, 1]))
    if not np.allclose([found["disagreement"], found["q"], found["kappa"]], [1 / 3, 1 / 2, 1 / 3]):
        return Outcome(False, str(found), "1/3, 1/2, 1/3")
    pool = bench_pool(method.pool, 0)
    members, logits = pool.members, pool.logits
    images = ensembles.images("lenet5", "validation")[0][:100]
    with torch.no_grad():
        alone, three = Ensemble.of([members[0]])(images), Ensemble.of([members[0]] * 3)(images)
        if not torch.equal(alone, three) or not torch.equal(alone, probabilities(members[0](images)).double() / UNIT):
            return Outcome(False, "three copies answer otherwise than one", "equal bit for bit")
        near = np.stack([ensembles.logits(member, "lenet5", "validation").argmax(1).numpy() for member in noisy(members[0], 3)])
    labels = ensembles.images("lenet5", "validation")[1].numpy()
    ours = ensembles.diversity(logits.argmax(2).numpy(), labels)["disagreement"]
    noise = ensembles.diversity(near, labels)["disagreement"]
    return Outcome(ours > 3 * noise and ours > 0, ours, f"above {3 * noise:.4f}, three times what a little noise gives")


def votes_by_hand(method: EnSyth) -> Outcome:
    shares = (torch.tensor([[[0.55, 0.45, 0.0]], [[0.0, 0.4, 0.6]]]).double() * UNIT).round().long()
    answers = {how: int(method.ballot(shares, how, (0.9, 0.1)).sum(0).argmax(-1)) for how in ("soft", "hard", "weighted")}
    return Outcome(answers == {"soft": 1, "hard": 2, "weighted": 0}, str(answers), "soft 1, hard 2 (a tie, settled by 0.6 > 0.55), weighted 0")


def bare_votes(shares: Tensor, combine: str, accuracies=()) -> Tensor:
    """Ablation: a tie goes to the first class."""
    return nn.functional.one_hot(shares.argmax(-1), shares.shape[-1]) if combine == "hard" else votes(shares, combine, accuracies)


def float_votes(shares: Tensor, combine: str, accuracies=()) -> Tensor:
    """Ablation: sums of float32, which depend on their order."""
    return votes(shares, combine, accuracies).float() / UNIT


def path_from_nothing(method: EnSyth) -> Outcome:
    shares, labels = _shares(method, 2)
    sizes = list(range(1, len(shares) + 1))
    first, second = (method.choose(shares, labels, sizes) for _ in range(2))
    if not first.path.equals(second.path):
        return Outcome(False, "two runs, two paths", "the same")
    given = method.ballot(shares, method.combine)
    total = given.sum(0)
    if any(not torch.equal(total - one + one, total) for one in given):
        return Outcome(False, "taken out and put back, the sum is another one", "the same bit for bit")
    told = method.labels(labels).numpy()
    for kept, accuracy in zip(first.path.members, first.path.accuracy, strict=True):
        counted = (given[list(kept)].numpy().sum(0).argmax(1) == told).mean()
        if accuracy != counted:
            return Outcome(False, f"{kept}: {accuracy}", counted)
    return Outcome(True, f"{len(first.path)} sets equal", "all equal")


def ties_by_hand(method: EnSyth) -> Outcome:
    right = torch.zeros(3, 4, 2, dtype=torch.long)
    right[:, :, 1] = UNIT
    found = method.choose(right, torch.ones(4, dtype=torch.long), (10, 30, 20))
    order = [tuple(members) for members in found.path.members]
    return Outcome(order == [(0, 1, 2), (0, 2), (0,)] and found.kept == (0,), str(order), "first 1 (30 bytes), then 2 (20 bytes)")


def shuffled(labels: Tensor, seed: int = 5) -> Tensor:
    """Ablation: labels of other images."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def near_optimum(method: EnSyth) -> Outcome:
    shares, labels = _shares(method, 2)
    shares = shares[:12]
    given = votes(shares, "soft").double()  # sums below 2⁵³ are exact
    subsets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(shares)))[1:], dtype=torch.double)
    best = max(float(((part @ given.flatten(1)).view(len(part), *given.shape[1:]).argmax(2) == labels).double().mean(1).max()) for part in subsets.split(256))
    kept = list(method.choose(shares, labels, [1] * len(shares)).kept)
    ours = float((given[kept].sum(0).argmax(1) == labels).double().mean())
    return Outcome(ours >= best - 0.005, 100 * (ours - best), -0.5)


def validation_only(method: EnSyth) -> Outcome:
    found, pool = method.chosen(pool_of(method, 0)), bench_pool(method.pool, 0, method.encode)
    wanted = method.choose(probabilities(pool.logits), ensembles.images("lenet5", "validation")[1], pool.sizes)
    return Outcome(found.path.equals(wanted.path), str(found.kept), str(wanted.kept))


def densely(tensor: Tensor):
    """Ablation: zeros are stored like any other value."""
    return {"kind": "dense"}, tensor, None


def _packed(members, encode) -> Ensemble:
    return Ensemble.of([pack(member, encode=encode) for member in members])


@torch.no_grad()
def file_is_the_ensemble(method: EnSyth) -> Outcome:
    members = bench_pool(method.pool, 0).members
    sparse_ones = [member for member in members if float((member.classifier[0].weight == 0).float().mean()) > 0.79][:3] or members[:3]
    images = ensembles.images("lenet5", "validation")[0][:32]
    whole = _packed(sparse_ones, method.encode)
    twin = copy.deepcopy(sparse_ones[0])
    twin.classifier[4].bias += 1
    with tempfile.TemporaryDirectory() as folder:
        said, path = whole.save(Path(folder) / "ensemble.wb"), Path(folder) / "ensemble.wb"
        if said != path.stat().st_size or said != vision.file_bytes(whole):
            return Outcome(False, said, path.stat().st_size)
        if not torch.equal(Ensemble.load(path).outputs(images), torch.stack([member(images) for member in sparse_ones])):
            return Outcome(False, "other logits after saving and loading", "equal bit for bit")
        dense = _packed(sparse_ones, densely).save(Path(folder) / "dense.wb")
        one, pair = (_packed(some, method.encode).save(Path(folder) / "some.wb") for some in (sparse_ones[:1], [sparse_ones[0], twin]))
    if pair > 1.3 * one:
        return Outcome(False, f"two members that differ in one bias: {pair / one:.2f} × the bytes of one", "1.3 ×")
    return Outcome(said < 0.5 * dense, said / dense, 0.5)


@torch.no_grad()
def together_equals_apart(method: EnSyth) -> Outcome:
    members = bench_pool(method.pool, 0).members
    ensemble, images = Ensemble.of([*members[:3], *members[-2:]]), ensembles.images("lenet5", "validation")[0][:16].contiguous()
    apart = ensemble(images)
    if not torch.equal(ensemble.threaded(images), apart):
        return Outcome(False, "threads give other scores", "equal bit for bit")
    error = float((method.together(ensemble, images) - apart).abs().max())
    return Outcome(error < 1e-4, error, 1e-4)


def first_for_all(ensemble: Ensemble, images: Tensor) -> Tensor:
    """Ablation: one batch in which every member has the first one's weights."""
    return ensemble.vote(torch.stack([ensemble.members[0](images)] * len(ensemble)))


class AtOnce(Schedule):
    """Ablation: all zeros in the first step."""

    def sparsity(self, step: int) -> float:
        return self.final if step >= self.begin else 0.0
