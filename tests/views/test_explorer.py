"""The explorer without a browser: moving sliders, guessing, toggling, measuring between grid points, stopping, static output."""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import plotly.graph_objects as go
import pytest
import toy

import workbench
from workbench import lessons
from workbench.core import live
from workbench.core.measurements import Stored, write_point
from workbench.core.study import Contender, StudyError, measure
from workbench.views.chart import Chart
from workbench.views.explorer import Explorer
from workbench.views.slider import GridSlider


@pytest.fixture(scope="module")
def m():
    return toy.measurements()


@pytest.fixture
def page(m):
    made = Explorer(m, predict=False, stored_only=True)
    _ = made.widget
    return made


def rings(page):
    trace = page.curve.data[-1]
    return list(trace.x), list(trace.y)


def test_moving_the_slider_moves_rings_picture_words_and_code(page):
    page.sliders["removed"].value = .3
    assert rings(page)[0] == pytest.approx([70] * 4)
    assert page.canvas.layout.title.text == "Ours keeps 7 of 10"
    assert len(page.canvas.data[0].x) == 7
    assert "cost (units) <b>70.0</b>" in page.reading_.value and "bytes <b>70,000</b>" in page.reading_.value
    assert "share removed 0.3" in page.words_.value
    assert page.code.value == 'explore("toy", removed=0.3)'
    assert page.exact["removed"].value == .3
    page.sliders["removed"].value = .5
    assert page.code.value == 'explore("toy")', "the default is not written"


def test_the_comparison_at_equal_cost_follows_the_slider(page):
    page.sliders["removed"].value = .1
    low = page.here_.value
    page.sliders["removed"].value = .8
    assert low != page.here_.value and "+2." in low and "+16." in page.here_.value


def test_toggles_show_and_hide_contenders(page):
    page.toggles["Steep"].value = False
    assert "Steep" not in [trace.name for trace in page.curve.data]
    assert "Steep" not in page.here_.value
    page.toggles["no slope"].value = True
    assert "no slope" in [trace.name for trace in page.curve.data], "ablations can be shown too"
    assert page.code.value == "explore(\"toy\", contenders=['Ours', 'Plain', 'oracle', 'untouched', 'no slope'])"


def test_axes_and_second_knob(page):
    page.axes["y"].value = "bytes"
    assert page.curve.layout.yaxis.title.text == "bytes"
    page.axes["over"].value = "rounding"
    ours = next(trace for trace in page.curve.data if trace.name == "Ours")
    assert len(ours.x) == 3


def test_prediction_comes_first(m):
    page = Explorer(m, stored_only=True)
    _ = page.widget
    assert page.results.layout.display == page.claims_.layout.display == "none"
    page.guess.value = 80
    page.reveal.click()
    assert page.results.layout.display == "" and page.asking.layout.display == "none"
    assert "You guessed 80; measured: 81.2 (quality (%)), off by 1.15" in page.status.value
    page.first.value = True
    assert page.results.layout.display == "none", "the toggle asks again"


def test_claims_are_judged_failures_first(page):
    page._judge()
    text = page.claims_.value
    assert text.index("✘ not reproduced") < text.index("✔ holds")
    assert "an oracle knows more" in text


def test_the_line_of_code_brings_the_state_back(m):
    page = Explorer(m, removed=.3, rounding=4, predict=False, stored_only=True, contenders=["Ours", "Plain"])
    call = page.line().replace('explore("toy", ', "dict(")
    again = Explorer(m, predict=False, stored_only=True, **eval(call))
    assert (again.state, again.shown) == (page.state, page.shown)


def test_wrong_arguments_are_named(m):
    with pytest.raises(StudyError, match=r"removed must be from 0 to 0.9, not 1.5"):
        Explorer(m, removed=1.5)
    with pytest.raises(StudyError, match="no knob 'strength'; it has removed, rounding"):
        Explorer(m, strength=1)
    with pytest.raises(StudyError, match="no contender 'Nobody'"):
        Explorer(m, contenders=["Nobody"])


def test_stored_only_says_so_between_grid_points(page):
    page.set(removed=.33)
    assert "only stored results" in page.status.value and not page.live.busy
    assert rings(page)[0] == []
    assert page.code.value == 'explore("toy", removed=0.33)'


def test_the_job_cap_comes_from_the_environment(m, monkeypatch):
    monkeypatch.setenv("WORKBENCH_JOBS", "0")
    assert Explorer(m).stored_only
    monkeypatch.setenv("WORKBENCH_JOBS", "3")
    assert live.jobs() == 3 and not Explorer(m).stored_only
    monkeypatch.setenv("WORKBENCH_JOBS", "many")
    with pytest.raises(StudyError, match="WORKBENCH_JOBS must be a whole number"):
        live.jobs()


def test_static_output_has_no_widget_and_is_small(m, monkeypatch):
    import IPython.display
    shown = []
    monkeypatch.setenv("WORKBENCH_STATIC", "1")
    monkeypatch.setattr(IPython.display, "display", lambda item, raw=False: shown.append(item if raw else item._repr_html_()))
    page = Explorer(m)
    page._ipython_display_()
    assert page._box is None, "no widget was made"
    drawn = [item for item in shown if isinstance(item, dict)]
    assert len(drawn) == 2 and all(set(item) == {"application/vnd.plotly.v1+json"} for item in drawn)
    assert len(go.Figure(drawn[0]["application/vnd.plotly.v1+json"]).to_json()) < 50_000
    assert "✘ not reproduced" in "".join(item for item in shown if isinstance(item, str))


def test_charts_are_sent_ahead_for_every_stored_setting(page):
    knob = page.study.knobs[0]
    rings, picture = page.charts
    while len(rings._kept) < len(knob.grid):
        time.sleep(0.01)
    page.set(**{knob.name: knob.grid[1]})
    assert rings.at == 1 and rings._kept[1]["points"] == rings.points and len(rings.points["x"]) == len(page.curve.data[-1].x)
    assert picture._kept[1]["figure"]["key"] == picture.figure["key"], "what the browser has drawn is what the kernel says"
    assert {kept["figure"]["key"] for kept in picture._kept.values()} > {picture.figure["key"]}


def test_a_chart_says_only_what_changed():
    slider = GridSlider((1, 2), 1, "knob")
    chart, sent = Chart(slider), []
    chart.send = lambda content, buffers=None: sent.append(content)
    figure = go.Figure([go.Bar(x=[1, 2], y=[3, 4]), go.Scatter(x=[1], y=[1])])
    chart.show(figure)
    first = chart.figure
    chart.show(figure, points=([2, float("nan")], [3, 4]), at=1)
    assert chart.figure == first and chart.points["x"] == [2, None] and chart.at == 1
    chart.ahead(0, points=([1], [1]))
    chart.ahead(0, points=([1], [1]))
    chart.ahead(1, go.Figure())
    chart.forget()
    assert [sorted(content) for content in sent] == [["index", "points"], ["figure", "index", "points"], ["clear"]] and not chart._kept


# --- measuring in the background ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers():
    live._workers.cache_clear()
    yield
    live._workers().stop()
    live._workers().join()
    live._workers.cache_clear()


@pytest.fixture
def measuring(m, monkeypatch, tmp_path, workers):
    """An explorer of the toy with a contender that never ends; all contenders go to the workers by value, so that none is stored."""
    monkeypatch.setenv("WORKBENCH_JOBS", "2")
    monkeypatch.setattr(live, "module_of", lambda study: "tests.core.toy")
    monkeypatch.setattr(live.Live, "_own", lambda self: {})
    endless = Contender(partial(toy.forever, str(tmp_path)), replicas=1)
    study = replace(m.study, contenders={**m.study.contenders, "Endless": endless})
    made = Explorer(replace(m, study=study), contenders=["Ours", "Steep", "Plain"], predict=False)
    _ = made.widget
    yield made
    made.live.stop()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(.005)


def test_between_grid_points_is_measured_without_blocking(measuring):
    start = time.monotonic()
    measuring.exact["removed"].value = .33
    assert time.monotonic() - start < 2, "the notebook waits for no worker"
    measuring.live.wait(120)
    assert rings(measuring)[0] == pytest.approx([67] * 3)
    assert measuring.status.value == '<span role="status">measured now</span>'
    assert "cost (units) <b>67.0</b>" in measuring.reading_.value
    ours = next(trace for trace in measuring.curve.data if trace.name == "Ours")
    assert len(ours.x) == 10, "the curve stays that of the design"
    assert measuring.sliders["removed"].value == .3, "the slider stands at the nearest grid value"


def test_the_latest_value_wins(measuring):
    for value in (.31, .32, .34, .36, .38):
        measuring.set(removed=value)
    measuring.live.wait(120)
    wait_for(lambda: not measuring.live.busy)
    assert rings(measuring)[0] == pytest.approx([62] * 3)
    assert measuring.code.value.startswith('explore("toy", removed=0.38')


def test_a_replaced_measurement_is_stopped_at_once(measuring, tmp_path):
    measuring.toggles["Endless"].value = True
    measuring.set(removed=.41)
    pids = tmp_path / "0.41-0"
    wait_for(lambda: pids.exists() and pids.read_text())
    pid = int(pids.read_text())
    assert alive(pid)
    measuring.toggles["Endless"].value = False
    start = time.monotonic()
    measuring.set(removed=.43)
    wait_for(lambda: not alive(pid), 5)
    stopped = time.monotonic() - start
    measuring.live.wait(120)
    assert rings(measuring)[0] == pytest.approx([57] * 3)
    assert stopped < 2, f"stopped after {stopped:.3f} s (benchmarks/explorer.py holds it to 0.2 s on a quiet machine)"


def test_stop_keeps_what_was_measured(measuring, tmp_path):
    measuring.toggles["Endless"].value = True
    measuring.set(removed=.47)
    wait_for(lambda: (tmp_path / "0.47-0").exists() and len(rings(measuring)[0]) == 3)
    measuring.stop.click()
    assert not measuring.live.busy and "stopped" in measuring.status.value
    assert rings(measuring)[0] == pytest.approx([53] * 3)


def test_a_failing_point_is_reported_and_the_rest_arrives(measuring, monkeypatch):
    def breaks(removed, replica=0):
        raise RuntimeError("no such luck")
    wider = replace(toy.STUDY, contenders={**toy.STUDY.contenders, "Cell": Contender(breaks), "Own": Contender(lambda removed: toy.cut(30)(removed))})
    page = Explorer(replace(measuring.m, study=wider), contenders=["Ours", "Cell", "Own"], predict=False)
    _ = page.widget
    page.set(removed=.37)
    page.live.wait(120)
    assert "Cell (removed=0.37; replica 0, seed 0): RuntimeError: no such luck" in page.status.value
    assert len(rings(page)[0]) == 2, "the others, one of them defined in this function, were measured"


def test_without_stored_points_it_offers_to_measure(measuring):
    page = Explorer(type(measuring.m)(toy.study(), ()), contenders=["Ours", "Plain"], predict=False)
    _ = page.widget
    assert page.measure.layout.display == "" and "nothing is stored" in page.status.value
    page.measure.click()
    assert page.live.busy
    page.live.wait(120)
    assert page.measure.layout.display == "none"
    assert rings(page)[0] == pytest.approx([50, 50])
    wait_for(lambda: "holds" in page.claims_.value)


def test_stored_points_between_the_grid_need_no_worker(m, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(live, "_workers", lambda: pytest.fail("a worker was asked for"))
    monkeypatch.setattr(live.Live, "_own", lambda self: toy.STUDY.field)
    page = Explorer(m, contenders=["Ours"], predict=False)
    for point in live.points_at(page.study, ["Ours"], {"removed": .29, "rounding": 1}):
        path, key = live.path_of(page.study, point)
        write_point(path, Stored(point, key, measure(toy.TRACK, toy.STUDY.field["Ours"], point)))
    _ = page.widget
    page.set(removed=.29)
    page.live.wait(60)
    assert rings(page)[0] == pytest.approx([71])


# --- the lazy interface ---------------------------------------------------------------------------------------------------------------------------


def test_papers_lists_the_catalogue():
    frame = workbench.papers()
    assert list(frame.columns) == ["arxiv", "title", "family", "implemented"]
    assert len(frame[frame.arxiv.str.match(r"\d{4}\.\d{4,5}$")]) == 165
    assert bool(frame.set_index("arxiv").implemented["2304.13397"])
    assert set(workbench.papers("pruning").family) == {"pruning"}
    with pytest.raises(ValueError, match="no family 'prunning'; there are"):
        workbench.papers("prunning")


def test_importing_loads_nothing_heavy():
    import subprocess
    import sys
    code = "import sys, workbench; print([n for n in ('torch', 'pandas', 'plotly', 'numpy', 'ipywidgets') if n in sys.modules], workbench.papers.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] papers\n"
    with pytest.raises(AttributeError, match="no attribute 'explor'; it offers papers"):
        _ = workbench.explor


def test_show_prints_outside_a_notebook(capsys, m):
    lessons.show(m)
    text = capsys.readouterr().out
    assert "Filters Similarity" in text and "not reproduced" in text


def test_a_state_between_grid_points_is_kept_exactly(m):
    page = Explorer(m, removed=.123456, predict=False, stored_only=True)
    assert np.isclose(page.state["removed"], .123456) and "0.123456" in page.line()
