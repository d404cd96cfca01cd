"""What every test stands on: one thread a process (processes use the cores), and one fresh quick sweep per paper for the whole session."""

import os
import signal
import tempfile

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite started in the background: its children would not hear the Ctrl-C that tests send them
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy and torch are loaded
    os.environ.setdefault(_name, "1")

os.environ.setdefault("WORKBENCH_LOCK", os.path.join(tempfile.gettempdir(), f"workbench-tests-{os.getpid()}.lock"))  # nobody else's sweeps

import pytest

from workbench.core import registry


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """The study of `tests.core.swept`, found by the registry under the id 0000.00000 and the name swept; its points and golden file in ``tmp_path``."""
    from tests.core.swept import STUDY, register
    from workbench.core import golden

    register(monkeypatch.setattr)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_SWEPT_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(golden, "FOLDER", tmp_path / "golden")
    return STUDY


class Fresh:
    """One fresh quick sweep per paper, measured when first asked for, with the ledger that follows from it."""

    def __init__(self):
        self._found = {}

    def __call__(self, arxiv: str):
        if arxiv not in self._found:
            from workbench.core import claims
            from workbench.core.sweep import sweep

            entry = registry.find(arxiv)
            study = entry.study()
            before = os.times()
            result = sweep(study, "quick", fresh=True)
            verdicts = claims.ledger(study, result.measurements, entry.family)
            after = os.times()
            seconds = result.cpu_seconds + after.user + after.system - before.user - before.system
            self._found[arxiv] = (study, result, verdicts, seconds)
        return self._found[arxiv]


@pytest.fixture(scope="session")
def fresh():
    return Fresh()
