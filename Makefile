# The doors into the workbench. `make report` and `make test` set up .venv first; second runs install and recompute nothing.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c "import sys; raise SystemExit(sys.version_info < (3, 11))" 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
STAMP := $(VENV)/.workbench-stamp
WORKBENCH := $(VENV)/bin/python -m workbench
# Tests and studies run one thread a process: processes, not threads, use the cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup report test check lab bench clean

help:
	@echo "make report   execute the notebooks and write reports/index.html"
	@echo "make test     run the whole test suite           (ARGS=... goes to pytest)"
	@echo "make check    measure every check and claim      (make check PAPER=fscl)"
	@echo "make lab      open JupyterLab at the atlas (localhost only, with a token)"
	@echo "make bench    print the speed ratios"
	@echo "make setup    make .venv with the pinned dependencies"
	@echo "make clean    remove measured points, reports and caches (not .venv)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "The workbench needs Python 3.11 or newer; none was found. Debian: apt-get install python3.11 python3.11-venv."; \
		echo "Where it has another name: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m workbench setup

report: $(STAMP)
	$(WORKBENCH) report $(PAPER)

check: $(STAMP)
	$(WORKBENCH) check $(or $(PAPER),all)

test: $(STAMP)
	$(ONE_THREAD) $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(ARGS)

lab: $(STAMP)
	$(WORKBENCH) lab

bench: $(STAMP)
	for name in promises pruning cluster explorer report_page; do $(ONE_THREAD) $(VENV)/bin/python -m benchmarks.$$name; done

clean:
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find reports -mindepth 1 ! -name README.md -delete 2>/dev/null || true
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
