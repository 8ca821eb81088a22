
# cloud-hypervisor. Its events are objects of JSON, a line for each key. After a reset the machine cannot come up again by
# itself, since what serves its shares has ended with their connections: it is ended, as it is after a panic.

open_links() {
  # shellcheck disable=SC2094 # a pipe has two ends
  exec 4<>"$vm/events" 8<"$vm/events"
}

close_links() {
  exec 4>&- 8<&-
}

run_machine() {
  launch 3>"$vm/events"
}

follow() { # of all that means an end, the first counts: a guest that panics resets the machine a moment later
  # shellcheck disable=SC2016 # bash is to expand it
  bash -c '
    event="" source=""
    while IFS= read -r -n 4096 line; do
      case $line in
        "{") event="" source="" ;;
        *\"source\":\ \"vm\"*) source=vm ;;
        *\"source\":\ \"guest\"*) source=guest ;;
      esac
      case $line in
        "  "\"event\":\ \"rebooting\"*) event=reset ;;
        "  "\"event\":\ \"panic\"*) event=panic ;;
        "    "\"event\":\ \"panic\"*) [[ $event != panic ]] || event=panicked ;;
      esac
      case $source.$event in
        vm.reset | guest.panicked) printf %s "${event%ked}" >"$1"; exit ;;
      esac
    done; exit 1' follow "$runtime/noted/outcome" || return 0
  noted machine ''
  kill -KILL "$it" 2>/dev/null || :
}

ask_to_end() {
  apart ask >/dev/null 2>&1 &
}

outcome() {
  noted outcome ''
}

