#!/bin/sh
# Mounts a /sys that shows this network namespace's interfaces, and on it the cgroup2 hierarchy, which every kind of host
# has; in a mount namespace of its own: sys.sh [OPTIONS]
#
# nspawn looks interfaces up there, and waits for udev unless it is read-only. Where the host's /sys is of the same
# namespace, mount(2) does not put it right over that, and some mount(8) know no other way.
#
# There is one hierarchy for the whole host, and a mount sets its options (nsdelegate, memory_recursiveprot): one without
# them would take them from everybody. Unless they are told, they are read where a mount of it is seen, here or by
# process 1.
set -eu
mount -t tmpfs tmpfs /sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys
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
