"""The atlas and the course: what is found, what is grey, what leads where, with a kernel and without."""

import re

import pytest

from workbench.core import registry
from workbench.views import atlas, course


@pytest.fixture
def shown(monkeypatch):
    """``shown(act, …)``: the HTML that ``act`` displays."""
    said = []
    monkeypatch.setattr("IPython.display.display", lambda thing, **_: said.append(thing.data))

    def show(act, *arguments):
        said.clear()
        act(*arguments)
        return "".join(said)

    return show


def test_course_maps_fourteen_weeks_onto_every_family_once():
    weeks = course.weeks()
    assert [week.number for week in weeks] == list(range(1, 15))
    assert sorted(family for week in weeks for family in week.notebooks) == sorted(registry.families())
    for week in weeks:
        assert week.title and week.experiment and week.bring and len(week.papers) >= 3
        assert any(entry.family in week.notebooks for entry in week.papers)
    assert [week.here for week in weeks] == [any(registry.notebook(family) for family in week.notebooks) for week in weeks]


def test_weeks_without_notebook_are_grey_and_links_lead_to_what_is_there():
    text = course.table("{}.html", "papers/{}.html", lambda address: address == "01_pruning.html")
    rows = re.findall(r"<tr( class=grey)?><th scope=\"row\">(\d+)", text)
    assert {int(number) for grey, number in rows if not grey} == {week.number for week in course.weeks() if week.here}
    links = re.findall(r'href="([^"]+)"', text)
    assert [link for link in links if not link.startswith("https://arxiv.org/abs/")] == ["01_pruning.html"]


def test_every_family_has_one_home_among_the_contracts():
    homes = [family for contract in atlas.contracts() for family in contract.families]
    assert sorted(homes) == sorted(registry.families())
    text = atlas.contract_map()
    assert all(gloss.replace("&", "&amp;").replace("'", "&#x27;") in text for gloss in registry.families().values())
    assert atlas.crossings()["codecs", "data"] >= 1 and "<b>17 of 17</b>" in text


def test_search_finds_papers_and_classics():
    assert [entry.name for entry in atlas.find("similarity consecutive")] == ["fscl"]
    assert {"classic"} == {entry.kind for entry in atlas.find("classic taylor")}
    assert atlas.find("no such thing") == [] and all(entry.family == "codecs" for entry in atlas.find("", "codecs"))
    assert atlas.find("pruning")[0].implemented


def test_published_atlas_needs_no_kernel(monkeypatch, shown):
    monkeypatch.setenv("WORKBENCH_STATIC", "1")
    text = shown(atlas.search)
    assert text.count("<tr") == len(registry.catalogue()) + 1 and 'data-filter="atlas-rows"' in text and "hidden" in text
    assert 'href="papers/2304.13397.html"' in text and 'href="papers/2304.13397.html"' in shown(atlas.path)
    assert 'href="01_pruning.html"' in shown(atlas.course) and len(shown(atlas.everything)) < 2000
    assert 'href="papers/2304.13397.html#explore"' in shown(atlas.slider_of, "fscl")
    monkeypatch.delenv("WORKBENCH_STATIC")
    assert shown(atlas.slider_of, "fscl") == "", "beside a kernel the slider itself is there"
    monkeypatch.setenv("WORKBENCH_STATIC", "1")
    assert "&quot;&gt;&lt;b" in shown(atlas.search, '"><b')


@pytest.mark.parametrize("show", [atlas.chart, atlas.families, atlas.path, atlas.course, atlas.everything])
def test_tables_have_heads_and_grey_is_said_in_words_too(monkeypatch, shown, show):
    monkeypatch.delenv("WORKBENCH_STATIC", raising=False)
    text = shown(show)
    assert "papers/" not in text and ("not yet" in text or "0 of" in text)
    assert "<table" not in text or '<th scope="col">' in text or "<th scope='col'>" in text
