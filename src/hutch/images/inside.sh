#!/bin/sh
# What a build runs inside the tree, as root of a user namespace: inside.sh ADDRESS GATEWAY [PACKAGE...]
# ADDRESS is "" where there is no network. The caller reads the stages to tell how far it is and what failed.
set -eu
address=$1 gateway=$2
shift 2
stage() { echo "hutch: stage $1"; }

if [ -n "$address" ]; then
  stage network
  command -v ip >/dev/null || { echo "the tree has no \`ip\` command (iproute2)"; exit 4; }
  ip link set lo up
  ip link set host0 up
  ip address add "$address" dev host0
  ip route add default via "$gateway"
  rm -f /etc/resolv.conf
  echo "nameserver $gateway" >/etc/resolv.conf
fi

updated=""
if [ $# -gt 0 ]; then
  stage packages
  command -v apt-get >/dev/null || { echo "the tree has no apt-get, so hutch cannot install packages in it"; exit 4; }
  absent=""
  for package in "$@"; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
      absent="$absent $package"
  done
  if [ -n "$absent" ]; then
    apt-get update
    updated=1
    # shellcheck disable=SC2086 # package names hold no blanks
    apt-get install --yes --no-install-recommends -- $absent
    apt-get clean
  fi
fi

if [ -e /run/hutch/setup ]; then
  stage setup
  # The tree comes without apt's lists, and scripts begin with `apt-get install`. One that needs none goes on without.
  if [ -z "$updated" ] && [ -n "$address" ] && command -v apt-get >/dev/null; then
    apt-get --quiet --quiet update || echo "apt-get update failed"
  fi
  cp /run/hutch/setup /tmp/hutch-setup # the mount is noexec where the host's file system is
  chmod 0700 /tmp/hutch-setup
  interpreter="/bin/sh -e"
  case $(head -c 2 /tmp/hutch-setup) in '#!') interpreter="" ;; esac
  # shellcheck disable=SC2086
  (cd /root && $interpreter /tmp/hutch-setup </dev/null) || exit $?
fi

stage adapt
/bin/sh /run/hutch/adapt.sh
# The cache depends on the time and the order of its writing; ldconfig makes it again.
rm -rf /var/cache/ldconfig/aux-cache
