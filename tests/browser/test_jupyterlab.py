"""The explorer in JupyterLab: open a notebook, run all, move the slider by keyboard, and what is shown changes."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
            "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}


@pytest.fixture(scope="module")
def lab():
    """JupyterLab as `workbench lab` starts it, on a copy of the notebooks, all its folders temporary; gives ``(address, token)``."""
    with tempfile.TemporaryDirectory(prefix="wb", dir="/tmp") as name:  # short: a socket's path has at most 108 characters
        folder = Path(name)
        shutil.copytree(ROOT / "notebooks", folder / "notebooks")
        for plugin, values in SETTINGS.items():
            path = folder / "settings" / (plugin + ".jupyterlab-settings")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        token = secrets.token_hex(16)
        places = {f"JUPYTER_{what}_DIR": str(folder / what.lower()) for what in ("CONFIG", "DATA", "RUNTIME")}
        environment = {**os.environ, **places, "IPYTHONDIR": str(folder / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
                       "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "PYTHONPATH": str(ROOT), "WORKBENCH_JOBS": "1"}
        environment.pop("WORKBENCH_STATIC", None)
        options = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", "--ServerApp.open_browser=False",
                   "--KernelManager.transport=ipc", "--allow-root", f"--ServerApp.root_dir={folder / 'notebooks'}"]
        with open(folder / "log", "w") as log:
            server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-3000:]
                    time.sleep(.2)
            yield f"http://127.0.0.1:{port}", token
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def page(lab, chromium):
    """`paper.ipynb`, all cells run."""
    address, token = lab
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(180_000)
    page.goto(f"{address}/lab/tree/paper.ipynb?token={token}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    started = "[...document.querySelectorAll('.jp-InputPrompt')].some(e => /\\[(\\*|\\d+)\\]/.test(e.textContent))"
    for _ in range(10):  # what is run before the kernel's session stands is dropped
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        if page.evaluate(started):
            break
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


def test_the_picture_and_the_claims_are_there(page):
    page.locator(".wb .gtitle", has_text="channels kept").first.wait_for()
    page.get_by_text("Claims, failures first").first.wait_for()
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0, "no cell warned or failed"


def test_inputs_have_labels(page):
    unlabelled = page.evaluate("""() => [...document.querySelectorAll('.wb input, .wb select, .wb button')].filter(e =>
        e.offsetParent && !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')
        && !e.closest('label') && !e.textContent.trim()).map(e => e.outerHTML.slice(0, 200))""")
    assert unlabelled == []
