#!/bin/sh
# Packs /source and the kernel's modules into /target/root.erofs: pack.sh UUID
# Runs as root of a user namespace that sees nothing of the host but /usr, since the tree is not trusted. The ids in the
# image are those inside the namespace, which are those that the tree has on disk.
set -eu
echo "hutch: stage pack"
mkdir /tmp/tree
mount -t overlay -o ro,lowerdir=/target/kernel:/source overlay /tmp/tree
mkfs.erofs --quiet -U "$1" -zlz4 -C65536 /target/root.erofs /tmp/tree
chmod 0644 /target/root.erofs
