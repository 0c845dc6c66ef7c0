#!/bin/bash
# Start a real Slurm with a controller (ctl) and two compute nodes (n1, n2) on one machine, for the tests. down.sh
# stops it.
#
#     tests/slurm/up.sh FOLDER         then: FOLDER/in sinfo, FOLDER/in srun -N2 hostname
#
# Each of the three is a box with network, host name, mounts, processes and IPC of its own. A bridge joins them. They
# reach nothing outside, and write nothing outside FOLDER. This needs root, and once:
#     apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2 procps
# FOLDER must not exist, and everybody must be able to enter the folders above it (munge requires that).
set -euo pipefail
RUN=$(realpath -m "${1:?usage: up.sh FOLDER}")
HERE=$(dirname "$(realpath "$0")")

fail() {
  echo "up.sh: $*" >&2
  exit 1
}

wait_for() { # wait_for SECONDS COMMAND...: until the command succeeds
  local tries=$(($1 * 10))
  shift
  for _ in $(seq "$tries"); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  return 1
}

write_files() {
  [ ! -e "$RUN" ] || fail "expected a new folder, found $RUN"
  mkdir -p "$RUN"/{munge,etc,state,spool/n1,spool/n2,log,pid}
  chmod 0755 "$RUN" "$RUN/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$RUN/munge/key")
  printf '%s\n' "127.0.0.1 localhost" "10.77.0.1 ctl" "10.77.0.11 n1" "10.77.0.12 n2" >"$RUN/etc/hosts"
  sed "s|@RUN@|$RUN|g" "$HERE/slurm.conf" >"$RUN/etc/slurm.conf"
  # No job uses the GPU, so any device file stands for it.
  echo "NodeName=n[1-2] Name=gpu File=/dev/null" >"$RUN/etc/gres.conf"
  cat >"$RUN/in" <<END
#!/bin/bash
# Run a command in the controller's box, or with BOX=n1 in a node's.
exec nsenter --target "\$(cat "$RUN/pid/\${BOX:-ctl}")" --all --wd="\$PWD" "\$@"
END
  chmod +x "$RUN/in"
}

# When the first process of a box ends, all others end. FOLDER/pid/NAME holds its number.
make_box() {
  local name=$1 outer
  unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc bash -c '
    hostname "$1" && ip link set lo up
    mount --bind "$2/etc/hosts" /etc/hosts && mount --bind "$2/etc" /etc/slurm && mount -t tmpfs tmpfs /dev/shm
    touch "$2/pid/$1.ready" && while :; do sleep 3600 & wait $!; done
  ' _ "$name" "$RUN" </dev/null >"$RUN/log/$name.box" 2>&1 &
  outer=$!
  wait_for 10 test -e "$RUN/pid/$name.ready" || fail "$(cat "$RUN/log/$name.box")"
  pgrep -P "$outer" >"$RUN/pid/$name"
}

join_boxes() {
  local control node index
  control=$(cat "$RUN/pid/ctl")
  nsenter -t "$control" -n ip link add bridge0 type bridge
  nsenter -t "$control" -n ip addr add 10.77.0.1/24 dev bridge0
  nsenter -t "$control" -n ip link set bridge0 up
  for index in 1 2; do
    node=$(cat "$RUN/pid/n$index")
    nsenter -t "$control" -n ip link add "to_n$index" type veth peer name eth0 netns "$node"
    nsenter -t "$control" -n ip link set "to_n$index" master bridge0 up
    nsenter -t "$node" -n ip addr add "10.77.0.1$index/24" dev eth0
    nsenter -t "$node" -n ip link set eth0 up
  done
}

start_daemon() { # start_daemon BOX COMMAND...
  local box=$1
  shift
  BOX=$box "$RUN/in" "$@" </dev/null >"$RUN/log/$box.$1.out" 2>&1 &
}

is_keyed() {
  munge -S "$RUN/munge/socket" -n | unmunge -S "$RUN/munge/socket"
}

is_idle() {
  [ "$("$RUN/in" sinfo -h -N -o %T | sort | uniq -c | xargs)" = "2 idle" ]
}

write_files
for name in ctl n1 n2; do make_box "$name"; done
join_boxes
start_daemon ctl munged --foreground --key-file "$RUN/munge/key" --socket "$RUN/munge/socket" \
  --pid-file "$RUN/munge/pid" --log-file "$RUN/munge/log" --seed-file "$RUN/munge/seed"
wait_for 10 is_keyed || fail "munged did not answer: $(cat "$RUN/log/ctl.munged.out")"
start_daemon ctl slurmctld -D
for name in n1 n2; do start_daemon "$name" slurmd -D -N "$name"; done
wait_for 60 is_idle || fail "the nodes did not come up: $("$RUN/in" sinfo -N -l; tail -n 20 "$RUN"/log/*)"
