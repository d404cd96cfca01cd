"""Environments of peers: pinned, made once, made again when the requirements change, never taken for made when the installation failed."""

import importlib.util
import re
import subprocess

import pytest

from benchmarks.peers import __main__ as peers


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """No environment is really made; ``calls`` are the commands, ``fail`` makes them fail."""
    state = {"calls": [], "fail": False}

    def create(folder, clear, with_pip):
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").touch()
        (folder / "made-from").unlink(missing_ok=True)

    def run(command, **settings):
        state["calls"].append([str(word) for word in command])
        if state["fail"]:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr(peers.venv, "create", create)
    monkeypatch.setattr(peers.subprocess, "run", run)
    (tmp_path / "other.txt").write_text("other==1.0\n")
    return state, tmp_path


@pytest.mark.parametrize("peer", peers.PEERS)
def test_requirements_are_pinned_and_torch_is_the_workbench_s(peer):
    lines = [line for line in (peers.HERE / f"{peer}.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines) and set(lines) & set((peers.ROOT / "constraints.txt").read_text().splitlines()) >= {"torch==2.13.0"}
    assert importlib.util.find_spec(f"benchmarks.peers.{peer}_race")


def test_made_once_and_again_when_the_requirements_change(fake):
    state, folder = fake
    python = peers.environment("other")
    assert python.exists() and state["calls"] == [[str(python), "-m", "pip", *state["calls"][0][3:-1], str(folder / "other.txt")]]
    assert peers.environment("other") == python and len(state["calls"]) == 1
    (folder / "other.txt").write_text("other==1.1\n")
    peers.environment("other")
    assert len(state["calls"]) == 2


def test_a_failed_installation_is_tried_again(fake):
    state, _ = fake
    state["fail"] = True
    with pytest.raises(subprocess.CalledProcessError):
        peers.environment("other")
    state["fail"] = False
    peers.environment("other")
    assert len(state["calls"]) == 2


def test_an_unknown_peer_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["peers", "magic"])
    with pytest.raises(SystemExit) as stop:
        peers.main()
    assert stop.value.code == 2 and "torch_pruning" in capsys.readouterr().err


def test_one_race_that_fails_does_not_stop_the_others(fake, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("sys.argv", ["peers", *peers.PEERS])
    monkeypatch.setattr(peers, "environment", lambda peer: peer)
    monkeypatch.setattr(peers, "run", lambda python, module, out: ran.append(module) or int(module.endswith("nncf_race")))
    assert peers.main() == 1 and ran == ["benchmarks.peers.house", *(f"benchmarks.peers.{peer}_race" for peer in peers.PEERS)]
    assert "the race of nncf failed" in capsys.readouterr().err


def test_a_race_that_cannot_be_installed_is_a_failure_of_its_own(fake, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["peers", "nncf", "torch_pruning"])
    ran = []

    def environment(peer):
        if peer == "nncf":
            raise subprocess.CalledProcessError(1, "pip")
        return peer

    monkeypatch.setattr(peers, "environment", environment)
    monkeypatch.setattr(peers, "run", lambda python, module, out: ran.append(module) or 0)
    assert peers.main() == 1 and "benchmarks.peers.torch_pruning_race" in ran and "the race of nncf failed" in capsys.readouterr().err
