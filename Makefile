# `make` lists the targets. PY=<python> uses an environment of yours instead of .venv.
PYTHON ?= python3
VENV ?= .venv
ifndef PY
PY := $(VENV)/bin/python
ENV := $(VENV)/.installed
endif
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

.DEFAULT_GOAL := help
.PHONY: help setup test test-all check format

help:  ## this list
	@grep -hE '^[a-z][a-z0-9_% -]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{sub("%", "<N>", $$1); printf "  make %-26s %s\n", $$1, $$2}'

setup: $(ENV)  ## virtual environment in .venv with everything installed

$(VENV)/.installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(f"EgoM2P needs Python 3.11 or newer, found {sys.version.split()[0]}; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --upgrade --quiet pip setuptools wheel
	$(VENV)/bin/python -m pip install --quiet --progress-bar on -e '.[dev,anytoany]'
	@touch $@

test: $(ENV)  ## the fast tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) -m "not slow"

test-all: $(ENV)  ## every test, the slow ones too
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS)

check: $(ENV)  ## format, lint, import order, fast tests
	$(PY) -m ruff format .
	$(PY) -m ruff check .
	$(MAKE) test

include quickstart.mk
include real_samples.mk
include slurm.mk
include anytoany.mk
