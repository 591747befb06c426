# `make help` lists the targets. VENV and PYTHON can be set: make setup VENV=~/envs/r1nb PYTHON=python3.12
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?= dev,lab
BIN := $(VENV)/bin
SEED ?= 0
RECIPE ?= scripts/recipes/quickstart.yaml
SPACE := $(subst ,, )
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart evaluate test lab export docs docs-serve clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup:  ## make the virtual environment and install r1nb with EXTRAS (default: dev,lab); can be run again
	@PYTHON="$(PYTHON)" VENV="$(VENV)" EXTRAS="$(EXTRAS)" bash scripts/setup.sh

$(BIN)/r1nb:
	@$(MAKE) --no-print-directory setup

quickstart: $(BIN)/r1nb  ## the whole pipeline on a real 135M model, on a CPU: report in runs/quickstart
	r1nb pipeline $(RECIPE) $(if $(filter-out 0,$(SEED)),--seed $(SEED) --name quickstart-seed$(SEED))

evaluate: $(BIN)/r1nb  ## MODEL=owner/name TASK=math_500 [PARALLEL=data|tensor NUM_GPUS=8] [ARGS="--key value"]: a model on benchmarks
	@test -n "$(MODEL)" -a -n "$(TASK)" || { echo 'usage: make evaluate MODEL=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B TASK=aime24 [PARALLEL=data|tensor NUM_GPUS=8] [ARGS="--limit 10"]'; exit 2; }
	r1nb evaluate --model $(MODEL) --tasks $(TASK) --run-dir runs/evaluate/$(notdir $(MODEL))-$(subst $(SPACE),-,$(subst :,-,$(TASK))) $(if $(PARALLEL),--parallel $(PARALLEL)) $(if $(NUM_GPUS),--num_gpus $(NUM_GPUS)) $(ARGS)

test: $(BIN)/r1nb  ## [SLOW=1]: notebooks, export in sync, pytest; with SLOW=1 the tests marked slow too
	nbdev-test nbs --n-workers 0 --skip-folder-re '^(jobs|[_.])'
	pytest $(if $(SLOW),,-m "not slow")

lab: $(BIN)/r1nb  ## JupyterLab, on its start page [ARGS="--no-browser --port 9000"]
	LD_PRELOAD="$$(python -c 'from r1nb.launch import job_environment; print(job_environment().get("LD_PRELOAD", ""))')" jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

export: $(BIN)/r1nb  ## notebooks -> r1nb/, and clean the notebooks
	nbdev-export && nbdev-clean

docs: $(BIN)/r1nb  ## [RUN=1] [RUNS=folder]: the documentation site in _docs; RUN=1 executes changed notebooks first
	@python -c 'import material, latex2mathml' 2>/dev/null || python -m pip install -q -e '.[docs]'
	python scripts/build_docs.py $(if $(RUN),--run) $(if $(RUNS),--runs $(RUNS))

docs-serve: $(BIN)/r1nb  ## the documentation on 127.0.0.1:8000, made again when a notebook changes
	@python -c 'import material, latex2mathml' 2>/dev/null || python -m pip install -q -e '.[docs]'
	python scripts/build_docs.py --serve

clean:  ## remove what can be made again (not runs/, not the virtual environment)
	rm -rf _docs _proc build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
