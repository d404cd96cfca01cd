"""NNCF's filter pruning (its last version that has any) on the public nets at equal multiply–accumulates: its choice of filters, really cut out here.

NNCF only zeroes filters; its exporter for OpenVINO removes them. So the masks are taken from it, and the channels are removed by the workbench's
surgery, which changes no output. Either one threshold holds over all layers (``all_weights``), or, its default, every layer loses the same share, in
multiples of eight filters: on narrow nets that misses most budgets, which is then the reason written. Residual streams keep their channels, as for
everyone. Newer versions (3.x) prune single weights only: where filter pruning is missing, that is written as the result.
"""

from __future__ import annotations

import os

os.environ["NNCF_TORCH_LEGACY_TRACING"] = "1"  # before nncf is imported: its filter pruning needs the old tracing
os.environ["NNCF_CI"] = "1"  # no telemetry

import copy
import logging
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.benches import public
from workbench.contracts.structure.surgery import channel_groups, macs, remove
from workbench.core.golden import environment
from workbench.papers.pruning import inside_blocks
from workbench.papers.pruning._public_points import Point, read, write
from workbench.papers.pruning._public_race import Course, described, public_course

# label → (importance, one threshold over all layers); per layer is its default
CRITERIA = {"nncf L1": ("L1", True), "nncf L2": ("L2", True), "nncf geometric median": ("geometric_median", True),
            "nncf L2, per layer": ("L2", False)}
STEPS, TOLERANCE, NEAR = 12, 0.004, 0.03


def masks_of(course: Course, importance: str, everywhere: bool) -> Callable[[float], dict[str, Tensor]]:
    """level → {layer: indices of the filters that NNCF zeroes}, for the layers whose channels may go."""
    from nncf import NNCFConfig
    from nncf.torch import create_compressed_model

    settings = {"algorithm": "filter_pruning", "pruning_init": 0.1,
                "params": {"filter_importance": importance, "all_weights": everywhere, "prune_first_conv": True,
                           "prune_downsample_convs": True, "prune_batch_norms": True}}
    config = NNCFConfig.from_dict({"input_info": {"sample_size": list(course.example.shape)}, "compression": settings})
    controller, model = create_compressed_model(copy.deepcopy(course.model), config, dump_graphs=False)
    names = {id(module): name for name, module in model.named_modules()}
    wanted = {group.name for group in inside_blocks(channel_groups(course.model, course.example))}

    def at(level: float) -> dict[str, Tensor]:
        controller.set_pruning_level(level)
        found = {}
        for cluster in controller.pruned_module_groups_info.get_all_clusters():
            for element in cluster.elements:
                if (name := names[id(element.module)]) in wanted:
                    zeroed = element.operand.binary_filter_pruning_mask == 0
                    if zeroed.all():  # a layer that it would empty keeps its best filter, as with every other contestant
                        zeroed[controller.filter_importance(element.module.weight).argmax()] = False
                    found[name] = zeroed.nonzero().flatten()
        return {name: gone for name, gone in found.items() if len(gone)}

    return at


def at_macs(course: Course, importance: str, everywhere: bool) -> list[tuple[float, float, nn.Module]]:
    """(wanted share of MACs removed, share of MACs left, net): the nearest level that bisection finds."""
    groups, dense, choose = channel_groups(course.model, course.example), macs(course.model, course.example), masks_of(course, importance, everywhere)
    found = []
    for wanted in course.ratios:
        low, high, nearest = 0.0, 0.99, (1.0, course.model)
        for _ in range(STEPS):
            level = (low + high) / 2
            model = remove(course.model, choose(level), course.example, groups)
            left = macs(model, course.example) / dense
            nearest = min(nearest, (left, model), key=lambda pair: abs(pair[0] - (1 - wanted)))
            if abs(left - (1 - wanted)) < TOLERANCE:
                break
            low, high = (level, high) if left > 1 - wanted else (low, level)
        found.append((wanted, *nearest))
    return found


def main(out: Path) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # it says on every call that it is deprecated
    known = {point.key: point for point in read(out)[1]}
    head = {"peer": "nncf", "version": metadata.version("nncf"), "environment": environment()}
    try:
        from nncf.torch import create_compressed_model  # noqa: F401
        from nncf.torch.pruning.filter_pruning import algo  # noqa: F401
    except ImportError as error:
        write(out, {**head, "reason": f"nncf {head['version']} has no filter pruning for torch ({error})"}, [])
        return
    for net in public.NETS:
        if not public.here(net):
            continue
        course = public_course(net)
        for label, settings in CRITERIA.items():
            if all((net, label, ratio, 0) in known for ratio in course.ratios):
                continue
            start = time.process_time()
            try:
                measured = [Point(net, label, "peer", wanted, left, course.judge(copy.deepcopy(model))) if abs(left - (1 - wanted)) < NEAR else
                            Point(net, label, "peer", wanted, reason=f"multiples of eight filters: {left:.3f} of the MACs is the nearest")
                            for wanted, left, model in at_macs(course, *settings)]
            except Exception as error:  # whatever the old tracing stumbles over is the result
                measured = [Point(net, label, "peer", wanted, reason=f"{type(error).__name__}: {error}"[:200]) for wanted in course.ratios]
            known |= {point.key: point for point in measured}
            write(out, head, known.values())
            print(described(measured, "true", time.process_time() - start), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
