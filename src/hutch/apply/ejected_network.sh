# The rest is the same for all that have been ejected. A router in a network namespace of its own, joined to the host by
# a pair of interfaces. Nothing gets carrier before all rules are there, and what fails leaves nothing.

inside() { # COMMAND...: in the router
  nsenter --net="/run/netns/$namespace" -- "$@"
}

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

shape() { # The names of rules in order, and what becomes of what none of them decides
  grep -o 'comment "[^"]*"\|policy [a-z]*;'
}

load() { # FILE FAMILIES COMMAND...: the rules of a file, which are then read back
  file=$1 families=$2
  shift 2
  "$@" nft -f "$here/network/$file"
  wanted=$(shape <"$here/network/$file")
  found=$(for family in $families; do "$@" nft list table "$family" "$namespace" || exit; done | shape)
  [ "$found" = "$wanted" ] || fail "the rules of $file did not load as written"
}

addresses() { # Of this host; none of them is the guest's to reach
  ip -4 -o addr show | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | grep -v '^127\.'
}

forwarders() { # Interfaces for which this host might forward packets
  for kind in bridge veth tun wireguard; do
    ip -o link show type "$kind"
  done | sed 's/^[0-9]*: \([^:@]*\).*/\1/' | grep -vxF "$uplink" || :
}

forward() { # what hutch found when it had this host forward packets is handed over when a workspace is ejected
  if [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ]; then
    [ ! -f "$run/inherited" ] || mv "$run/inherited" "$run/forwarders"
    return
  fi
  forwarders >"$run/forwarders"
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

unforward() { # As it was, unless others have come that need it: they may go before this one does
  [ -f "$run/forwarders" ] || return 0
  ! forwarders | grep -qvxFf "$run/forwarders" || return 0
  echo 0 >/proc/sys/net/ipv4/ip_forward
  rm -f "$run/forwarders"
}

guard() { # DIRECTORY: what the guest makes there must not count on the host
  printf '%s\n' "$1" >>"$run/guarded"
  $bind "$1" = nosuid,nodev
}

unguard() { # DIRECTORY
  ! grep -qxF -- "$1" "$run/guarded" 2>/dev/null || unbind "$1" || :
}

check_ours() {
  if [ -e "/sys/class/net/$uplink" ] && [ "$(cat "/sys/class/net/$uplink/ifalias")" != "$tag" ] &&
    [ "$(cat "/sys/class/net/$uplink/address")" != "$mac" ]; then
    fail "there is an interface $uplink that is not this workspace's"
  fi
  if [ -e "/run/netns/$namespace" ] && ip -n "$namespace" link show dev lo >/dev/null 2>&1; then
    ip -n "$namespace" link show dev lo | grep -qF "alias $tag" ||
      fail "there is a network namespace $namespace that is not this workspace's"
  fi
}

clear() { # Whatever is there. The host's barrier goes last, when there is nothing any more that it holds back
  [ ! -e "/sys/class/net/$uplink" ] || ip link delete "$uplink"
  [ ! -e "/run/netns/$namespace" ] || ip netns delete "$namespace"
  printf 'table inet %s {}\ndelete table inet %s\n' "$namespace" "$namespace" | nft -f -
  writable unguard
  unforward
  rm -rf "$run/guarded" "$run/services" "$run/egress"
}

start() {
  check_ours
  clear
  trap 'code=$?; trap - EXIT; [ "$code" = 0 ] || clear; exit "$code"' EXIT
  mkdir -p "$run/services"
  writable guard
  watched
  make_namespace
  load router.nft 'bridge inet' inside
  for address in $(addresses); do
    inside nft add element inet "$namespace" host "{ $address }"
  done
  install -m 600 "$here/network/filter" "$run/services/filter"
  (umask 077 && inside bash -c "$list" bash "$run/services/filter" >"$run/services/rules")
  load host.nft inet env
  make_uplink
  make_bridge
  make_way_in
  forward
  settings
}

stop() {
  check_ours
  clear
}

"$1"
