# Sourced before the command of a rule in a Slurm job (rules/common.smk). Slurm sends SIGTERM to all processes of the job
# some minutes before its time limit (--signal in profiles/slurm/config.yaml): the command keeps what it has done and ends,
# this shell outlives it, and the job goes back to the queue, from where it goes on. Without --requeue, or after scancel,
# it does not.

# A job that gets nowhere in its time must not come back for ever.
MOST_RESTARTS=30

stopped=
trap 'stopped=yes' TERM
trap 'code=$?; [[ $code == 0 || ! $stopped ]] || requeue_job; exit $code' EXIT

requeue_job() {
  if ((${SLURM_RESTART_COUNT:-0} >= MOST_RESTARTS)); then
    echo "Slurm has started this job $MOST_RESTARTS times again: it needs a longer runtime" >&2
  elif [[ $(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then
    echo "stopped by SIGTERM: job $SLURM_JOB_ID goes back to the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
}
