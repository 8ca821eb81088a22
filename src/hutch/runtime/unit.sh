# The rest is the same for all workspaces. systemd runs `start` as the main process, in a mount namespace of its own and
# in the router's network namespace; `ready` once that has said so by sd_notify; `stopping` before it is told to end;
# `stopped` when it has ended, however that came about. See runtime/units.

# What is said of the workspace. The state stands in a file that others read, in the form that runtime/status has.

say() { # STATE [REASON]
  printf '{"state": "%s", "pid": %s, "started": %s, "since": %s, "ready_seconds": %s, "leader": %s, "cgroup": "%s", "reason": "%s", "warnings": [], "revision": 0, "complaints": {}}\n' \
    "$1" "$main" "$(started "$main")" "$(date +%s)" "$(noted ready_seconds null)" "$(noted leader null)" \
    "$(quoted "$(noted cgroup '')")" "$(quoted "${2:-}")" >"$runtime/status.json.new"
  mv "$runtime/status.json.new" "$runtime/status.json"
}

quoted() { # TEXT
  printf %s "$1" | tr -d '\000-\010\013-\037\177' | sed 's/[\\"]/\\&/g; s/\t/ /g' | sed ':more; $!{ N; b more; }; s/\n/\\n/g'
}

noted() { # NAME DEFAULT
  if [ -f "$runtime/noted/$1" ]; then cat "$runtime/noted/$1"; else printf %s "$2"; fi
}

note() { # NAME TEXT
  printf %s "$2" >"$runtime/noted/$1"
}

started() { # PID; in clock ticks since the host booted, null for one that is no more
  if stat=$(cat "/proc/$1/stat" 2>/dev/null); then
    set -- ${stat##*) }
    printf %s "${20}"
  else
    printf null
  fi
}

uptime() { # hundredths of a second
  read -r seconds _ </proc/uptime
  printf %s "${seconds%.*}${seconds#*.}"
}

# Steps. What fails says so to the journal, and to whoever waits for the start.

fail() {
  printf '%s\n' "$*" >&2
  [ -f "$runtime/noted/reason" ] || note reason "$*"
  exit 1
}

step() { # WHY COMMAND...
  why=$1
  shift
  said=$("$@" 2>&1 </dev/null) || fail "cannot $why: ${said:-code $?}"
}

attempt() { # WHY COMMAND...
  shift
  "$@" >/dev/null 2>&1 </dev/null || :
}

all_ended() { # PID...: chains that run side by side
  failed=
  for chain; do
    wait "$chain" || failed=1
  done
  [ -z "$failed" ] || exit 1
}

put() { # PATH UID TEXT
  rm -f -- "$1"
  (umask 077 && printf %s "$3" >"$1")
  [ "$2" = 0 ] || chown "$2:$2" "$1"
}

own_cgroup() {
  while IFS=: read -r number controllers path; do
    [ "$number$controllers" != 0 ] || printf %s "$path"
  done </proc/self/cgroup
}

# What becomes the guest's PID 1 is put into the cgroup `payload`, and is frozen there until it is bound.

hold() {
  while pids=$(cat "$cgroup/machine/payload/cgroup.procs") && [ -z "$pids" ]; do
    [ -d "/proc/$main" ] || exit
    sleep 0.01
  done
  case $pids in *[!0-9]*) give_up "one process was to be held, and there are several" ;; esac
  (held "$pids") || give_up
  echo 0 >"$cgroup/machine/payload/cgroup.freeze"
  note leader "[$pids, $(started "$pids")]"
  program=$(readlink "/proc/$main/exe") # nspawn's, until the guest's own begins
  while [ "$(readlink "/proc/$pids/exe")" = "$program" ]; do
    sleep 0.01
  done
  (inward "$pids") || give_up
  note shown yes
}

give_up() { # [REASON]; a guest that has ended is no news: nspawn says why
  if [ ! -d "/proc/$pids" ]; then
    rm -f "$runtime/noted/reason"
    exit
  fi
  [ -z "${1:-}" ] || note reason "$1"
  kill -KILL "$main"
  exit 1
}

# What a console says goes to the journal: so many bytes and lines in a while, and no more. The rest is dropped here, where
# it costs the workspace its own time: the journal would drop it too, but in time that is everybody's. It is one process
# that needs no other: a guest that has taken all which its slice may have is not to end it, nor to get past it.

relay() { # until nobody is left who could say something
  { echo -900 >/proc/self/oom_score_adj; } 2>/dev/null || : # where memory is short, there are larger ones to end
  exec bash -c '
    LC_ALL=C IFS= ends=0 bytes=0 lines=0 dropped=0
    printf -v newline "\n"
    begin_anew() {
      ((dropped == 0)) || printf "\n%s bytes more were said, and are left out\n" "$dropped"
      bytes=0 lines=0 dropped=0 ends=$((SECONDS + $1))
    }
    while :; do
      code=0
      if ((dropped)); then
        read -r -N 1 -t "$((ends > SECONDS ? ends - SECONDS : 1))" text || code=$?
      else
        read -r -N 1 text || code=$?
      fi
      ((code == 0 || code > 128)) || break # above it, the time is over
      ((SECONDS < ends)) || begin_anew "$1"
      [[ $text ]] || continue
      read -r -N 4095 -t 0.002 more
      text+=$more breaks=${text//[!$newline]/}
      if ((dropped || bytes + ${#text} > $2 || lines + ${#breaks} > $3)); then
        ((dropped += ${#text}))
      else
        ((bytes += ${#text}, lines += ${#breaks}))
        printf %s "$text"
      fi
    done
    begin_anew 0' relay "$period" "$most_bytes" "$most_lines"
}

# What systemd asks for.

start() {
  main=$$
  mkdir -p -m 700 "$runtime"
  mkdir -p -m 700 "$runtime/noted"
  rm -f "$runtime/noted/"*
  install -m 700 "$0" "$runtime/unit" # what is started is what will be stopped, whatever is written meanwhile
  install -m 600 "${0%/*}/launch.json" "$runtime/launch.json"
  note begun "$(uptime)"
  note cgroup "$(own_cgroup | cut -c 2-)"
  say starting
  files
  guard
  prepare
  connect
  begin
}

contain() {
  cgroup=/sys/fs/cgroup/$(noted cgroup)
  mkdir -p "$cgroup/supervisor" "$cgroup/exec" "$cgroup/machine/payload"
  echo "$depth" >"$cgroup/machine/cgroup.max.depth"
  echo "$descendants" >"$cgroup/machine/cgroup.max.descendants"
  echo 1 >"$cgroup/machine/payload/cgroup.freeze"
  echo 0 >"$cgroup/supervisor/cgroup.procs"
  hold &
  rm -f "$runtime/said"
  mkfifo -m 600 "$runtime/said"
  relay <"$runtime/said" &
  echo 0 >"$cgroup/machine/cgroup.procs"
  launch >"$runtime/said"
}

ready() {
  main=$MAINPID
  until [ -f "$runtime/noted/shown" ]; do
    sleep 0.01
  done
  hundredths=$(($(uptime) - $(noted begun 0)))
  note ready_seconds "$((hundredths / 100)).$(printf %02d $((hundredths % 100)))"
  say running
}

stopping() {
  [ -n "${MAINPID:-}" ] || return 0
  main=$MAINPID
  note asked yes
  say stopping
}

stopped() {
  main=$$ # it is no more: of those who ask for its pid, nobody must be given a process that stays
  rm -f "$runtime/noted/leader"
  cleanup
  EXIT_STATUS=${EXIT_STATUS:-none} # there is none where nothing was ever started
  if [ "$SERVICE_RESULT" != success ] && [ -f "$runtime/noted/asked" ] && [ ! -f "$runtime/noted/reason" ]; then
    say stopped # by force, or in disorder, as it may be then
  elif [ "$SERVICE_RESULT" != success ]; then
    say failed "$(noted reason "$(how_it_ended)")"
  elif [ "$EXIT_STATUS" = "$reboot" ]; then
    say stopped rebooting
    forgive
  elif [ ! -f "$runtime/noted/ready_seconds" ]; then
    say stopped "the start was called off"
  elif [ -f "$runtime/noted/asked" ]; then
    say stopped
  else
    say stopped "it powered off by itself"
  fi
}

forgive() { # systemd counts reboots as failures: each starts later than the one before, unless it ran for a while
  [ $(($(uptime) - $(noted begun 0))) -lt "${calm}00" ] || systemctl --no-block reset-failed "$unit"
}

how_it_ended() { # in the words of systemd.exec(5), section "Environment variables set or propagated by the service manager"
  case $SERVICE_RESULT in
    protocol) echo "the guest ended before it was ready" ;;
    timeout) if [ -f "$runtime/noted/ready_seconds" ]; then echo "it did not end in time"; else echo "it was not ready in time"; fi ;;
    exit-code) echo "its main process ended with code $EXIT_STATUS" ;;
    signal | core-dump) echo "its main process was killed by SIG$EXIT_STATUS" ;;
    *) echo "systemd ended it: $SERVICE_RESULT" ;;
  esac
}

"$1"
