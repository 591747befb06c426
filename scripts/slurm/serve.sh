# A vLLM server over the nodes of a job step, one task a node:
# bash scripts/slurm/serve.sh MODEL [OPTION OF vllm serve ...]
# On one node it is vLLM alone. On several, Ray joins them: the first task starts its head and the
# server, the others its workers. The server listens on R1NB_SERVER_PORT.
# R1NB_PYTHON: the interpreter; vllm and ray are in the same folder.
# R1NB_SERVER_WAIT: seconds for the nodes to join.

set -uo pipefail
# GiB for the KV cache of a server on a CPU
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-2}
bin=$(dirname "${R1NB_PYTHON:-$(command -v python)}")
model=$1; shift
serve=("$bin/vllm" serve "$model" --host 0.0.0.0 --port "$R1NB_SERVER_PORT" "$@")
nodes=${SLURM_STEP_NUM_NODES:-1}
if [ "$nodes" -eq 1 ]; then exec "${serve[@]}"; fi

mapfile -t hosts < <(scontrol show hostnames "$SLURM_STEP_NODELIST")
head=${hosts[0]}:$((R1NB_SERVER_PORT + 1))
if [ "$SLURM_PROCID" -ne 0 ]; then
  for ((i = 0; i < ${R1NB_SERVER_WAIT:-600}; i += 5)); do
    "$bin/ray" start --address="$head" --block && exit 0
    sleep 5
  done
  echo "serve.sh: no Ray head at $head" >&2
  exit 1
fi
"$bin/ray" start --head --port="${head##*:}" --block &
ray=$!
trap 'kill "$ray" 2>/dev/null' EXIT
export RAY_ADDRESS=$head
count='import ray
ray.init(address="auto", logging_level="ERROR")
print(sum(n["Alive"] for n in ray.nodes()))'
for ((i = 0; ; i += 5)); do
  joined=$("$bin/python" -c "$count" 2>/dev/null || echo 0)
  if [ "$joined" = "$nodes" ]; then break; fi
  if [ "$i" -ge "${R1NB_SERVER_WAIT:-600}" ]; then
    echo "serve.sh: $joined of $nodes nodes have joined Ray after $i s" >&2
    exit 1
  fi
  sleep 5
done
"${serve[@]}" --distributed-executor-backend ray &
server=$!
trap 'kill "$server" "$ray" 2>/dev/null' TERM INT
wait "$server"
