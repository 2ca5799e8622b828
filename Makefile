# Everything here needs only Python 3.11 or newer, git and make.
.DEFAULT_GOAL := help
.PHONY: help setup fmt check test test-all demo bench docs clean

MINUTES ?= 15
RUN ?= runs/demo

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers of one thread each; a file stays with one of them, so that its tokenizer and models are made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install everything (again only when pyproject.toml or constraints.txt change)

# 3.11 first: the pins are tested with it, and local wheel folders often offer the CPU build of torch for it.
# A candidate has to answer, not only to exist: version managers leave names behind that run nothing.
$(STAMP): pyproject.toml constraints.txt
	@set -e; found=""; \
	for name in python3.11 python3.12 python3.13 python3 python; do \
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "qvl needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || echo none)." >&2; \
	    echo "Install one so that python3.11 (or newer) is on the PATH, then run make again." >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$found --version)"; \
	    "$$found" -m venv --clear $(VENV) || { \
	        echo "$$found cannot make virtual environments; on Debian and Ubuntu install python3-venv." >&2; exit 1; }; \
	fi
	@echo "Installing into $(VENV); the first time takes a few minutes"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

fmt: $(STAMP)  ## sort imports, format
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

check: $(STAMP)  ## lint, format, types, import rules and the fast tests (under 90 s)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-logo
	$(PYTEST) -m "not slow"

test: $(STAMP)  ## every test
	$(PYTEST)

test-all: check test  ## check and every test

demo: $(STAMP)  ## train, measure and report (MINUTES=15 RUN=runs/demo); started again it goes on
	$(BIN)/python -m qvl demo --minutes $(MINUTES) --run $(RUN)

BENCHES := $(filter-out record peers readme_numbers query_ablation train_sides,$(basename $(notdir $(wildcard bench/*.py))))

bench: $(STAMP)  ## measure every claim; rows go to bench/results, tables to bench/RESULTS.md
	@set -e; for name in $(BENCHES); do echo "== bench.$$name"; $(BIN)/python -m bench.$$name; done

docs: $(STAMP)  ## write measured numbers into README.md
	$(BIN)/python -m bench.readme_numbers

clean:  ## remove caches and builds (not .venv, not runs)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
