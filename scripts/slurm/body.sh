# What every batch job of r1nb does once it runs. `r1nb ... --slurm` pastes this below its header;
# scripts/slurm/*.slurm source it.
# It expects:
#   R1NB_PYTHON         the interpreter
#   R1NB_JOB            the job, as JSON
#   R1NB_RUN_DIR, R1NB_STAGE
#   R1NB_ACCELERATOR    a file, or none
#   R1NB_PROCESSES      processes a node
#   R1NB_MAX_REQUEUES
#   R1NB_NODES_WAIT     seconds for all nodes to meet (default 60); 0: the nodes are not compared
# and for a job with a server:
#   R1NB_SERVER         its command
#   R1NB_SERVER_WAIT    seconds until it has to answer
#   R1NB_SERVER_ON      last: on a node of its own; all: the command runs on every node, the first
#                       answers, and the job runs beside it
#   R1NB_SERVER_MODEL   the model to ask once before the job starts
# Near its time limit Slurm sends USR1: training saves a checkpoint and ends, and the job goes back
# into the queue, unless it is cancelled meanwhile.

set -uo pipefail
R1NB_NODES=$SLURM_NNODES
export R1NB_PYTHON R1NB_JOB R1NB_RUN_DIR R1NB_STAGE R1NB_ACCELERATOR R1NB_PROCESSES R1NB_NODES
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts[0]}
# This port and the three above it.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000 * 4))
export MASTER_ADDR MASTER_PORT
# srun does not take over --cpus-per-task. Where a site binds tasks to CPUs, the one task of a node
# would get one CPU, and its ranks would share that.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
export SLURM_CPU_BIND=none
restarts=${SLURM_RESTART_COUNT:-0}
say() { echo "r1nb: $*, $(date -u +%FT%TZ)"; }
say "$R1NB_STAGE on $SLURM_NNODES node(s) ($SLURM_JOB_NODELIST), job $SLURM_JOB_ID," \
  "restart $restarts"
rm -f "$R1NB_RUN_DIR/stop"

asked="" ends=0 serving=""
save_and_stop() {
  asked=yes
  ends=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* EndTime=\([^ ]*\).*/\1/p')
  ends=$(date -d "$ends" +%s 2>/dev/null || echo 0)
  say "the time limit is near, asking the job to save"
  case $R1NB_STAGE in
    sft|grpo) touch "$R1NB_RUN_DIR/stop" ;;
    # The other stages write every sample as soon as it is complete.
    *) scancel --signal=TERM "$SLURM_JOB_ID" ;;
  esac
}
# TERM before the limit is somebody's scancel, or a preemption after which Slurm itself requeues.
end_step() {
  if [ "$(date +%s)" -lt "$ends" ]; then asked=""; fi
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap save_and_stop USR1
trap end_step TERM INT

# The end: where the job was asked to save, it goes back into the queue.
leave() {
  code=$1
  if [ "$code" -ne 0 ] && [ -n "$asked" ]; then
    if [ "$restarts" -lt "$R1NB_MAX_REQUEUES" ]; then
      say "back into the queue (restart $((restarts + 1)) of at most $R1NB_MAX_REQUEUES)"
      scontrol requeue "$SLURM_JOB_ID"
      sleep 30
    else
      say "not requeued again: it has been $restarts times (max_requeues);" \
        "submit it again to resume"
    fi
  fi
  say "ended with exit code $code"
  exit "$code"
}

# Compare the nodes before anything long begins: a job on nodes that differ may hang.
every_node=(--nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1)
if [ "$R1NB_STAGE" != report ] && [ "${R1NB_NODES_WAIT:-}" != 0 ]; then
  token=$R1NB_RUN_DIR/logs/.nodes-$SLURM_JOB_ID
  mkdir -p "${token%/*}" && touch "$token"
  srun "${every_node[@]}" "$R1NB_PYTHON" -m r1nb.nodes
  code=$?
  rm -f "$token"
  if [ "$code" -ne 0 ]; then leave "$code"; fi
fi

# A server: on the last node, with the training on the others; or over all nodes, with its client
# beside it.
server_failed() {
  if [ -z "$asked" ]; then say "the server $1; the end of its log"; tail -n 40 "$log"; fi
  kill "$serving" 2>/dev/null
  leave 1
}
share=()
if [ -n "${R1NB_SERVER:-}" ]; then
  if [ "${R1NB_SERVER_ON:-last}" = all ]; then
    R1NB_NODES=1 server=${hosts[0]} health=/v1/models share=(--overlap --gres=none)
    place=(--overlap "${every_node[@]}" --kill-on-bad-exit=1)
  else
    R1NB_NODES=$((SLURM_NNODES - 1)) health=/health/
    server=${hosts[$R1NB_NODES]}
    place=(--nodes=1 --ntasks=1 --nodelist="$server")
  fi
  port=$((MASTER_PORT + 1)) log=$R1NB_RUN_DIR/logs/server-$SLURM_JOB_ID.log
  mkdir -p "${log%/*}"
  export R1NB_SERVER_PORT=$port R1NB_SERVER_URL=http://$server:$port R1NB_SERVER_WAIT
  say "a server on $server: $R1NB_SERVER"
  srun "${place[@]}" --output="$log" --open-mode=append bash -c "$R1NB_SERVER" &
  serving=$!
  SECONDS=0
  answers='import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)'
  until "$R1NB_PYTHON" -c "$answers" "$R1NB_SERVER_URL$health" 2>/dev/null; do
    kill -0 "$serving" 2>/dev/null || server_failed "died before it answered"
    [ "$SECONDS" -lt "$R1NB_SERVER_WAIT" ] ||
      server_failed "did not answer within $R1NB_SERVER_WAIT s"
    sleep 2
  done
  say "the server answers after $SECONDS s"
  if [ -n "${R1NB_SERVER_MODEL:-}" ]; then
    "$R1NB_PYTHON" -m r1nb.sampling "$R1NB_SERVER_URL/v1" "$R1NB_SERVER_MODEL" ||
      server_failed "does not answer a question"
  fi
fi

# `exec`, because Slurm's signals reach a task's first process only.
srun "${share[@]}" --kill-on-bad-exit=1 \
  --nodes="$R1NB_NODES" --ntasks="$R1NB_NODES" --ntasks-per-node=1 \
  --nodelist="$(IFS=,; echo "${hosts[*]:0:$R1NB_NODES}")" bash -c '
  if [ "$R1NB_STAGE" = report ]; then exec "$R1NB_PYTHON" -m r1nb.report "$R1NB_RUN_DIR"; fi
  if [ "$R1NB_ACCELERATOR" = none ]; then exec "$R1NB_PYTHON" -m r1nb.jobs job "$R1NB_JOB"; fi
  exec "$R1NB_PYTHON" -m r1nb.jobs accelerate --config_file "$R1NB_ACCELERATOR" \
    --num_machines "$R1NB_NODES" --num_processes $((R1NB_PROCESSES * R1NB_NODES)) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER_ADDR" \
    --main_process_port "$MASTER_PORT" -m r1nb.jobs job "$R1NB_JOB"' &
step=$!
# A signal ends `wait`, not the step.
while kill -0 "$step" 2>/dev/null; do
  wait -n "$step" ${serving:+"$serving"}
  if [ -n "$serving" ] && ! kill -0 "$serving" 2>/dev/null && kill -0 "$step" 2>/dev/null; then
    scancel --signal=TERM "$SLURM_JOB_ID"
    wait "$step"
    server_failed "died during the job"
  fi
done
wait "$step"
code=$?
if [ -n "$serving" ]; then kill "$serving" 2>/dev/null; wait "$serving"; fi
if [ "$code" -gt 128 ]; then "$R1NB_PYTHON" -m r1nb.jobs settle "$code"; fi
# A process that left by os._exit(0) has not completed its run.
if [ "$code" -eq 0 ]; then "$R1NB_PYTHON" -m r1nb.jobs settle 0 || code=$?; fi

leave "$code"
