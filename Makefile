# `make train` and `make test` set up what they need, then do their job. Other Pythons: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: train test check format docs clean help

help:
	@echo 'make train   train on the embedded data by self-augmentation, and evaluate in 15 languages'
	@echo 'make test    the whole test suite'
	@echo 'make check   format, lint, types, import direction, documentation'
	@echo 'make format  rewrite the source in the house format'
	@echo 'make docs    the documentation, in docs/_build'

train: $(VENV)/.train
	$(BIN)/xsalt-train --task xnli --augmenter codeswitch augmenter.codeswitch.probability=0.5 eval.split=test epochs=8 \
		dropout=0 model.pooling=mean run=runs/quickstart

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports
	$(MAKE) docs

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

clean:
	rm -rf docs/_build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# Stamps, so that a second `make` starts at once; they are older than setup.py when its requirements change.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("xsalt needs Python 3.10 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q '$(TORCH)'
	touch $@

$(VENV)/.train: $(VENV)/.torch setup.py
	$(BIN)/python -m pip install -q -e '.[quickstart]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch setup.py
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(VENV)/.train
