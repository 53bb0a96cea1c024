# `make` lists the targets. PY=<python> uses an environment of yours instead of .venv; LATEST=1 the newest releases
# that setup.py allows instead of requirements.lock.
PYTHON ?= python3
VENV ?= .venv
ifndef PY
PY := $(VENV)/bin/python
ENV := $(VENV)/.installed$(if $(filter 1,$(LATEST)),-latest)
endif
# nproc obeys OMP_NUM_THREADS, which says nothing about processes.
WORKERS ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || sysctl -n hw.ncpu)

# What may be given as NAME=value; a name that nobody reads is refused.
comma := ,
VARIABLES := PYTHON VENV PY LATEST WORKERS RANKS QUICK_RANKS QUICK_DTYPE SOURCE BASE OPTIONS IMAGE IMAGE_FILE VIDEO_FILE MODEL MODEL_CLIPS \
             SAMPLES SIDE RGBD ARIA VIDEOS REAL_CLIPS
UNKNOWN := $(filter-out $(VARIABLES) SHELL,$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
NEAREST = $(shell $(PYTHON) -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1))' $(1) $(VARIABLES))
NEAREST_TARGET = $(shell $(MAKE) --no-print-directory help | $(PYTHON) -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], [word for line in sys.stdin for word in line.split()], 1))' $(1))
ifneq ($(strip $(UNKNOWN)),)
$(error unknown variable: $(foreach name,$(UNKNOWN),$(name)$(addprefix $(comma) did you mean ,$(call NEAREST,$(name)));) known are $(VARIABLES))
endif

.DEFAULT_GOAL := help
# What there is no rule for, a file or a target.
.DEFAULT:
	@echo "make: no target $@$(addprefix $(comma) did you mean ,$(call NEAREST_TARGET,$@)); \`make\` lists them" >&2; exit 2
.PHONY: help setup lock test test-experiments test-all check format

help:  ## this list
	@grep -hE '^[a-z][a-z0-9_% -]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{sub("%", "<N>", $$1); printf "  make %-26s %s\n", $$1, $$2}'

setup: $(ENV)  ## virtual environment in .venv with everything installed, as requirements.lock says

define empty_venv
@$(PYTHON) -c 'import sys; sys.exit(f"EgoM2P needs Python 3.11 or newer, found {sys.version.split()[0]}; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
$(PYTHON) -m venv $(VENV)
endef
INSTALL := $(VENV)/bin/python -m pip install --quiet --progress-bar on

# First what builds packages (pip, setuptools), then all the rest with it: nothing is taken that the lock does not name.
$(VENV)/.installed: setup.py requirements.lock
	$(empty_venv)
	@awk '/^(pip|setuptools)==/, !/\\$$/' requirements.lock > $(VENV)/build.lock
	$(INSTALL) --require-hashes -r $(VENV)/build.lock
	$(INSTALL) --require-hashes --no-build-isolation -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	@rm -f $@-latest && touch $@

$(VENV)/.installed-latest: setup.py
	$(empty_venv)
	$(INSTALL) --upgrade pip setuptools
	$(INSTALL) --upgrade --upgrade-strategy eager -e '.[dev,anytoany]'
	@rm -f $(VENV)/.installed && touch $@

# Every platform and Python that setup.py allows. PyTorch is held where all machines we test on have it.
lock:  ## requirements.lock made anew from setup.py: names, versions, hashes
	@tools=$$(mktemp -d) && trap 'rm -rf '$$tools EXIT && $(PYTHON) -m venv $$tools && $$tools/bin/python -m pip install --quiet uv && \
	printf '%s\n' pip setuptools 'torch<=2.14.1' 'torchvision<=0.29.1' | $$tools/bin/uv pip compile setup.py - --extra dev --extra anytoany --upgrade \
	  --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' --quiet -o requirements.lock

# Third parties' deprecations fail tests only against the newest releases (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(if $(filter 1,$(LATEST)),EGOM2P_LATEST=1) $(PY) -m pytest

test: $(ENV)  ## the fast tests
	$(PYTEST) -n $(WORKERS) -m "not slow"

test-experiments: $(ENV)  ## the tests of the experiments, which no other part needs
	$(PYTEST) -n $(WORKERS) experiments/tests

test-all: $(ENV)  ## every test, the slow ones and those of the experiments too
	$(PYTEST) -n $(WORKERS) tests experiments/tests

check: $(ENV)  ## format, lint, import order, fast tests
	$(PY) -m ruff format .
	$(PY) -m ruff check .
	$(MAKE) test

include quickstart.mk
include real_samples.mk
include slurm.mk
include anytoany.mk
