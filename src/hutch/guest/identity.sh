# Gives a guest that runs another identity, as far as one can change: the lines of its credential tmpfiles.extra, which
# systemd-tmpfiles takes at boot as well, are the arguments. Then sshd reads its files again: for a moment it does not
# listen, and then it does on another socket.
set -e
printf '%s\n' "$@" | systemd-tmpfiles --create -

sockets() {
  while read -r _ address _ state _ _ _ _ _ inode _; do
    case "$address $state" in *":0016 0A") echo "$inode" ;; esac
  done
}
listening() { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | sockets; }

for unit in ssh.service sshd.service; do
  systemctl --quiet is-active $unit || continue
  before=$(listening)
  systemctl reload $unit
  left=30
  while now=$(listening) && [ "$left" -gt 0 ] && { [ "$now" = "$before" ] || [ -z "$now" ]; }; do
    sleep 0.1
    left=$((left - 1))
  done
done
