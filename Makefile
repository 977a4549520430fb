# `make demo` and `make test` do all set-up themselves: Python >= 3.11 and make are all that a fresh machine needs.
VENV   ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
PY      = $(VENV)/bin/python
PIP     = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test contracts bench bench-merging table clean
.DELETE_ON_ERROR:

demo: $(VENV)/.experiments
	$(PY) -m experiments.demo --report report

test: $(VENV)/.parity
	$(PY) -m pytest -n 2 --dist worksteal --durations 30 tests
	$(PY) -m experiments.table --check

# For a second interpreter: what an interpreter or another JAX may change. Of the transforms every case's start, costs and
# foreign models, and the whole contract of some; of the experiments' smoke runs one for each kind of model.
contracts: $(VENV)/.test
	$(PY) -m pytest -n 2 --dist worksteal --durations 20 tests/contracts tests/experiments/test_contract.py \
	  -k "test_losses or test_merges or small_leaves or join_after or flops or foreign or costs or lora or half or submatrix \
	  or test_contract and (not smoke_runs or gistembed or hft or yi or pleas)"

bench: $(VENV)/.parity
	$(PY) -m benchmarks.run
	$(PY) -m benchmarks.methods

bench-merging: $(VENV)/.parity
	$(PY) -m benchmarks.merging

table: $(VENV)/.experiments
	$(PY) -m experiments.table

$(PY):
	@test -n "$(PYTHON)" || { echo "jaxft needs Python 3.11, 3.12 or 3.13 on the PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip

# One stamp per set of extras; each is a superset of the one before.
$(VENV)/.experiments: pyproject.toml constraints.txt | $(PY)
	$(PIP) -e '.[experiments]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(PY)
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.parity: pyproject.toml constraints.txt | $(PY)
	$(PIP) -e '.[parity]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache build *.egg-info report.html report.md
