# make demo: everything from nothing to a figure. make test: the test suite. Both set up first.
#   CONSTRAINTS=                        leave versions to pip, for example a CUDA build of torch
#   VENV_FLAGS=--system-site-packages   reuse the torch that is installed
#   ARGS="--fresh"                      passed on by demo, bench and test
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev
VENV_FLAGS ?=
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-all lint bench validate notebooks docs clean

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@echo "Setting up $(VENV): about 2 minutes, 2 GB."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV) || \
	  { echo "No venv module: install it (Debian, Ubuntu: apt install python3-venv), or give PYTHON=."; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[$(EXTRAS)]"
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	@echo "First light: 3 methods in 3 places, 9 runs of a tiny model; about 2 minutes on 2 cores."
	$(BIN)/python -m experiments.run experiment=first_light $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -n 2 -m "not slow" $(ARGS)

test-all: $(STAMP)
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -n 2 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m experiments.bench $(ARGS)

validate: $(STAMP)
	$(BIN)/python -m experiments.validate $(ARGS)

notebooks: $(STAMP)
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q --nbmake --nbmake-timeout=120 notebooks $(ARGS)

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis dist site
