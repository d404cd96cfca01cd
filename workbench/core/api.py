"""What a notebook imports first: the list of papers, one paper's page, one paper's explorer. (`from workbench import papers, show, explore`)"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pandas as pd

from . import registry
from .measurements import Measurements
from .study import Contender, Study


def papers(family: str | None = None) -> pd.DataFrame:
    """All 165 papers in catalogue order, then the classics: ``arxiv, title, family, implemented`` (classics have a short key in ``arxiv``)."""
    rows = [(e.arxiv, e.title, e.family, e.implemented) for e in registry.catalogue()]
    frame = pd.DataFrame(rows, columns=["arxiv", "title", "family", "implemented"])
    if family is None:
        return frame
    if family not in set(frame.family):
        raise ValueError(f"no family {family!r}; there are {', '.join(frame.family.unique())}")
    return frame[frame.family == family].reset_index(drop=True)


def lesson(study: Study) -> str:
    """The paper's lesson: the docstring of its module, Markdown with LaTeX maths."""
    import importlib

    return inspect.getdoc(importlib.import_module(registry.find(study.paper).module)) or ""


def _measurements(paper: str | Study | Measurements) -> Measurements:
    from . import live

    if isinstance(paper, Measurements):
        return paper
    study = paper if isinstance(paper, Study) else registry.find(paper).study()
    return Measurements(study, live.known(study))


def explore(paper: str | Study | Measurements, contenders: Sequence[str] | None = None, predict: bool = True, stored_only: bool | None = None,
            **knobs: float):
    """The explorer of a paper (arXiv id, short name, study, or the measurements of a race); see `core.explorer.Explorer` for the arguments.

    ``explore("fscl", macs_removed=0.5)`` starts at that setting; the widget's last line is always the code that brings back what it shows.
    """
    from .explorer import Explorer

    return Explorer(_measurements(paper), contenders, predict, stored_only, **knobs)


def race(paper: str | Study, jobs: int | None = None, **mine: Contender) -> Measurements:
    """Your own contenders on a paper's track, measured now, beside its stored points: to `explore`, or to draw with `core.figures`."""
    from . import live, sweep

    stored = _measurements(paper)
    return sweep.require(sweep.race(stored.study, stored, min(jobs or live.jobs(), live.jobs()), **mine))


def show(paper: str | Study | Measurements) -> None:
    """A paper's lesson, its curve and picture at the default setting, and its claims. In a notebook as rich output, elsewhere as text."""
    from IPython import get_ipython

    from . import figures
    from .explorer import Explorer

    m = _measurements(paper)
    page = Explorer(m, predict=False, stored_only=True)
    if get_ipython() is None:
        print(lesson(m.study), figures.describe(m), sep="\n\n")
        for verdict in page.judged():
            print(f"{verdict.status:>15}  {verdict.text}")
        return
    from IPython.display import Markdown, display

    display(Markdown(lesson(m.study)))
    page.display_static()
