"""JupyterLab for tests and benchmarks: on localhost alone, behind a token, kernels over local sockets, all its folders temporary."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
            "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}


@contextlib.contextmanager
def jupyterlab(notebooks: Path):
    """Serves a copy of the folder ``notebooks``; yields ``(address, token)``."""
    with tempfile.TemporaryDirectory(prefix="wb", dir="/tmp") as name:  # short: a socket's path has at most 108 characters
        folder = Path(name)
        shutil.copytree(notebooks, folder / "notebooks")
        for plugin, values in SETTINGS.items():
            path = folder / "settings" / (plugin + ".jupyterlab-settings")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        token = secrets.token_hex(16)
        places = {f"JUPYTER_{what}_DIR": str(folder / what.lower()) for what in ("CONFIG", "DATA", "RUNTIME")}
        environment = {**os.environ, **places, "IPYTHONDIR": str(folder / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
                       "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "PYTHONPATH": str(ROOT), "WORKBENCH_JOBS": "1"}
        environment.pop("WORKBENCH_STATIC", None)
        options = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", "--ServerApp.open_browser=False",
                   "--KernelManager.transport=ipc", "--allow-root", f"--ServerApp.root_dir={folder / 'notebooks'}"]
        with open(folder / "log", "w") as log:
            server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-3000:]
                    time.sleep(.2)
            yield f"http://127.0.0.1:{port}", token
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def open_and_run(page, address: str, token: str, name: str) -> None:
    """Opens a notebook and runs all its cells (returns when the first has started)."""
    page.goto(f"{address}/lab/tree/{name}?token={token}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    started = "[...document.querySelectorAll('.jp-InputPrompt')].some(e => /\\[(\\*|\\d+)\\]/.test(e.textContent))"
    for _ in range(10):  # what is run before the kernel's session stands is dropped
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        if page.evaluate(started):
            return
