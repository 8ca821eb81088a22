
# QEMU. The guest reads "poweroff" from its port; the monitor says in its last words why the machine ends.

open_links() {
  # shellcheck disable=SC2094 # a pipe has two ends
  exec 4<>"$vm/port.in" 5<>"$vm/port.out" 6<>"$vm/monitor.in" 7<>"$vm/monitor.out" 8<"$vm/monitor.out"
  printf '%s\n' '{"execute": "qmp_capabilities"}' >&6
}

close_links() {
  exec 4>&- 5>&- 6>&- 7>&- 8<&-
}

run_machine() {
  launch
}

follow() {
  exec tail -c 4096 >"$runtime/noted/monitor"
}

ask_to_end() { # the pipe may be full, and then the deadline decides
  printf 'poweroff\n' | dd of="$vm/port.in" oflag=nonblock conv=nocreat,notrunc status=none 2>/dev/null || :
}

outcome() {
  # shellcheck disable=SC2034 # who calls this reads it
  it=$(sed -n '/"event": "SHUTDOWN"/ { s/.*"reason": "guest-\(panic\|reset\)".*/\1/p; q; }' "$runtime/noted/monitor")
}

