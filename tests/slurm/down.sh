#!/bin/bash
# Stop what up.sh started in a folder: ending the first process of a box ends all others in it.
#
#     tests/slurm/down.sh FOLDER
set -euo pipefail
RUN=$(realpath "${1:?usage: down.sh FOLDER}")

is_alive() {
  [ -d "/proc/$1" ] && ! grep -q "^State:.*Z" "/proc/$1/status" 2>/dev/null
}

for name in n1 n2 ctl; do
  [ -s "$RUN/pid/$name" ] || continue
  process=$(cat "$RUN/pid/$name")
  # The number may belong to another process by now; only the testbed's processes have this mount.
  if grep -q " /etc/slurm " "/proc/$process/mounts" 2>/dev/null; then
    kill -KILL "$process"
    for _ in $(seq 600); do is_alive "$process" && sleep 0.1 || break; done
    # It is killed, but ends only when all of its processes have been waited for.
    ! is_alive "$process" || echo "down.sh: process $process of $name has not ended yet" >&2
  fi
  rm -f "$RUN/pid/$name"
done
