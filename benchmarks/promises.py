"""``make bench``: the speeds that are promised, measured now, as shares of what is allowed (above 1: too slow or too big). No test: timings vary.

Papers with a ``PROBE`` are timed against the first of its contenders (the best dense path) alone on the machine.
"""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

from workbench.core import golden, probe, registry
from workbench.core.sweep import path_of, read_point

ROOT = Path(__file__).resolve().parents[1]


def seconds(*command: str, rounds: int = 5) -> float:
    """Median wall-clock seconds of a Python command in a new process."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def quick_seconds(study) -> float | None:
    """CPU seconds of the quick profile's points as they were last measured; None where some were not."""
    known = {item.point: item for item in golden.points(study)}
    points = [point for point in study.points("quick") if study.field[point.contender].evidence != "recorded"]
    found = [read_point(path_of(study, point)[0]) or known.get(point) for point in points]
    return None if None in found else sum(item.seconds for item in found)


def promised() -> list[tuple[str, float | None, float, str]]:
    """(what, measured, allowed, unit)."""
    bare = seconds("-c", "pass")
    rows = [("import workbench, beyond bare Python", seconds("-c", "import workbench") - bare, 0.3, "s"),
            ("workbench papers --json", seconds("-m", "workbench", "papers", "--json"), 3.0, "s")]
    spent = {entry.name: quick_seconds(entry.study()) for entry in registry.implemented()}
    rows += [(f"quick profile of {name}, points alone", value, 10.0, "CPU s") for name, value in spent.items()]
    known = [value for value in spent.values() if value is not None]
    rows.append(("quick profile on average", statistics.mean(known) if known else None, 10.0, "CPU s"))
    pages = list((ROOT / "reports").rglob("*.html"))
    rows.append(("largest report page", max((page.stat().st_size for page in pages), default=0) / 1e6 or None, 2.0, "MB"))
    return rows


def main() -> None:
    print(f"{'share':>7}  {'measured':>10}  {'allowed':>8}")
    for what, measured, allowed, unit in promised():
        share, value = ("   none", "—") if measured is None else (f"{measured / allowed:7.2f}", f"{measured:.3g}")
        print(f"{share}  {value:>10}  {allowed:>8g}  {unit:6} {what}", flush=True)
    for entry in registry.implemented():
        make = getattr(importlib.import_module(entry.module), "PROBE", None)
        if make:
            timing = probe.compare(make())
            print(f"\n{entry.name}: ratio to {timing.first} on {timing.environment['cpu']}, {timing.threads} thread(s), {timing.rounds} rounds")
            for name, row in timing.rows.items():
                print(f"{row['ratio']:7.2f}  {row['low']:.2f} … {row['high']:.2f}  {row['median_ms']:10.3f} ms  {name}", flush=True)


if __name__ == "__main__":
    main()
