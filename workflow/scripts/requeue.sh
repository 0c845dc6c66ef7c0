# Sourced before the command of a rule in a Slurm job (rules/common.smk). Some minutes before the job's time limit the
# command is told by SIGUSR1 to keep what it has done and to end; this shell outlives it, and the job goes back to the
# queue, from where it goes on. So it does after a SIGTERM or SIGUSR1 of Slurm's own. Without --requeue, or after scancel,
# it does not.
#
# The time is watched here, since a signal of Slurm's (sbatch --signal) misses jobs of an array and trainings on several
# nodes, and would end Snakemake itself where it comes between two jobs of a group.

# So many seconds before the limit, but not before half of the job's time.
WARN_SECONDS=${STILLHOUSE_WARN_SECONDS:-300}
# A job that gets nowhere in its time must not come back for ever.
MOST_RESTARTS=${STILLHOUSE_MOST_RESTARTS:-30}

SLURM_NAME=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
SLURM_NAME=${SLURM_NAME:-$SLURM_JOB_ID}

# State, begin, end and number of restarts of the job; nothing where Slurm does not answer.
ask_slurm() {
  local format="State:30,StartTime:30,EndTime:30,RestartCnt:30"
  timeout 60 squeue --noheader --array --jobs "$SLURM_NAME" --Format "$format" || true
}

# Seconds until the command is to be told; `none` without a time limit, nothing where Slurm does not answer.
time_left() {
  local state begin end restarts seconds
  read -r state begin end restarts < <(ask_slurm) || return 0
  [[ $begin == *T* && $end == *T* ]] || { echo none; return 0; }
  begin=$(date -d "$begin" +%s) end=$(date -d "$end" +%s)
  seconds=$(((end - begin) / 2 < WARN_SECONDS ? (end - begin) / 2 : WARN_SECONDS))
  echo $((end - seconds - $(date +%s)))
}

# Asks at least once an hour, since a limit may be changed; what was known holds where Slurm does not answer.
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

# Slurm's controller may be away for a while; there are some minutes.
requeue_job() {
  local state begin end restarts attempt
  command -v squeue > /dev/null || return 0
  for attempt in {1..20}; do
    if read -r state begin end restarts < <(ask_slurm); then
      [[ $state == RUNNING ]] || return 0 # it was cancelled
      if ((restarts >= MOST_RESTARTS)); then
        echo "Slurm has started this job $restarts times again: it needs a longer runtime" >&2
        return 0
      fi
      echo "stopped near its time limit, or by a signal: job $SLURM_NAME goes back to the queue" >&2
      ! timeout 60 scontrol requeue Incomplete "$SLURM_NAME" || return 0
    fi
    sleep 10
  done
}

# What a command ends with that was told, by a signal or by itself (128 + SIGTERM, SIGUSR1); all else is its own failure.
end_job() {
  local code=$1
  [[ -z $watching ]] || kill "$watching" 2> /dev/null || true
  if [[ $stopped && ($code == 143 || $code == 138) ]]; then requeue_job; fi
  exit "$code"
}

stopped= watching= left=none
trap 'stopped=yes' TERM USR1
trap 'end_job $?' EXIT

# Without squeue, as in a container, nothing is known of the time.
! command -v squeue > /dev/null || left=$(time_left)
# The job before this one in a group has taken the time.
if [[ $left && $left != none ]] && ((left <= 0)); then stopped=yes; fi
[[ -z $stopped ]] || exit 143
if [[ $left != none ]]; then
  watch_time "$left" < /dev/null > /dev/null 2>&1 &
  watching=$!
fi
