# A vLLM server over the nodes of a job step, one task a node:
# bash scripts/slurm/serve.sh MODEL [OPTION OF vllm serve ...]
# On one node it is vLLM alone. On several, each task starts vLLM with its node's rank; vLLM joins
# them by itself (no Ray). The first listens on R1NB_SERVER_PORT, the others have no HTTP server.
# Two more ports after it are vLLM's own.
# R1NB_PYTHON: the interpreter; vllm is in the same folder.

set -uo pipefail
# GiB for the KV cache of a server on a CPU
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-2}
bin=$(dirname "${R1NB_PYTHON:-$(command -v python)}")
model=$1; shift
serve=("$bin/vllm" serve "$model" --host 0.0.0.0 --port "$R1NB_SERVER_PORT" "$@")
nodes=${SLURM_STEP_NUM_NODES:-1}
if [ "$nodes" -gt 1 ]; then
  mapfile -t hosts < <(scontrol show hostnames "$SLURM_STEP_NODELIST")
  serve+=(--nnodes "$nodes" --node-rank "$SLURM_PROCID" --master-addr "${hosts[0]}"
    --master-port $((R1NB_SERVER_PORT + 1)) --data-parallel-rpc-port $((R1NB_SERVER_PORT + 2)))
  if [ "$SLURM_PROCID" -ne 0 ]; then serve+=(--headless); fi
fi
exec "${serve[@]}"
