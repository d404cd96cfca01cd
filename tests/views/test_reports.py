"""Pages from numbers: what is rendered, what a slider gets to see, what makes a page be made again."""

import json
import math
import re

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
import report_tree
import toy
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.core import probe, registry
from workbench.core.measurements import Measurements
from workbench.views import figures, reports
from workbench.views.reports import index, paper, render


@pytest.fixture(scope="module")
def m():
    return toy.measurements()


# --- Markdown, maths, code, notebooks --------------------------------------------------------------------------------------------------


def test_maths_becomes_mathml_and_a_damaged_formula_its_source():
    page = render.markdown(r"Inline $a_i^2$ and" "\n\n" r"$$\sum_{i=1}^n x_i$$" "\n")
    assert page.count("<math") == 2 and 'display="block"' in page and "$" not in page
    assert r"\frac{1}{" in render.maths(r"\frac{1}{") and "bad-maths" in render.maths(r"\frac{1}{")


def test_lesson_headings_are_lowered_and_linkable():
    assert '<h3 id="two-words">Two words</h3>' in render.markdown("# Two words", 2)


def test_links_between_notebooks_lead_to_pages():
    assert 'href="05_codecs.html#part"' in render.markdown("[codecs](05_codecs.ipynb#part)")
    assert 'href="https://example.org/a.ipynb"' in render.markdown("[elsewhere](https://example.org/a.ipynb)")


@pytest.mark.parametrize("text", [
    '<img src="https://example.org/x.png">', "![x](https://example.org/x.png)", '<script src="https://example.org/x.js"></script>',
    '<link rel="stylesheet" href="https://example.org/x.css">', '<iframe src="//example.org"></iframe>',
    "<style>@import url(https://example.org/x.css); a { background: url('https://example.org/y.png') }</style>",
    '<video poster="http://example.org/p.png" src=http://example.org/v.mp4></video>'])
def test_nothing_is_loaded_from_another_host(text):
    for page in (render.markdown(text), render.markdown(f"words {text} words"), render.local(text)):
        left = re.sub(r"<a [^>]*>.*?</a>", "", page)
        assert not re.search(r"(src|href|poster)\s*=\s*['\"]?(https?:)?//|url\(\s*['\"]?(https?:)?//|@import", left), page


def test_images_have_words_and_those_without_source_go():
    assert render.local('a<img src="data:,">b') == 'a<img alt="image" src="data:,">b' and render.local('<img alt="x" src="y.png">') == '<img alt="x" src="y.png">'
    assert render.local('a<img src="https://example.org/x.png">b') == "ab"


def test_code_lines_can_be_linked_to():
    page = render.code("a = 1\nb = 2\n", anchor="line")
    assert 'id="line-1"' in page and 'id="line-2"' in page


def test_embedded_json_cannot_end_its_script_and_has_no_nan():
    text = render.embed({"a": "</script><!--", "b": [math.nan, math.inf, 1.5]})
    assert "</script" not in text and "<!--" not in text
    assert json.loads(text.replace("\\!", "!")) == {"a": "</script><!--", "b": [None, None, 1.5]}


def test_numbers_for_people():
    assert [render.number(v) for v in (1234567, 0.123456, -2.5, None, "green", 1e-7)] == ["1,234,567", "0.1235", "−2.5", "–", "green", "1e−07"]


def _notebook(*outputs, source="x"):
    return new_notebook(cells=[new_markdown_cell("# A title\n\n## A part"), new_code_cell(source, outputs=list(outputs))])


def test_notebook_outputs_each_in_their_richest_form():
    figure = go.Figure(go.Scatter(y=[1, 2]))
    page = render.notebook(_notebook(
        new_output("stream", name="stderr", text="\x1b[31mwarned\x1b[0m <b>"),
        new_output("display_data", {render.PLOTLY: json.loads(figure.to_json()), "text/html": "<b>unused</b>"}),
        new_output("display_data", {"text/html": "<table><tr><td>1</td></tr></table>", "text/plain": "unused"}),
        new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "a plot"}),
        new_output("execute_result", {"text/plain": "<obj>"}, execution_count=1)), "name")
    assert page.title == "A title" and [text for _, _, text in page.contents] == ["A part"] and page.error == ""
    assert "warned &lt;b&gt;" in page.body and "\x1b" not in page.body and "unused" not in page.body and "&lt;obj&gt;" in page.body
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in page.body and "<td>1</td>" in page.body
    drawn = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page.body).group(1))
    assert drawn["data"][0]["type"] == "scatter" and "template" not in drawn["layout"]


def test_notebook_error_is_shown_and_told():
    page = render.notebook(_notebook(new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[0;31mTrace\x1b[0m", "ValueError: no"])), "n")
    assert page.error == "Trace\nValueError: no" and 'class="traceback"' in page.body


# --- what the sliders see ----------------------------------------------------------------------------------------------------------------


def test_payload_holds_what_figures_show(m):
    data = paper.payload(m)
    ours = next(c for c in data["contenders"] if c["name"] == "Ours")
    rows = figures.table(m)
    rows = rows[rows.contender == "Ours"]
    curve = ours["curves"][0]
    assert curve["at"] == pytest.approx(list(rows.removed)) and curve["quality"][0] == pytest.approx(list(rows.quality), rel=1e-5)
    assert curve["quality"][1] == pytest.approx(list(rows.low), rel=1e-5) and curve["quality"][2] == pytest.approx(list(rows.high), rel=1e-5)
    assert curve["cost"][0] == pytest.approx(list(rows.cost)) and curve["replicas"] == 3
    plain = next(c for c in data["contenders"] if c["name"] == "Plain")
    assert plain["curves"][1]["at"] == [None], "a contender without the knob is one fixed point"
    assert [k["name"] for k in data["knobs"]] == ["removed", "rounding"] and data["subject"] == "Ours"


def test_pictures_are_those_of_the_paper_and_shared_parts_stand_once(m):
    data = paper.payload(m)
    assert set(data["frames"]) == {f"0:{i}" for i in range(10)} | {"1:0", "1:1", "1:2"}
    layout, *traces = (data["parts"][i] for i in data["frames"]["0:3"])
    assert layout["title"]["text"] == "Ours keeps 7 of 10" and traces[0]["type"] == "bar"
    assert data["frames"]["0:5"] == data["frames"]["1:0"], "the same point reached by two sliders is stored once"
    assert data["leftOut"] == 0


def test_pictures_past_the_limit_are_counted(m, monkeypatch):
    monkeypatch.setattr(paper, "PICTURE_BYTES", 1)
    data = paper.payload(m)
    assert len(data["frames"]) == 1 and data["leftOut"] == 12
    assert list(data["frames"]) == ["0:3"], "values that claims need come first"


def test_stored_stale_and_measured_now(m, monkeypatch):
    study = m.study
    monkeypatch.setattr(paper.golden, "points", lambda _: list(m.points))
    monkeypatch.setattr(paper.golden, "read", lambda _: {"environment": {"cpu": "A"}, "data": "d", "verdicts": {"beats Plain": "not reproduced"}})
    monkeypatch.setattr(paper, "path_of", lambda _, point: (None, next(s.key for s in m.points if s.point == point)))
    shown = paper.evidence(study, None)
    assert (shown.state, shown.stale, shown.environment) == (paper.STORED, 0, {"cpu": "A"})
    live = paper.evidence(study, m.points[:3])
    assert live.state == paper.LIVE and len(live.measurements.points) == len(m.points) and live.environment["python"]
    monkeypatch.setattr(paper, "path_of", lambda _, point: (None, "other"))
    assert paper.evidence(study, None).state == paper.STALE
    assert len(paper.evidence(study, m.points[:3]).measurements.points) == 3, "stale points are not mixed with points measured now"
    verdicts = paper.claims.ledger(study, m)
    assert paper.flips(study, verdicts) == ["beats Plain: was not reproduced, is now holds"]


@pytest.fixture(scope="module")
def page(m):
    """The page of the toy study, made without a pool."""
    entry = registry.Entry("2304.13397", "A toy", "pruning", "2023-04-27", "", "toy", "toy")
    shown = paper.Evidence(m, paper.STORED, {"cpu": "a test"}, "toy-data", notes=["one point differs"])
    verdicts = paper.claims.ledger(m.study, m, "pruning")
    return render.page("paper.html", **paper.context(entry, shown, verdicts), probe=probe.Timing("dense", {"half": {"median_ms": 3, "ratio": 1.5, "low": 1.4, "high": 1.6}}, 30, 1, {"cpu": "slow"}), failed=["check x is red"], root="../",
                       made={"commit": "abc", "dirty": "", "date": "today"}, stored="abc of then")


def test_page_says_what_a_reader_needs(page, m):
    text = re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))
    for words in ("toy-data", "a test", "abc", "stored", "check x is red", "one point differs", "beats Plain", "an oracle knows more", "not reproduced",
                  "the subject is one", "no slope", "What is one?", "It is a number.", "workbench check toy --fresh", "3 replicas", "1.5 [1.4, 1.6]", "no figure given"):
        assert words in text, words
    assert text.index("not reproduced") < text.index("beats Plain at equal cost"), "failures first"
    assert 'href="#line-' in page and "2304.13397.csv" in page
    assert len(page.encode()) < 2_000_000


def test_page_links_lead_somewhere(page):
    ids = set(re.findall(r'id="([^"]+)"', page))
    assert {target for target in re.findall(r'href="#([^"]+)"', page)} <= ids
    assert len(re.findall(r'id="([^"]+)"', page)) == len(ids), "an id twice"


def test_page_refers_to_nothing_outside_its_folder(page):
    for address in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert address == "data:," or address.startswith("../") or address.endswith(".csv"), address


def test_index_without_any_page(tmp_path):
    text = index.index({}, tmp_path)
    assert text.count("<tr") >= 165 and "A path of twelve stops" in text and 'id="study"' not in text
    assert len(re.findall(r"<li[ >].*?class=\"family\"", text)) == 12


# --- what is made again -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = report_tree.make(tmp_path_factory.mktemp("workbench"))
    report_tree.notebook(folder, "01_pruning", "# A tiny notebook", "1 + 1")
    first = report_tree.report(folder)
    assert first.returncode == 0, first.stderr
    return folder


def _made(result):
    return int(re.search(r"(\d+) made now", result.stdout).group(1))


def test_whole_report(tree):
    out = tree / "reports"
    assert {p.name for p in out.iterdir()} >= {"index.html", "01_pruning.html", "papers", "assets", "notebooks", ".state.json"}
    page = (out / "papers" / f"{report_tree.PAPER}.html").read_text()
    assert "measured now" in page and "bad-maths" not in page.split('id="lesson"')[0]
    assert (out / "papers" / f"{report_tree.PAPER}.csv").read_text().count("\n") > 30
    executed = nbformat.read(out / "notebooks" / "01_pruning.ipynb", 4)
    assert executed.cells[1].outputs[0].data["text/plain"] == "2"
    start = (out / "index.html").read_text()
    assert "A tiny notebook" in start and "beats Plain" in start and 'id="study"' in start


def test_second_run_makes_nothing_and_changes_make_what_they_touch(tree):
    out = tree / "reports"
    before = {p: p.read_bytes() for p in out.rglob("*.html")}
    again = report_tree.report(tree)
    assert again.returncode == 0 and _made(again) == 0, again.stdout + again.stderr
    assert {p: p.read_bytes() for p in out.rglob("*.html")} == before
    (out / "01_pruning.html").write_text("damaged")
    assert _made(report_tree.report(tree)) == 1, "a page that was changed by hand is made again"
    report_tree.notebook(tree, "01_pruning", "# Another title", "1 + 1")
    assert _made(report_tree.report(tree)) == 1
    assert "Another title" in (out / "index.html").read_text()


def test_red_check_and_turned_claim_give_exit_code_one(tmp_path):
    folder = report_tree.make(tmp_path)
    source = folder / "workbench" / "papers" / "pruning" / "toy_paper.py"
    source.write_text(source.read_text().replace("subject == 1", "subject == 2"))
    result = report_tree.report(folder)
    assert result.returncode == 1 and "check one is red" in result.stderr
    again = report_tree.report(folder)
    assert again.returncode == 1 and _made(again) == 0, "a stored page that reports failures still fails"
    assert "check one is red" in (folder / "reports" / "papers" / f"{report_tree.PAPER}.html").read_text()


def test_empty_measurements_still_make_a_payload():
    study = toy.study()
    data = paper.payload(Measurements(study, ()))
    assert data["contenders"] == [] and data["frames"] == {} and np.isfinite(reports.PAGE_SECONDS)
