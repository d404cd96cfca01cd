r"""# FSCL — a filter is worth what the next layer makes of it

**Filter Pruning via Filters Similarity in Consecutive Layers** (Wang et al., ICASSP 2023).

Filter $i$ of layer $l$ writes one feature map, and that map is read by the $i$-th slice of every filter of layer $l+1$. A large filter whose map
is read by kernels that point elsewhere contributes little. FSCL therefore scores *pairs* of layers: how much do the kernels that write a channel
look like those that read it?

```text
  input channels c                               next filters j
   ┌────┐  K[i,c]   ┌───────────┐   K'[j,i]   ┌────┐
   │ c=1├──────────►│           ├────────────►│ j=1│      FS_i = Σ_c Σ_j |⟨K[i,c], K'[j,i]⟩|
   │ c=2├──────────►│ channel i ├────────────►│ j=2│           = ‖ P_i Q_iᵀ ‖₁,₁
   │ …  ├──────────►│           ├────────────►│ …  │      P_i: (N_in, k²)   Q_i: (N_next, k²)
   └────┘           └───────────┘             └────┘
```

With $P_i \in \mathbb{R}^{N_{l-1}\times k^2}$ stacking the kernels that write channel $i$ and $Q_i \in \mathbb{R}^{N_{l+1}\times k^2}$ those that read it,

$$FS_i=\sum_{c}\sum_{j}\left|\langle K^{l}_{i,c},\,K^{l+1}_{j,i}\rangle\right|=\lVert P_iQ_i^{\top}\rVert_{1,1}.$$

All channels of a layer are one batched matrix product: $N_l N_{l-1} N_{l+1} k^2$ multiplications, milliseconds for a whole network, and no data. The
scores of a layer are divided by their mean, so that one threshold serves all layers, and a bisection finds the threshold at which the wanted share
of multiply–accumulates is gone. Then the filters, their batch-norm entries and the slices that read them are really removed.

**What to look for.** At equal cost FSCL beats random and reversed choices clearly. Whether *similarity* adds something to plain magnitude is another
question: the two rivals `consumer norm` (only the reading side) and `product of norms` (both sides, directions ignored) answer it, and not in the
paper's favour on this bench. Re-estimating batch-norm statistics before judging is part of the method of comparison: without it every
pruned net lies near chance.

The abstract gives no formula; the score, the treatment of unequal kernels, the folding of batch-norm and the layer normalisation are reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...benches import vision
from ...contracts.structure.surgery import ChannelGroup, Member, channel_groups, macs, mask, reestimate_batchnorm, remove, select
from ...core.claims import better
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Outcome, Part, Study
from . import exercise_pictures, from_scratch, prune, score_and_remove, untouched
from .classics import L1, ConsumerNorm, ProductNorm, Random
from .pictures import kept_channels


@dataclass(frozen=True)
class FSCL:
    """Filters' similarity in consecutive layers.

    ``similarity``: ``dot`` (the score above), ``cos`` (kernels normalised: direction only) or ``fro`` (‖PQᵀ‖_F). ``fold_batchnorm`` scales P by
    |γ|/√(σ²+ε), so that a channel that batch norm switches off scores low. ``mode``: one ``global`` threshold or ``uniform`` shares per layer.
    ``consumers``, ``pairs`` and ``inverted`` exist to be wrong on purpose: readers of *other* channels, only the kernels of equal number compared,
    the best removed.
    """

    similarity: str = "dot"
    fold_batchnorm: bool = True
    mode: str = "global"
    consumers: str = "own"
    pairs: str = "all"
    inverted: bool = False

    def __post_init__(self):
        for name, allowed in (("similarity", ("dot", "cos", "fro")), ("mode", ("global", "uniform")), ("consumers", ("own", "shuffled")),
                              ("pairs", ("all", "aligned"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    def scores(self, groups: Sequence[ChannelGroup], model: nn.Module, data=None) -> dict[str, Tensor]:
        """``{group name: (size,)}``; higher is kept. No data is looked at."""
        order = {name: position for position, (name, _) in enumerate(model.named_modules())}
        return {group.name: (-1 if self.inverted else 1) * self.score(group, order) for group in groups}

    def score(self, group: ChannelGroup, order: Mapping[str, int]) -> Tensor:
        """(size,): the sum over all layers that write the channel with all that read it; depthwise layers between multiply by their kernels' norm."""
        total = torch.zeros(group.size)
        scales = batchnorm_scales(group, order) if self.fold_batchnorm else {}
        for producer in group.producers:
            written = kernels(producer)
            if producer.name in scales:
                written = written * scales[producer.name][:, None, None]
            for consumer in group.consumers:
                read = kernels(consumer)
                if self.consumers == "shuffled":
                    read = read[torch.randperm(len(read), generator=torch.Generator().manual_seed(1))]
                if len(producer.units) == len(consumer.units) == group.size:  # both hold every unit, in order
                    total += self.similarity_of(*same_size(written, read))
                    continue
                shared = np.intersect1d(producer.units, consumer.units, return_indices=True)
                total.index_add_(0, torch.from_numpy(shared[0]), self.similarity_of(*same_size(written[shared[1]], read[shared[2]])))
        for between in group.depthwise:
            total *= group.spread(between, between.weights().norm(dim=1))
        return total

    def similarity_of(self, p: Tensor, q: Tensor) -> Tensor:
        """(n,) from P (n, a, s) and Q (n, b, s): one batched matrix product (the factored form of the quadruple sum)."""
        if self.similarity == "cos":
            p, q = F.normalize(p, dim=2), F.normalize(q, dim=2)
        products = torch.bmm(p, q.transpose(1, 2))
        if self.pairs == "aligned":
            products = products.diagonal(dim1=1, dim2=2)[:, :, None]
        return products.norm(dim=(1, 2)) if self.similarity == "fro" else products.abs_().sum((1, 2))


def kernels(member: Member) -> Tensor:
    """(units, kernels per unit, positions): the spatial kernels with which a layer writes or reads each unit.

    A linear layer behind a flatten reads H·W positions per channel, which count as its kernel.
    """
    entries, module = member.weights(), member.module
    if isinstance(module, nn.Linear):
        positions = member.index.shape[1] if member.role == "consumer" else 1
        return entries.unflatten(1, (positions, -1)).transpose(1, 2) if positions > 1 else entries[:, :, None]
    return entries.unflatten(1, (-1, int(np.prod(module.kernel_size))))


def same_size(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels of unequal size made comparable: summed to 1×1 where either is 1×1 or not square, else the smaller is zero-padded around its centre."""
    if p.shape[2] == q.shape[2]:
        return p, q
    sides = [round(k.shape[2] ** 0.5) for k in (p, q)]
    if min(sides) == 1 or any(side**2 != k.shape[2] for side, k in zip(sides, (p, q))):
        return p.sum(2, keepdim=True), q.sum(2, keepdim=True)

    def padded(k: Tensor, side: int) -> Tensor:
        before = (max(sides) - side) // 2
        after = max(sides) - side - before
        return F.pad(k.unflatten(2, (side, side)), (before, after, before, after)).flatten(2)

    return padded(p, sides[0]), padded(q, sides[1])


def batchnorm_scales(group: ChannelGroup, order: Mapping[str, int]) -> dict[str, Tensor]:
    """Producer name → |γ|/√(σ²+ε) per unit, of the batch norms that follow each producer in the model's ``order``, name → position (none: no entry)."""
    scales: dict[str, Tensor] = {}
    current = None
    for member in sorted((m for m in group.members if m.role in ("producer", "norm")), key=lambda m: order[m.name]):
        if member.role == "producer":
            current = member.name
        elif current and isinstance(member.module, nn.modules.batchnorm._BatchNorm) and member.module.running_var is not None:
            norm = member.module
            gamma = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
            scale = (gamma.detach().abs() / (norm.running_var + norm.eps).sqrt())[member.index].mean(1)
            scales[current] = scales.get(current, 1) * group.spread(member, scale)
    return scales


@dataclass(frozen=True)
class MasksOnly(FSCL):
    """Wrong on purpose: zeroes instead of smaller tensors, and new batch-norm statistics even where nothing was removed."""

    def surgery(self, model: nn.Module, drop, example, groups) -> nn.Module:
        masked = mask(model, drop, example, groups)
        reestimate_batchnorm(masked, vision.calibration())
        return masked


# --- checks: exact, on the method itself --------------------------------------------------------------------------------------------------------


def _toy(kernel: int = 3, after: int = 3) -> nn.Module:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 8, kernel, padding=kernel // 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, after, padding=after // 2),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    nn.init.uniform_(net[1].weight, 0.2, 2.0)
    nn.init.uniform_(net[1].running_var, 0.2, 2.0)
    return net


IMAGE = torch.zeros(1, 3, 12, 12)


def loop_equals_factored(method) -> Outcome:
    """The quadruple loop over c, j and both kernel axes, written out."""
    net = _toy()
    group = channel_groups(net, IMAGE)[0]
    fast = method.scores([group], net)[group.name]
    scale = (net[1].weight.abs() / (net[1].running_var + net[1].eps).sqrt()).detach().numpy()
    written, read = (net[i].weight.detach().double().numpy() for i in (0, 3))
    slow = [sum(abs(sum(scale[i] * written[i, c, y, x] * read[j, i, y, x] for y in range(3) for x in range(3)))
                for c in range(3) for j in range(6)) for i in range(8)]
    error = float((torch.tensor(slow) - fast).abs().max() / max(slow))
    return Outcome(error < 1e-5, error, 1e-5)


def permutation_invariant(method) -> Outcome:
    net = _toy()
    before = method.scores(channel_groups(net, IMAGE)[:1], net)
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[:, torch.tensor([2, 0, 1])])
        net[3].weight.copy_(net[3].weight[torch.tensor([3, 1, 5, 0, 2, 4])])
    after = method.scores(channel_groups(net, IMAGE)[:1], net)
    error = max(float(((before[name] - after[name]).abs() / before[name].abs().max()).max()) for name in before)
    return Outcome(error < 1e-5, error, 1e-5)


def planted_dead_consumers(method) -> Outcome:
    """Channels that nothing reads must be exactly the lowest; removing them must change nothing; a filter's own norm does not see them."""
    net, dead = _toy(), {1, 4, 6}
    with torch.no_grad():
        net[3].weight[:, list(dead)] = 0
    groups = channel_groups(net, IMAGE)
    lowest = set(method.scores(groups, net)[groups[0].name].argsort()[:3].tolist())
    images = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    small = remove(net, {groups[0].name: sorted(lowest)}, IMAGE, groups)
    with torch.no_grad():
        change = float((small(images) - net(images)).abs().max())
    return Outcome(lowest == dead and change < 1e-5, f"lowest {sorted(lowest)}, output moves by {change:.1e}", f"lowest {sorted(dead)}, below 1e-5")


def switched_off_by_batchnorm(method) -> Outcome:
    """A channel with γ ≈ 0 carries nothing, however large its kernels are."""
    net = _toy()
    with torch.no_grad():
        net[1].weight[2] = 1e-6
        net[0].weight[2] *= 10
    scores = method.scores(channel_groups(net, IMAGE)[:1], net)
    lowest = int(next(iter(scores.values())).argmin())
    return Outcome(lowest == 2, f"lowest is channel {lowest}", "channel 2")


def unequal_kernels(method) -> Outcome:
    """3×3 read by 1×1 is the sum over positions; 3×3 read by 5×5 is the centre."""
    net = _toy(3, 5)
    score = method.scores(channel_groups(net, IMAGE)[:1], net)
    with torch.no_grad():
        centre = net[3].weight[:, :, 1:4, 1:4].clone()
        net[3] = nn.Conv2d(8, 6, 3, padding=1)
        net[3].weight.copy_(centre)
    same = method.scores(channel_groups(net, IMAGE)[:1], net)
    error = max(float((score[name] - same[name]).abs().max()) for name in score)
    return Outcome(error < 1e-4, error, 1e-4)


def masked_equals_rebuilt(method) -> Outcome:
    """Zeroed channels and really smaller tensors give the same logits, and the MACs of the rebuilt net are those asked for."""
    worst, images = 0.0, vision.calibration()[:8]
    for net in ("resnet20", "mobilenet"):
        model = vision.dense(net)
        groups = [group for group in channel_groups(model, vision.EXAMPLE) if not group.coupled]
        drop = select(groups, method.scores(groups, model), model, vision.EXAMPLE, 0.5)
        small = getattr(method, "surgery", remove)(model, drop, vision.EXAMPLE, groups)
        with torch.no_grad():
            worst = max(worst, float((small(images) - mask(model, drop, vision.EXAMPLE, groups)(images)).abs().max()))
        share = macs(small, vision.EXAMPLE) / macs(model, vision.EXAMPLE)
        if abs(share - 0.5) > 0.02:
            return Outcome(False, f"{net}: {share:.3f} of the MACs left", "0.5 ± 0.02")
    return Outcome(worst < 1e-4, worst, 1e-4)


def neutral_is_identity(method) -> Outcome:
    model, images = vision.dense("resnet20"), vision.calibration()[:16]
    same = score_and_remove(method, model, 0.0).model
    with torch.no_grad():
        equal = bool(torch.equal(same(images), model(images)))
    return Outcome(equal, "equal bit for bit" if equal else "differs", "equal bit for bit")


def PROBE() -> dict:
    """What `workbench probe` times: a batch of 32 through the dense net and through nets with half and 40 % of its MACs."""
    images = vision.calibration()[:32]
    nets = {"dense": vision.dense("vgg-small")}
    for label, ratio, rounding in (("half the MACs", 0.5, 1), ("half the MACs, channels in multiples of 8", 0.5, 8), ("40 % of the MACs", 0.6, 1)):
        nets[label] = score_and_remove(FSCL(), nets["dense"], ratio, round_to=rounding).model
    return {label: lambda net=net: net(images) for label, net in nets.items()}


# --- exercise -------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import torch

def consecutive_similarity(written, read):
    """written: (N, C, k*k) kernels that write each of N channels; read: (N, J, k*k) kernels that read it. Return (N,)."""
    return written.abs().sum((1, 2))        # this is the L1 norm: it never looks at who reads the channel
'''
SOLUTION = '''import torch

def consecutive_similarity(written, read):
    return torch.bmm(written, read.transpose(1, 2)).abs().sum((1, 2))
'''


def _check_exercise(namespace: dict) -> None:
    generator = torch.Generator().manual_seed(2)
    p, q = torch.randn(5, 3, 9, generator=generator), torch.randn(5, 4, 9, generator=generator)
    got = namespace["consecutive_similarity"](p, q)
    assert tuple(got.shape) == (5,), f"one number a channel: shape (5,), not {tuple(got.shape)}"
    q[2] = 0
    assert float(namespace["consecutive_similarity"](p, q)[2]) == 0, "channel 2 is read by nobody, so its score must be 0"
    want = torch.stack([sum((a * b).sum().abs() for a in p[i] for b in q[i]) for i in range(5)])
    assert torch.allclose(namespace["consecutive_similarity"](p, q), want, rtol=1e-4), "sum |⟨K, K'⟩| over all pairs of kernels"


# --- the study ------------------------------------------------------------------------------------------------------------------------------------

TUNED = {"macs_removed": (0.3, 0.45, 0.6, 0.75)}
AT_60 = {"macs_removed": (0.6,)}

STUDY = Study(
    paper="2304.13397",
    name="fscl",
    track=vision.VGG_MACS,
    method=FSCL(),
    knobs=(Knob("macs_removed", np.linspace(0, 0.9, 13), 0.6, quick=(0.3, 0.6), neutral=0, label="share of the MACs removed"),
           Knob("round_to", (1, 4, 8), 1, label="channels kept in multiples of")),
    contenders={
        "FSCL": prune(FSCL(), role="paper"),
        "FSCL fro": prune(FSCL("fro"), evidence="recorded"),
        "FSCL cos": prune(FSCL("cos"), evidence="recorded"),
        "FSCL, uniform shares": prune(FSCL(mode="uniform"), evidence="recorded"),
        "L1": prune(L1()),
        "random": prune(Random(), role="control", seeds=2),
        "consumer norm": prune(ConsumerNorm()),
        "product of norms": prune(ProductNorm()),
        "dense": untouched(),
        "FSCL, tuned": prune(FSCL(), tuned=True, grid=TUNED, replicas=3),
        "L1, tuned": prune(L1(), tuned=True, grid=TUNED, replicas=3),
        "random, tuned": prune(Random(), tuned=True, grid=AT_60, replicas=3, role="control"),
        "small net from scratch": from_scratch((10, 10, 20, 20, 40, 40)),
    },
    ablations={
        "inverted": Ablation("2 score", prune(FSCL(inverted=True))),
        "consumers shuffled": Ablation("6 topologies", prune(FSCL(consumers="shuffled"))),
        "without batch-norm folding": Ablation("4 batch-norm folding", subject=FSCL(fold_batchnorm=False)),
        "direction only": Ablation("2 score", subject=FSCL("cos")),
        "kernels of equal number only": Ablation("2 score", subject=FSCL(pairs="aligned")),
        "masks only": Ablation("7 procedure", subject=MasksOnly()),
    },
    checks=(
        Check("loop = factored", "The batched matrix product equals the quadruple loop", loop_equals_factored),
        Check("order does not matter", "Permuting the input channels of the writer or the filters of the reader changes no score", permutation_invariant),
        Check("dead consumers", "Three channels that nothing reads are exactly the three lowest, and removing them changes nothing",
              planted_dead_consumers),
        Check("switched off", "A channel that batch norm switches off scores lowest, however large its kernels", switched_off_by_batchnorm),
        Check("unequal kernels", "A 3×3 kernel read by a 5×5 one meets its centre", unequal_kernels),
        Check("masked = rebuilt", "Zeroed channels and smaller tensors give the same logits, residual and depthwise nets included, at the MACs asked for",
              masked_equals_rebuilt),
        Check("neutral", "Removing nothing returns the same logits bit for bit", neutral_is_identity),
    ),
    claims=(
        Claim("beats random", "At equal MACs (40–70 % left) FSCL is at least 5 points more accurate than random channels, before any tuning",
              better("accuracy", "random", by=5, at_equal="macs_share", over=(0.4, 0.7), round_to=1),
              paper="better than the state of the art (abstract, no figures)"),
        Claim("beats its reverse", "Keeping the lowest scores instead costs at least 15 points",
              better("accuracy", "inverted", by=15, at_equal="macs_share", over=(0.4, 0.7), round_to=1)),
        Claim("reads its own channel", "Scoring with the readers of another channel costs at least 2 points",
              better("accuracy", "consumers shuffled", by=2, at_equal="macs_share", over=(0.4, 0.7), round_to=1)),
        Claim("not worse than L1", "FSCL is at most 1 point below L1-norm pruning at equal MACs",
              better("accuracy", "L1", by=-1, at_equal="macs_share", over=(0.4, 0.7), round_to=1)),
        Claim("beats L1", "FSCL is at least 1 point above L1-norm pruning at equal MACs",
              better("accuracy", "L1", by=1, at_equal="macs_share", over=(0.4, 0.7), round_to=1),
              paper="remarkable improvement in accuracy at equal FLOPs (abstract, no figures)"),
        Claim("similarity adds to magnitude", "FSCL is better than the product of the two norms, which ignores direction",
              better("accuracy", "product of norms", by=0.5, at_equal="macs_share", over=(0.4, 0.7), round_to=1),
              reason="on this net the size of a channel's two sides already tells what similarity tells"),
        Claim("both sides matter", "FSCL is better than the norm of the reading side alone",
              better("accuracy", "consumer norm", by=0.5, at_equal="macs_share", over=(0.4, 0.7), round_to=1),
              reason="the reading side alone is the stronger predictor on this net"),
        Claim("tuning repairs", "After 60 steps of fine-tuning, 60 % of the MACs removed cost at most 5 points of the dense net's accuracy",
              better("accuracy", "dense", by=-5, of="FSCL, tuned", macs_removed=0.6), paper="the paper tunes for 100–400 epochs",
              reason="sixty steps are two thirds of an epoch; the narrow net has little to spare, and the gap was still closing when they ended"),
        Claim("beats training from nothing", "Pruned and tuned, it beats a small net trained from nothing for the same 60 steps by 10 points",
              better("accuracy", "small net from scratch", by=10, of="FSCL, tuned", macs_removed=0.6)),
    ),
    parts={
        "1 tensors": Part(kernels, "loop = factored"),
        "2 score": Part(FSCL.similarity_of, "beats its reverse", "inverted", reconstructed=True),
        "3 unequal kernels": Part(same_size, "unequal kernels", reconstructed=True),
        "4 batch-norm folding": Part(batchnorm_scales, "switched off", "without batch-norm folding", reconstructed=True),
        "5 layer normalisation": Part(select, "masked = rebuilt", reconstructed=True),
        "6 topologies": Part(FSCL.score, "reads its own channel", "consumers shuffled"),
        "7 procedure": Part(score_and_remove, "masked = rebuilt", "masks only"),
    },
    picture=kept_channels,
    exercise=Exercise("Score N channels by the similarity of the kernels that write and read them.", STUB,
                      ["Every pair (writing kernel, reading kernel) of the same channel contributes |⟨K, K'⟩|.",
                       "For one channel that is the sum of the absolute entries of P Qᵀ.", "torch.bmm does it for all channels at once."],
                      _check_exercise, SOLUTION, exercise_pictures.dead_channel),
)
