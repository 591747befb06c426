#!/usr/bin/env bash
# What `make quickstart`, `make zero`, `make r1`, `make evaluate` and `make lab` do:
# bash scripts/targets.sh quickstart|zero|r1|evaluate|lab
# The values (MODEL, TASK, ARGS, ...) come through the environment and stay values: none is ever
# part of a program.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${MODEL:=}" "${TASK:=}" "${PARALLEL:=}" "${NUM_GPUS:=}" "${ARGS:=}" "${SEED:=0}"
: "${VENV:=.venv}" "${EXTRAS:=dev,lab}" "${PYTHON:=$(command -v python3.11 || command -v python3)}"
export VENV EXTRAS PYTHON

refuse() { printf '%s\n' "$*"; exit 2; }
set_up() { if [ ! -x "$VENV/bin/r1nb" ]; then bash scripts/setup.sh || exit; fi; }
run() { printf '%q ' "$@"; echo; exec "$@"; }

# The words of ARGS, with quotes around those that have spaces in them. xargs splits as a shell
# does, and runs nothing.
more=()
split_args() {
  local words word
  if [ -z "${ARGS//[[:space:]]/}" ]; then return; fi
  words=$(printf '%s' "$ARGS" | xargs printf '%s\n') ||
    refuse "ARGS: $ARGS cannot be split into words; are the quotes closed?"
  while IFS= read -r word; do more+=("$word"); done <<< "$words"
}

# A name for a folder out of the name of a model and of tasks: no slash, no space, no leading dot.
folder_of() {
  local model=${1%"${1##*[!/]}"} tasks=$2 name
  name=${model##*/}-$tasks
  name=${name//[^[:alnum:]._+@=-]/-}
  printf '%s' "${name#"${name%%[!.-]*}"}" | cut -c1-200
}

case ${1:-} in
  quickstart | zero | r1)
    case $SEED in *[!0-9]*) refuse "SEED: '$SEED' is not a whole number" ;; esac
    case $1 in
      quickstart) recipe=quickstart.yaml ;;
      zero) recipe=r1-zero/laptop.yaml ;;
      r1) recipe=r1/laptop.yaml ;;
    esac
    set_up
    if [ "${SEED:-0}" != 0 ]; then more=(--seed "$SEED" --name "$1-seed$SEED"); fi
    run r1nb pipeline "${RECIPE:-scripts/recipes/$recipe}" ${more[@]+"${more[@]}"}
    ;;
  evaluate)
    if [ -z "$MODEL" ] || [ -z "${TASK//[[:space:]]/}" ]; then
      refuse 'usage: make evaluate MODEL=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B TASK=aime24' \
        '[PARALLEL=data|tensor NUM_GPUS=8] [ARGS="--limit 10"]'
    fi
    read -r -a tasks <<< "${TASK//$'\n'/ }"
    split_args
    set_up
    name=$(folder_of "$MODEL" "$(IFS=-; echo "${tasks[*]}")")
    run r1nb evaluate --model "$MODEL" --tasks "${tasks[@]}" --run-dir "runs/evaluate/$name" \
      ${PARALLEL:+--parallel "$PARALLEL"} ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} \
      ${more[@]+"${more[@]}"}
    ;;
  lab)
    split_args
    set_up
    if [ "$(id -u)" = 0 ]; then more=(--allow-root ${more[@]+"${more[@]}"}); fi
    LD_PRELOAD=$(python -c '
from r1nb.ranks import job_environment
print(job_environment().get("LD_PRELOAD", ""))')
    export LD_PRELOAD
    run jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb \
      ${more[@]+"${more[@]}"}
    ;;
  *) refuse "usage: bash scripts/targets.sh quickstart|zero|r1|evaluate|lab" ;;
esac
