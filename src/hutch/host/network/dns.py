"""Two dnsmasq: one in the router namespace answers workspaces; one on the host's end of the uplink asks for them.

The second reads the host's /etc/resolv.conf and follows its changes, so VPN, split DNS and a stub resolver on
the loopback address work. Neither answers from /etc/hosts: the host's names are not the workspaces' business.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from pathlib import Path

from hutch.files import read_or_none
from hutch.host.network.firewall import RESOLVER_PORT, UPSTREAM_PORT
from hutch.host.services.service import Service, only_writes
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout

MOST_WAITING = 20_000  # questions, of all workspaces: more than one of them can ask before they are given up
NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*", re.ASCII)
SANDBOX = (
    "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_SETGID CAP_SETUID CAP_CHOWN",
    "MemoryDenyWriteExecute=yes",
    "ProtectHome=tmpfs",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallFilter=@system-service",
)
"""The sandbox of dnsmasq, which binds its port, gives its pid file to its account, and becomes that."""


def wanted_resolvers(layout: Layout, network: Network, user: str, own: Sequence[str]) -> tuple[Service, ...]:
    """The two resolvers, as services. `own` are the host's names, see own_names()."""
    host_end, _ = names.uplink_addresses(network.uplink)
    common = (
        *("dnsmasq", "--conf-file=/dev/null", "--no-hosts", "--bind-interfaces", "--except-interface=lo"),
        *(f"--user={user}", "--filter-AAAA", f"--dns-forward-max={MOST_WAITING}"),
        # The host's resolver may know its own names and its neighbours'; the egress proxy asks it too.
        *("--domain-needed", "--bogus-priv", *((f"--local=/{'/'.join(own)}/",) if own else ())),
    )

    def resolver(name: str, file: str, namespace: str, *own: str) -> Service:
        pid_file = str(layout.services / file)
        sandbox = (*SANDBOX, *only_writes(layout.services))
        return Service(name, pid_file, namespace, (*common, *own, f"--pid-file={pid_file}"), sandbox=sandbox)

    hosts = (
        f"--listen-address={host_end}",
        f"--port={UPSTREAM_PORT}",
        "--resolv-file=/etc/resolv.conf",
        "--cache-size=0",
    )
    inside = (f"--listen-address={names.gateway(network.subnet)}", f"--port={RESOLVER_PORT}", "--no-resolv")
    router = str(layout.namespace_path)
    return (
        resolver("the resolver of the router", "host.pid", "", *hosts),
        resolver(
            "the resolver of the workspaces", "router.pid", router, *inside, f"--server={host_end}#{UPSTREAM_PORT}"
        ),
    )


def own_names() -> tuple[str, ...]:
    """The host's names: its own, and those in /etc/hosts, from which systemd-resolved answers."""
    hosts = read_or_none(Path("/etc/hosts")) or b""
    return choose_names(os.uname().nodename, hosts.decode("ascii", "replace"))


def choose_names(nodename: str, hosts: str) -> tuple[str, ...]:
    """The names of the host that are fit for an argument, sorted. Of all that point to this host, `localhost` is the
    workspace's own business."""
    own = nodename.lower()
    found = {own, own.partition(".")[0]}
    for line in hosts.lower().splitlines():
        _, *names_there = line.partition("#")[0].split() or [""]
        if found.intersection(names_there):
            found.update(names_there)
    return tuple(sorted(name for name in found if name != "localhost" and NAME.fullmatch(name)))


def service_user() -> str:
    """dnsmasq's own account where the distribution has one."""
    try:
        pwd.getpwnam("dnsmasq")
        return "dnsmasq"
    except KeyError:
        return "nobody"
