"""One headless Chromium and one reports folder for all browser tests: the system's where there is one (playwright's own builds need a download)."""

import shutil

import pytest
import report_tree


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


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """The reports folder of the little workbench, beside which nothing may be read."""
    folder = report_tree.make(tmp_path_factory.mktemp("pages"))
    report_tree.notebook(
        folder, "01_pruning", "# A notebook with a chart\n\n## A part\n\n$a^2$ ![no](https://example.org/x.png)",
        "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 3, 2], name='three'), layout_title_text='Three numbers')",
        "from IPython.display import HTML\nHTML('<img src=\"https://example.org/y.png\"><script src=\"https://example.org/z.js\"></script><b>kept</b>')")
    made = report_tree.report(folder)
    assert made.returncode == 0, made.stderr
    return folder / "reports"


@pytest.fixture
def visit(chromium, pages):
    """``visit(page, **options)`` opens a page and watches it; what went wrong is raised when the test ends."""
    wrong, contexts = [], []

    def open_page(name, **options):
        context = chromium.new_context(**options)
        context.set_default_timeout(100_000)  # a busy machine is slow, not wrong
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda request: None if request.url.startswith((pages.as_uri() + "/", "data:", "blob:")) else wrong.append(request.url))
        page.goto((pages / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, wrong
