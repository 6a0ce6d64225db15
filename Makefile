# Every target works on a fresh machine that has Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types check bench bench-quick bench-media bench-torch chaos mutants docs \
	docs-serve pages clean

demo: .venv/installed-demo  ## Train on real handwritten digits and watch the metrics arrive.
	$(BIN)/metricbus demo

test: lint types check  ## Run the linter, the type checker and all tests.

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed-dev
	$(BIN)/mypy

check: .venv/installed-dev  ## Run all tests, one process per core; the tests of a file run in one process.
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

bench: .venv/installed-bench .venv/peers/installed  ## Measure what metricbus costs, compared with other loggers.
	$(BIN)/python -W ignore -m benchmarks

bench-quick: .venv/installed-bench  ## Run all benchmarks briefly, as a test; the figures mean nothing.
	$(BIN)/python -W ignore -m benchmarks --quick

bench-media: .venv/installed-bench  ## Measure what images, histograms and audio cost.
	$(BIN)/python -W ignore benchmarks/media_cost.py

bench-torch: .venv/installed-bench  ## Measure what watching gradients costs.
	$(BIN)/python -W ignore benchmarks/torch_cost.py

chaos: .venv/installed-dev  ## Kill processes at random times, more often than the tests do.
	CHAOS_KILLS=1000 CHAOS_KILLS_WITH_ALL=200 $(BIN)/pytest tests/journal/test_kills.py

mutants: .venv/installed-mutants  ## Put small faults into the core; list those that no test notices.
	$(BIN)/python -m tests.mutants $(MODULES)

pages: .venv/installed-docs  ## Generate the pages that are made from code.
	$(BIN)/metricbus doctor --markdown > docs/environment.md
	$(BIN)/python docs/made/commands.py > docs/commands.md
	$(BIN)/python docs/made/rooms.py > docs/assets/rooms.svg

docs: pages  ## Build the documentation site in site/; any warning fails.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in site/. Serve that folder with a web server, or run make docs-serve."

docs-serve: pages  ## Serve the site at http://127.0.0.1:8000, and rebuild it when a page changes.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --livereload

clean:
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip

.venv/installed-demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]'
	touch $@

.venv/installed-dev: .venv/installed-demo
	$(PIP) --group dev
	touch $@

.venv/installed-mutants: .venv/installed-dev
	$(PIP) --group mutants
	touch $@

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[cli]'
	$(PIP) --group docs
	touch $@

.venv/installed-bench: .venv/installed-dev
	$(PIP) --group bench
	touch $@

.venv/peers/installed: constraints-peers.txt  ## Loggers that cannot be installed next to the others.
	$(PYTHON) -m venv .venv/peers
	.venv/peers/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-peers.txt clu tensorflow-cpu tensorboard trackio pyperf
	touch $@
