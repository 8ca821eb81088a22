"""Two dnsmasq: one in the router namespace answers workspaces; one on the host's end of the uplink asks for them.

The second reads the host's /etc/resolv.conf and follows its changes, so VPN, split DNS and a stub resolver on
the loopback address work. Neither answers from /etc/hosts: the host's names are not the workspaces' business.
"""

from __future__ import annotations

import os
import pwd
import re

from hutch.host.firewall import RESOLVER_PORT
from hutch.host.service import Service
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Places


def wanted_resolvers(places: Places, network: Network, user: str, own_name: str) -> tuple[Service, ...]:
    """The two, as argument lists. `own_name` is the host's, see own_name()."""
    host_end, _ = names.uplink_addresses(network.uplink)
    common = (
        *("dnsmasq", "--conf-file=/dev/null", "--no-hosts", "--bind-interfaces", "--except-interface=lo"),
        *(f"--user={user}", "--filter-AAAA", "--dns-forward-max=1000"),
    )
    host_pid, router_pid = str(places.services / "host.pid"), str(places.services / "router.pid")
    return (
        Service(
            "the resolver of the router",
            host_pid,
            "",
            (
                *common,
                f"--listen-address={host_end}",
                "--resolv-file=/etc/resolv.conf",
                "--cache-size=0",
                f"--pid-file={host_pid}",
            ),
        ),
        Service(
            "the resolver of the workspaces",
            router_pid,
            str(places.namespace_path),
            (
                *common,
                f"--listen-address={names.gateway(network.subnet)}",
                f"--port={RESOLVER_PORT}",
                "--no-resolv",
                f"--server={host_end}",
                "--domain-needed",
                *((f"--local=/{own_name}/",) if own_name else ()),  # the host's resolver may know its own name
                "--bogus-priv",
                f"--pid-file={router_pid}",
            ),
        ),
    )


def own_name() -> str:
    """What the host calls itself, "" where that is no name."""
    name = os.uname().nodename.lower()
    return name if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", name) else ""


def service_user() -> str:
    """dnsmasq's own account where the distribution has one."""
    try:
        pwd.getpwnam("dnsmasq")
        return "dnsmasq"
    except KeyError:
        return "nobody"
