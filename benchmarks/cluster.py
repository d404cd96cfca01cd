"""Efficiency of a Dask cluster against the pool of this machine:  ``python -m benchmarks.cluster [PAPER]``.

The quick profile of a paper is measured from nothing by as many local processes as there are cores, and by as many Dask workers on this machine, in turns;
printed is local seconds ÷ cluster seconds per round (1: a cluster costs nothing; 0.9 is what is promised). Both start their processes before the timing.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from workbench.core import registry
from workbench.core.sweep import require, sweep

ROUNDS = 3


def seconds(study, **where) -> float:
    start = time.perf_counter()
    require(sweep(study, fresh=True, **where))
    return time.perf_counter() - start


def main(paper: str = "pfgdf") -> None:
    from distributed import LocalCluster

    study, cores = registry.find(paper).study(), os.cpu_count() or 1
    with LocalCluster(n_workers=cores, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        sides = {"local": {"jobs": cores}, "cluster": {"scheduler": cluster.scheduler_address}}
        for where in sides.values():  # starts the processes, loads the data
            seconds(study, **where)
        taken = [{name: seconds(study, **where) for name, where in sides.items()} for _ in range(ROUNDS)]
    ratios = sorted(row["local"] / row["cluster"] for row in taken)
    print(f"{study.name}, {len(study.points('quick'))} points, {cores} processes: local {statistics.median(r['local'] for r in taken):.2f} s, "
          f"cluster {statistics.median(r['cluster'] for r in taken):.2f} s; efficiency {statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
