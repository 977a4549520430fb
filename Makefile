# `make demo` and `make test` do all set-up themselves: Python >= 3.11 and make are all that a fresh machine needs.
VENV   ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
PY      = $(VENV)/bin/python
# Errors alone: its warnings are of folders and build steps that no user of this file has to do with.
PIP     = $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt
PYTEST  = $(PY) -m pytest -n 2 --dist worksteal
# Tests start many processes: what one has compiled to bytecode the others read.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test docs test-all contracts lint bench bench-merging bench-contrastive bench-decoding bench-post-training bench-processes bench-commands table clean
.DELETE_ON_ERROR:

demo: $(VENV)/.experiments
	$(PY) -m experiments.demo --report report

# The quick tier: of every contract what catches each kind of fault. `make test SHARE=21/16` runs a share of the
# exhaustive tier with it, in the same processes: sixteen numbers in a row run all of it.
test: $(VENV)/.parity
	$(PY) -m ruff check .
	$(PYTEST) --durations 15 $(if $(SHARE),--share $(SHARE),-m "not exhaustive") tests

# Ruff, and the types of the library, which the tests check too (tests/test_types.py).
lint: $(VENV)/.parity
	$(PY) -m ruff check .
	$(PY) -m basedpyright

# The API reference from the docstrings, in build/docs; fails at a link, there or in a Markdown file, that leads nowhere.
docs: $(VENV)/.docs
	$(PY) -m tools.docs build/docs

# Both tiers: every pair and every variant; fails where a test file takes more than a minute of one core.
test-all: $(VENV)/.parity
	$(PY) -m ruff check .
	$(PYTEST) --durations 30 --file-seconds 60 tests

# For a second interpreter: what an interpreter or another JAX may change.
contracts: $(VENV)/.test
	$(PYTEST) --durations 15 -m "interpreter and not exhaustive" tests

bench: $(VENV)/.parity
	$(PY) -m benchmarks.steps
	$(PY) -m benchmarks.methods

bench-merging: $(VENV)/.parity
	$(PY) -m benchmarks.merging

bench-processes: $(VENV)/.parity
	$(PY) -m benchmarks.processes

bench-contrastive: $(VENV)/.parity
	$(PY) -m benchmarks.contrastive

bench-commands: $(VENV)/.parity
	$(PY) -m benchmarks.commands

bench-decoding: $(VENV)/.parity
	$(PY) -m benchmarks.decoding

bench-post-training: $(VENV)/.parity
	$(PY) -m benchmarks.post_training

table: $(VENV)/.experiments
	$(PY) -m experiments.table

$(PY):
	@test -n "$(PYTHON)" || { echo "jaxft needs Python 3.11, 3.12 or 3.13 on the PATH" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check --upgrade pip

# One stamp per set of extras; each is a superset of the one before.
$(VENV)/.experiments: pyproject.toml constraints.txt | $(PY)
	@echo "installing jaxft[experiments] into $(VENV), a minute or two"
	@$(PIP) -e '.[experiments]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(PY)
	@echo "installing jaxft[docs] into $(VENV), a minute or two"
	@$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(PY)
	@echo "installing jaxft[test] into $(VENV), a minute or two"
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.parity: pyproject.toml constraints.txt | $(PY)
	@echo "installing jaxft[parity] into $(VENV), a minute or two"
	@$(PIP) -e '.[parity]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache build *.egg-info report.html report.md
