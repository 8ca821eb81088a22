# Gives a guest that runs another identity, as far as one can change: the lines of its credential tmpfiles.extra, which
# systemd-tmpfiles takes at boot as well, are in $IDENTITY. Then sshd reads its files again: for a moment it does not
# listen, and then it does on another socket. Sessions that were opened by a key of hutch's which is no longer among
# those end, but for this one.
set -e
keys() { cat /etc/ssh/authorized_keys.d/* 2>/dev/null || :; }
before=$(keys)
printf '%s' "$IDENTITY" | systemd-tmpfiles --create -
unset IDENTITY

sockets() {
  while read -r _ address _ state _ _ _ _ _ inode _; do
    case "$address $state" in *":0016 0A") echo "$inode" ;; esac
  done
}
listening() { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | sockets; }

for unit in ssh.service sshd.service; do
  systemctl --quiet is-active $unit || continue
  before_reload=$(listening)
  systemctl reload $unit
  left=30
  while now=$(listening) && [ "$left" -gt 0 ] && { [ "$now" = "$before_reload" ] || [ -z "$now" ]; }; do
    sleep 0.1
    left=$((left - 1))
  done
done

after=$(keys)
gone=$(printf '%s\n' "$before" | while read -r line; do
  case "
$after
" in *"
$line
"*) continue ;; esac
  case $line in *" hutch key of "*) printf '%s\n' "$line" ;; esac
done)
[ -n "$gone" ] || exit 0

own=" " pid=$$
while [ "$pid" -gt 1 ]; do
  own="$own$pid "
  pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done

# The journal says which key opened which session; a number may have been another session's before.
end_sessions() {
  prints=" $(printf '%s\n' "$gone" | ssh-keygen -lf - | while read -r _ print _; do printf '%s ' "$print"; done)"
  journalctl --quiet --sync || :
  journalctl --quiet --boot --identifier=sshd --identifier=sshd-session --output=short --no-pager |
    sed -n 's/^.*\[\([0-9]*\)\]: Accepted publickey for .* \(SHA256:[^ ]*\)$/\1 \2/p' | tac | sort -s -u -k1,1 |
    while read -r pid print; do
      case $own in *" $pid "*) continue ;; esac
      case $prints in *" $print "*) ;; *) continue ;; esac
      read -r name <"/proc/$pid/comm" || continue
      case $name in sshd | sshd-session) kill "$pid" || : ;; esac
    done
}
# Nobody waits for it: what opens no session any more is in force already, and a machine that is emulated takes seconds.
end_sessions </dev/null >/dev/null 2>&1 &
