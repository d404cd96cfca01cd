"""Every shipped notebook runs from top to bottom without a kernel's user, stays small, and is committed without outputs."""

import json
from pathlib import Path

import nbformat
import pytest

from workbench.views.reports import notebooks, render

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SHIPPED = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    assert SHIPPED, f"no notebook in {FOLDER}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert not [i for i, cell in enumerate(nb.cells) if cell.get("outputs") or cell.get("execution_count")], "clear all outputs before committing"
    assert "widgets" not in nb.metadata
    assert nb.metadata.kernelspec.name == "python3"


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_runs_and_is_small(path):
    executed = notebooks.execute(path)
    assert executed.error == "", "\n".join(render.notebook(executed.nb, path.stem).error.splitlines()[-25:])
    size = len(nbformat.writes(executed.nb).encode())
    assert size <= 1_000_000, f"{size:,} bytes executed; at most 1,000,000"
    kinds = {kind for cell in executed.nb.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert render.PLOTLY in kinds, "no chart"
    assert "application/vnd.jupyter.widget-view+json" not in kinds, "a widget has no kernel on the page"
    page = render.notebook(executed.nb, path.stem)
    assert page.title != path.stem and page.contents, "a title and parts"
    assert "bad-maths" not in page.body
    for script in page.body.split('<script type="application/json">')[1:]:
        json.loads(script.split("</script>")[0])
