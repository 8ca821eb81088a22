# The rest is the same for all workspaces. The service runs `start` as its main process, in a mount namespace of its own and
# in the router's network namespace; `ready` once that has said so by sd_notify; `stopping` before it is told to end;
# `stopped` when it has ended, however that came about. See runtime/units. Much is written without a process of its own: on
# the way to a guest that is ready, each of them counts.

# The status. It stands in a file that others read, in the form that runtime/status has.

say() { # STATE [REASON]
  it=${2:-}
  [ -z "$it" ] || it=$(quoted "$it")
  reason=$it
  noted ready_seconds null; ready_seconds=$it
  noted leader null; leader=$it
  started "$main"
  printf '{"state": "%s", "pid": %s, "started": %s, "ready_seconds": %s, "leader": %s, "reason": "%s", "cgroup": %s}\n' \
    "$1" "$main" "$it" "$ready_seconds" "$leader" "$reason" "$where" >"$runtime/status.json.new"
  mv "$runtime/status.json.new" "$runtime/status.json"
  case $1 in running | stopped | failed) tell "$1" ;; esac
}

# What goes into the record stands in a file of root's, which hutch's next command folds in: see audit/ends. Whoever has
# hutch start or stop it stands in another one, for as long as that command waits for it: see runtime/control.

tell() { # STATE, after `say` has set `reason` and `ready_seconds`
  [ -n "$record" ] && [ -d "${record%/*}" ] || return 0
  lasted
  ran=$it
  read -r boot </proc/sys/kernel/random/boot_id
  peaks='"memory_peak": null, "cpu_usec": null, "tasks_peak": null'
  [ "$1" = running ] || look_at_peaks
  it=null
  [ "$1" = failed ] || noted by null
  umask 077
  { printf '{"state": "%s", "by": %s, "boot": "%s", "at": %s, "ran": %s, "ready_seconds": %s, "reason": "%s", %s}\n' \
    "$1" "$it" "$boot" "$now" "$ran" "$ready_seconds" "$reason" "$peaks" >>"$record"; } 2>/dev/null || :
  umask 022
}

note_asker() { # the number of an account, if its command is still there
  it='' asking=''
  [ ! -f "$runtime/by" ] || read -r it asking <"$runtime/by" || :
  [ -n "$asking" ] && [ -d "/proc/$asking" ] || it=null
  note by "$it"
}

look_at_peaks() { # by the cgroup, which is there until this has ended
  [ -z "$(find "$record" -size +1024 2>/dev/null)" ] || mv "$record" "$record.older" # a guest that ends again and again
  for group in "/sys/fs/cgroup/$cgroup" "/sys/fs/cgroup/unified/$cgroup"; do
    [ -d "$group" ] || continue
    counted "$group/memory.peak"; memory=$it
    counted "$group/pids.peak"; tasks=$it
    counted "$group/cpu.stat"
    peaks="\"memory_peak\": $memory, \"cpu_usec\": $it, \"tasks_peak\": $tasks"
    return 0
  done
}

counted() { # FILE; the number that its first line ends with, null where there is none
  it=null
  { read -r it <"$1"; } 2>/dev/null || return 0
  it=${it##* }
  case $it in '' | *[!0-9]*) it=null ;; esac
}

quoted() { # TEXT
  printf %s "$1" | tr -d '\000-\010\013-\037\177' | sed 's/[\\"]/\\&/g; s/\t/ /g' | sed ':more; $!{ N; b more; }; s/\n/\\n/g'
}

# These leave what they find in $it.

noted() { # NAME DEFAULT; one line
  it=$2
  [ ! -f "$runtime/noted/$1" ] || IFS= read -r it <"$runtime/noted/$1" || :
}

started() { # PID; in clock ticks since the host booted, null for one that is no more
  it=null
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  # shellcheck disable=SC2086 # the fields after the name, one by one
  set -- ${stat##*) }
  it=${20}
}

uptime() { # hundredths of a second
  read -r it _ </proc/uptime
  it=${it%.*}${it#*.}
}

are_there() { # DIRECTORY...
  for directory; do
    [ -d "$directory" ] || return 1
  done
}

note() { # NAME TEXT
  printf %s "$2" >"$runtime/noted/$1"
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
  note "step${chain-}" "$why"
  said=$("$@" 2>&1 </dev/null) || fail "cannot $why: ${said:-code $?}"
  note "step${chain-}" ""
}

on_the_host() { # COMMAND... in the host's mount namespace: that of process 1
  # That may hold capabilities which root lacks, in a container for instance, and the kernel shows nothing of it then. The
  # next best is the namespace of the runner, which has started this.
  from=/proc/1/ns/mnt
  [ -e "$from" ] || from=/proc/$PPID/ns/mnt
  nsenter --mount="$from" -- "$@"
}

connect() { # once the host is reconciled: who starts this may still be at it
  while [ -e "$runtime/unreconciled" ]; do
    sleep 0.01
  done
  join
}

attempt() { # WHY COMMAND...
  shift
  "$@" >/dev/null 2>&1 </dev/null || :
}

all_ended() { # PID...: chains that run side by side
  failed=
  for each; do
    wait "$each" || failed=1
  done
  [ -z "$failed" ] || exit 1
}

keep_watch() { # of what protects shared directories, which must not end before the guest does, however that comes about
  keeper=''
  trap '[ ! -d "/proc/$main" ] || kill -KILL "$main"' EXIT
  trap 'trap - EXIT; [ -z "$keeper" ] || kill -KILL "$keeper"; exit' TERM
  watch "$main" &
  keeper=$!
  { echo -900 >/proc/self/oom_score_adj; } 2>/dev/null || : # of the two, where memory is short, it is not this one that goes
  code=0
  wait "$keeper" || code=$?
  if [ "$code" = 0 ] || [ ! -d "/proc/$main" ]; then
    trap - EXIT
    return
  fi
  note reason "what keeps the protected paths of its shared directories has ended: code $code"
  exit 1
}

# What a console says goes to the journal: so many bytes and lines in a while, and no more. The rest is dropped here, where
# it costs the workspace its own time: the journal would drop it too, but in time that is everybody's. It is one process
# that needs no other: a guest that has taken all which its slice may have is not to end it, nor to get past it.

relay() { # until nobody is left who could say something
  { echo -900 >/proc/self/oom_score_adj; } 2>/dev/null || : # where memory is short, there are larger ones to end
  # shellcheck disable=SC2016 # bash is to expand it
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
  # shellcheck disable=SC2174 # what is above, the owner may pass through
  [ -d "$runtime/noted" ] || mkdir -p -m 700 "$runtime/noted"
  forget "$runtime/noted/"* "$runtime/console" "$runtime/control" # sockets of what ran before, perhaps of another kind
  uptime
  note begun "$it"
  note_asker
  begin
}

make_ready() { # what is there before the main process begins
  # What is started is what will be stopped, whatever is written meanwhile.
  install -m 700 -t "$runtime" "$0" "${0%/*}/launch.json" &
  installed=$!
  say starting &
  told=$!
  files
  guard
  prepare
  all_ended "$installed" "$told"
}

ready() {
  main=$MAINPID
  until [ -f "$runtime/noted/shown" ]; do
    [ -d "/proc/$main" ] || exit 1
    sleep 0.01
  done
  lasted
  hundredths=$((it % 100))
  note ready_seconds "$((it / 100)).$((hundredths / 10))$((hundredths % 10))"
  say running
}

lasted() { # hundredths of a second, since it began
  uptime
  now=$it
  noted begun "$now"
  it=$((now - it))
}

stopping() {
  [ -n "${MAINPID:-}" ] || return 0
  main=$MAINPID
  note asked yes
  note_asker
  say stopping
}

# What its end means. Where the main process is a shell that stayed, that has said why in the file `reason`.

stopped() {
  main=$$ # it is no more: of those who ask for its pid, nobody must be given a process that stays
  rm -f "$runtime/noted/leader" "$runtime/cid"
  cleanup
  EXIT_STATUS=${EXIT_STATUS:-none} # there is none where nothing was ever started
  is_asked='' is_ready=''
  if [ -f "$runtime/noted/asked" ]; then is_asked=yes; else note by null; fi
  [ ! -f "$runtime/noted/ready_seconds" ] || is_ready=yes
  if [ -f "$runtime/noted/reason" ] && [ "$SERVICE_RESULT" != success ]; then
    say failed "$(cat "$runtime/noted/reason")"
  elif [ -n "$is_asked" ]; then
    say stopped # perhaps by force, or in disorder
  elif [ "$SERVICE_RESULT" = timeout ] && [ -z "$is_ready" ] && ! is_overdue; then
    say stopped "the start was called off" # by force: its time was not over
  elif [ "$SERVICE_RESULT" != success ]; then
    say failed "$(how_it_ended)"
  elif [ "$EXIT_STATUS" = "$reboot" ]; then
    say stopped rebooting
    forgive
  elif [ -z "$is_ready" ]; then
    say stopped "the start was called off"
  else
    say stopped "it powered off by itself"
  fi
}

forgive() { # systemd counts reboots as failures: each starts later than the one before, unless it ran for a while
  lasted
  [ "$it" -lt "${calm}00" ] || attempt "forget earlier reboots" systemctl --no-block reset-failed "$unit"
}

is_overdue() {
  lasted
  [ "$it" -ge "$overdue" ]
}

how_it_ended() { # in the words of systemd.exec(5), section "Environment variables set or propagated by the service manager"
  case $SERVICE_RESULT in
    protocol)
      if [ "$EXIT_STATUS" = "$reboot" ]; then echo "the guest rebooted before it was ready"; else echo "the guest ended before it was ready"; fi
      ;;
    timeout) if [ -n "$is_ready" ]; then echo "it did not end in time"; else overdue; fi ;;
    exit-code) echo "$backend ended with code $EXIT_STATUS" ;;
    signal | core-dump) echo "$backend was killed by SIG$EXIT_STATUS" ;;
    *) echo "systemd ended it: $SERVICE_RESULT" ;;
  esac
}

overdue() {
  for file in "$runtime/noted/step"*; do
    noted "${file##*/}" ""
    [ -z "$it" ] || break
  done
  if [ -n "$it" ]; then echo "cannot $it: it had not ended after $patience s"; else echo "not ready after $patience s"; fi
}

"$1"
