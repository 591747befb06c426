# `make help` lists the targets. VENV and PYTHON can be set:
# make setup VENV=~/envs/r1nb PYTHON=python3.12
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?= dev,lab
SEED ?= 0

# Values from the command line or the environment are text: not expanded here, and handed to
# recipes through the environment only ("$$MODEL").
VALUES := MODEL TASK ARGS PARALLEL NUM_GPUS RECIPE SEED RUN RUNS SLOW VENV PYTHON EXTRAS
$(foreach v,$(VALUES),$(if $(filter command environment,$(firstword $(origin $(v)))),\
  $(eval override $(v) := $$(value $(v)))))
export $(VALUES)
export PATH := $(abspath $(VENV)/bin):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup ready quickstart zero r1 evaluate test lab export docs docs-serve clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup:  ## make the virtual environment, install r1nb with EXTRAS (default: dev,lab); can be rerun
	@bash scripts/setup.sh

ready:
	@test -x "$$VENV/bin/r1nb" || bash scripts/setup.sh

quickstart:  ## the whole pipeline on a real 135M model, on a CPU: report in runs/quickstart
	@bash scripts/targets.sh quickstart

zero:  ## R1-Zero on the same model: GRPO without any fine-tuning before it; report in runs/zero
	@bash scripts/targets.sh zero

r1:  ## R1's stages in turn: SFT, GRPO, rejection sampling, SFT, GRPO; report in runs/r1
	@bash scripts/targets.sh r1

evaluate:  ## MODEL=owner/name TASK=math_500 [PARALLEL=data|tensor NUM_GPUS=8]: a model's scores
	@bash scripts/targets.sh evaluate

# With SLOW=1 tests/test_outputs.py executes the same cells of the notebooks, and reads the outputs.
# What fails beside the other worker, where a deadline can be too short, is run again alone.
test: ready  ## [SLOW=1]: notebooks, export in sync, pytest; with SLOW=1 the tests marked slow too
	$(if $(SLOW),,nbdev-test nbs --n-workers 0 --skip-folder-re '^(jobs|[_.])')
	pytest -n 2 --dist loadfile $(if $(SLOW),,-m "not slow") || \
	  pytest --last-failed --last-failed-no-failures none

lab:  ## JupyterLab, on its start page [ARGS="--no-browser --port 9000"]
	@bash scripts/targets.sh lab

export: ready  ## notebooks -> r1nb/, and clean the notebooks
	nbdev-export && nbdev-clean

docs: ready  ## [RUN=1] [RUNS=folder]: the site in _docs; RUN=1 executes changed notebooks first
	@python -c 'import material, latex2mathml' 2>/dev/null || python -m pip install -q -e '.[docs]'
	python scripts/build_docs.py $${RUN:+--run} $${RUNS:+--runs "$$RUNS"}

docs-serve: ready  ## the documentation on 127.0.0.1:8000, made again when a notebook changes
	@python -c 'import material, latex2mathml' 2>/dev/null || python -m pip install -q -e '.[docs]'
	python scripts/build_docs.py --serve

clean:  ## remove what can be made again (not runs/, not the virtual environment)
	rm -rf _docs _proc build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path "./$$VENV/*" -prune -exec rm -rf {} +
