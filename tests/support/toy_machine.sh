
# A toy, which is told to end by its port, and says nothing of why it does.

open_links() {
  exec 4<>"$vm/port.in" 5<>"$vm/port.out" 8</dev/null
}

close_links() {
  exec 4>&- 5>&- 8<&-
}

run_machine() {
  launch
}

follow() {
  cat
}

ask_to_end() {
  echo poweroff >&4
}

outcome() {
  # shellcheck disable=SC2034 # who calls this reads it
  it=""
}
