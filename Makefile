# `make help` lists what there is. Everything runs in .venv, which `install` makes once and renews
# when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest
OLDEST_INSTALLED := $(OLDEST)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# No process that this file starts sends usage data.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.DEFAULT_GOAL := help
.PHONY: help install demo up bench waiting load restart recover test test-oldest upgrade-test faults browser \
	screenshots lint check vulnerabilities format docs constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make the virtual environment with every pinned package

demo: $(INSTALLED) ## start everything in a throw-away folder, show the four endings of an order
	@$(BIN)/python -m deployments.demo

# By the environment: everybody can read the command lines of what runs for hours.
up: export PREFECT_SERVER_API_AUTH_STRING := $(or $(AUTH),$(PREFECT_SERVER_API_AUTH_STRING))
up: $(INSTALLED) ## start everything until Ctrl-C, kept in .local; AUTH=user:password, ANSWER=by-hand
	@$(BIN)/python -m deployments.up $(if $(ANSWER),--answer $(ANSWER))

bench: $(INSTALLED) ## run the benchmarks, or one of them (ONLY=batch); on a quiet machine
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

waiting: $(INSTALLED) ## measure: the memory that an order takes while it waits, paused and suspended
	@$(BIN)/python -m benchmarks.waiting

load: $(INSTALLED) ## N checkouts at once (N=50), all must end right; WAIT=suspend: all wait at once first
	@$(BIN)/python -m tests.load --orders $(or $(N),50) --wait $(or $(WAIT),pause)

restart: $(INSTALLED) ## replace both workers in the midst of fifty checkouts, nobody is refunded for it
	@$(BIN)/python -m pytest tests/load/test_rolling_restart.py

recover: $(INSTALLED) ## finish, once, what nobody else will finish of the orders of `make up`
	@[ -f .local/env ] || { echo "There is no .local/env: it is there while make up runs, so start that first."; exit 1; }
	@. ./.local/env && $(BIN)/python -m flows.recovery

test: $(INSTALLED) browser ## run all tests but those at full load
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/load

test-oldest: $(OLDEST_INSTALLED) browser ## run all tests with the oldest Prefect that is supported
	@$(OLDEST)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/load

upgrade-test: $(INSTALLED) $(OLDEST_INSTALLED) ## move waiting orders from the oldest Prefect to the newest
	@$(BIN)/python -m pytest tests/load/test_upgrade.py

browser: ## install Chromium for the tests of the Prefect UI, where it is missing
	@.ci/browser

screenshots: $(INSTALLED) browser ## make the README's pictures in docs/pictures anew
	@$(BIN)/python -m tests.e2e.screenshots

faults: $(INSTALLED) ## simulate N seeds of faults (N=1000), or one again and shrink it (SEED=7)
	@$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED) --shrink,--number $(or $(N),1000))

lint: $(INSTALLED) ## ruff (rules and format) and mypy (strict)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint test ## lint and test

vulnerabilities: $(INSTALLED) ## ask PyPI for known holes in the pinned packages; needs the network
	@$(BIN)/uv tool run pip-audit@2.10.1 --requirement constraints.txt --no-deps --disable-pip --strict

format: $(INSTALLED) ## put the code in its format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(INSTALLED) ## make the documents' tables from the code
	@$(BIN)/python -m cogapp -r docs/*.md

constraints: $(INSTALLED) ## pin again what pyproject.toml asks for; UPGRADE=1: the newest of all
	@$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --no-annotate \
		--all-extras $(if $(UPGRADE),--upgrade) pyproject.toml -o constraints.txt

clean: ## remove the environment and all caches, not the orders in .local
	@rm -rf $(VENV) $(OLDEST) *.egg-info build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
		"The store needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" % v[:2])'
	@echo "Installing into $(VENV) (about a minute the first time) …"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	@(while sleep 4; do printf .; done) & dots=$$!; trap 'kill $$dots; echo' EXIT; \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
		--build-constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "Installed."

$(OLDEST_INSTALLED): $(INSTALLED) pyproject.toml constraints-oldest.txt
	@echo "Installing constraints-oldest.txt into $(OLDEST) …"
	@$(OLDEST)/bin/python -c '' 2>/dev/null || $(BIN)/python -m venv --clear $(OLDEST)
	@$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --constraint constraints-oldest.txt \
		--build-constraint constraints-oldest.txt --editable '.[dev]'
	@touch $@
