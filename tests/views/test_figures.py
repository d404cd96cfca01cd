"""Figures say what the numbers say: the drawn points are the table's, the table's are the frame's, and the words name the same values."""

import re

import numpy as np
import plotly.graph_objects as go
import pytest
import toy

from workbench.core.study import StudyError
from workbench.views import figures, summary


@pytest.fixture(scope="module")
def m():
    return toy.measurements()


def test_table_is_the_mean_over_replicas_of_means_over_seeds(m):
    rows = summary.table(m)
    frame = m.frame
    mine = frame[(frame.contender == "Ours") & np.isclose(frame.removed, .3) & (frame.rounding == 1)]
    row = rows[(rows.contender == "Ours") & np.isclose(rows.removed, .3)].iloc[0]
    assert row.quality == pytest.approx(mine.groupby("replica").quality.mean().mean())
    assert (row.replicas, row.points) == (3, 6)
    assert row.low < row.quality < row.high


def test_other_knobs_stay_at_their_defaults(m):
    rows = summary.table(m, knob="rounding")
    ours = rows[rows.contender == "Ours"]
    assert list(ours.rounding) == [1, 4, 8] and set(ours.removed) == {.5}
    assert len(rows[rows.contender == "Plain"]) == 1, "a contender without the knob is one reference point"


def test_curve_draws_the_table(m):
    rows = summary.table(m)
    figure = figures.curve(m, {"removed": .7})
    for name in m.study.contenders:
        trace = next(trace for trace in figure.data if trace.name == name)
        assert np.array_equal(trace.x, rows[rows.contender == name].cost)
        assert np.array_equal(trace.y, rows[rows.contender == name].quality)
    rings = figure.data[-1]
    assert np.allclose(rings.x, 30) and len(rings.x) == 4


def test_intervals_are_drawn_as_band_or_bars(m):
    figure = figures.curve(m)
    band = next(trace for trace in figure.data if trace.fill == "toself")
    rows = summary.table(m, contenders=["Ours"])
    assert np.allclose(sorted(band.y), sorted([*rows.low, *rows.high]))
    bars = next(trace for trace in figure.data if trace.name == "Steep").error_y
    steep = summary.table(m, contenders=["Steep"])
    assert np.allclose(bars.array, steep.high - steep.quality)


def test_a_knob_that_does_not_slide_gets_markers_only():
    knob = toy.study().knobs[0]
    fixed = toy.study(knobs=(type(knob)(knob.name, knob.grid, .5, (.5,), slides=False), toy.study().knobs[1]))
    figure = figures.curve(toy.measurements(fixed))
    assert {trace.mode for trace in figure.data} == {"markers"}


def test_other_axes_and_contenders(m):
    figure = figures.curve(m, x="removed", y="bytes", contenders=["Ours", "no slope"])
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["Ours", "no slope", figures.CURRENT]
    assert figure.layout.xaxis.title.text == "share removed"
    with pytest.raises(StudyError, match="no contender 'Nobody'; it has Ours, Steep"):
        figures.curve(m, contenders=["Nobody"])
    with pytest.raises(StudyError, match="y is 'speed'; toy measures cost, quality, bytes"):
        summary.table(m, y="speed")
    with pytest.raises(StudyError, match="no knob 'volume'"):
        summary.table(m, knob="volume")


def test_versus_compares_at_equal_cost_paired_over_replicas(m):
    rows = summary.versus(m, {"removed": .55 - .05}).set_index("contender")
    # Plain costs the same at the same knob, without the bonus of the second seed (+.25 on average): 90 − 20·.5 + .25 against 90 − 40·.5
    assert rows.difference["Plain"] == pytest.approx(10.25)
    assert rows.low["Plain"] == pytest.approx(rows.high["Plain"]), "the replicas' luck cancels in pairs"
    assert (rows.verdict["Plain"], rows.verdict["oracle"]) == ("better", "worse")
    assert rows.verdict["untouched"] == "not measured at this cost", "nothing is extrapolated"
    assert "Ours" not in rows.index


def test_equivalents_are_the_metrics_of_the_point(m):
    found = summary.equivalents(m, {"removed": .3})
    assert found == pytest.approx({"cost": 70, "quality": 90 - 6 + 1 + .25 - .1, "bytes": 70_000})
    assert summary.equivalents(m, {"removed": .123}) == {}


def test_words_come_from_the_numbers(m):
    text = figures.describe(m, {"removed": .7})
    assert "5 contenders, mean over 3 replicas" in text
    assert "Ours: 91.2 at 100.0, 73.2 at 10.0" in text
    order = re.search(r"At share removed 0.7, rounding 1, best first: (.+)\.$", text).group(1)
    assert [part.rsplit(" ", 1)[0] for part in order.split("; ")] == ["oracle", "Ours", "Plain", "Steep"]
    fewer = figures.describe(m, {"removed": .7}, y="bytes")
    assert "Ours 30,000" in fewer


def test_nothing_measured_is_said(m):
    empty = type(m)(m.study, ())
    assert figures.describe(empty).endswith("nothing measured yet.")
    assert figures.curve(empty).layout.annotations[0].text == "nothing measured yet"


def test_picture_gets_the_point_and_its_exhibits(m):
    drawn = figures.picture(m, {"removed": .3})
    assert isinstance(drawn, go.Figure) and drawn.layout.title.text == "Ours keeps 7 of 10"
    assert figures.picture(m, {"removed": .3}, "Plain").layout.title.text == "Plain keeps 7 of 10"
    assert figures.picture(m, {"removed": .35}) is None


def luminance(color: str) -> float:
    channels = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= .03928 else ((c + .055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([.2126, .7152, .0722], linear))


@pytest.mark.parametrize("color", sorted({hue for hues in figures.HUES.values() for hue in hues}))
def test_colours_stand_out_on_white_and_on_black(color):
    """Contrast of at least 3:1 (WCAG 2.1, 1.4.11) on white and on #111111."""
    light, dark = 1.05 / (luminance(color) + .05), (luminance(color) + .05) / (luminance("#111111") + .05)
    assert min(light, dark) >= 3, f"{color}: {light:.2f} on white, {dark:.2f} on near-black"


def seen_by(color: str, kind: str) -> np.ndarray:
    """sRGB as seen with a missing cone (matrices of Machado, Oliveira and Fernandes 2009, severity 1)."""
    matrix = {"protan": [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
              "deutan": [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]]}[kind]
    channels = np.array([int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.clip(np.array(matrix) @ channels, 0, 1)


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_the_paper_differs_from_every_rival_for_colour_blind_eyes(kind):
    paper = seen_by(figures.HUES["paper"][0], kind)
    for hue in figures.HUES["rival"]:
        distance = np.linalg.norm(paper - seen_by(hue, kind))
        assert distance > .2, f"{hue} looks like the paper's colour ({distance:.2f})"


def test_no_two_contenders_share_dash_and_marker():
    many = {f"rival {i}": toy.Contender(toy.cut(1)) for i in range(12)}
    crowd = toy.study(contenders={**toy.study().contenders, **many})
    styles = figures.palette(crowd)
    looks = {(style.dash, style.symbol) for style in styles.values()}
    assert len(looks) == len(styles)
