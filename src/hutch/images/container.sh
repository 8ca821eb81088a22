#!/bin/sh
# Runs nspawn with private mounts: container.sh BASE OPTIONS TREE SOURCE IDENTITY COPY NSPAWN...
# TREE is mounted over itself so that root inside (uid BASE) owns what uid 0 owns in it, and what it makes belongs to
# uid 0; SOURCE, unless "", is shown in the same way, read-only, at COPY, if it is the directory with this IDENTITY
# (device:inode): somebody may have put another in its place. OPTIONS are those of the host's cgroup2: process 1 is not
# the host's here. Runs in a mount namespace of its own.
set -eu
base=$1 options=$2 tree=$3 source=$4 identity=$5 copy=$6
shift 6
sh "${0%/*}/../host/storage/sys.sh" "$options"
# nspawn's own files (locks by machine name, mount points) end with this namespace too.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run/systemd/nspawn
mount --bind -o "X-mount.idmap=b:0:$base:65536" "$tree" "$tree"
if [ -n "$source" ]; then
  mount --bind -o "ro,X-mount.idmap=b:0:$base:65536" "$source" "$copy"
  [ "$(stat -c %d:%i "$copy")" = "$identity" ] || { echo "$source is another directory by now"; exit 1; }
fi
"$@" || exit $? # not exec: nspawn as PID 1 of its namespace would log to the kernel
