"""The explorer in JupyterLab: open a notebook, run all, move the slider by keyboard, and what is shown changes."""

import json
import re

import lab_server
import psutil
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def lab():
    with lab_server.jupyterlab(lab_server.ROOT / "notebooks") as served:
        yield served


@pytest.fixture(scope="module")
def page(lab, chromium):
    """`paper.ipynb`, all cells run."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(180_000)
    lab_server.open_and_run(page, *lab, "paper.ipynb")
    page.wait_for_selector(".wb-slider input")
    page.wait_for_selector(".wb .js-plotly-plot", state="attached")
    yield page
    page.close()


def slider(page):
    return page.get_by_label("share of the MACs removed")


def rings(page) -> str:
    return page.evaluate("""() => { const plots = [...document.querySelectorAll('.js-plotly-plot')];
        const curve = plots.find(p => p.closest('.wb') && p._fullData && p._fullData.some(t => t.name === 'current point'));
        return curve ? JSON.stringify(Array.from(curve._fullData.find(t => t.name === 'current point').x || [])) : ''; }""")


def test_a_guess_then_the_curve(page):
    assert not page.locator(".wb summary").first.is_visible(), "the results wait for the guess"
    page.get_by_label("Your guess", exact=False).fill("70")
    page.get_by_role("button", name="Show", exact=True).click()
    page.get_by_text("You guessed 70; measured:", exact=False).wait_for()
    assert page.locator(".wb summary").first.is_visible()


def test_the_slider_moves_by_keyboard_and_everything_follows(page):
    page.wait_for_function("() => [...document.querySelectorAll('.js-plotly-plot')].some(p => (p._fullData || []).some(t => t.name === 'current point'))")
    slider(page).focus()
    page.keyboard.press("ArrowLeft")
    code = page.get_by_label("as code")
    before = rings(page), code.input_value(), page.locator(".wb caption").first.locator("..").inner_text()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"() => [...document.querySelectorAll('input')].some(i => /^explore/.test(i.value) && i.value !== {json.dumps(before[1])})")
    page.wait_for_timeout(500)
    after = rings(page), code.input_value(), page.locator(".wb caption").first.locator("..").inner_text()
    assert json.loads(before[0]) and json.loads(after[0]), "points are stored at the grid"
    for old, new in zip(before, after, strict=True):
        assert old != new
    assert re.fullmatch(r'explore\("fscl", macs_removed=[\d.]+\)', after[1])


def test_stored_settings_are_drawn_without_the_kernel(page):
    """The kernel's process is stopped: rings and picture follow the slider all the same; when it goes on, the words do, and the rings stay."""
    page.wait_for_timeout(1000)  # charts are sent ahead once the cells are through
    picture = "() => JSON.stringify([...document.querySelectorAll('.wb .js-plotly-plot')].at(-1)._fullData[0].z)"
    code = page.get_by_label("as code")
    [kernel] = [child for child in psutil.Process().children(recursive=True) if any("ipykernel_launcher" in part for part in child.cmdline())]
    before = rings(page), page.evaluate(picture), code.input_value()
    kernel.suspend()
    try:
        slider(page).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1000)
        during = rings(page), page.evaluate(picture), code.input_value()
    finally:
        kernel.resume()
    assert during[0] != before[0] and during[1] != before[1] and during[2] == before[2]
    page.wait_for_function(f"() => [...document.querySelectorAll('input')].some(i => /^explore/.test(i.value) && i.value !== {json.dumps(before[2])})")
    page.wait_for_timeout(500)
    assert rings(page) == during[0] and page.evaluate(picture) == during[1], "the kernel says what the browser had drawn"


def test_the_picture_and_the_claims_are_there(page):
    page.locator(".wb .gtitle", has_text="channels kept").first.wait_for()
    page.get_by_text("Claims, failures first").first.wait_for()
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0, "no cell warned or failed"


def test_inputs_have_labels(page):
    unlabelled = page.evaluate("""() => [...document.querySelectorAll('.wb input, .wb select, .wb button')].filter(e =>
        e.offsetParent && !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')
        && !e.closest('label') && !e.textContent.trim()).map(e => e.outerHTML.slice(0, 200))""")
    assert unlabelled == []
