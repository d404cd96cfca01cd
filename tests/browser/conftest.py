"""One headless Chromium for all browser tests: the system's where there is one (playwright's own builds need a download)."""

import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    """A browser; the tests that need it are skipped loudly where none is installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
