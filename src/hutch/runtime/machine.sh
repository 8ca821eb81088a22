# A virtual machine. Its service's main process is this shell, which stays: it starts the machine and what serves its
# shares, tells systemd that it is ready once the guest says so, passes on that it is to end, and ends with a code that
# says why the machine did. All that comes through pipes is the attacker's: it is bounded, and compared with what is known.

emulate() {
  vm=$runtime/vm
  # Both ways of each, so that no end has gone before all is read; nobody else is to have them.
  exec 3<>"$vm/log" 4<>"$vm/port.in" 5<>"$vm/port.out" 6<>"$vm/monitor.in" 7<>"$vm/monitor.out"
  apart relay <"$vm/log" &
  said=$!
  apart exec tail -c 4096 <"$vm/monitor.out" >"$runtime/noted/monitor" & # why it ends is said last
  monitored=$!
  is_ready='' is_asked='' servers=''
  helpers
  trap on_ready USR1
  trap on_stop TERM
  printf '%s\n' '{"execute": "qmp_capabilities"}' >&6
  [ -z "$balloon" ] || printf '{"execute": "balloon", "arguments": {"value": %s}}\n' "$balloon" >&6
  apart launch >"$vm/log" 2>&1 &
  machine=$!
  note machine "$machine"
  apart heard <"$vm/port.out" &
  apart inward "$main" &
  await "$machine"
  code=$awaited
  exec 3>&- 4>&- 5>&- 6>&- 7>&-
  await "$monitored"
  [ -f "$runtime/noted/forced" ] || rm -f "$runtime/noted/broken"
  kill -KILL $servers 2>/dev/null || :
  await "$said"
  judge
}

apart() { # COMMAND...: without what this shell holds open
  exec 3>&- 4>&- 5>&- 6>&- 7>&-
  "$@"
}

await() { # PID; signals interrupt it only
  awaited=0
  wait "$1" || awaited=$?
  while kill -0 "$1" 2>/dev/null; do
    awaited=0
    wait "$1" || awaited=$?
  done
}

# What serves a share is there before the machine is, and if it ends, so does the machine: unless it ends because the
# machine does, which then is over in a moment.

serve() { # WHY SOCKET FILES COMMAND...
  rm -f -- "$2"
  apart served "$@" >"$vm/log" 2>&1 &
  servers="$servers $!"
  until [ -S "$2" ]; do
    [ ! -f "$runtime/noted/broken" ] || fail "$(noted broken '')"
    sleep 0.01
  done
}

served() { # WHY SOCKET FILES COMMAND...
  why=$1
  ulimit -n "$3" 2>/dev/null || :
  shift 3
  code=0
  "$@" || code=$?
  [ -f "$runtime/noted/broken" ] || note broken "the process beside it $(ended "$code"): $why"
  sleep 5 >/dev/null 2>&1 # it may outlive this shell, and is not to hold the log open
  machine=$(noted machine '')
  [ -n "$machine" ] || exit
  note forced yes
  kill -KILL "$machine"
}

# What the guest says at its port. It is heard until it is ready, or has said too much.

heard() {
  bash -c 'for ((number = 0; number < 1024; number++)); do
    IFS= read -r -n 64 line || exit
    [[ $line != READY=1?($'\''\r'\'') ]] || exit 0
  done; exit 1' && kill -USR1 "$main"
}

on_ready() {
  is_ready=yes
  echo "ready, says the guest over its port"
  note shown yes
  systemd-notify --no-block --ready || :
}

on_stop() { # its pipe may be full, and then the deadline decides
  is_asked=yes
  printf 'poweroff\n' | dd of="$vm/port.in" oflag=nonblock conv=nocreat,notrunc status=none 2>/dev/null || :
}

# What the end of the machine means.

judge() {
  outcome=$(sed -n '/"event": "SHUTDOWN"/ { s/.*"reason": "\([a-z-]*\)".*/\1/p; q; }' "$runtime/noted/monitor")
  [ "$outcome" != guest-panic ] || fail "the guest's kernel panicked"
  [ -z "$is_asked" ] || exit 0
  if [ "$outcome" = guest-reset ]; then
    [ -n "$is_ready" ] || fail "the guest rebooted before it was ready"
    echo "the guest asked for a reboot"
    exit "$reboot"
  fi
  [ ! -f "$runtime/noted/broken" ] || fail "$(noted broken '')"
  [ "$code" = 0 ] || fail "qemu $(ended "$code")"
  [ -n "$is_ready" ] || fail "the guest ended before it was ready"
  exit 0
}

ended() { # CODE
  if [ "$1" -gt 128 ]; then echo "was killed by signal $(($1 - 128))"; else echo "ended with code $1"; fi
}

