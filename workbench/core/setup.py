"""``workbench setup``: makes ``.venv`` beside the package and installs the pinned dependencies. Standard library only.

A stamp holds the hash of ``constraints.txt``, ``pyproject.toml`` and the Python version; while it fits, a second run installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 11)
STAMP = ".workbench-stamp"


class SetupError(RuntimeError):
    """Something that the person at the keyboard has to put right; the message says how."""


def fingerprint() -> str:
    """What an environment must have been installed from, to be the right one."""
    digest = hashlib.sha256(f"{sys.version_info[0]}.{sys.version_info[1]}".encode())
    for name in ("constraints.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def setup(folder: Path = ROOT / ".venv") -> bool:
    """Makes or updates the environment in ``folder``; False where it was right already."""
    if sys.version_info < OLDEST:
        raise SetupError(f"the workbench needs Python {OLDEST[0]}.{OLDEST[1]} or newer; this is {sys.version.split()[0]} ({sys.executable}).\n"
                         "Install it (Debian: `apt-get install python3.11 python3.11-venv`) and run `python3.11 -m workbench setup`.")
    if not (ROOT / "constraints.txt").exists():
        raise SetupError(f"no constraints.txt in {ROOT}: `setup` works in a checkout of the repository")
    stamp, wanted = folder / STAMP, fingerprint()
    if stamp.exists() and stamp.read_text().strip() == wanted and _runs(python_of(folder)):
        os.utime(stamp)  # make compares times: a checkout may have touched the files without changing them
        return False
    stamp.unlink(missing_ok=True)
    if folder.exists() and not _runs(python_of(folder)):
        print(f"{folder} has no working Python {sys.version_info[0]}.{sys.version_info[1]}; made anew", file=sys.stderr)
        shutil.rmtree(folder)
    if not folder.exists():
        print(f"making {folder}", file=sys.stderr)
        if subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False).returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise SetupError("could not make a virtual environment (see above). On Debian: `apt-get install python3-venv`, then run this again.")
    pins = sum(1 for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    print(f"installing the pinned dependencies ({pins} packages at most) into {folder}; this takes some minutes", file=sys.stderr)
    command = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", "-c", "constraints.txt", "-e", ".[test]"]
    if subprocess.run(command, check=False, cwd=ROOT).returncode:
        raise SetupError("pip could not install the dependencies (see above); what it downloaded is kept, run this again to go on.")
    stamp.write_text(wanted + "\n")
    return True


def _runs(python: Path) -> bool:
    """Whether this is a Python of the same version as ours that has pip."""
    probe = f"import sys, pip; raise SystemExit(sys.version_info[:2] != {sys.version_info[:2]})"
    try:
        return subprocess.run([str(python), "-c", probe], check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def parser() -> argparse.ArgumentParser:
    description = "Make .venv beside the package and install the pinned dependencies; a second run installs nothing. Needs Python 3.11 or newer alone."
    parser = argparse.ArgumentParser("workbench setup", description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="examples:\n  python3.11 -m workbench setup\n  python3.11 -m workbench setup --venv ~/envs/workbench")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="DIR", help="where to make it (default: .venv in the checkout)")
    return parser


def main(argv: list[str]) -> int:
    folder = parser().parse_args(argv).venv.expanduser().resolve()
    try:
        changed = setup(folder)
    except SetupError as error:
        print(f"workbench setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; `python3 -m workbench setup` goes on where it was", file=sys.stderr)
        return 130
    print(f"{folder} is {'ready' if changed else 'up to date; nothing to install'}: {python_of(folder).parent / 'workbench'} --help")
    return 0
