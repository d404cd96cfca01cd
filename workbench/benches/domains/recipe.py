"""Trains the shipped `domains` nets:  ``python -m workbench.benches.domains.recipe 0``  (half a minute a replica on one core).

    source     500 steps on the source alone, AdamW, one-cycle rate up to 3e-3, then 800 more up to 2e-3: what adaptation is compared with
    adapted    the same 500 steps, then 800 steps on the joint loss CE + β·MMD², β rising from 0 to 1

Weight decay 1e-3, 64 source and 64 target images a step, float32, one thread; the replica number seeds initialisation and the order of the images. Target
labels are never read. Written to ``data/checkpoints/domains-<kind>-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

from .. import CHECKPOINTS
from . import Pairs, accuracy, data
from .discrepancy import adapt, endless, rising
from .nets import DomainVGG

SOURCE_STEPS, ADAPT_STEPS, SOURCE_RATE, ADAPT_RATE, BATCH = 500, 800, 3e-3, 2e-3, 64


def train(model: nn.Module, seed: int, steps: int, rate: float, joint: bool, on_step=None) -> nn.Module:
    """AdamW with a one-cycle rate, in place; ``joint`` adds the discrepancy, without it β stays 0 (the target images pass and change nothing)."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    return adapt(model, endless(Pairs(seed, BATCH)), steps, optimizer, lambda progress: cycle.step() if progress else None,
                 rising if joint else lambda progress: 0.0, on_step=on_step)


def source_net(replica: int) -> nn.Module:
    """The net after its first 500 steps on the source alone."""
    torch.manual_seed(replica)
    return train(DomainVGG(), replica, SOURCE_STEPS, SOURCE_RATE, joint=False)


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    replica = parser.parse_args().replica
    torch.set_num_threads(1)
    base = source_net(replica)
    for kind in ("source", "adapted"):
        model = train(copy.deepcopy(base), 100 + replica, ADAPT_STEPS, ADAPT_RATE, joint=kind == "adapted")
        scores = {name: accuracy(model, name) for name in ("source", "target")}
        path = CHECKPOINTS / f"domains-{kind}-{replica}.safetensors"
        save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, path,
                  metadata={"net": "domains", "recipe": __doc__.strip(), "data": str(data.EXPECTED), **{f"{k}_test_accuracy": f"{v:.2f}" for k, v in scores.items()}})
        print(f"{path.name}: {scores['source']:.2f} % on source, {scores['target']:.2f} % on target test images")


if __name__ == "__main__":
    main()
