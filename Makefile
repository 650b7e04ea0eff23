# Two commands: `make quickstart` (the main job on sample data) and `make test` (every test a CPU can run).
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := data/sample
.DEFAULT_GOAL := help
.PHONY: help setup dev weights quickstart smoke check test fast references docs bench gpu-check faults campaign image-check contest clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# The stamp is newer than what it was made from, so a second `make setup` does nothing.
setup: $(VENV)/.stamp  ## create .venv and install the pinned dependencies of an experiment
$(VENV)/.stamp: pyproject.toml constraints.txt requirements-no-deps.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11, 3.12 or 3.13 is required, $(PYTHON) was not found; install one or set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq $(notdir $(PYTHON))-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable .
	$(BIN)/pip install --quiet --no-compile --no-deps --requirement requirements-no-deps.txt
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/|/testing/' $(VENV)/lib  # on all cores; pip has one
	@touch $@

dev: $(VENV)/.dev-stamp  ## also install what tests and checks need
$(VENV)/.dev-stamp: $(VENV)/.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

weights: setup  ## fetch and verify the model weights the quickstart needs
	$(BIN)/python -m orchestrator weights u2netp fastmtcnn tf_efficientnet_lite0

$(SAMPLE)/.complete: $(wildcard data_prep/sample/*.py) | setup
	rm -rf $(SAMPLE)
	$(BIN)/python -m data_prep.sample --out $(SAMPLE) --people 40 --seed 0
	@touch $@

quickstart: weights $(SAMPLE)/.complete  ## run the main job on sample data, from nothing to a report
	$(BIN)/python -m orchestrator submit experiments/quickstart.yaml

smoke: weights $(SAMPLE)/.complete  ## run the smallest experiment through the whole path
	$(BIN)/python -m orchestrator submit experiments/smoke.yaml

FAST := $(BIN)/python -m pytest -q -n logical --dist loadfile -m "not ray and not models and not slow and not gpu"
check: dev  ## lint, types, import rules, fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(FAST)

fast: dev  ## fast tests alone
	$(FAST)

TESTS ?= not gpu
test: dev weights  ## every test tier that a CPU can run; TESTS=markers runs some
	$(BIN)/python -m pytest -q -m "$(TESTS)" --durations=15

references: setup  ## write docs/reference from the models of the spec, the commands and an example
	$(BIN)/python docs/generate.py

docs: references  ## build docs/ as a site with a search box: build/docs/index.html
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/zensical build --clean --strict
	@echo "build/docs/index.html is written; with its search: $(BIN)/python -m http.server --directory build/docs"

bench: dev weights  ## measure against what a user would do instead; ONLY=name runs one
	$(BIN)/python -m tests.benchmarks $(if $(ONLY),--only $(ONLY)) --out bench.json

gpu-check: dev  ## what only a GPU can show, in one table and gpu.json; ONLY=name runs one row
	$(BIN)/python -m tests.gpu $(if $(ONLY),--only $(ONLY))

faults: dev weights  ## kill processes of a real run, and fuzz every reader; some minutes
	$(BIN)/python -m pytest -q tests/faults

campaign: dev weights  ## the long forms of studies and fault campaigns; each has a short form in `make test`
	$(BIN)/python -m tests.campaign.preparation
	$(BIN)/python -m tests.campaign.verdicts
	$(BIN)/python -m tests.campaign.race
	$(BIN)/python -m tests.campaign.selection_bias
	$(BIN)/python -m tests.campaign.checkpoints
	$(BIN)/python -m tests.campaign.kills
	$(BIN)/python -m tests.campaign.faults
	$(BIN)/python -m tests.campaign.faults --surroundings
	$(BIN)/python -m tests.campaign.sharing
	$(BIN)/python -m tests.campaign.together
	$(BIN)/python -m tests.campaign.faults --inputs 60

image-check: dev  ## build the image without an engine and run it as a cluster; needs root and Debian's mmdebstrap, buildah
	$(BIN)/pip install --quiet --constraint constraints.txt kubernetes-validate
	$(BIN)/python -m pytest -q tests/images tests/test_docker.py
	$(BIN)/python -m tests.images.check

contest: dev weights  ## the contest's tables, run again on real portraits, and RESULTS.md; ONLY=table runs one
	$(BIN)/python -m orchestrator weights tf_efficientnet_lite1 tf_efficientnet_lite2
	$(BIN)/python -m tests.campaign.contest $(if $(ONLY),--only $(ONLY))

clean:  ## remove the environment and the sample data
	rm -rf $(VENV) $(SAMPLE)
