"""How long a published page takes from a slider's movement to the redrawn curve, picture and numbers: ``python benchmarks/report_page.py [PAGE.html …]``.

Each movement is one ``input`` event; its end is the frame after both charts have been redrawn. Prints median and 95th percentile per page and the ratio of
the latter to the aim of 50 ms. Without arguments all paper pages in ``reports/papers`` are measured.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

AIM_MS, MOVES = 50, 120
MOVE = """async (to) => {
  const slider = document.getElementById("knob-0"), explorer = document.querySelector(".explorer");
  const redrawn = new Promise((done) => explorer.addEventListener("redrawn", done, { once: true }));
  const begin = performance.now();
  slider.value = to;
  slider.dispatchEvent(new Event("input"));
  await redrawn;
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - begin;
}"""


def measure(page) -> np.ndarray:
    """Milliseconds of each movement, to and fro over the first knob's grid; the first ten warm up and do not count."""
    page.click(".predict .plain")
    page.wait_for_function("document.querySelector('figure.curve .plotly')._fullData")
    last = int(page.get_attribute("#knob-0", "max"))
    positions = [*range(last + 1), *range(last - 1, 0, -1)]
    return np.array([page.evaluate(MOVE, positions[i % len(positions)]) for i in range(MOVES + 10)][10:])


def main(paths: list[Path]) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for path in paths:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(path.resolve().as_uri())
            times = measure(page)
            median, p95 = np.percentile(times, [50, 95])
            print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, median {median:.0f} ms, p95 {p95:.0f} ms, {p95 / AIM_MS:.2f} × the aim of {AIM_MS} ms")
            page.close()
        browser.close()


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]] or sorted(Path("reports/papers").glob("*.html"))
    raise SystemExit(main(given) if given else "no pages: run `workbench report` first, or name one")
