"""Speed of pruning itself and of what it leaves:  ``python -m benchmarks.pruning``.

Prints FSCL scoring + surgery against torch-pruning's own pruner with its magnitude criterion, like with like (both build their dependency graph and take
the same share of every layer), what it takes on top to find the channels that leave a wanted share of the MACs (torch-pruning's has no such target), and
how much of the ideal speed-up (dense MACs / MACs left) a net pruned to half its MACs reaches, per channel rounding.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch_pruning as tp

from workbench.benches import vision
from workbench.core.probe import compare
from workbench.papers.pruning import score_and_remove
from workbench.papers.pruning.fscl import FSCL
from workbench.peers.torch_pruning import lowest_of_each


def peer(net: torch.nn.Module, ratio: float) -> None:
    """torch-pruning's pruner with its L2 magnitude importance, to about the same number of MACs."""
    head = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    pruner = tp.pruner.BasePruner(net, vision.EXAMPLE, tp.importance.GroupMagnitudeImportance(), pruning_ratio=1 - (1 - ratio) ** 0.5, ignored_layers=head)
    pruner.step()


def peer_on_a_copy(model: torch.nn.Module, ratio: float) -> None:
    """It changes the net that it is given; ours returns a smaller copy."""
    peer(copy.deepcopy(model), ratio)


def milliseconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    for net in ("vgg-small", "resnet20"):
        model = vision.dense(net)
        acts = (partial(lowest_of_each, FSCL(), model, 1 - 0.5**0.5, vision.EXAMPLE), partial(peer_on_a_copy, model, 0.5), partial(score_and_remove, FSCL(), model, 0.5))
        taken = np.array([[milliseconds(act) for act in acts] for _ in range(16)])[1:]
        ratio = np.sort(taken[:, 1] / taken[:, 0])
        print(f"{net}: FSCL score + surgery {np.median(taken[:, 0]):.0f} ms; torch-pruning takes {np.median(ratio):.2f}× as long ({ratio[1]:.2f}–{ratio[-2]:.2f}); "
              f"with the search for half of the MACs {np.median(taken[:, 2]):.0f} ms")
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
