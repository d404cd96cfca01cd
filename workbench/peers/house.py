"""The workbench's own scores on VGG-small and ResNet-20, three replicas each: what the peers race against there."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from workbench.core.golden import environment
from workbench.papers.pruning._public_points import read, write
from workbench.papers.pruning._public_race import contestants, described, own_course, points

OWN = tuple((net, replica) for net in ("vgg-small", "resnet20") for replica in range(3))


def main(out: Path) -> None:
    torch.set_num_threads(1)
    known = {point.key: point for point in read(out)[1]}
    for net, replica in OWN:
        course = own_course(net, replica)
        for label, (kind, method) in contestants().items():
            if all((net, label, ratio, replica) in known for ratio in course.ratios):
                continue
            start = time.process_time()
            measured = points(course, label, kind, method)
            known |= {point.key: point for point in measured}
            write(out, {"peer": "house", "environment": environment()}, known.values())
            print(described(measured, "test", time.process_time() - start), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
