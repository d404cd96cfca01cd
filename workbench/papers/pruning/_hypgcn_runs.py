"""The runs of the RFC-HyPGCN study: pruning, tuning, lowering to 16-bit words, and the accelerator on which the result is counted.

``python -m workbench.papers.pruning._hypgcn_runs 0`` makes the shipped nets of a replica (data/checkpoints/agcn-fixed-<preset>-<replica>.safetensors) anew.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from ...benches import CHECKPOINTS, skeleton
from ...benches.skeleton import data, recipe
from ...benches.skeleton.nets import TwoStream
from ...contracts.files.artifact import pack
from ...contracts.structure.tuning import batches
from ...core.study import Contender
from ._hypgcn_cycles import pipeline, temporal
from ._hypgcn_fixed import FixedBlock, FixedNet
from ._hypgcn_prune import HybridPruning, Preset, plan_of
from ._hypgcn_rfc import RFC, bitmap_bits, csr_bits

STEPS, RATE, SHIPPED = 60, 4e-3, (3.0, 8.4)
HYBRID = HybridPruning()
CALIBRATION = 24     # validation clips from which the mini-banks' depths are taken


def remade(block: FixedBlock, kind: type[FixedBlock]) -> FixedBlock:
    """The same block as another kind of datapath."""
    return kind(**{f.name: getattr(block, f.name) for f in fields(block)})


@dataclass
class Accelerator:
    """A fixed-point network on the simulated chip. ``scheduling``: dynamic or static temporal PEs; ``block``: the order of the products; ``memory``: ``rfc``,
    ``bitmap`` or ``csr``; ``dsps``: multipliers in all; ``quantile``: of the calibration clips whose features fit the mini-banks; ``calibration``: those clips
    (n, 3, T, 25) (None: validation clips of the bench)."""

    net: FixedNet
    scheduling: str = "dynamic"
    block: type[FixedBlock] = FixedBlock
    memory: str = "rfc"
    dsps: int = 256
    quantile: float = 0.999
    calibration: torch.Tensor | None = None
    exhibits: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.block is not FixedBlock:
            for stream in (self.net.joints, self.net.bones):
                stream.blocks = [remade(b, self.block) for b in stream.blocks]

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return self.net(clips)

    def to_bytes(self) -> bytes:
        return self.net.to_bytes()

    def weights(self) -> int:
        return self.net.weights()

    def counters(self, clip: torch.Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Of the joints' stream, on one clip (3, T, 25): see the bench's metrics. Exhibits: what the picture draws."""
        stored, work = self.net.run(clip)
        blocks, total = self.net.joints.blocks, sum(work, Counter())
        lanes = [temporal(middle, block.patterns, block.stride, self.scheduling) for block, middle in zip(blocks, stored[::2], strict=True)]
        products = [w["graph"] + w["spatial"] + w["shortcut"] for w in work]
        chip = pipeline(products, lanes, self.dsps)
        inputs = [(3, clip.shape[1] // (2 if self.net.skip else 1)), *((f.shape[0], f.shape[1]) for f in stored[1:-1:2])]
        dense = sum(3 * c * t * data.JOINTS**2 for c, t in inputs)
        slots = sum(float((lane.cycles * lane.dsps * lane.share).sum()) for lane in lanes)
        bits, full = self.feature_bits(stored)
        metrics = {"macs": sum(total.values()), "graph_skipped": 1 - total["graph"] / dense, "features_share": bits / full,
                   "sparsity": float(np.mean(np.concatenate([f.ravel() for f in stored]) == 0)),
                   "dsp_efficiency": sum(float((lane.macs * lane.share).sum()) for lane in lanes) / slots, "interval": chip["interval"]}
        counts = RFC.counts(stored[-1])
        reads = np.zeros((len(blocks), max(c for c, _ in inputs)), np.uint8)
        for row, block, (c, _) in zip(reads, blocks, inputs, strict=True):
            row[:c] = 1
            row[block.kept] = 2
        return metrics, {"channels": reads, "patterns": np.packbits(np.concatenate([b.patterns for b in blocks])), "filters": np.array([b.channels for b in blocks], np.int16),
                         "stage": chip["stage"].astype(np.int32), "dsps": chip["dsps"].astype(np.int16), "nonzeros": np.bincount(counts.ravel(), minlength=17).astype(np.int16),
                         "work": np.array([[w[k] for k in ("graph", "spatial", "shortcut", "temporal")] for w in work], np.int32)}

    def feature_bits(self, stored: list[np.ndarray]) -> tuple[int, int]:
        """(bits of all stored feature maps in this memory, as dense words)."""
        full = sum(16 * f.size for f in stored)
        if self.memory != "rfc":
            return sum(map({"csr": csr_bits, "bitmap": bitmap_bits}[self.memory], stored)), full
        bits = [memory.bits(f) for memory, f in zip(self.memories(), stored, strict=True)]
        return sum(b["masks"] + b["minibanks"] + b["spill"] for b in bits), full

    def memories(self) -> list[RFC]:
        """A feature memory behind each ReLU, sized on calibration clips."""
        clips = data.split("validation").tensors(CALIBRATION)[0] if self.calibration is None else self.calibration
        maps = zip(*(self.net.run(clip)[0] for clip in clips), strict=True)
        return [RFC.fit(np.stack(features), self.quantile) for features in maps]


class Dense:
    """The trained net as it is, in floating point; its file has 16-bit words."""

    def __init__(self, net: TwoStream):
        self.net = net

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return self.net(clips)

    def to_bytes(self) -> bytes:
        return pack({name: t.half() for name, t in self.net.state_dict().items() if t.is_floating_point()}, {"kind": "agcn"})

    def weights(self) -> int:
        return skeleton.whole()[1]

    def counters(self, clip: torch.Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        return {"macs": skeleton.whole()[2], "graph_skipped": 0.0}, {}


class Scattered(Accelerator):
    """Rival: single weights are zero anywhere; the file holds those that are not and a bitmap, the chip does every product."""

    def to_bytes(self) -> bytes:
        tensors, meta = self.net.parts()
        flat = tensors["words"].numpy()
        return pack({"values": torch.from_numpy(flat[flat != 0]), "bitmap": torch.from_numpy(np.packbits(flat != 0)), "small": tensors["small"]}, meta)

    def weights(self) -> int:
        return sum(int((b.spatial != 0).sum() + (b.rows != 0).sum()) + sum(int((w != 0).sum()) for w in (b.inner, b.outer) if isinstance(w, np.ndarray))
                   for s in (self.net.joints, self.net.bones) for b in s.blocks)


def tune(model: TwoStream, seed: int, steps: int = STEPS, hold: Callable[[], None] | None = None, source: Iterable | None = None) -> list[float]:
    """Trains a pruned net by the bench's recipe (or on ``source``: batches of clips and labels); what is gone is not there to be trained. Losses."""
    losses: list[float] = []

    def after(step: int, loss: float) -> None:
        losses.append(loss)
        if hold:
            hold()

    if source is None:
        recipe.train(model, steps, 500 + seed, RATE, after)
        return losses
    optimizer = torch.optim.AdamW(model.train().parameters(), RATE / 2)
    while len(losses) < steps:
        for clips, labels in batches(source):
            if labels is None:
                raise ValueError("loader: batches of (clips, labels) are needed to tune what is left")
            loss = F.cross_entropy(model(clips), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            after(len(losses), loss.item())
            if len(losses) == steps:
                break
    model.eval()
    return losses


def made(plan: Preset, replica: int, method: HybridPruning = HYBRID, steps: int = STEPS, **chip) -> Accelerator:
    """A dense net, pruned, tuned, lowered."""
    small = method.prune(skeleton.dense(replica), plan, replica)
    losses = tune(small, replica, steps) if steps else []
    return Accelerator(FixedNet.of(small), **chip, series={"loss": losses})


def tuned(method: HybridPruning = HYBRID, at: tuple[float, ...] = (3.0,), **settings) -> Contender:
    """Tuned now, which only the full profile does."""
    return Contender(lambda reduction, replica: made(plan_of(reduction), replica, method), evidence="recorded", grid={"reduction": at}, **settings)


def scattered(reduction: float, replica: int) -> Scattered:
    """Unstructured magnitude pruning with as many stored bits as the preset's file: masks over all convolutions, held while tuning."""
    model = skeleton.dense(replica)
    weights = [p for name, p in model.named_parameters() if p.dim() > 2 and "learnt" not in name]
    goal, total = len(shipped(reduction, replica).to_bytes()), sum(p.numel() for p in weights)
    fixed = len(FixedNet.of(model).to_bytes()) - 2 * total
    kept = int((goal - fixed - total / 8 - (fixed / 2) / 8) / 2)
    threshold = torch.cat([p.detach().abs().flatten() for p in weights]).topk(kept).values[-1]
    masks = [p.detach().abs() >= threshold for p in weights]

    @torch.no_grad()
    def hold() -> None:
        for p, mask in zip(weights, masks, strict=True):
            p.mul_(mask)

    hold()
    losses = tune(model, replica, hold=hold)
    return Scattered(FixedNet.of(model), series={"loss": losses})


# --- shipped nets ------------------------------------------------------------------------------------------------------------------------------------


def path_of(reduction: float, replica: int):
    return CHECKPOINTS / f"agcn-fixed-{reduction:g}-{replica}.safetensors"


@lru_cache(maxsize=8)
def _file(reduction: float, replica: int) -> tuple[dict, dict]:
    from safetensors import safe_open

    with safe_open(path_of(reduction, replica), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["net"])  # noqa: SIM118 - not a dict


def shipped(reduction: float, replica: int, **chip) -> Accelerator:
    """A shipped pruned and tuned net on the chip (16-bit words, so exactly what was made)."""
    return Accelerator(FixedNet.from_parts(*_file(float(reduction), replica)), **chip)


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for reduction in SHIPPED:
        thing = made(plan_of(reduction), args.replica)
        score = 100 * float(recipe.right(thing).mean())
        tensors, meta = thing.net.parts()
        path = path_of(reduction, args.replica)
        save_file(tensors, path, metadata={"net": json.dumps(meta), "recipe": __doc__.strip(), "data": str(data.EXPECTED), "test_accuracy": f"{score:.2f}"})
        print(f"{path.name}: {score:.2f} % of the test clips, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
