# What every batch job of r1nb does once it runs. `r1nb ... --slurm` pastes this below its header; scripts/slurm/*.slurm source it.
# It expects: R1NB_PYTHON (the interpreter), R1NB_JOB (the job, as JSON), R1NB_RUN_DIR, R1NB_STAGE, R1NB_ACCELERATOR (a file, or none),
# R1NB_PROCESSES (a node), R1NB_MAX_REQUEUES.
# Near its time limit Slurm sends USR1: training saves a checkpoint and ends, and the job goes back into the queue.

set -uo pipefail
export R1NB_PYTHON R1NB_JOB R1NB_RUN_DIR R1NB_STAGE R1NB_ACCELERATOR R1NB_PROCESSES
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((15000 + SLURM_JOB_ID % 40000))
export MASTER_ADDR MASTER_PORT
restarts=${SLURM_RESTART_COUNT:-0}
echo "r1nb: $R1NB_STAGE on $SLURM_NNODES node(s) ($SLURM_JOB_NODELIST), job $SLURM_JOB_ID, restart $restarts, $(date -u +%FT%TZ)"
rm -f "$R1NB_RUN_DIR/stop"

asked=""
save_and_stop() {
  asked=yes
  echo "r1nb: the time limit is near, asking the job to save ($(date -u +%FT%TZ))"
  case $R1NB_STAGE in
    sft|grpo) touch "$R1NB_RUN_DIR/stop" ;;
    *) scancel --signal=TERM "$SLURM_JOB_ID" ;;                     # these keep every sample as it comes
  esac
}
trap save_and_stop USR1
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM INT

# `exec`, because Slurm's signals reach a task's first process only.
srun --kill-on-bad-exit=1 --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -c '
  if [ "$R1NB_STAGE" = report ]; then exec "$R1NB_PYTHON" -m r1nb.report "$R1NB_RUN_DIR"; fi
  if [ "$R1NB_ACCELERATOR" = none ]; then exec "$R1NB_PYTHON" -m r1nb.launch job "$R1NB_JOB"; fi
  exec "$R1NB_PYTHON" -m r1nb.launch accelerate --config_file "$R1NB_ACCELERATOR" \
    --num_machines "$SLURM_NNODES" --num_processes $((R1NB_PROCESSES * SLURM_NNODES)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" -m r1nb.launch job "$R1NB_JOB"' &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done            # a signal ends `wait`, not the step
wait "$step"
code=$?

if [ "$code" -ne 0 ] && [ -n "$asked" ]; then
  if [ "$restarts" -lt "$R1NB_MAX_REQUEUES" ]; then
    echo "r1nb: back into the queue (restart $((restarts + 1)) of at most $R1NB_MAX_REQUEUES)"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 30
  else
    echo "r1nb: not requeued again: it has been $restarts times (max_requeues); sbatch it anew to go on"
  fi
fi
echo "r1nb: ended with exit code $code, $(date -u +%FT%TZ)"
exit "$code"
