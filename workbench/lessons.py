"""Papers and classics as lessons: what is shown of them, exercises and their answers. (`from workbench import show, browse, grade, draw`)"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import pandas as pd

from .api import explore, measurements, study
from .core import registry
from .core.measurements import Measurements
from .core.study import Study

SECTIONS = ("lesson", "picture", "history", "numbers", "code", "parts", "exercise", "solution", "claims")


def lesson(paper: str | Study) -> str:
    """The paper's lesson: the docstring of its module, Markdown with LaTeX maths. A classic's: that of its class or function."""
    if (classic := _classic(paper)) is not None:
        return f"**{registry.find(paper).title}** ({registry.find(paper).date}). {inspect.getdoc(classic)}"
    return inspect.getdoc(importlib.import_module(registry.find(study(paper).paper).module)) or ""


def _classic(name: Any) -> Any:
    """The class or function that a classic's short name stands for; None for anything else."""
    entry = registry.find(name) if isinstance(name, str) else None
    return getattr(importlib.import_module(entry.module), entry.symbol) if entry is not None and entry.kind == "classic" else None


def show(paper: str | Study | Measurements, *sections: str) -> None:
    """Shows sections of a paper's page (default: lesson, picture, claims): as rich output in a notebook, elsewhere as text.

    ``lesson``, ``picture`` (curve, picture and comparison at the default setting), ``history`` (what the contenders recorded on the way), ``numbers``, ``code`` (of the method), ``parts`` (what builds and
    what proves each part of the paper), ``exercise``, ``solution``, ``claims``. A classic has a lesson and its code.
    """
    from IPython import get_ipython
    from IPython.display import HTML, Code, Markdown, display

    from .views import figures, summary
    from .views.readout import STYLE, Readout, claims_table, plain

    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise ValueError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if (classic := _classic(paper)) is not None:
        rich = get_ipython() is not None
        for section in sections or ("lesson", "code"):
            text = lesson(paper) if section == "lesson" else inspect.getsource(classic)
            display(Markdown(text) if section == "lesson" else Code(text, language="python")) if rich else print(text, end="\n\n")
        return
    m = measurements(paper)
    task, source = m.study.exercise, inspect.getsource(type(m.study.method)) if m.study.method is not None else ""
    hints = "".join(f"<details><summary>Hint {i}</summary>{hint}</details>\n" for i, hint in enumerate(task.hints, 1))
    page, rich = Readout(m), get_ipython() is not None
    for section in sections or ("lesson", "picture", "claims"):
        if not rich:
            print({"lesson": lambda: lesson(m.study), "picture": lambda: figures.describe(m), "numbers": lambda: summary.table(m).to_string(),
                   "history": lambda: ", ".join(sorted({name for stored in m.points for name in stored.result.series})),
                   "code": lambda: source, "parts": lambda: _parts(m.study).to_string(), "solution": lambda: task.solution,
                   "exercise": lambda: "\n".join([task.question, task.stub, *task.hints]),
                   "claims": lambda: "\n".join(f"{v.status:>15}  {v.text}" for v in page.judged())}[section](), end="\n\n")
        elif section == "picture":
            page.display_static(claims=False)
        elif section == "history":
            for series in sorted({name for stored in m.points for name in stored.result.series}):
                display(plain(figures.history(m, series)), raw=True)
        elif section in ("code", "solution"):
            display(Code(source if section == "code" else task.solution, language="python"))
        else:
            display({"lesson": lambda: Markdown(lesson(m.study)), "numbers": lambda: summary.table(m), "parts": lambda: _parts(m.study),
                     "exercise": lambda: Markdown(f"{task.question}\n\n```python\n{task.stub}```\n\n{hints}"),
                     "claims": lambda: HTML(f"{STYLE}<div class='wb'>{claims_table(page.judged())}</div>")}[section]())


def _parts(of: Study) -> pd.DataFrame:
    rows = [(label, part.function.__qualname__, part.proof, part.ablation, "yes" if part.reconstructed else "") for label, part in of.parts.items()]
    return pd.DataFrame(rows, columns=["part of the paper", "built by", "proved by", "disabled by", "reconstructed"])


def _defined(answer: str | dict) -> dict:
    """What an answer defines; numpy as ``np`` and torch are at hand to source text."""
    if not isinstance(answer, str):
        return answer
    import numpy as np
    import torch

    namespace = {"np": np, "torch": torch}
    exec(answer, namespace)  # noqa: S102 (the student's own code, on the student's machine)
    return namespace


def grade(paper: str | Study, answer: str | dict) -> str:
    """Checks an answer to the paper's exercise, given as source text or as a notebook's ``globals()``: says that it passes, or what is wrong."""
    task = study(paper).exercise
    try:
        task.check(_defined(answer))
    except KeyError as missing:
        return f"✘ define {missing} first"
    except Exception as error:  # whatever the student's code raises is the answer to show
        return f"✘ {error}" if isinstance(error, AssertionError) else f"✘ {type(error).__name__}: {error}"
    return "✔ passes"


def draw(paper: str | Study, answer: str | dict):
    """What an answer to the paper's exercise does, beside what is right: a plotly figure; a text where it cannot be drawn (see `grade` for ``answer``)."""
    task = study(paper).exercise
    if task.picture is None:
        return f"{study(paper).name}: this exercise has no picture"
    try:
        return _shown(task.picture(_defined(answer)))
    except Exception as error:
        return f"✘ nothing to draw yet: {type(error).__name__}: {error}"


def _shown(figure):
    """A plotly figure as it is; in a notebook that is published, as plain data without a script of its own."""
    from .views.readout import plain, static

    if not static():
        return figure
    from IPython.display import display

    return display(plain(figure), raw=True)


def browse(family: str, *without: str) -> None:
    """The live papers of a family (but ``without`` these) behind one selector; without a kernel a table that leads to their pages."""
    from IPython.display import HTML, display

    from .views.readout import static

    entries = [entry for entry in registry.select(family) if not {entry.name, entry.arxiv} & set(without)]
    if static() or not entries:
        display(HTML(_contents(entries)))
        return
    import ipywidgets as widgets

    choice, box = widgets.Dropdown(options=[("choose a paper", ""), *((e.title, e.arxiv) for e in entries)], description="paper"), widgets.VBox()
    choice.observe(lambda change: setattr(box, "children", [explore(change.new).widget] if change.new else []), "value")
    display(widgets.VBox([choice, box]))


def _contents(entries: Sequence[registry.Entry]) -> str:
    """One row a paper as HTML: a link to its page in the reports, its lesson's heading, how many of its claims hold."""
    from html import escape

    from .views.readout import STYLE, Readout

    rows = []
    for entry in entries:
        said = [v.status for v in Readout(measurements(entry.arxiv)).judged()]
        heading = lesson(entry.arxiv).splitlines()[0].lstrip("# ")
        rows.append(f'<tr><td><a href="papers/{entry.arxiv}.html">{escape(heading)}</a></td><td>{escape(entry.title)}</td>'
                    f'<td class="n">{said.count("holds")} of {len(said)}</td></tr>')
    return f"{STYLE}<div class='wb'><table><tr><th scope='col'>lesson</th><th scope='col'>paper</th><th scope='col'>claims that hold</th></tr>{''.join(rows)}</table></div>"
