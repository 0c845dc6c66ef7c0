# Sourced before the command of a rule in a Slurm job (workflow/rules/common.smk). Some minutes before the job's time
# limit it sends SIGUSR1 to the command, which saves its progress and exits. The job is then requeued, and resumes.
# Slurm's own SIGTERM and SIGUSR1 have the same effect. A job is not requeued after scancel, nor if it was submitted
# without --requeue.
#
# This script watches the time itself because a signal from Slurm (sbatch --signal) does not reach jobs of an array and
# trainings on several nodes, and would end Snakemake if it came between two jobs of a group.

# Seconds before the time limit at which the command is stopped; at most half of the job's time.
WARN_SECONDS=${STILLHOUSE_WARN_SECONDS:-300}
# Limits the restarts of a job that makes no progress within its time.
MOST_RESTARTS=${STILLHOUSE_MOST_RESTARTS:-30}

SLURM_NAME=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
SLURM_NAME=${SLURM_NAME:-$SLURM_JOB_ID}

# Prints the job's state, start time, end time and number of restarts; nothing if squeue fails.
query_job() {
  local format="State:30,StartTime:30,EndTime:30,RestartCnt:30"
  timeout 60 squeue --noheader --array --jobs "$SLURM_NAME" --Format "$format" || true
}

# Prints the seconds until the command has to stop; `none` without a time limit, nothing if squeue fails.
time_left() {
  local state begin end restarts seconds
  read -r state begin end restarts < <(query_job) || return 0
  [[ $begin == *T* && $end == *T* ]] || { echo none; return 0; }
  begin=$(date -d "$begin" +%s) end=$(date -d "$end" +%s)
  seconds=$(((end - begin) / 2 < WARN_SECONDS ? (end - begin) / 2 : WARN_SECONDS))
  echo $((end - seconds - $(date +%s)))
}

# Waits, then signals the command. Checks the limit at least once an hour, since it may be changed; if squeue fails, the
# previous limit applies.
watch_time() {
  local left=$1 nap answer sleeping=
  trap 'kill $sleeping; exit' TERM
  trap '' USR1
  while [[ -z $left ]] || ((left > 0)); do
    nap=$((${left:-60} < 3600 ? ${left:-60} : 3600))
    sleep "$nap" &
    sleeping=$!
    wait $sleeping
    sleeping=
    answer=$(time_left)
    [[ $answer != none ]] || return 0
    left=${answer:-${left:+$((left - nap))}}
  done
  kill -USR1 $$ $(grep -l "^PPid:[[:space:]]*$$\$" /proc/[0-9]*/status 2> /dev/null | cut -d / -f 3)
}

# Retries for some minutes, since Slurm's controller may be unavailable.
requeue_job() {
  local state begin end restarts attempt
  command -v squeue > /dev/null || return 0
  for attempt in {1..60}; do
    # While Slurm sends a signal, the state is SIGNALING, of a job that is cancelled and of one that goes on.
    if read -r state begin end restarts < <(query_job) && [[ $state != SIGNALING ]]; then
      [[ $state == RUNNING ]] || return 0 # cancelled
      if ((restarts >= MOST_RESTARTS)); then
        echo "Slurm has restarted this job $restarts times: it needs a longer runtime" >&2
        return 0
      fi
      echo "stopped near its time limit or by a signal: job $SLURM_NAME is requeued" >&2
      ! timeout 60 scontrol requeue Incomplete "$SLURM_NAME" || return 0
    fi
    sleep 3
  done
}

# Requeues the job if the command was stopped: by the signal (128 + SIGTERM or SIGUSR1), or by itself with the same exit
# code. Any other exit code is a failure of the command.
end_job() {
  local code=$1 attempt
  [[ -z $watching ]] || kill "$watching" 2> /dev/null || true
  # Slurm signals one process after the other: the command may have ended before this shell has its signal.
  for attempt in {1..10}; do
    [[ -z $stopped && ($code == 143 || $code == 138) ]] || break
    sleep 1 &
    wait $! || true
  done
  if [[ $stopped && ($code == 143 || $code == 138) ]]; then requeue_job; fi
  exit "$code"
}

stopped= watching= left=none
trap 'stopped=yes' TERM USR1
trap 'end_job $?' EXIT

# Without squeue, as in a container, the time limit is unknown.
! command -v squeue > /dev/null || left=$(time_left)
# An earlier job of the group has used up the time.
if [[ $left && $left != none ]] && ((left <= 0)); then stopped=yes; fi
[[ -z $stopped ]] || exit 143
if [[ $left != none ]]; then
  watch_time "$left" < /dev/null > /dev/null 2>&1 &
  watching=$!
fi
