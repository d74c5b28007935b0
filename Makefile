# Each target sets up all that it needs in .venv, then runs.

PYTHON ?= python3
BACKENDS ?= tensorflow jax torch
BIN := .venv/bin

.PHONY: demo test test-as-users lint format docs coverage package nightly clean

demo: .venv/installed
	$(BIN)/keras-coordatt demo

# With one process per core, PyTorch's threads would wait for each other.
test: .venv/installed-for-tests lint
	@set -e; for backend in $(BACKENDS); do \
		echo "== $$backend"; \
		KERAS_BACKEND=$$backend OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal; \
	done

# Without the shortcuts of `make test`: graph mode, optimized XLA, Keras's initializers;
# the demo, the notebooks and the documentation's commands as they stand.
test-as-users: .venv/installed-for-tests
	@set -e; for backend in $(BACKENDS); do \
		echo "== as users: $$backend"; \
		AS_USERS=1 KERAS_BACKEND=$$backend OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 \
			--dist worksteal -k "as_users or golden or official" tests/as_users.py \
			tests/test_demo.py tests/test_notebooks.py tests/test_readme.py \
			tests/training/test_distribution.py tests/layers/test_coordinate_attention.py; \
	done

# Lines that the tests of all backends together don't run.
coverage: .venv/installed-for-tests
	rm -f .coverage
	@set -e; for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
			--cov keras_coordatt --cov-append --cov-report=; \
	done
	$(BIN)/coverage report --show-missing --skip-covered

lint: .venv/installed-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-for-tests
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The API reference, from the docstrings, and the list of public names.
docs: .venv/installed-for-tests
	rm -rf build/docs
	KERAS_BACKEND=torch $(BIN)/python docs/reference.py build/docs
	@echo "Open build/docs/index.html"

# The sdist, the wheel built from it, and the wheel in an environment without TensorFlow.
package: .venv/installed-for-tests
	rm -rf dist build/package
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv build/package
	build/package/bin/pip install --quiet --no-deps dist/*.whl
	build/package/bin/pip install --quiet keras numpy h5py safetensors 'jsonargparse[signatures]' jax
	cd build/package && KERAS_BACKEND=jax bin/python ../../tests/smoke.py

# Thousands of damaged files and arguments; then the oldest Python with the oldest Keras that
# setup.cfg allows, and newer ones with the newest.
nightly: .venv/installed-for-tests
	FUZZ=nightly KERAS_BACKEND=torch $(BIN)/python -m pytest -n 2 tests/fuzzing
	@set -e; for versions in "3.11 keras==3.15.1" "3.12 keras" "3.13 keras"; do \
		echo "== Python $$versions"; set -- $$versions; \
		$(BIN)/uv venv --quiet --clear --seed --python $$1 build/nightly; \
		build/nightly/bin/pip install --quiet --upgrade "$$2" \
			--editable '.[test,figures,notebooks,detection,export,jax,torch]'; \
		KERAS_BACKEND=torch OMP_NUM_THREADS=1 build/nightly/bin/python -m pytest -n 2; \
	done

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[figures]'
	touch $@

.venv/installed-for-tests: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test,figures,notebooks,detection,export,jax,torch]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
