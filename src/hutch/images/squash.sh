#!/bin/sh
# Packs /source into /target/root.squashfs, with the ids and the attributes that it has on disk: squash.sh
# Runs as root of a user namespace that sees nothing of the host but /usr, since the tree is not trusted.
set -eu
mksquashfs /source /target/root.squashfs -comp zstd -Xcompression-level 6 -mem 256M -xattrs -no-progress -quiet
chmod 0644 /target/root.squashfs
