#!/bin/sh
# Fills /target from the directory /source, or from a tarball on standard input: unpack.sh [COMPRESSION]
# Runs as root of a user namespace that sees nothing of the host but /usr, so that a hostile archive meets no rights
# to abuse. What the kernel or systemd provides at run time is left out, device nodes with it.
set -eu
echo "hutch: stage unpack"
set -- --numeric-owner --acls --xattrs --xattrs-include=security.capability --xattrs-include='user.*' \
  --anchored --exclude='./dev/*' --exclude='dev/*' --exclude='./proc/*' --exclude='proc/*' --exclude='./sys/*' \
  --exclude='sys/*' --exclude='./run/*' --exclude='run/*' "$@"
if [ -d /source ]; then
  { tar --create --directory /source --one-file-system "$@" . || touch /tmp/failed; } |
    tar --extract --preserve-permissions --directory /target "$@"
  [ ! -e /tmp/failed ]
else
  tar --extract --preserve-permissions --directory /target "$@"
fi
[ -d /target/usr ] || { echo "there is no usr directory at its top, so it is no root tree"; exit 4; }
for place in dev proc sys run; do # what is there already, whatever it is, is looked at by the caller
  [ -e "/target/$place" ] || [ -L "/target/$place" ] || mkdir "/target/$place"
done
