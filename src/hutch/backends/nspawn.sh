# A container. The main process becomes systemd-nspawn, in the cgroup `machine`. It puts what becomes PID 1 into the cgroup
# `payload` before it lets it go on, and there that is frozen until `pre_exec` is through. What installs the seccomp filter
# of the main process loads itself while everything is made ready, and waits for the word that it is.

begin() {
  for pipe in said ready; do
    [ -p "$runtime/$pipe" ] || mkfifo -m 600 "$runtime/$pipe"
  done
  surround &
  launch 0<>"$runtime/ready" 1<>"$runtime/said"
}

surround() {
  trap 'kill -KILL "$main"' EXIT # of what cannot be made ready, nothing is begun
  make_ready
  group=/sys/fs/cgroup/$cgroup
  mkdir -p "$group/supervisor" "$group/exec" "$group/machine/payload"
  echo "$depth" >"$group/machine/cgroup.max.depth"
  echo "$descendants" >"$group/machine/cgroup.max.descendants"
  echo 1 >"$group/machine/payload/cgroup.freeze"
  is_there || echo "$main" >"$group/machine/cgroup.procs"
  aside bind &
  [ -z "$watches" ] || aside keep_watch &
  echo ready >"$runtime/ready"
  trap - EXIT
  aside relay <"$runtime/said"
}

is_there() { # who starts it has put it there, perhaps: to move takes a while
  while IFS=: read -r number _ path; do
    [ "$number" != 0 ] || case $path in */machine) return 0 ;; esac
  done </proc/self/cgroup
  return 1
}

aside() { # COMMAND...: out of what the guest can have frozen or killed
  echo 0 >"$group/supervisor/cgroup.procs"
  "$@"
}

bind() { # the port is connected while nspawn gets as far as its PID 1
  leader=
  (connect) || give_up
  leader=$(pre_exec "$cgroup" "$main" 2>&1) || give_up "$leader"
  started "$leader"
  note leader "[$leader, $it]"
  [ -z "$shows" ] || await_guest
  (post_start "$leader") || give_up
  note shown yes
}

await_guest() { # what runs is nspawn's until the guest's own begins
  program=$(readlink "/proc/$main/exe")
  while [ "$(readlink "/proc/$leader/exe")" = "$program" ]; do
    sleep 0.01
  done
}

give_up() { # [REASON]; nspawn says why where it has ended, or is about to, because its PID 1 has
  if [ ! -d "/proc/$main" ] || { [ -z "${1:-}" ] && [ -n "$leader" ] && [ ! -d "/proc/$leader" ]; }; then
    rm -f "$runtime/noted/reason"
    exit
  fi
  [ -z "${1:-}" ] || note reason "$1"
  kill -KILL "$main"
  exit 1
}
