# Needs Python 3.10 or newer (with pip) and make. Everything else goes into .venv, in the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := packages/core packages/video packages/threed packages/restoration packages/lidar
OUT ?= runs/demo
# The tests are many small tensor programs: one worker per core beats threads inside them. A file stays on one worker,
# for what its tests share. JOBS=0 runs everything in one process.
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## distil a small image teacher on the CPU and draw the result (OUT=runs/demo)
	$(BIN)/fewstep demo --out $(OUT)
	@echo "report: $(OUT)/report.html"

test: $(READY)  ## the tests that CI runs; PYTEST_ARGS="-k name" is passed on
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(READY)  ## the long tests: packages installed into empty virtual environments, longer trainings
	$(PYTEST) -m "slow and not gpu and not hub" $(PYTEST_ARGS)

lint: $(READY)  ## ruff (rules and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints:  ## resolve constraints.txt anew, for every supported Python and platform
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet uv
	.venv-uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-header --no-annotate \
		--no-emit-package fewstep-core --group dev $(PACKAGES:%=%/pyproject.toml) --output-file constraints.new
	{ head -n 1 constraints.txt; cat constraints.new; } > constraints.out
	mv constraints.out constraints.txt
	rm -rf constraints.new .venv-uv

clean:  ## remove the virtual environment and everything built (runs/ stays)
	rm -rf $(VENV) site build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info packages/*/build packages/*/src/*.egg-info
	find packages tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): constraints.txt pyproject.toml $(PACKAGES:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit("fewstep needs Python 3.10 or newer: make PYTHON=/path/to/python" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt pip setuptools
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation --group dev $(PACKAGES:%=-e %)
	@touch $@
