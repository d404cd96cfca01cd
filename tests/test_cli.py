"""The command line: answers on stdout, everything else on stderr, exit codes, resuming, and set-up on a bare Python."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench import cli
from workbench.core import golden, registry, setup

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"paper", "family", "what", "text", "kind", "status", "measured", "margin", "interval", "evidence", "broken_by"}


def test_papers_lists_all_with_the_promised_keys(capsys):
    assert cli.main(["papers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"arxiv", "title", "family", "implemented"} <= set(rows[0])
    assert sum(row["kind"] == "paper" for row in rows) == 165 and any(row["kind"] == "classic" for row in rows)
    assert {row["arxiv"] for row in rows if row["implemented"] and row["kind"] == "paper"} == {e.arxiv for e in registry.implemented()}
    assert cli.main(["papers", "--family", "pruning"]) == 0
    table = capsys.readouterr().out
    assert "2304.13397" in table and "2111.00965" not in table and "papers live" in table


@pytest.mark.parametrize("command", [["show"], ["run"], ["check"], ["probe"], ["report"]])
@pytest.mark.parametrize(("wrong", "near"), [("fslc", "fscl"), ("2304.13379", "2304.13397"), ("iflwo", "iflow")])
def test_a_wrong_id_gets_the_three_nearest(capsys, command, wrong, near):
    assert cli.main([*command, wrong]) == 2 or command == ["report"]
    said = capsys.readouterr()
    assert near in said.err.split("nearest are ")[1].split(" (")[0].split(", ") and said.out == ""
    assert said.err.count(",") == 2


def test_wrong_questions_say_what_is_allowed(capsys):
    for argv, said in ((["check", "prunning"], "did you mean the family pruning"), (["papers", "--family", "x"], "there are"),
                       (["run", "fscl", "--golden", "--profile", "quick"], "full profile"), (["run", "fscl", "--jobs", "0"], "at least 1"),
                       (["check", "2510.26289"], "not implemented yet"), (["data", "get", "nothing"], "there are")):
        assert cli.main(argv) == 2, argv
        assert said in capsys.readouterr().err, argv
    for argv in ([], ["nothing"], ["run"], ["run", "fscl", "--profile", "half"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 2


@pytest.mark.parametrize("command", ["papers", "show", "run", "check", "report", "data", "probe", "lab", "setup", "papermill", "race-peers"])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0 and f"examples:\n  workbench {command}" in capsys.readouterr().out


def test_show(capsys):
    assert cli.main(["show", "fscl"]) == 0
    shown = capsys.readouterr().out
    study = registry.find("fscl").study()
    for wanted in (*(k.name for k in study.knobs), *study.field, *(c.name for c in study.claims), "fscl.py"):
        assert wanted in shown
    assert cli.main(["show", "2510.26289"]) == 0 and "not implemented" in capsys.readouterr().out


def test_check_prints_clean_json(swept, capsys):
    assert cli.main(["check", "swept", "--json", "--jobs", "2"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert len(rows) == len(swept.checks) + len(swept.claims) and all(KEYS <= set(row) <= KEYS | {"name", "note"} for row in rows)
    assert {row["name"]: row["status"] for row in rows} == {"one": "green", "beats theirs": "holds", "falls": "holds", "hopeless": "not reproduced"}
    assert next(row for row in rows if row["name"] == "beats theirs")["broken_by"] == ["steeper"]
    assert "no golden file yet" in err


def test_run_golden_check_and_their_exit_codes(swept, capsys):
    assert cli.main(["run", "swept", "--golden", "--jobs", "2"]) == 0
    assert "wrote" in capsys.readouterr().out
    kept = golden.read(swept)
    assert kept["verdicts"] == {"one": "green", "beats theirs": "holds", "falls": "holds", "hopeless": "not reproduced"}
    assert len(kept["points"]) == len(swept.points("full")) and {"cpu", "torch", "python"} <= set(kept["environment"])
    assert cli.main(["check", "swept"]) == 0
    out, err = capsys.readouterr()
    assert "hopeless" not in err and "not reproduced" in out and "nothing is" in out, "what does not hold is shown with its reason, and is no failure"
    path = golden.path_of(swept)
    path.write_text(path.read_text().replace('"hopeless": "not reproduced"', '"hopeless": "holds"'))
    assert cli.main(["check", "swept"]) == 1 and "FAILED: swept, hopeless: the golden file says 'holds'" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"hopeless": "holds"', '"hopeless": "undecided"'))
    assert cli.main(["check", "swept"]) == 0, "only holds <-> not reproduced fails"


def test_a_red_check_fails_and_undecided_warns(swept, capsys, monkeypatch):
    from dataclasses import replace

    from tests.core import swept as module
    from workbench.core.claims import Estimate
    from workbench.core.study import Claim

    bad = replace(swept, contenders={**swept.contenders, "ours": replace(swept.contenders["ours"], subject=3)},
                  claims=(Claim("open", "who knows", lambda m: Estimate(1, 0, 2, 1)),), parts={})
    monkeypatch.setattr(module, "STUDY", bad)
    assert cli.main(["check", "swept"]) == 1
    err = capsys.readouterr().err
    assert "RED CHECK: swept, one: 3, allowed 1" in err and "open: undecided" in err
    monkeypatch.setattr(module, "STUDY", replace(bad, contenders=swept.contenders))
    assert cli.main(["check", "swept"]) == 0 and "warning: swept, open: undecided" in capsys.readouterr().err


def test_points_that_fail_are_named_and_never_become_golden(swept, capsys, monkeypatch):
    monkeypatch.setenv("WORKBENCH_SWEPT_FAULT", "raise")
    assert cli.main(["run", "swept"]) == 1
    out, err = capsys.readouterr()
    assert "POINT FAILED: 0000.00000 · ours (share=0.5; replica 1, seed 0): ArithmeticError" in err and "26 of them measured now" in out
    assert cli.main(["run", "swept", "--golden"]) == 2 and not golden.path_of(swept).exists()


def command(*argv, **environment):
    return subprocess.Popen([sys.executable, "-m", "tests.core.swept", *argv], cwd=ROOT, env=os.environ | environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_ctrl_c_says_how_to_resume(tmp_path):
    where = {"WORKBENCH_CACHE": str(tmp_path / "cache"), "WORKBENCH_SWEPT_LOG": str(tmp_path / "log")}
    process = command("run", "swept", "--fresh", "--jobs", "2", **where, WORKBENCH_SWEPT_SECONDS="0.5")
    wait_for(lambda: (tmp_path / "log").exists())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "`workbench run swept --jobs 2` goes on" in err and "Traceback" not in err
    kept = len(list(tmp_path.rglob("*.point")))
    process = command("run", "swept", "--jobs", "2", **where)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and f"27 points, {27 - kept} of them measured now" in out, out + err


def test_bare_python_is_told_what_to_do():
    bare = [sys.executable, "-S", "-m", "workbench"]  # -S: no site-packages
    run = subprocess.run([*bare, "papers"], cwd=ROOT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert run.returncode == 1 and "is not installed" in run.stderr and "setup" in run.stderr and "Traceback" not in run.stderr
    run = subprocess.run([*bare, "setup", "--help"], cwd=ROOT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert run.returncode == 0 and "examples:" in run.stdout, run.stderr


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    calls = []

    def run(command, **options):
        calls.append(command)
        if "venv" in command:
            (tmp_path / ".venv").mkdir()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup.subprocess, "run", run)
    monkeypatch.setattr(setup, "_runs", lambda python: python.parents[1].exists())
    return tmp_path, calls


def test_setup_installs_once_and_again_when_a_pin_changes(checkout, capsys):
    folder, calls = checkout
    assert setup.setup(folder / ".venv") and [("venv" in c, "install" in c) for c in calls] == [(True, False), (False, True)]
    assert calls[1][-5:] == ["-c", "constraints.txt", "-e", ".[test]"][-5:] or calls[1][-4:] == ["-c", "constraints.txt", "-e", ".[test]"]
    calls.clear()
    assert not setup.setup(folder / ".venv") and calls == [], "a second run installs nothing"
    (folder / "constraints.txt").write_text("torch==0.1\n")
    assert setup.setup(folder / ".venv") and len(calls) == 1


def test_an_interrupted_setup_goes_on(checkout, monkeypatch):
    folder, _ = checkout
    good = setup.subprocess.run
    monkeypatch.setattr(setup.subprocess, "run", lambda c, **o: good(c, **o) if "venv" in c else subprocess.CompletedProcess(c, 1))
    with pytest.raises(setup.SetupError, match="run this again"):
        setup.setup(folder / ".venv")
    monkeypatch.setattr(setup.subprocess, "run", good)
    assert setup.setup(folder / ".venv"), "a failed installation left a stamp"


def test_setup_refuses_an_old_python(monkeypatch, capsys):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2, "final", 0))
    assert setup.main([]) == 1 and "needs Python 3.11" in capsys.readouterr().err


def test_pins_cover_the_ranges():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert pins["torch"] == "2.13.0" and not [name for name in pins if "nvidia" in name or "cuda" in name]
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        wanted = Requirement(text)
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, text


def test_progress_and_tables_survive_a_closed_pipe():
    run = subprocess.run(f"{sys.executable} -m workbench papers --json | head -2", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.startswith("[") and "Traceback" not in run.stderr and "BrokenPipe" not in run.stderr


def test_lab_is_local_and_private(monkeypatch):
    """Localhost alone, kernels on local sockets, the token left on; tests/browser starts the real one."""
    started = []
    monkeypatch.setattr(cli.os, "execv", lambda program, command: started.append(command) or 0)
    monkeypatch.setattr(cli.os, "chdir", lambda folder: None)
    cli.main(["lab", "--", "--no-browser"])
    command, = started
    assert command[:3] == [sys.executable, "-m", "jupyterlab"] and command[-2:] == ["--no-browser", "notebooks/00_atlas.ipynb"]
    assert {"--ServerApp.ip=127.0.0.1", "--KernelManager.transport=ipc"} <= set(command) and not [o for o in command if "token" in o.lower()]
