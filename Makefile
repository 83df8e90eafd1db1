# Every command that a person types. `make` lists them.
#   EXP=name    an experiment: configs/experiment/name.yaml, or a recipe's: recipes/*/configs/name.yaml
#   RUN=name    a run: latest, an experiment (its newest run), a run id, or a path
#   RESUME=name with train: continue that run; RESUME=auto: the newest unfinished one with these settings, or a new one
#   FORK=name, INIT=name  with train: a new run with the whole state, or with the weights, of a run
#   ARGS="..."  options that are passed on, e.g. ARGS="--model.learning_rate=3e-3 -c configs/hardware/ddp.yaml"
#   FAST=1  with setup: also ROUGE in Rust, many times faster
#   SYSTEM_TORCH=1  with setup: use the torch that PYTHON already has, as on a cluster, instead of the pinned one
#   UPGRADE=1  with lock: the newest versions that pyproject.toml admits, instead of as few changes as possible

PYTHON ?= python3
RUN ?= latest
LITLAB := .venv/bin/litlab
NAMED := $(filter-out auto,$(RESUME))$(FORK)$(INIT)
FILE := configs/experiment/$(EXP).yaml
CONFIG := $(firstword $(wildcard $(FILE) recipes/*/configs/$(EXP).yaml) $(FILE))
START = $(if $(EXP)$(if $(NAMED),,x),-c $(CONFIG)) $(RESUME:%=--resume=%) $(FORK:%=--fork=%) $(INIT:%=--init=%)
PIP := .venv/bin/python -m pip --disable-pip-version-check
LOCKED := $(PIP) install --quiet --require-hashes --no-deps --requirement

.DEFAULT_GOAL := help
.PHONY: help setup train eval test test-slow fuzz drill bench bench-quality lint lint-all format notebook clean lock

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: .venv/installed $(if $(FAST),.venv/installed-fast) ## create .venv and install litlab with the exact versions in requirements/

train: .venv/installed $(if $(findstring tensorboard,$(ARGS)),.venv/installed-tensorboard) ## train an experiment: make train EXP=mnist_mlp ARGS="--model.learning_rate=3e-3"
	@$(LITLAB) fit $(START) $(ARGS)

eval: .venv/installed ## score a run on the test split: make eval RUN=latest
	@$(LITLAB) eval $(RUN) $(ARGS)

# one thread per test: threads of several processes that wait for each other on the same cores slow all of them many times
test: .venv/installed-dev ## run the tests, in a few minutes: make test ARGS="tests/project -k idx"
	@OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses logical --maxprocesses 4 --dist worksteal -m "not slow and not fuzz" $(ARGS)

test-slow: .venv/installed-dev ## run the longer tests: all of MNIST, two processes, resuming after every hook, kills
	@OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses logical --maxprocesses 4 --dist worksteal -m slow $(ARGS)

fuzz: .venv/installed-dev ## feed 20,000 random inputs to the readers and the configuration
	@.venv/bin/pytest -m fuzz tests/fuzz $(ARGS)

drill: .venv/installed-dev ## kill trainings at random moments, continue and compare them: make drill ARGS="--kills 100"
	@.venv/bin/python tests/drill.py $(ARGS)

bench: .venv/installed-dev ## measure the speed against others, into BENCHMARKS.md: make bench ONLY=bert
	@.venv/bin/python -m benchmarks.bench $(ONLY)

bench-quality: .venv/installed-dev ## train with and without each trick that makes it fast, three seeds each; most of an hour
	@.venv/bin/python -m benchmarks.quality $(ONLY)

lint: .venv/installed-dev ## check format, style and types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

lint-all: lint ## as lint, and check the types for every Python version from 3.12 on, too
	@for version in 3.12 3.13 3.14; do .venv/bin/mypy --python-version $$version || exit 1; done

format: .venv/installed-dev ## rewrite the code in the project's format
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

notebook: .venv/installed-notebook ## open a run in Jupyter: its curves and its wrong predictions
	@.venv/bin/jupyter lab notebooks/read_a_run.ipynb

lock: ## write requirements/ anew from pyproject.toml: exact versions with hashes (torch: constraints.txt)
	@$(PYTHON) requirements/lock.py $(if $(UPGRADE),--upgrade)

clean: ## remove .venv; runs, data and the shared cache stay
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt requirements/core.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 15) else f"litlab needs Python 3.11 to 3.14, this is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	@echo "installing litlab into .venv (once; a few minutes, most of them torch)"
	@test -x .venv/bin/python || $(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) .venv
	@$(LOCKED) requirements/core.txt
	@if grep -q 'include-system-site-packages = true' .venv/pyvenv.cfg; then \
		.venv/bin/python -c 'import torch' || { echo "SYSTEM_TORCH=1, but $(PYTHON) has no torch: install it there, or use make clean setup"; exit 2; }; \
	else $(PIP) install --quiet --constraint constraints.txt torch; fi
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# the extras of pyproject.toml: installed when a target first needs them
.venv/installed-%: .venv/installed requirements/%.txt
	@echo "installing what is needed for this (once): requirements/$*.txt"
	@$(LOCKED) requirements/$*.txt
	@touch $@
