"""Races against other libraries, each in an environment of its own:  ``python -m benchmarks.peers [torch_pruning] [nncf]``.

Makes ``<cache>/peers/<peer>/`` from the pinned requirements beside this file (once; again when they change), runs the race there, and writes
``data/peers/<peer>.json``. The workbench's own scores on the nets that only this race uses go to ``data/peers/house.json`` first. Then it prints
who won. Needs a package registry, some 1.2 GB of disk a peer, and the public tier (``WORKBENCH_MIRROR`` or ``workbench data get``).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from workbench.core.measurements import cache_folder
from workbench.papers.pruning.peers import FOLDER, peers_summary

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
PEERS = tuple(sorted(path.stem for path in HERE.glob("*.txt")))


def environment(peer: str) -> Path:
    """The Python of the peer's environment, made if it is not there or was made from other requirements."""
    folder, wanted = cache_folder() / "peers" / peer, HERE / f"{peer}.txt"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, digest = folder / "made-from", hashlib.sha256(wanted.read_bytes()).hexdigest()
    if not (python.exists() and stamp.exists() and stamp.read_text() == digest):
        print(f"making {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "-r", wanted], check=True)
        stamp.write_text(digest)
    return python


def run(python: str | Path, module: str, out: Path) -> int:
    """Runs ``python -m module OUT`` on one thread, with the workbench on its path."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return subprocess.run([python, "-m", module, out], cwd=ROOT, env={**os.environ, **threads, "PYTHONPATH": str(ROOT)}).returncode


def raced(name: str) -> bool:
    """Runs the house's part or a peer's race; False where it could not be installed or failed."""
    try:
        python, module = (sys.executable, "house") if name == "house" else (environment(name), f"{name}_race")
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return run(python, f"benchmarks.peers.{module}", FOLDER / f"{name}.json") == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", choices=[*PEERS, []], help=f"which (default: {' '.join(PEERS)})")
    wanted = parser.parse_args().peers or list(PEERS)
    failed = [name for name in ("house", *wanted) if not raced(name)]
    print("\n".join(peers_summary()))
    if failed:
        print(f"error: the race of {', '.join(failed)} failed", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
