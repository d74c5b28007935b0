# `make demo` and `make test` set up all that they need in .venv, then run.

PYTHON ?= python3
BACKENDS ?= tensorflow jax torch
BIN := .venv/bin

.PHONY: demo test lint format clean

demo: .venv/installed
	$(BIN)/python -m keras_coordatt.demo

# With a process a core, PyTorch's threads would wait for each other.
test: .venv/installed-for-tests lint
	@set -e; for backend in $(BACKENDS); do \
		echo "== $$backend"; \
		KERAS_BACKEND=$$backend OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal; \
	done

lint: .venv/installed-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/installed-for-tests
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-for-tests: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test,notebooks,detection,export,jax,torch]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
