# `make run` and `make test` need Python >= 3.11 with pip and venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PORT ?= 8000
# How many tests run at once: on two CPUs one more than these, since many of them wait.
JOBS ?= 3

.PHONY: run test check guard bench docs site clean

$(VENV)/.run: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ESG needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/.check: pyproject.toml $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check]'
	touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

run: $(VENV)/.run
	$(BIN)/python -m esg esg.demo:app --workers 2 --port $(PORT)

# The servers that the tests start write no bytecode, so ESG is compiled first. pytest has to write
# its own: without it, each of its processes translates all tests again.
test: $(VENV)/.test
	$(BIN)/python -m compileall -q esg
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Fails if a request takes more instructions than it did: see bench/README.md.
guard: $(VENV)/.run
	$(BIN)/python bench/guard.py $(ARGS)

docs: $(VENV)/.run
	$(BIN)/python -m esg.settings.report > docs/settings.md

site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict

bench: $(VENV)/.bench
	$(BIN)/python bench/run.py $(ARGS)

clean:
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
