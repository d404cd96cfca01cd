"""A whole little workbench in a folder of its own: the real core, one toy paper without a model, tiny notebooks. Reports of it take seconds.

``make(folder)`` writes it; ``report(folder, …)`` runs the real report on it in a process of its own and returns that process.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PROJECT = Path(__file__).resolve().parents[2]
PAPER = "2304.13397"
SOURCE = r'''r"""# Toy — quality falls along a line

The share $r$ of what is removed costs quality by a slope $s$ per unit, so that

$$q(r) = q_0 - s\,r + \varepsilon_k, \qquad \varepsilon_k \in \{0, 1, 2\}.$$

```text
  thing ──► cut r ──► race ──► (cost, quality)
```

**What to look for.** The steeper rival falls *faster*; a damaged formula $\frac{1}{$ must not break the page.
"""

from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go

from workbench.core.claims import better
from workbench.core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Metric, Outcome, Part, Result, Study, Track


def cut(slope):
    """A thing that loses ``slope`` of quality per share removed."""
    def make(removed, rounding=1, replica=0, seed=0):
        kept = np.arange(256).reshape(16, 16) % 10 >= 10 * removed
        return SimpleNamespace(cost=100 * (1 - removed), quality=90 - slope * removed + replica + .5 * seed - .1 * rounding,
                               exhibits={"kept": kept.astype(np.uint8)}, series={"loss": np.exp(-np.arange(400) / 80) + removed})
    return make


def race(thing):
    return Result({"cost": thing.cost, "quality": thing.quality, "bytes": int(1000 * thing.cost)},
                  samples={"right": (np.arange(40) < thing.quality * .4).astype(np.uint8)})


def picture(point, exhibits):
    kept = exhibits["kept"]
    return go.Figure(go.Heatmap(z=kept, showscale=False), layout_title_text=f"{point['contender']} keeps {kept.sum()} of {kept.size}")


def is_one(subject):
    return Outcome(subject == 1, subject, 1)


TRACK = Track("toy/cost", "cost", "quality", {"cost": Metric("cost (units)"), "quality": Metric("quality (%)"), "bytes": Metric("bytes on disk", False, 0)},
              race, lambda: "toy-data", title="a straight line with three replicas")
STUDY = Study(
    paper="2304.13397",
    name="toy",
    track=TRACK,
    knobs=(Knob("removed", tuple(np.linspace(0, .9, 10)), .5, (.3, .5, .7), 0, "share removed"), Knob("rounding", (1, 4, 8), 1, (1, 4, 8), label="round to")),
    contenders={"Ours": Contender(cut(20), "paper", subject=1, seeds=2, note="no tuning"), "Steep": Contender(cut(60)),
                "Plain": Contender(lambda removed, replica=0: cut(40)(removed, 1, replica)), "oracle": Contender(cut(5), "bound"),
                "untouched": Contender(lambda replica=0: cut(0)(0, 1, replica), "control")},
    ablations={"no slope": Ablation("1 slope", Contender(cut(80)), subject=0), "no check": Ablation("2 check", subject=0)},
    checks=(Check("one", "the subject is one", is_one),),
    claims=(Claim("beats Plain", "beats Plain at equal cost by a point", better("quality", "Plain", 1, at_equal="cost"), paper="+4.2 points (Table 1)"),
            Claim("beats the bound", "beats the oracle by a point", better("quality", "oracle", 1), reason="An oracle knows more."),
            Claim("fast on chips", "twice as fast on a systolic array", None, needs="a systolic array")),
    parts={"1 slope": Part(cut, "beats Plain", "no slope"), "2 check": Part(is_one, "one", "no check", reconstructed=True)},
    picture=picture, exercise=Exercise("What is $1$?", "answer = None", ("It is a *number*.",), lambda names: None, "answer = 1"))
'''


def make(folder: Path) -> Path:
    for part in ("core", "views"):
        shutil.copytree(PROJECT / "workbench" / part, folder / "workbench" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "catalog.csv", "start.csv", "course.csv", "contracts.csv"):
        shutil.copy(PROJECT / "workbench" / name, folder / "workbench" / name)
    for package in ("papers", "papers/pruning", "contracts", "benches"):
        (folder / "workbench" / package).mkdir(exist_ok=True)
        (folder / "workbench" / package / "__init__.py").write_text('"""A family of one."""\n')
    (folder / "workbench" / "papers" / "pruning" / "toy_paper.py").write_text(SOURCE)
    (folder / "notebooks").mkdir()
    return folder


def notebook(folder: Path, name: str, *cells: str) -> Path:
    """Cells starting with ``#`` and a space are Markdown, all others code."""
    made = [new_markdown_cell(cell) if cell.startswith("# ") else new_code_cell(cell) for cell in cells]
    path = folder / "notebooks" / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), path)
    return path


def start(folder: Path, before: str = "", **arguments) -> subprocess.Popen:
    """Starts ``report(**arguments)`` in ``folder``; ``before`` is code run ahead of it (to break something on purpose)."""
    code = f"from workbench.views import reports\n{before}\nif __name__ == '__main__':\n    raise SystemExit(reports.report(**{arguments!r}))\n"
    (folder / "run_report.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(folder), "WORKBENCH_CACHE": str(folder / ".cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "run_report.py"], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def report(folder: Path, before: str = "", **arguments) -> subprocess.CompletedProcess:
    process = start(folder, before, **arguments)
    out, error = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)
