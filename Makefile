# One Makefile for people and for CI.  `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LONGEST := tests/e2e/test_deployment_faults.py tests/house  # these first: who begins last ends last

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint types bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

install: $(STAMP)  ## install into .venv (torch first, then the pinned set)

demo: install  ## training under encryption and DP, vertical training, joint predictions; the ledger is verified
	$(BIN)/fedseal run experiments/demo.toml
	$(BIN)/fedseal run experiments/vertical_demo.toml
	$(BIN)/python -m experiments.prediction_demo
	$(BIN)/fedseal audit verify

test: install lint types  ## lint, types and all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not e2e" -n 2 --dist worksteal
	$(BIN)/python -m pytest -m e2e -n 3 --dist loadfile --no-loadscope-reorder $(LONGEST) tests

test-fast: install  ## unit tests only, in seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not e2e and not slow" -n 2 --dist worksteal

lint: install  ## ruff
	$(BIN)/ruff check .

types: install  ## mypy
	$(BIN)/mypy

bench: install  ## the benchmarks behind docs/performance.md
	$(BIN)/python -m experiments.bench_all

clean:  ## remove what builds and runs left here (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
