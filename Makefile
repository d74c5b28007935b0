# `make demo` and `make test` set up all that they need in .venv, then run.

PYTHON ?= python3
BACKENDS ?= tensorflow jax torch
BIN := .venv/bin

.PHONY: demo test test-as-users lint format clean

demo: .venv/installed
	$(BIN)/keras-coordatt demo

# With a process a core, PyTorch's threads would wait for each other.
test: .venv/installed-for-tests lint
	@set -e; for backend in $(BACKENDS); do \
		echo "== $$backend"; \
		KERAS_BACKEND=$$backend OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal; \
	done

# Without the shortcuts of `make test`: graph mode, optimised XLA, Keras's initializers.
test-as-users: .venv/installed-for-tests
	@set -e; for backend in $(BACKENDS); do \
		echo "== as users: $$backend"; \
		AS_USERS=1 KERAS_BACKEND=$$backend OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 \
			tests/as_users.py tests/layers/test_coordinate_attention.py tests/test_notebooks.py -k "as_users or golden or official"; \
	done

lint: .venv/installed-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-for-tests
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[figures]'
	touch $@

.venv/installed-for-tests: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test,figures,notebooks,detection,export,jax,torch]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
