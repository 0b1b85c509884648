# Both targets work on a fresh machine, each alone: they create .venv with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads of tests side by side wait for each other by spinning: a test of a second took a minute. conftest.py is too late
# for those of numpy, which a plug-in of pytest imports.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow lint docs release setup clean

demo: $(VENV)/.demo
	$(BIN)/everclip train demo

test: $(VENV)/.dev
	$(PYTEST)

test-slow: $(VENV)/.dev
	$(PYTEST) -m "slow or not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The site, in build/site: its pages are read from a disk, and searched from "python -m http.server -d build/site".
docs: $(VENV)/.docs
	$(BIN)/python tools/pages.py build/pages
	$(BIN)/jupyter-nbconvert --log-level WARN --to markdown --output-dir build/pages/notebooks docs/notebooks/*.ipynb
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Wheel and sdist in dist/, checked, and the demo run from the wheel in a bare environment; nothing is uploaded.
release: $(VENV)/.release
	$(BIN)/python tools/release.py

setup: $(VENV)/.dev

# What is here at the end is taken for whole by the next call: so no old Python makes it, and nothing stays of one
# without ensurepip, with which venv fails when it has made its python.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is not Python 3.11 or newer: name one that is here, as in make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lite]"
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(VENV)/.demo $@

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lite,docs]"
	touch $(VENV)/.demo $@

$(VENV)/.release: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[release]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
