# Needs Python >= 3.10 with pip and venv, nothing else. See README.md for PIP_FLAGS.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
OUT ?= demo
BIN = $(VENV)/bin
# two threads fight over small tensors; both cores are used by two processes instead
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= agg

.PHONY: demo test test-seeds lint docs clean

demo: $(VENV)/.installed
	$(BIN)/probgen demo --out $(OUT)

test: lint
	$(BIN)/python -m pytest -n 2 --doctest-modules probgen tests
	$(BIN)/sphinx-build -q -W --keep-going -t fast -b html docs docs/_build/fast

# ten seeds of what `make test` runs with one
test-seeds: $(VENV)/.installed
	PROBGEN_SEEDS=10 $(BIN)/python -m pytest -n 2 tests/test_posteriors.py tests/test_mcmc_targets.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[test,docs]"
	touch $@

clean:
	rm -rf $(VENV) docs/_build docs/gallery docs/api build *.egg-info
