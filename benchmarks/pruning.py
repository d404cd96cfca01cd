"""Speed of pruning itself and of what it leaves:  ``python -m benchmarks.pruning``.

Prints two ratios: FSCL scoring + choice + surgery against torch-pruning's own pruner with its magnitude criterion (both build their dependency graph), and
how much of the ideal speed-up (dense MACs / MACs left) a net pruned to half its MACs reaches, per channel rounding.
"""

from __future__ import annotations

import copy
import time

import torch
import torch_pruning as tp

from workbench.benches import vision
from workbench.core.probe import compare
from workbench.papers.pruning import score_and_remove
from workbench.papers.pruning.fscl import FSCL


def peer(net: torch.nn.Module, ratio: float) -> None:
    """torch-pruning's pruner with its L2 magnitude importance, to about the same number of MACs."""
    head = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    pruner = tp.pruner.BasePruner(net, vision.EXAMPLE, tp.importance.GroupMagnitudeImportance(), pruning_ratio=1 - (1 - ratio) ** 0.5, ignored_layers=head)
    pruner.step()


def main() -> None:
    torch.set_num_threads(1)
    for net in ("vgg-small", "resnet20"):
        ours, theirs = [], []
        for _ in range(15):
            model = vision.dense(net)
            start = time.perf_counter()
            score_and_remove(FSCL(), model, 0.5)
            middle = time.perf_counter()
            peer(copy.deepcopy(model), 0.5)
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)
        ratio = sorted(t / o for t, o in zip(theirs, ours))
        print(f"{net}: FSCL score + choice + surgery {1e3 * sorted(ours)[7]:.0f} ms; torch-pruning takes {ratio[7]:.2f}× as long "
              f"({ratio[1]:.2f}–{ratio[-2]:.2f})")
    images = vision.calibration()[:32]
    for net in ("vgg-small", "resnet20"):
        models = {"dense": vision.dense(net)}
        for rounding in (1, 4, 8):
            models[f"channels in multiples of {rounding}"] = score_and_remove(FSCL(), vision.dense(net), 0.5, round_to=rounding).model
        ideal = {name: vision.macs(models["dense"], vision.EXAMPLE) / vision.macs(model, vision.EXAMPLE) for name, model in models.items()}
        with torch.no_grad():
            timed = compare({name: lambda model=model: model(images) for name, model in models.items()}, rounds=15)
        print(timed)
        print({name: f"ideal {value:.2f}×" for name, value in ideal.items()})


if __name__ == "__main__":
    main()
