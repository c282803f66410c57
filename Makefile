# koopcast: every command a developer or a first-time user needs. `make` alone lists them.

PYTHON ?= python3
# Which PyTorch: cpu (a tenth of the size), or cuda (several gigabytes). By default the one that is installed.
TORCH ?= $(if $(wildcard .venv/.installed-cuda),cuda,cpu)
# Package index that PyTorch comes from. By default for cpu the PyTorch project's own index of CPU builds (the one on
# PyPI is, for Linux, a CUDA build), and for cuda pip's own default.
TORCH_INDEX ?= $(if $(filter cpu,$(TORCH)),https://download.pytorch.org/whl/cpu)

# Tests that run beside each other. Most of them wait for processes; figures are not taken by tests.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(TORCH)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --quiet --no-deps
TORCH_PIN = $$(grep '^torch==' requirements.lock)

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench-quick lint lint-code lint-format lint-types lint-proto format stubs stubs-check lock image-check clean
.DELETE_ON_ERROR:

ifeq ($(filter cpu cuda,$(TORCH)),)
$(error TORCH must be cpu or cuda, not '$(TORCH)')
endif

help:  ## this list
	@echo 'make TARGET [PYTHON=python3.12] [TORCH=cpu|cuda] [TORCH_INDEX=URL] [WORKERS=4]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON       interpreter the environment is made with, 3.11 or newer (python3)'
	@echo '  WORKERS      test files run beside each other (2)'
	@echo '  TORCH        PyTorch build: cpu (until told otherwise) or cuda; all else is the same (requirements.lock)'
	@echo '  TORCH_INDEX  package index that PyTorch is taken from, where the usual one does not suit:'
	@echo '                 cpu   https://download.pytorch.org/whl/cpu'
	@echo '                 cuda  the default index of pip; https://download.pytorch.org/whl/cu130 and the like'

setup: $(STAMP)  ## make .venv with everything pinned in requirements.lock, and koopcast itself

demo: setup  ## train a network twice, plainly and with koopcast; writes demo.json and demo.png
	@$(BIN)/koopcast demo --json demo.json --plot demo.png

test: setup  ## the whole test suite (ARGS="-m 'not slow'" and the like are handed to pytest)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

bench-quick: setup  ## does the suite of tests/bench/acceleration still run? Three minutes; its figures mean nothing
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/acceleration/run.py --quick --workers $(WORKERS)

lint: lint-code lint-format lint-types lint-proto  ## ruff, formatting, types, the protocol's style (-k: all of them)

lint-code: setup
	$(BIN)/ruff check .
lint-format: setup
	$(BIN)/ruff format --check .
lint-types: setup
	$(BIN)/mypy
lint-proto: setup
	cd proto && ../$(BIN)/buf lint

format: setup  ## format the code and sort its imports
	$(BIN)/ruff check --fix-only --select I .
	$(BIN)/ruff format .

stubs: setup  ## generate client/koopcast/v1 from proto/
	$(BIN)/python proto/generate.py

stubs-check: setup  ## fail where client/koopcast/v1 is not what proto/ says
	$(BIN)/python proto/generate.py --check

lock: setup  ## resolve requirements.lock anew from pyproject.toml (ARGS=--upgrade for the newest of everything)
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --extra demo --group dev \
	    --custom-compile-command 'make lock' --output-file requirements.lock $(ARGS)

image-check:  ## the container image's own steps, without a container engine (docker/README.md)
	@PYTHON=$(PYTHON) VARIANT=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) docker/check.sh

clean:  ## remove what can be made again, the environments included
	rm -rf $(VENV) .venv-proto build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.json demo.png

# The stamp names the build: where another one is asked for, PyTorch is exchanged. It comes first and from its own
# index; to the lock it is then satisfied. A CUDA build brings the packages it needs, which it names exactly.
$(STAMP): requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "setup: koopcast needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1 || :)." \
	         "Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "setup: $(PYTHON) cannot make virtual environments, its venv module is missing." \
	         "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || { echo 'setup: making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@test ! -e $(VENV)/.installed-$(OTHER_TORCH) || $(PIP) uninstall --quiet --yes torch
	@rm -f $(VENV)/.installed-*
	@echo "setup: installing $(TORCH_PIN), $(TORCH) build"
	@$(INSTALL_TORCH_$(TORCH)) || { \
	    echo "setup: no PyTorch, $(TORCH) build, to be had$(if $(TORCH_INDEX), from $(TORCH_INDEX))." \
	         "Name another index: make setup TORCH_INDEX=URL" >&2; exit 1; }
	@echo 'setup: installing the packages of requirements.lock'
	@$(INSTALL) --requirement requirements.lock
	@$(INSTALL) --no-build-isolation --editable .
	@$(PIP) check >/dev/null || { $(PIP) check >&2; exit 1; }
	@touch $@
	@echo 'setup: done'

OTHER_TORCH = $(if $(filter cpu,$(TORCH)),cuda,cpu)
# Tried quickly first: where the index cannot be reached, pip may have a wheel from elsewhere (PIP_FIND_LINKS), and its
# warnings would be noise. If that fails, again with patience and with what pip has to say.
INSTALL_TORCH_cpu = { \
    $(INSTALL) --retries 0 --index-url $(TORCH_INDEX) $(TORCH_PIN) 2>/dev/null \
    || $(INSTALL) --retries 3 --index-url $(TORCH_INDEX) $(TORCH_PIN); }
INSTALL_TORCH_cuda = $(PIP) install --constraint requirements.lock \
    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH_PIN)
