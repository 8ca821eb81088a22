#!/bin/sh
# Mounts the cgroup2 hierarchy on /sys/fs/cgroup, in a mount namespace of its own: cgroup2.sh [OPTIONS]
# There is one hierarchy for the whole host, and a mount sets its options (nsdelegate, memory_recursiveprot): one without
# them would take them from everybody. Unless they are told, they are read where a mount of it is seen, here or by
# process 1.
set -eu
options=${1-}
for process in self 1; do
  [ -z "$options" ] || break
  [ -r "/proc/$process/mountinfo" ] || continue
  while [ -z "$options" ] && read -r line; do
    case $line in *' - cgroup2 '*) options=${line##* } ;; esac
  done <"/proc/$process/mountinfo"
done
# SELinux adds a word of its own to what the kernel says.
before=${options%%,seclabel*} after=${options#*,seclabel}
[ "$before" = "$options" ] || options=$before$after
exec mount -t cgroup2 -o "nosuid,nodev,noexec,${options:-rw}" cgroup2 /sys/fs/cgroup
