# make demo   build the environment and run the quickstart study
# make test   build the environment and run the fast tests
# make check  what CI runs first: formatting, lints, types, fast tests
# make test-slow   the smoke budget of every shipped study, without Ray
# make bench  short benchmarks: one trial, packs, evaluations, what a trial costs beside its training
# make test-ray, test-browser   the tests that need Ray, a browser
# make docs   write docs/reference.md and docs/transcripts.md anew, from what the program does now

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types test-slow test-ray test-browser env bench docs clean

demo: $(READY) studies/study.schema.json
	$(BIN)/gan-sweep submit studies/quickstart.yaml

test: $(READY) studies/study.schema.json
	$(BIN)/python -m pytest -n auto

check: lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto -m slow

test-ray test-browser: test-%: $(READY)
	$(BIN)/python -m pytest -m $*

env: $(READY) studies/study.schema.json

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"gan-sweep needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; try: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the environment into $(VENV) (about 7 GB, several minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

studies/study.schema.json: $(READY) $(wildcard models/*.py trials/*.py orchestrator/*.py)
	$(BIN)/gan-sweep schema > $@

bench: $(READY)
	$(BIN)/python benchmarks/single.py --rounds 3 --seconds 1
	$(BIN)/python benchmarks/pack.py --rounds 2 --seconds 1 --sizes 4,8
	$(BIN)/python benchmarks/evaluate.py --rounds 1
	$(BIN)/python benchmarks/overhead.py --ours 16,100 --stock 16 --warm 4

docs: $(READY)
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_transcripts.py

clean:
	rm -rf $(VENV)
