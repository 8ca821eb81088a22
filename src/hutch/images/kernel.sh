#!/bin/sh
# Downloads a kernel from a hook of mmdebstrap, with the apt that it has set up: kernel.sh DIRECTORY META PACKAGE...
# META is what depends on the newest kernel; its packages and the given ones land in DIRECTORY. Nothing is installed, and
# nothing is downloaded where the names of all files, which land in DIRECTORY/list, are those in the file /tmp/known.
# Ubuntu has put some modules that machines need into packages which nothing depends on; they land in DIRECTORY/extra.
set -eu
directory=$1 meta=$2
shift 2
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends --recurse --important "$meta" | grep -E '^linux-(image|modules)-[0-9]' | sort -u)
[ -n "$kernel" ] || { echo "E: $meta depends on no kernel"; exit 4; }
extra=$(echo "$kernel" | sed -n 's/^linux-modules-\([0-9]\)/linux-modules-extra-\1/p')
mkdir -p "$directory/extra"
cd "$directory"
# shellcheck disable=SC2086 # names of packages hold no blanks
apt-get --quiet --print-uris download $kernel $extra "$meta" "$@" >uris
cut -d ' ' -f 2 uris | sort >list
rm uris
[ "$(cat list)" != "$(cat /tmp/known)" ] || exit 0
# shellcheck disable=SC2086 # likewise
apt-get --quiet download $kernel "$meta" "$@"
# shellcheck disable=SC2086 # likewise
[ -z "$extra" ] || { cd extra && apt-get --quiet download $extra; }
