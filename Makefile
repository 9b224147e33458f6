# Each target does its own set-up: Python 3.11 or newer with venv, and make, are all it needs.
.DEFAULT_GOAL := help
# Python started by a test, too, keeps what it has compiled.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help run demo check test faults pictures mutants lint types imports format bench lock clean

# pyenv reads .python-version, and its python3 may not run here where it lacks that version; then it
# is the one of the root directory.
PYTHON ?= $(or $(shell $(ITSELF) || { cd / && $(ITSELF); }),python3)
ITSELF := python3 -c 'import sys; print(sys.executable)' 2>/dev/null
VENV := .venv
# Most tests wait for something; more of them at a time than there are cores take half as long.
WORKERS ?= 6
BIN := $(VENV)/bin
SERVES := $(SEGMENT_WRITE_KEY)$(VERO_AUTH_TOKEN)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Segment's libraries for Node.js and browsers; their tests are skipped where there is no npm.
CLIENTS := tests/clients
LIBRARIES := $(if $(shell command -v npm),$(CLIENTS)/node_modules/made)

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/$(if $(SERVES),run,demo)  ## relay serve with SEGMENT_WRITE_KEY or VERO_AUTH_TOKEN set, otherwise the demo
	@exec $(BIN)/relay $(if $(SERVES),serve,demo)

demo: $(VENV)/demo  ## the real relay between stand-ins for Vero and Segment, both ways
	@exec $(BIN)/relay demo

check: lint types imports  ## lint, types, imports and the quick tests, in about a minute
	$(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) --dist worksteal -m "not (browser or fault or postgres or slow)"

test: $(VENV)/dev $(LIBRARIES)  ## the whole test suite, and how much of relay its quick tests run in their own processes
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses $(WORKERS) --dist worksteal -rs
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

faults: $(VENV)/dev  ## each fault of docs/faults.md, many times
	$(BIN)/python -m pytest tests/faults tests/outbox --long --timeout 1800

pictures: $(VENV)/dev  ## the documentation's pictures of the console, made anew (needs Debian's chromium-headless-shell)
	$(BIN)/python -m tests.console.pictures

mutants: $(VENV)/dev  ## planted defects, each of which a test must catch
	$(BIN)/python -m tests.mutants

lint: $(VENV)/dev  ## formatting and lint
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/dev  ## static types, strict
	$(BIN)/mypy

imports: $(VENV)/dev  ## the direction of imports
	$(BIN)/lint-imports

format: $(VENV)/dev  ## format, and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/dev  ## CPU, rate, latency and loss beside the script one would write instead
	$(BIN)/python -m bench
	$(BIN)/python -m bench.calls

lock: $(VENV)/dev  ## lock the newest allowed version of every dependency
	$(BIN)/uv pip compile pyproject.toml --group build -o requirements.txt $(LOCK)
	$(BIN)/uv pip compile pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt $(LOCK)
	$(BIN)/uv pip compile --group demo -c requirements-dev.txt -o requirements-demo.txt $(LOCK)

LOCK := --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-config \
	--no-header --quiet

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(CLIENTS)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*

$(VENV)/run: requirements.txt pyproject.toml | $(VENV)/made
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@$(PIP) install --require-hashes -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/demo: requirements-demo.txt $(VENV)/run
	@$(PIP) install --require-hashes -r requirements-demo.txt
	@touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	@echo "Setting up the tools for tests ..."
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@

$(CLIENTS)/node_modules/made: $(CLIENTS)/package-lock.json
	@echo "Setting up Segment's libraries for Node.js ..."
	@if (cd $(CLIENTS) && npm ci --ignore-scripts --loglevel=error); then touch $@; \
	else echo "npm cannot install them: their tests are skipped."; fi

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "relay needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@
