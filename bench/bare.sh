#!/bin/sh
# One container with systemd-nspawn and nothing else: what a careful person would write by hand to start a tree,
# unprivileged, with a root of its own that costs no copy. The clock starts in the file $DIR/started, right
# before systemd-nspawn itself.
#
#   bare.sh up NAMESPACE BRIDGE-ADDRESS/LENGTH UPLINK    once: a network namespace with a bridge, joined to the host
#                                                        by the addresses UPLINK.1 and UPLINK.2
#   bare.sh credentials DIR MATCH ADDRESS GATEWAY PUBLIC-KEY HOST-KEY    a guest's whole identity
#   bare.sh run TREE DIR NAMESPACE ADDRESS GATEWAY PUBLIC-KEY HOST-KEY     becomes the container
set -eu

BASE=1879048192          # the first of 65536 user ids that nobody else has
MAC=02:11:22:33:44:55

up() {
    namespace=$1 address=$2 uplink=$3
    ip netns add "$namespace"
    ip link add "$namespace-up" type veth peer name up0 netns "$namespace"
    ip address add "$uplink.1/30" dev "$namespace-up"
    ip link set "$namespace-up" up
    ip -n "$namespace" address add "$uplink.2/30" dev up0
    ip -n "$namespace" link set up0 up
    ip -n "$namespace" link set lo up
    ip -n "$namespace" route add default via "$uplink.1"
    ip -n "$namespace" link add br0 type bridge
    ip -n "$namespace" address add "$address" dev br0
    ip -n "$namespace" link set br0 up
    ip route add "${address%.*}.0/24" via "$uplink.2"
    ip netns exec "$namespace" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.disable_ipv6=1
}

credentials() (
    dir=$1 match=$2 address=$3 gateway=$4 public=$5 host=$6
    mkdir -p "$dir"
    printf '[Match]\n%s\n[Network]\nAddress=%s/24\nGateway=%s\nDNS=%s\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' \
        "$match" "$address" "$gateway" "$gateway" > "$dir/network.network.50-bare"
    printf bare > "$dir/system.hostname"
    cp "$host" "$dir/hutch.ssh-host-key" # where the image's sshd looks for it
    printf 'u dev 1000 "Dev" /home/dev /bin/bash\nm dev sudo\n' > "$dir/sysusers.extra"
    {
        echo "f+~ /etc/doas.conf 0400 root root - $(printf 'permit nopass :sudo\n' | base64 -w0)"
        echo "d /home/dev 0755 dev dev - -"
        echo "d /home/dev/.ssh 0700 dev dev - -"
        echo "f+~ /home/dev/.ssh/authorized_keys 0600 dev dev - $(base64 -w0 < "$public")"
    } > "$dir/tmpfiles.extra"
)

run() {
    tree=$1 dir=$2 namespace=$3 address=$4 gateway=$5 public=$6 host=$7
    mount --make-rprivate /
    mkdir -p "$dir/lower" "$dir/layer" "$dir/root"
    credentials "$dir/credentials" Name=host0 "$address" "$gateway" "$public" "$host"
    # systemd-nspawn waits for udev to say that an interface is initialised, unless /sys is read-only.
    mount --bind /sys /sys
    mount -o remount,bind,ro /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    ip link delete vi-bare 2>/dev/null || true # systemd-nspawn gave the last container's back
    ip link add ve-bare type veth peer name vi-bare address $MAC
    ip link set ve-bare netns "$namespace"
    ip -n "$namespace" link set ve-bare master br0 up
    ip -n "$namespace" link set dev ve-bare type bridge_slave isolated on
    ip -n "$namespace" neighbour replace "$address" lladdr $MAC dev br0 nud permanent
    mount --bind -o ro,X-mount.idmap=b:0:$BASE:65536 "$tree" "$dir/lower"
    mount -t tmpfs -o mode=755,size=2G tmpfs "$dir/layer"
    mkdir "$dir/layer/upper" "$dir/layer/work"
    chown $BASE:$BASE "$dir/layer/upper"
    mount -t overlay -o "lowerdir=$dir/lower,upperdir=$dir/layer/upper,workdir=$dir/layer/work" overlay "$dir/root"
    # A cgroup that another user namespace has used before makes the container's first process fail.
    group=/sys/fs/cgroup/bare-$$
    mkdir "$group"
    echo 0 > "$group/cgroup.procs"
    set --
    for file in "$dir"/credentials/*; do set -- "$@" "--load-credential=${file##*/}:$file"; done
    date +%s.%N > "$dir/started"
    exec systemd-nspawn --settings=no --register=no --keep-unit --quiet --directory="$dir/root" --machine=bare \
        --hostname=bare --private-users=$BASE:65536 --private-users-ownership=off \
        --network-interface=vi-bare:host0 --notify-ready=yes --console=passive --link-journal=no "$@" --boot
}

command=$1
shift
"$command" "$@"
