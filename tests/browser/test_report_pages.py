"""The published pages in headless Chromium, from disk: no request outside the folder, no console error, sliders that work by keyboard."""

import re

import pytest
import report_tree

pytestmark = pytest.mark.browser
PAPER = f"papers/{report_tree.PAPER}.html"
PAGES = (PAPER, "index.html", "01_pruning.html")


def _data(page, chart, path):
    return page.evaluate(f"JSON.stringify(document.querySelector('figure.{chart} .js-plotly-plot')._fullData{path})")


def _open(page):
    page.click(".predict .plain")
    page.wait_for_function("document.querySelector('figure.curve .plotly')._fullData")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("options", [{"viewport": {"width": 1280, "height": 900}}, {"viewport": {"width": 375, "height": 800}, "color_scheme": "dark"}],
                         ids=["wide light", "phone dark"])
def test_pages_are_silent_and_fit_their_window(visit, name, options):
    page = visit(name, **options)
    page.wait_for_timeout(300)
    if page.query_selector(".predict"):
        _open(page)
    for _ in range(12):
        page.mouse.wheel(0, 1500)
        page.wait_for_timeout(30)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= options["viewport"]["width"], "the page itself scrolls sideways"
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert (brightness < 80) == (options.get("color_scheme") == "dark")


@pytest.mark.parametrize("name", [PAPER, "index.html"])
def test_keyboard_alone_moves_figure_picture_and_numbers(visit, name):
    page = visit(name)
    page.focus(".predict .plain")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('figure.curve .plotly')._fullData")
    page.focus("#knob-0")
    before = _data(page, "curve", ".at(-1).x"), _data(page, "picture", "[0].z"), page.inner_text(".readout"), page.inner_text(".state code")
    assert "removed=0.5" in before[3]
    page.evaluate("{ window.redrawn = 0; document.querySelector('.explorer').addEventListener('redrawn', () => { window.redrawn += 1; }); }")
    for i in range(2):
        page.keyboard.press("ArrowRight")
        page.wait_for_function(f"window.redrawn > {i}")
    after = _data(page, "curve", ".at(-1).x"), _data(page, "picture", "[0].z"), page.inner_text(".readout"), page.inner_text(".state code")
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert "removed=0.7" in after[3] and after[0].count("30") == 4, "four contenders stand at cost 30 where 0.7 is removed"
    assert page.get_attribute("#knob-0", "aria-valuetext") == "0.7"
    assert "70" not in page.get_attribute("figure.picture .plotly", "aria-label").split("keeps")[0]
    assert "share removed 0.7" in page.get_attribute("figure.curve .plotly", "aria-label")


def test_second_knob_shows_its_own_curve_with_the_first_at_its_default(visit):
    page = visit(PAPER)
    _open(page)
    page.focus("#knob-0")
    page.keyboard.press("End")
    page.focus("#knob-1")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('figure.curve .plotly')._fullData[0].x.join() === '50,50,50'")
    assert page.input_value("#knob-0") == "5" and "rounding=4" in page.inner_text(".state code")


def test_prediction_comes_before_the_numbers(visit):
    page = visit(PAPER)
    assert page.is_hidden("figure.curve") and page.is_hidden(".readout")
    page.fill("#guess", "75")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('figure.curve .plotly')._fullData")
    assert "You said 75" in page.inner_text(".guessed") and "your guess" in _data(page, "curve", ".map((t) => t.name)")
    assert page.is_visible(".readout")


def test_contenders_and_axes_can_be_chosen(visit):
    page = visit(PAPER)
    _open(page)
    names = _data(page, "curve", ".map((t) => t.name)")
    assert "Steep" in names and "no slope" not in names
    page.uncheck("text=Steep")
    page.check("text=no slope")
    page.select_option("#axis-x", "bytes")
    page.wait_for_function("document.querySelector('figure.curve .plotly').layout.xaxis.title.text === 'bytes on disk'")
    names = _data(page, "curve", ".map((t) => t.name)")
    assert "Steep" not in names and "no slope" in names and _data(page, "curve", "[0].x")[1:-1].split(",")[-1] in ("70000", "30000", "100000")


def test_every_chart_has_a_table_and_words(visit):
    page = visit(PAPER)
    _open(page)
    for name in ("curve", "picture", "series"):
        page.click(f"figure.{name} summary")
        page.wait_for_function(f"document.querySelectorAll('figure.{name} .numbers td').length > 5")
        assert len(page.get_attribute(f"figure.{name} .plotly", "aria-label")) > 15
    assert "256 values from 0 to 1" in page.get_attribute("figure.picture .plotly", "aria-label")


def test_every_control_has_a_name(visit):
    for name in (PAPER, "index.html"):
        page = visit(name)
        nameless = page.evaluate("""[...document.querySelectorAll('input, select, button')].filter((node) =>
            !(node.labels && node.labels.length && node.labels[0].textContent.trim()) && !node.getAttribute('aria-label') && !node.textContent.trim()).length""")
        assert nameless == 0


def test_notebook_page_draws_its_chart(visit):
    page = visit("01_pruning.html")
    page.wait_for_function("document.querySelector('figure.plot .plotly')._fullData")
    assert "Three numbers" in page.get_attribute("figure.plot .plotly", "aria-label")
    assert page.inner_text(".html b") == "kept" and page.query_selector("math")


def test_search_filters_and_theme(visit):
    page = visit("index.html")
    page.fill("#search", "similarity consecutive")
    assert page.inner_text("output[for=search]") == "1 of 165"
    assert page.evaluate("[...document.querySelectorAll('#paper-rows tbody tr')].filter((row) => row.offsetParent).length") == 1
    page.select_option("#ledger-status", "holds")
    shown = page.eval_on_selector_all("#ledger-rows tbody tr", "rows => rows.filter((row) => row.offsetParent).map((row) => row.dataset.key.split('|')[0])")
    assert shown and set(shown) == {"holds"}
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.click("#theme")
    assert page.evaluate(colour) != before
    page.reload()
    assert page.evaluate(colour) != before, "the choice is kept"


def test_without_javascript_the_words_are_there(visit):
    page = visit(PAPER, java_script_enabled=False)
    assert "beats Plain" in page.inner_text("#claims") and "JavaScript" in page.inner_text("noscript")


def test_print_shows_the_curve(visit):
    page = visit(PAPER)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('figure.curve .plotly')._fullData")
    assert page.is_hidden(".toc") and page.is_hidden(".controls") and page.is_visible("figure.curve")
