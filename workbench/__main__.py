"""``python -m workbench …``, also installed as the command ``workbench``.

``setup`` must run on a bare Python, so nothing outside the standard library is imported before the command is known.
"""

from __future__ import annotations

import os
import sys


def main(argv=None) -> int:
    """Runs one command line (default: that of the process) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["setup"]:
        from workbench.core.setup import main as setup

        return setup(arguments[1:])
    if arguments[:1] in (["run"], ["check"], ["report"]):  # processes, not threads, use the cores; must be set before numpy is loaded
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
    try:
        from workbench.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("workbench"):
            raise
        print(f"workbench: {error.name} is not installed in {sys.executable}.\n"
              "Run `python3 -m workbench setup` (or `make setup`) once, then use `.venv/bin/workbench`.", file=sys.stderr)
        return 1
    return run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
