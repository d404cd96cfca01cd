"""The pages as a site: on a web server as they are every link leads somewhere, nothing outside is asked for, and axe-core finds nothing serious."""

import functools
import http.server
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import report_tree

pytestmark = pytest.mark.browser
PAPER = f"papers/{report_tree.PAPER}.html"
PAGES = ("index.html", "course.html", PAPER, "01_pruning.html")
LINKS = """[...document.querySelectorAll('[href], [src]')].map((node) => [node.tagName, node.getAttribute('href') || node.getAttribute('src')])"""


@pytest.fixture(scope="module")
def server(pages):
    """The folder below an address of its own, as on a web server that holds other things too."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path):
            inside = path.removeprefix("/some/where/")
            return super().translate_path("/" + inside) if inside != path else str(pages / "nowhere")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(pages))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/some/where/"
        server.shutdown()


def test_every_link_of_every_page_leads_somewhere_and_nothing_outside_is_loaded(chromium, server):
    context = chromium.new_context()
    context.set_default_timeout(100_000)
    page, asked, wrong, seen, waiting = context.new_page(), [], [], set(), ["index.html"]
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: response.status >= 400 and wrong.append(f"{response.status} {response.url}"))
    while waiting:
        address = urljoin(server, waiting.pop())
        seen.add(address)
        page.goto(address)
        for tag, link in page.evaluate(LINKS):
            if link.startswith("data:") or tag == "A" and urlparse(link).scheme in ("http", "https"):
                continue  # links that a reader may follow (arXiv); nothing is loaded from there
            assert not urlparse(link).scheme and not link.startswith("/"), f"{address}: {link} is not relative"
            target, anchor = urldefrag(urljoin(page.url, link))
            assert target.startswith(server), f"{address}: {link} leads out of the folder"
            if target not in seen and target.endswith(".html"):
                waiting.append(target.removeprefix(server))
            elif target not in seen:
                assert context.request.get(target).ok, f"{address}: {link} is not there"
                seen.add(target)
            if anchor and target == urldefrag(page.url)[0]:
                assert page.evaluate("(id) => document.getElementById(id) !== null", unquote(anchor)), f"{address}: nothing is called {anchor}"
    context.close()
    assert not wrong and all(url.startswith((server, "data:", "blob:")) for url in asked), wrong
    assert {server + name for name in PAGES} <= seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(visit, name, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed (the extra `test` brings it)")
    page = visit(name, color_scheme=scheme, viewport={"width": 1280 if scheme == "light" else 360, "height": 800}, bypass_csp=True)
    if page.query_selector(".predict"):
        page.click(".predict .plain")
        page.wait_for_function("document.querySelector('figure.curve .plotly')._fullData")
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.wait_for_timeout(300)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'], preload: false })")["violations"]
    grave = [f"{v['id']}: {node['html'][:120]}" for v in found if v["impact"] in ("serious", "critical") for node in v["nodes"]]
    assert not grave, grave
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page itself scrolls sideways"


def test_axe_would_see_a_nameless_button(visit):
    axe = pytest.importorskip("axe_playwright_python")
    page = visit("course.html", bypass_csp=True)
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    assert "button-name" in [v["id"] for v in page.evaluate("axe.run(document, { preload: false })")["violations"]]


def test_ledger_is_filtered_by_keyboard_and_whole_without_script(visit):
    page = visit("index.html")
    rows = "[...document.querySelectorAll('#ledger-rows tbody tr')].filter((row) => row.offsetParent).map((row) => row.dataset.key.split('|')[0])"
    everything = page.evaluate(rows)
    order = ["red", "not reproduced", "undecided", "needs hardware", "holds"]
    assert len(everything) == 3 and everything == sorted(everything, key=order.index), "failures first"
    page.focus("#ledger-search")
    page.keyboard.type("oracle")
    assert page.evaluate(rows) == ["not reproduced"] and page.inner_text("#ledger output") == "1 of 3"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("needs")
    assert page.evaluate(rows) == [], "search and verdict both count"
    page.fill("#ledger-search", "")
    assert page.evaluate(rows) == ["needs hardware"]
    plain = visit("index.html", java_script_enabled=False)
    assert plain.locator("#ledger-rows tbody tr:visible").count() == 3 and plain.is_hidden("#ledger form")


def test_course_names_every_family_and_greys_what_is_not_here(visit):
    page = visit("course.html")
    assert page.locator(".course tbody tr").count() == 14
    assert page.locator(".course tbody tr:not(.grey)").count() == 1, "the little workbench has one notebook"
    page.click(".course a[href='01_pruning.html']")
    assert "A notebook with a chart" in page.inner_text("h1")


def test_print_is_dark_on_white_even_in_a_dark_window(visit):
    page = visit("index.html", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    light = "getComputedStyle(document.querySelector('{}')).{}.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3"
    assert page.evaluate(light.format("body", "backgroundColor")) > 240 and page.evaluate(light.format("#ledger-rows td", "color")) < 100
    assert page.is_hidden("#ledger form") and page.is_visible("#ledger-rows")
