# Two commands: `make demo` and `make test`. Both create the environment in .venv when it is missing or out of date.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ENVIRONMENT ?= envs/cpu.txt
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo demo-short test test-physics test-slow lint format bench bench-peers clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(READY): $(ENVIRONMENT) setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "The pinned environment needs Python 3.11, $(PYTHON) is $$($(PYTHON) -V); set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating the environment in .venv (about 7 GB, a few minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(ENVIRONMENT)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)  ## PDB entries -> forces -> networks -> OpenMM simulation -> report, in at most ten minutes
	$(BIN)/python examples/demo/demo.py

demo-short: $(READY)  ## the same in about two minutes, for continuous integration
	$(BIN)/python examples/demo/demo.py --short -o runs/demo-short

test: export OMP_NUM_THREADS ?= 1
test: $(READY)  ## the fast tests, under 15 minutes on two cores
	$(BIN)/python -m pytest

test-physics: export OMP_NUM_THREADS ?= 1
test-physics: $(READY)  ## every mode trained and run, by the three lines and by openmm-ml, under 4 minutes on free cores
	$(BIN)/python -m pytest -m slow tests/physics

test-slow: export OMP_NUM_THREADS ?= 1
test-slow: $(READY)  ## the tests that need minutes of dynamics or training
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## style, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-peers: $(READY)  ## install the peers of the speed benchmark in .venv-peers (about 15 GB)
	$(BIN)/python benchmarks/speed.py --install-peers

bench: $(READY)  ## measure speed against the peers that are installed; writes docs/results/speed.md
	$(BIN)/python benchmarks/speed.py

clean:  ## remove the environment and what runs left here
	rm -rf .venv .venv-peers runs build *.egg-info
