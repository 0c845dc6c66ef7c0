# Sourced before the command of a rule in a Slurm job (rules/common.smk). Slurm sends SIGTERM to all processes of the job
# some minutes before its time limit (--signal in profiles/slurm/config.yaml): the command keeps what it has done and ends,
# this shell outlives it, and the job goes back to the queue, from where it goes on. Without --requeue, or after scancel,
# it does not.

# A job that gets nowhere in its time must not come back for ever.
MOST_RESTARTS=30
# Where the rule itself calls srun, the signal reaches srun's processes alone: what fails so many seconds before the time
# limit is taken to have been stopped. If it was not, it fails again at once, and then stays so.
NEAR=600

stopped=
trap 'stopped=yes' TERM
trap 'code=$?; [[ $code == 0 ]] || requeue_job; exit $code' EXIT

requeue_job() {
  local state end
  read -r state end < <(squeue --noheader --jobs "$SLURM_JOB_ID" --format "%T %e")
  [[ $state == RUNNING ]] || return 0
  [[ $stopped ]] || { [[ $end == *T* ]] && (($(date -d "$end" +%s) - $(date +%s) < NEAR)); } || return 0
  if ((${SLURM_RESTART_COUNT:-0} >= MOST_RESTARTS)); then
    echo "Slurm has started this job $MOST_RESTARTS times again: it needs a longer runtime" >&2
    return 0
  fi
  echo "stopped near its time limit: job $SLURM_JOB_ID goes back to the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
}
