# One command list for people and CI. Every target does its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes. Each computes in one thread: more would wait for one another.
JOBS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-slow check style bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED) ## make a small dataset with embedded models, in runs/demo
	$(BIN)/aigi demo

test: $(INSTALLED) ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(INSTALLED) ## the slow tests
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED) ## formatting, lint and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

style: $(INSTALLED) ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## speed, as ratios to a peer in the same run
	$(BIN)/python -m tests.perf

clean: ## remove the virtual environment and all caches, but no run
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
