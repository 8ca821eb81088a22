# A virtual machine. The main process is this shell, which stays: it starts the machine and what serves its shares, tells
# systemd that it is ready once the guest says so, passes on that it is to end, and ends with a code that says why the
# machine did. All that comes through pipes is the attacker's: it is bounded, and compared with what is known. How to talk
# to the monitor in use is told by what follows: `open_links`, `close_links`, `run_machine`, `follow`, `ask_to_end`, and
# `outcome`. What `follow` reads is descriptor 8.

begin() {
  make_ready
  vm=$runtime/vm
  connect
  is_asked=''
  run
  outcome
  left=3 # on a host that is busy enough, its kernel measures its timer wrongly several times; for ever would be a loop
  while [ "$it" = reset ] && [ -z "$is_ready$is_asked" ] && [ "$left" -gt 0 ]; do
    left=$((left - 1))
    echo "the guest rebooted before it was ready: it starts once more"
    # shellcheck disable=SC2086 # pids
    wait $hearing $servers $watching || :
    (cd "$runtime/noted" && rm -f hearing machine broken forced outcome)
    rm -f "$runtime/sockets/"* # a monitor that was killed leaves its own
    [ -n "$is_asked" ] || { run && outcome; }
  done
  judge
}

run() { # the machine, and what serves it, until it has ended
  rm -f "$runtime/cid" # what had it may be anybody's by now
  # Both ways, so that no end has gone before all is read; whoever says something gets an end that only writes.
  exec 3<>"$vm/log"
  apart relay <"$vm/log" &
  said=$!
  open_links
  is_ready='' servers='' watching=''
  apart hear "$main" >"$vm/log" 2>&1 &
  hearing=$!
  helpers
  until [ -f "$runtime/noted/hearing" ]; do
    kill -0 "$hearing" 2>/dev/null || fall "the guest's ready port cannot be opened"
    sleep 0.01
  done
  trap on_ready USR1
  trap on_stop TERM
  apart run_machine >"$vm/log" 2>&1 &
  machine=$!
  note machine "$machine"
  apart follow <&8 >"$vm/log" 2>&1 &
  following=$!
  apart post_start "$main" >/dev/null 2>&1 &
  apart shrink >/dev/null 2>&1 &
  [ -z "$watches" ] || { apart keep_watch >"$vm/log" 2>&1 & watching=$!; }
  await "$machine"
  code=$awaited
  rm -f "$runtime/cid"
  close_links
  await "$following"
  [ -f "$runtime/noted/forced" ] || rm -f "$runtime/noted/broken"
  finish
}

finish() { # all that was said is logged; whoever holds the log open for longer is not waited for
  # shellcheck disable=SC2086 # pids
  kill $hearing $servers $watching 2>/dev/null || :
  close_links
  exec 3>&-
  # Only this shell knows whether that process has been waited for: its number may be another's afterwards.
  trap 'signalled=yes; kill -KILL "$said" 2>/dev/null || :' ALRM
  (sleep 2 && kill -ALRM "$main") >/dev/null 2>&1 &
  patience=$!
  await "$said"
  trap '' ALRM
  kill -KILL "$patience" 2>/dev/null || : # it may have ended, and been waited for beside the other one
}

fall() { # REASON
  finish
  fail "$1"
}

apart() { # COMMAND...: without what this shell holds open; the log is standard output by then
  exec 3>&-
  close_links
  "$@"
}

await() { # PID; signals interrupt it only
  awaited=127
  while :; do
    signalled='' got=0
    wait "$1" || got=$?
    [ "$got" = 127 ] || awaited=$got # that is what it says where it has waited to the end before
    [ -n "$signalled" ] || return 0
  done
}

# What serves a share is there before the machine is, and if it ends, so does the machine: unless it ends because the
# machine does, which then is over in a moment.

serve() { # WHY SOCKET FILES COMMAND...
  rm -f -- "$2"
  apart served "$@" >"$vm/log" 2>&1 &
  servers="$servers $!"
  until [ -S "$2" ]; do
    [ ! -s "$runtime/noted/broken" ] || fall "$(cat "$runtime/noted/broken")" # not while it is written
    sleep 0.01
  done
}

served() { # WHY SOCKET FILES COMMAND...
  why=$1
  # shellcheck disable=SC3045 # dash and bash have it
  ulimit -n "$3" 2>/dev/null || :
  shift 3
  "$@" &
  trap 'kill -KILL "$!"; exit' TERM
  code=0
  wait "$!" || code=$?
  [ -f "$runtime/noted/broken" ] || note broken "the process beside it $(ended "$code"): $why"
  exec >/dev/null 2>&1 # the log is not to be held open by what waits
  sleep 5 &
  wait "$!"
  noted machine ''
  [ -n "$it" ] || exit
  note forced yes
  kill -KILL "$it"
}

on_ready() { # who heard it has ended: its number is soon another's
  signalled=yes hearing=
  is_ready=yes
  note shown yes
  systemd-notify --no-block --ready || :
}

on_stop() {
  signalled=yes
  is_asked=yes
  ask_to_end
}

judge() {
  [ "$it" != panic ] || fail "the guest's kernel panicked"
  [ -z "$is_asked" ] || exit 0
  if [ "$it" = reset ]; then
    [ -n "$is_ready" ] || fail "the guest rebooted before it was ready"
    echo "the guest asked for a reboot"
    exit "$reboot"
  fi
  [ ! -f "$runtime/noted/broken" ] || fail "$(cat "$runtime/noted/broken")"
  [ "$code" = 0 ] || fail "$backend $(ended "$code")"
  [ -n "$is_ready" ] || fail "the guest ended before it was ready"
  exit 0
}

ended() { # CODE
  if [ "$1" -gt 128 ]; then echo "was killed by signal $(($1 - 128))"; else echo "ended with code $1"; fi
}
