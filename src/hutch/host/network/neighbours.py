"""The other parties in this host's network and names, as facts: NetworkManager, resolved, firewalls, networks. Looks,
and changes nothing. Facts that only root may ask for are None for others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import read_or_none
from hutch.frozen import dataclass
from hutch.host.doctor.tools import find_program
from hutch.host.identity import shells
from hutch.host.network import router
from hutch.host.network.namespace import RULES
from hutch.run import run
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout

RESOLV_CONF = Path("/etc/resolv.conf")
FIRST_FREE_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


@dataclass(frozen=True)
class Workspaces:
    """The workspaces that are asked about: the network as it is set up, or as it would be (without an uplink where none
    is free); the addresses of workspaces by their names; damage of the records, in words; and the routes to workspaces
    that have been ejected, which keep their addresses."""

    network: Network
    addresses: dict[str, str]
    damage: str = ""
    ejected: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Neighbours:
    """The other parties' settings that concern us. `state` is our state directory, `uplink` our interface's name, and
    `guarded` are all of ours on the host, there or not. `listing` is what nft lists; `upstream` where the default
    routes lead. `managed` is NetworkManager's word for our interface: None where it does not run, "" where it has none
    to speak of. `servers` are the host's name servers, `answers` what resolved answers for each workspace: None where
    it does not run. `orphans` are the state directories of hutches whose interfaces are here, and which are gone.
    `first_free_port` is the first at which every user may listen."""

    workspaces: Workspaces
    state: str
    uplink: str
    guarded: tuple[str, ...]
    is_linked: bool
    is_foreign: bool
    listing: str | None
    host: router.HostNetwork
    upstream: tuple[str, ...]
    forwards: bool
    managed: str | None
    servers: tuple[str, ...]
    answers: dict[str, str] | None
    drop_in: str
    without_aliases: tuple[str, ...]
    orphans: tuple[str, ...]
    first_free_port: int

    @property
    def host_end(self) -> str:
        """The address at which workspaces' questions for names arrive; "" where no uplink is free."""
        uplink = self.workspaces.network.uplink
        return names.uplink_addresses(uplink)[0] if uplink else ""


def observe_neighbours(layout: Layout, workspaces: Workspaces, *, is_root: bool) -> Neighbours:
    host = router.observe_host().without_routes(workspaces.ejected)
    link = host.links.get(layout.uplink_host)
    return Neighbours(
        workspaces=workspaces,
        state=str(layout.state),
        uplink=layout.uplink_host,
        guarded=(layout.uplink_host, layout.proof_interface),
        is_linked=link is not None,
        is_foreign=link is not None and not router.is_ours(layout, link),
        listing=(answer(RULES) or None) if is_root else None,  # without nft too, which is a finding of its own
        host=host,
        upstream=parse_upstream(answer(["ip", "-j", "route", "show", "default"])),
        forwards=not router.observe_sysctls({router.FORWARDING: "1"}),
        managed=observe_managed(layout.uplink_host),
        servers=parse_servers((read_or_none(RESOLV_CONF) or b"").decode("ascii", "replace")),
        answers=observe_answers(tuple(workspaces.addresses)),
        drop_in=f"/etc/NetworkManager/conf.d/90-{layout.instance}.conf",
        without_aliases=shells.missing_shells(layout),
        orphans=observe_orphans(layout) if is_root else (),
        first_free_port=int(read_or_none(FIRST_FREE_PORT) or 1024),
    )


def observe_orphans(layout: Layout) -> tuple[str, ...]:
    """The state directories of hutches whose uplink is on this host, and that are not there, or hold no record."""
    uplinks = ((name, router.tagged_state(alias)) for name, alias in router.observe_forwarders().items())
    states = (state for name, state in uplinks if state and name == Layout(state, layout.run).uplink_host)
    return tuple(str(state) for state in sorted(states) if not has_records(state))


def has_records(state: Path) -> bool:
    """Whether anything is written down in a state directory of the network or of a workspace, damaged or not."""
    return any(any(state.glob(pattern)) for pattern in ("network.json*", "workspaces/*/workspace.json*"))


def answer(argv: list[str]) -> str:
    """The output of a command, "" where it takes too long, or is not there."""
    if find_program(argv[0]) is None:
        return ""
    try:
        return run(argv, check=False).stdout
    except HutchError:  # it takes too long
        return ""


def parse_upstream(routes: str) -> tuple[str, ...]:
    """The interfaces of default routes, the preferred one first."""
    found = sorted(json.loads(routes or "[]"), key=lambda route: route.get("metric", 0))
    return tuple(dict.fromkeys(route["dev"] for route in found if "dev" in route))


def observe_managed(interface: str) -> str | None:
    """NetworkManager's word for an interface: "unmanaged", say."""
    if "running" not in answer(["nmcli", "-t", "-f", "RUNNING", "general"]).split():
        return None
    lines = answer(["nmcli", "-t", "-f", "DEVICE,STATE", "device"]).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line).get(interface, "")


def parse_servers(resolv_conf: str) -> tuple[str, ...]:
    words = (line.split() for line in resolv_conf.splitlines())
    return tuple(line[1] for line in words if len(line) > 1 and line[0] == "nameserver")


def observe_answers(workspaces: tuple[str, ...]) -> dict[str, str] | None:
    """resolved's answer for the first workspace, by its name: it takes them all from one file."""
    if not answer(["resolvectl", "status"]):
        return None
    found = {}
    for name in workspaces[:1]:
        said = answer(["resolvectl", "query", "--legend=no", names.hostname(name)])
        address = re.search(r"\b[0-9]+(\.[0-9]+){3}\b", said)
        found[name] = address[0] if address else ""
    return found
