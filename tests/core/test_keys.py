"""Keys: what changes a measurement changes its key, what only words or draws does not."""

import numpy as np
import pytest

from workbench.core import keys
from workbench.core.study import Point, StudyError

PAPER = '''"""A lesson."""
from workbench.benches.lens import focus
import numpy as np

DEPTH = 3
LABEL = "red"


def method(share):
    """What it does."""
    return focus(share) * helper()


def helper():
    return DEPTH


def draw(point, exhibits):
    return LABEL


def loop_equals_batch(subject):
    return helper() == 3


STUDY = Study(
    paper="1",
    track=TRACK,
    knobs=(Knob("share", (0, 1), 0),),
    contenders={"ours": Contender(method)},
    checks=(Check("loop", "the loop equals the batch", loop_equals_batch),),
    claims=(Claim("wins", "it wins", better("quality", "theirs")),),
    picture=draw,
)
'''
BENCH = '''"""A bench."""
from . import glass


def focus(share):
    return share  # a comment
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "workbench"
    for name, text in {"papers/optics/paper.py": PAPER, "benches/lens.py": BENCH, "benches/glass.py": "N = 1\n", "benches/other.py": "M = 1\n",
                       "core/study.py": "def measure():\n    return call_with()\n\n\ndef call_with():\n    return 1\n\n\nclass Claim:\n    pass\n"}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    monkeypatch.setattr(keys, "ROOT", root)

    def key(path: str = "", old: str = "", new: str = "") -> str:
        if path:
            text = (root / path).read_text()
            assert old in text
            (root / path).write_text(text.replace(old, new))
        keys._parsed.cache_clear()
        keys.code_key.cache_clear()
        return keys.code_key("workbench.papers.optics.paper")

    yield key
    keys._parsed.cache_clear()
    keys.code_key.cache_clear()


@pytest.mark.parametrize(("path", "old", "new"), [
    ("papers/optics/paper.py", "A lesson.", "Another lesson."),
    ("papers/optics/paper.py", "What it does.", "What it really does."),
    ("papers/optics/paper.py", "it wins", "it wins by far"),
    ("papers/optics/paper.py", '"theirs")', '"theirs", by=3)'),
    ("papers/optics/paper.py", "LABEL = \"red\"", "LABEL = \"blue\""),
    ("papers/optics/paper.py", "return LABEL", "return LABEL.upper()"),
    ("papers/optics/paper.py", "helper() == 3", "helper() == 4"),
    ("papers/optics/paper.py", "(0, 1), 0", "(0, .5, 1), 0"),
    ("benches/lens.py", "# a comment", "# another"),
    ("benches/lens.py", "A bench.", "The bench."),
    ("benches/other.py", "M = 1", "M = 2"),
    ("core/study.py", "    pass", "    text = ''"),
])
def test_words_do_not_change_the_key(project, path, old, new):
    assert project() == project(path, old, new)


@pytest.mark.parametrize(("path", "old", "new"), [
    ("papers/optics/paper.py", "focus(share) * helper()", "focus(share) + helper()"),
    ("papers/optics/paper.py", "DEPTH = 3", "DEPTH = 4"),
    ("papers/optics/paper.py", "return DEPTH", "return DEPTH + 1"),
    ("papers/optics/paper.py", "Contender(method)", "Contender(method, seeds=2)"),
    ("papers/optics/paper.py", "track=TRACK", "track=OTHER"),
    ("benches/lens.py", "return share ", "return share + 1 "),
    ("benches/glass.py", "N = 1", "N = 2"),
    ("core/study.py", "return 1", "return 2"),
])
def test_code_changes_the_key(project, path, old, new):
    assert project() != project(path, old, new)


def test_a_points_address_enters_its_key():
    module, point = "tests.core.swept", Point("ours", (("share", 0.5),))
    others = [Point("theirs", point.knobs), Point("ours", (("share", 0.6),)), Point("ours", point.knobs, 1), Point("ours", point.knobs, 0, 1),
              Point("ours", point.knobs, tier="public")]
    found = {keys.point_key(module, "data", p) for p in (point, *others)} | {keys.point_key(module, "other data", point)}
    assert len(found) == len(others) + 2
    assert keys.point_key(module, "data", Point("ours", (("share", 1),))) == keys.point_key(module, "data", Point("ours", (("share", 1.0),)))
    assert keys.point_key(module, "data", Point("ours", (("share", np.float64(0.5)),))) == keys.point_key(module, "data", point)


def test_a_module_without_source_is_refused():
    with pytest.raises(StudyError, match="no source"):
        keys.code_key("nowhere.at.all")
