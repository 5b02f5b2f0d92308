.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STORE ?= .p2rec
BENCH ?= build/benchmarks
BENCH_OPTIONS ?=
TEST_PROCESSES ?= 2
AUDIT ?= build/audit
MUTANTS ?=

.PHONY: help setup run beauty test test-slow faults soak mutants audit lint format typecheck imports bench bench-quick bench-gpu serve docs clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make the virtual environment and install everything, pinned

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

run: setup  ## Run all eight stages on the embedded sample
	$(BIN)/p2rec run --store $(STORE)

beauty: setup  ## Run all eight stages on Amazon Beauty
	$(BIN)/p2rec run --dataset beauty --store $(STORE)

test: setup lint typecheck imports  ## Lint, type check, check the import rules and run the fast tests
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist loadfile

test-slow: setup  ## Run the tests that take long
	$(BIN)/python -m pytest -m slow

faults: setup  ## Inject faults into stores and count what comes of each
	$(BIN)/python -m tests.faults

soak: setup  ## Simulate thirty nights of a growing dataset with faults, by the command line
	$(BIN)/python -m tests.faults.soak

mutants: setup  ## Change the store's code in thousands of small ways and see whether its tests notice: hours
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-mutants.txt
	$(BIN)/python -m mutmut run --max-children $(TEST_PROCESSES) $(MUTANTS)
	$(BIN)/python -m mutmut results

audit: setup  ## Look the pinned packages up in the advisory database; needs the network
	test -x $(AUDIT)/bin/pip-audit || ($(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet pip-audit)
	@# --strict: a package that could not be looked up is a failure, where pip-audit alone would call it a pass
	$(AUDIT)/bin/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip --progress-spinner off || \
		{ echo "NOT AUDITED, or something was found: see above. This is no pass; offline, run it where the database" \
		"can be reached, and write an exception with its reason into docs/trust.md." >&2; exit 1; }

lint: setup  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup  ## Check types
	$(BIN)/mypy

imports: setup  ## Check who imports whom
	$(BIN)/lint-imports

bench: setup  ## Measure beside RecBole, pandas and plain code: hours, and a line of history
	$(BIN)/python benchmarks/hot_paths.py --out $(BENCH) --history docs/results/benchmarks/history.jsonl $(BENCH_OPTIONS)
	$(BIN)/python benchmarks/peers.py --out $(BENCH) --history docs/results/benchmarks/history.jsonl $(BENCH_OPTIONS)

bench-quick: setup  ## The same on the embedded sample: minutes
	$(BIN)/python benchmarks/hot_paths.py --quick --out $(BENCH) $(BENCH_OPTIONS)
	$(BIN)/python benchmarks/peers.py --quick --out $(BENCH) $(BENCH_OPTIONS)

bench-gpu: setup  ## Language models of real size and recommenders on a GPU: minutes
	$(BIN)/python benchmarks/gpu_paths.py --out $(BENCH) --history docs/results/benchmarks/history.jsonl $(BENCH_OPTIONS)

serve: setup  ## Serve the flows, with a Prefect server on this machine and its interface
	$(BIN)/p2rec serve --store $(STORE)

docs: setup  ## Build the documentation site in build/site
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-docs.txt
	$(BIN)/python -m mkdocs build --clean --strict

clean:  ## Remove the virtual environment and caches; the artefact store stays
	rm -rf $(VENV) mutants .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
