"""Peers: pinned, installed once, raced each by itself; one that cannot be installed, crashes or hangs is told in a line and takes no other with it.

The fake peers need nothing from a registry: their requirements are a local package, or one that is nowhere.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from workbench import cli, peers
from workbench.core.study import StudyError

ROOT = Path(__file__).resolve().parents[2]
REAL = peers.HERE
RACE = """
import json, os, sys
try:
    import tinypeer
    version = tinypeer.VERSION
except ImportError:
    version = "none"
out = sys.argv[1]
print("racing on", os.environ["OMP_NUM_THREADS"], "thread")
json.dump({"format": 1, "peer": "tiny", "version": version, "environment": {"python": sys.version.split()[0], "cpu": "some", "prefix": sys.prefix}, "points": [],
           "speed": [{"ratio": 0.5}, {"ratio": 0.7}, {"ratio": 0.9}]}, open(out, "w"))
"""


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder of peers with nothing in it; results and environments go to ``tmp_path`` too. pip has no registry to ask, only the tiny package's folder."""
    monkeypatch.setattr(peers, "HERE", tmp_path / "peers")
    monkeypatch.setattr(peers, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}.items():
        monkeypatch.setenv(name, value)
    for name in ("peers", "results", "wheels"):
        (tmp_path / name).mkdir()
    _wheel(tmp_path / "wheels")
    return tmp_path


def _wheel(folder, version="1.0"):
    """The smallest package that pip installs without building anything."""
    import zipfile

    info = f"tinypeer-{version}.dist-info"
    with zipfile.ZipFile(folder / f"tinypeer-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinypeer.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinypeer\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def peer(folder, name, race=RACE, requirements=None):
    (folder / "peers" / f"{name}.py").write_text(race)
    if requirements is not None:
        (folder / "peers" / f"{name}.txt").write_text(requirements)


@pytest.mark.parametrize("name", sorted(path.stem for path in REAL.glob("*.txt")))
def test_requirements_are_pinned_and_torch_is_the_workbench_s(name):
    lines = [line for line in (REAL / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert set(lines) & set((ROOT / "constraints.txt").read_text().splitlines()) >= {"torch==2.13.0"} and (REAL / f"{name}.py").exists()


def test_the_house_races_before_its_peers():
    assert peers.peers() == ["house", "nncf", "torch_pruning"]


def test_a_peer_is_installed_once_raced_and_its_result_shown(folder, capsys):
    peer(folder, "tiny", requirements="tinypeer==1.0\n")
    assert cli.main(["race-peers", "tiny", "--json"]) == 0
    out, err = capsys.readouterr()
    row, = json.loads(out)
    assert (row["status"], row["version"], row["ratio"], row["cpu"]) == ("raced", "1.0", 0.7, "some") and "racing on 1 thread" in err
    stored = json.loads((folder / "results" / "tiny.json").read_text())
    assert stored["environment"]["prefix"] == str(folder / "cache" / "peers" / "tiny"), "the race ran in another environment than its own"
    assert "making" in err
    assert cli.main(["race-peers"]) == 0
    out, err = capsys.readouterr()
    assert "making" not in err and "raced" in out and "0.7" in out, "the environment was made twice"
    (folder / "wheels" / "tinypeer-1.0-py3-none-any.whl").unlink()
    peer(folder, "tiny", requirements="tinypeer==1.1\n")
    for _ in range(2):
        assert peers.race_peers()[0][0]["status"] == "not installed", "a failed installation passed for one"
    _wheel(folder / "wheels", "1.1")
    assert cli.main(["race-peers", "--json"]) == 0 and json.loads(capsys.readouterr().out)[0]["version"] == "1.1"


def test_bad_peers_are_told_in_a_line_each_and_take_no_other_with_them(folder, capsys):
    """Those without requirements race in the workbench's own environment, first; the good peer comes last."""
    peer(folder, "house", RACE)
    peer(folder, "away", "raise SystemExit('never run')", "nowhere-to-be-found==9.9\n")
    peer(folder, "crash", "print('so far so good')\nraise RuntimeError('it broke')")
    peer(folder, "hang", "import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])")
    peer(folder, "idle", "import sys\nprint('no public data here')\nsys.exit(77)")
    peer(folder, "well", RACE, "tinypeer==1.0\n")
    (folder / "results" / "crash.json").write_text('{"format": 1, "peer": "crash", "version": "0.9", "environment": {"python": "3", "cpu": "c"}, "points": []}')
    start = time.monotonic()
    assert cli.main(["race-peers", "--json", "--limit", "5"]) == 1
    out, err = capsys.readouterr()
    rows = {row["peer"]: row for row in json.loads(out)}
    assert {name: row["status"] for name, row in rows.items()} == {"house": "raced", "away": "not installed", "crash": "crashed", "hang": "out of time",
                                                                  "idle": "cannot run here", "well": "raced"}
    assert "nowhere-to-be-found" in rows["away"]["reason"] and "RuntimeError: it broke" in rows["crash"]["reason"] and rows["idle"]["reason"] == "no public data here"
    assert "5 s" in rows["hang"]["reason"] and rows["hang"]["seconds"] < 60 and time.monotonic() - start < 200
    assert rows["crash"]["version"] == "0.9", "the last result is kept"
    for name in ("away", "crash", "hang", "idle"):
        assert f"\n{err}".count(f"\n{name}: {rows[name]['status']}: ") == 1 and "\n" not in rows[name]["reason"]
    (folder / "peers" / "crash.py").unlink()
    (folder / "peers" / "hang.py").unlink()
    assert cli.main(["race-peers"]) == 0, "one that cannot be installed does not fail the rest"


def test_exit_codes_where_nothing_ran(folder, monkeypatch, capsys):
    peer(folder, "away", RACE, "nowhere-to-be-found==9.9\n")
    assert cli.main(["race-peers"]) == 1 and "away: not installed: ERROR" in capsys.readouterr().err
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    assert cli.main(["race-peers"]) == 0 and "away: no network: " in capsys.readouterr().err, "that there is no network is nobody's fault"


def test_wrong_questions_and_damaged_results(folder, capsys):
    peer(folder, "tiny")
    assert cli.main(["race-peers", "tinny"]) == 2 and "no peer tinny; there are tiny" in capsys.readouterr().err
    assert cli.main(["race-peers", "--limit", "0"]) == 2 and "above 0" in capsys.readouterr().err
    (folder / "results" / "tiny.json").write_text('{"format": 1, "peer": "tiny"')
    with pytest.raises(StudyError, match=r"tiny\.json is damaged"):
        peers.results()


def test_the_stored_results_can_be_read():
    rows = {row["peer"]: row for row in peers.results()}
    assert set(rows) >= {"house", "nncf", "torch_pruning"} and rows["torch_pruning"]["version"] and rows["torch_pruning"]["ratio"] > 0 and rows["nncf"]["version"]
    assert all(row["cpu"] and row["points"] for row in rows.values()) and sys.version_info >= (3, 11)
