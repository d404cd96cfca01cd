"""SlimNets' checks, and what is wrong on purpose so that they can fail. ``method`` is a `SlimNets`."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ...benches import vision
from ...contracts.files.storage import describe, load, save_model
from ...core.study import Outcome
from ._gradual import GradualPruner, Schedule
from ._slim_distil import distillation_loss
from ._slim_lowrank import LowRank, full_rank, lowrank, lowrank_conv, matrix, ranks_by_share, singular


def _convolutions() -> list[nn.Conv2d]:
    torch.manual_seed(4)
    return [nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(4, 6, 5, stride=2, padding=2, bias=False), nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(0, 1))]


def full_rank_is_exact(method) -> Outcome:
    worst, images = 0.0, torch.randn(2, 5, 13, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for conv in _convolutions():
            pair = method.factorise(conv, full_rank(conv), method.basis)
            x = images[:, :conv.in_channels]
            if pair(x).shape != conv(x).shape:
                return Outcome(False, f"{tuple(pair(x).shape)} for {tuple(conv(x).shape)}", "equal shapes")
            worst = max(worst, float((pair(x) - conv(x)).abs().max()))
    return Outcome(worst < 1e-5, worst, 1e-5)


def stride_not_split(conv: nn.Conv2d, rank: int, basis) -> LowRank:
    """Ablation: the first layer takes all of the stride."""
    pair = lowrank_conv(conv, rank, basis)
    pair[0].stride, pair[1].stride = conv.stride, (1, 1)
    return pair


def truncation_is_optimal(method) -> Outcome:
    worst = 0.0
    for conv in _convolutions():
        values = torch.linalg.svdvals(matrix(conv.weight).detach().double())
        for rank in (1, 3, full_rank(conv) - 1):
            pair = method.factorise(conv, rank, method.basis)
            error = float((conv.weight - pair.merged()).detach().double().norm())
            best = float((values[rank:] ** 2).sum().sqrt())
            worst = max(worst, abs(error - best) / float(values.norm()))
    return Outcome(worst < 1e-6, worst, 1e-6)


def smallest_first(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ablation: the directions that matter least are kept."""
    u, s, v = singular(m)
    return u.flip(1), s.flip(0), v.flip(1)


def sparsity_is_exact(method) -> Outcome:
    """Every layer of a pruned net has exactly round(s·n) zeros, the schedule is the cubic, and zeros stay."""
    plan = method.schedule(0.875, 0.0, 0, 5, 60)
    want = {0: 0.0, 30: 0.875 * (1 - 0.5**3), 60: 0.875, 90: 0.875}
    got = {step: plan.sparsity(step) for step in want}
    if any(abs(got[t] - want[t]) > 1e-12 for t in want) or any(plan.sparsity(t + 1) < plan.sparsity(t) for t in range(90)):
        return Outcome(False, str(got), str(want))
    model, generator = vision.dense("vgg-small"), torch.Generator().manual_seed(0)
    pruner = GradualPruner(model, plan)
    for step in range(0, 75, 5):  # past the end: nothing may return
        with torch.no_grad():
            for p in model.parameters():
                p += 1e-3 * torch.randn(p.shape, generator=generator)
        pruner.step(step)
    off = [abs(int((model.get_submodule(name).weight == 0).sum()) - round(0.875 * mask.numel())) for name, mask in pruner.masks.items()]
    return Outcome(max(off) <= 1 and len(off) == 7, max(off), "at most 1 weight off, in 7 layers")


class Linear(Schedule):
    """Ablation: sparsity rises along a line."""

    def sparsity(self, step: int) -> float:
        return self.final * min(step / max(self.end, 1), 1.0)


def loss_by_hand(method) -> Outcome:
    student, teacher, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])

    def by_hand(temperature: float, alpha: float) -> float:
        total = 0.0
        for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
            p, q = ([math.exp(v / temperature) for v in z] for z in (t, s))
            p, q = ([v / sum(e) for v in e] for e in (p, q))
            divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            cross = -math.log(math.exp(s[y]) / sum(map(math.exp, s)))
            total += 2 * alpha * temperature**2 * divergence + (1 - alpha) * cross
        return total / 2

    settings = [(4.0, 0.5), (1.0, 1.0), (2.0, 0.0)]
    worst = max(abs(float(method.loss(student, teacher, labels, t, a)) - by_hand(t, a)) for t, a in settings)
    return Outcome(worst < 1e-5, worst, 1e-5)


def without_temperature_squared(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, alpha: float = 0.5) -> Tensor:
    """Ablation: the divergence without T², whose gradient then fades as 1/T²."""
    plain = distillation_loss(student, teacher, labels, temperature, 0.0)
    return alpha * (distillation_loss(student, teacher, labels, temperature, 1.0) / temperature**2) + (1 - alpha) * plain


@torch.no_grad()
def file_is_the_net(method) -> Outcome:
    """Zeros, pairs and 8-bit weights return bit for bit; a file with 87.5 % zeros has less than a quarter of the dense one's bytes."""
    dense, images = vision.dense("vgg-small"), vision.calibration()[:4]
    holes = copy.deepcopy(dense)
    GradualPruner(holes, Schedule(0.875, 0.875, 0, 1, 0)).step(0)
    thin = lowrank(dense, ranks_by_share(dense, 0.3)).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim"
        for model in (holes, thin):
            said = method.write(path, model)
            if said != path.stat().st_size or not torch.equal(method.read(path)(images), model(images)):
                return Outcome(False, f"{said} bytes said, {path.stat().st_size} in the file, or other logits", "equal")
        share = method.write(path, holes) / save_model(path, dense)
    return Outcome(share < 0.25, share, 0.25)


def densely(path, model, bits: int = 32, example=None) -> int:
    """Ablation: masks, and the file of the dense network."""
    return save_model(path, model, example if describe(model, example).meta["kind"] == "class" else vision.EXAMPLE)


def read_dense(path) -> nn.Module:
    return load(path)


def together(method) -> Outcome:
    """A file that loses ranks, weights and bits has fewer bytes than one that loses any two, and gives the same net again."""
    from ._slim_file import round_to_8_bits

    dense = vision.dense("vgg-small")
    sizes = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for rank in (False, True):
            for prune in (False, True):
                for bits in (32, 8):
                    model = lowrank(dense, ranks_by_share(dense, 0.2)).eval() if rank else copy.deepcopy(dense)
                    if prune:
                        GradualPruner(model, Schedule(0.75, 0.75, 0, 1, 0)).step(0)
                    if bits == 8:
                        round_to_8_bits(model)
                    sizes[rank, prune, bits == 8] = method.write(Path(folder) / "slim", model, bits)
                    again = method.read(Path(folder) / "slim")
                    if any(not torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True)):
                        return Outcome(False, f"low rank {rank}, pruned {prune}, {bits} bits: other tensors", "equal bit for bit")
    all_three, two = sizes[True, True, True], min(sizes[True, True, False], sizes[True, False, True], sizes[False, True, True])
    return Outcome(all_three < two, f"{all_three} bytes", f"below {two}")
