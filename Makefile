# Needs Python >= 3.10 with pip and venv, nothing else. See README.md for PIP_FLAGS.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
OUT ?= demo
BIN = $(VENV)/bin
# two threads fight over small tensors; both cores are used by two processes instead
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= agg

.PHONY: demo test test-seeds test-versions lint docs clean

demo: $(VENV)/.installed
	$(BIN)/probgen demo --out $(OUT)

test: lint
	$(BIN)/python -m pytest -n 2 --doctest-modules probgen tests
	$(BIN)/sphinx-build -q -W --keep-going -t fast -b html docs docs/_build/fast

# ten seeds of what `make test` runs with one, every line of a step, and what takes long
test-seeds: $(VENV)/.installed
	PROBGEN_SEEDS=10 $(BIN)/python -m pytest -n 2 -m "slow or not slow" \
		tests/test_posteriors.py tests/test_mcmc_targets.py
	PROBGEN_KILLS=50 $(BIN)/python -m pytest -n 2 -m "slow or not slow" -k "slow or kill or interrupt" tests

# the laws and the core with the oldest versions that setup.cfg claims and the newest that pip gets
FAST = tests/laws tests/test_core.py tests/test_checkpoint.py tests/test_training.py \
	tests/test_mcmc.py tests/test_mcmc_resume.py tests/test_potential.py

test-versions: $(VENV)-oldest/.installed $(VENV)-newest/.installed
	$(VENV)-oldest/bin/python -m pytest -n 2 -W ignore::DeprecationWarning $(FAST)
	$(VENV)-newest/bin/python -m pytest -n 2 -W ignore::DeprecationWarning $(FAST)

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

$(VENV)-oldest/.installed: setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet $(PIP_FLAGS) -c constraints-oldest.txt -e ".[test]"
	touch $@

$(VENV)-newest/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet $(PIP_FLAGS) --upgrade -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest docs/_build docs/gallery docs/api build *.egg-info
