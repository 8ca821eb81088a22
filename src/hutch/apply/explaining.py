"""Explanations of a workspace, as text that a sysadmin can read and replay. Reads the host, changes nothing.

All of it comes from the very functions that make these things; only titles and their order are added here.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence

from hutch.apply.launching import make_launch
from hutch.apply.serving import endpoints_of, in_force, views_of, wanted_services
from hutch.apply.units import wanted_host_units
from hutch.backends import is_machine
from hutch.backends.incus import LIMITS
from hutch.backends.launch import Launch
from hutch.engines import engine_of, observe_all
from hutch.frozen import dataclass
from hutch.host.hardware.accelerator import Accelerator, recall_accelerator
from hutch.host.identity import hosts_file
from hutch.host.identity.holders import key_holders
from hutch.host.network import firewall, router, ruleset
from hutch.host.network.firewall import Endpoint
from hutch.host.storage import shares
from hutch.plan.turning import no_network
from hutch.runtime.units import render_script, render_service, render_slice
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import Record, UserView, holds_identity, is_local, state_of
from hutch.state import read_network, read_records


@dataclass(frozen=True)
class Section:
    title: str
    text: str


def explain(layout: Layout, record: Record) -> tuple[Section, ...]:
    """The sections on all that the next start of a workspace makes, and on the host's part in it."""
    if not is_local(record.wanted):
        return tuple(explain_elsewhere(layout, record))
    found, records = read_network(layout), read_records(layout)
    if found is None:
        raise no_network()
    network = found.network
    serving = in_force(layout, records)
    endpoints = endpoints_of(serving, network)
    return (
        Section("workspace", describe(layout, record)),
        Section(f"router namespace {layout.namespace}", shlex.join(router.render_namespace(layout))),
        *explain_firewall(layout, network, endpoints),  # before the links: nothing gets carrier without rules
        *explain_network(layout, network, records, endpoints),
        *explain_names(layout, serving[record.name]),
        Section("directories that the guest can write, nosuid and nodev on the host", guards(serving[record.name])),
        *explain_launch(layout, make_launch(layout, record, network, known_accelerator(layout, record))),
    )


def explain_own(layout: Layout, view: UserView) -> tuple[Section, ...]:
    """The sections for a caller other than root: its addresses, names and rules, as they are in force. What its service
    runs is made of files that root alone reads."""
    record, network = view.record, view.network
    if not is_local(record.wanted):
        rest = f"`sudo hutch explain {record.name}` has its instance, too"
        return (Section("workspace", f"{identify(record)}\n{rest}"), *explain_names(layout, record), *explain_limits())
    if network is None:
        raise no_network()
    serving = in_force(layout, {record.name: record})
    endpoints = endpoints_of(serving, network)
    views = views_of(layout, network, endpoints)
    rest = f"`sudo hutch explain {record.name}` has the rest, which is the host's"
    return (
        Section("workspace", f"{identify(record)}\n{rest}"),
        *explain_names(layout, serving[record.name]),
        *([Section("settings of the egress proxy for it", views)] if views else []),
        *explain_firewall(layout, network, endpoints, whole=False),
    )


def explain_elsewhere(layout: Layout, record: Record) -> Iterable[Section]:
    """The sections on a workspace that this host does not run."""
    yield Section("workspace", describe(layout, record))
    yield from explain_names(layout, record)
    for title, text in engine_of(layout, record).explain(record).items():
        yield Section(title, text)
    yield from explain_limits()


def explain_limits() -> Iterable[Section]:
    """The section on what hutch promises and an Incus server does not keep."""
    yield Section("differences on a server", "\n".join(f"- {text}" for text in LIMITS))


def known_accelerator(layout: Layout, record: Record) -> Accelerator | None:
    """The accelerator of a machine, as far as it has been tried already: here nothing is started."""
    if not is_machine(record.wanted):
        return None
    return recall_accelerator(layout) or Accelerator("tcg", None, None, "no guest has been tried yet")


def describe(layout: Layout, record: Record) -> str:
    """Two lines: the workspace itself, and the start that the rest is about."""
    seen = observe_all(layout, {record.name: record})[record.name]
    if seen.state == "unreachable":
        how = f"nobody knows whether it runs: {seen.reason}"
    elif not holds_identity(state_of(record, seen)):
        how = "it does not run; its next start is shown below"
    elif record == record.with_booted():
        how = "it runs, started as shown below"
    else:
        how = "it runs, and was started from other settings; its next start is shown below"
    return f"{identify(record)}\n{how}"


def identify(record: Record) -> str:
    """One line: which workspace it is."""
    return f"{record.name}: {record.wanted.type}, {record.wanted.ip}, {record.wanted.mac}, from {record.file}"


def explain_network(
    layout: Layout, network: Network, records: Mapping[str, Record], endpoints: Sequence[Endpoint]
) -> Iterable[Section]:
    """Uplink, bridge, kernel settings and the shared services."""
    in_router = ["ip", "-n", layout.namespace, "-batch", "-"]
    yield Section(
        f"network: bridge {network.bridge} ({network.subnet}), "
        f"uplink {layout.uplink_host} to {layout.uplink_router} ({network.uplink})",
        "\n".join(
            (
                fed(["ip", "-batch", "-"], router.render_uplink(layout, network)),
                fed(in_router, router.render_router_end(layout, network)),
                fed(in_router, router.render_bridge(network)),
                fed(in_router, router.render_fence(network)),
                shlex.join(router.render_route(layout, network)),
            )
        ),
    )
    settings = router.wanted_sysctls(layout, endpoints)
    yield Section("kernel settings", "\n".join(f"echo {value} >/proc/sys/{name}" for name, value in settings.items()))
    views = views_of(layout, network, endpoints)
    units = wanted_host_units(layout, network, records)
    for unit, text in units.items():
        yield Section(f"unit {unit}", text.rstrip())
    if not units:
        services = wanted_services(layout, network, is_watched=bool(views))
        lines = (f"{shlex.join(service.command)}  # {service.name}" for service in services)
        yield Section("services", "\n".join(lines))
    if views:
        yield Section("settings of the egress proxy", views)


def explain_firewall(
    layout: Layout, network: Network, endpoints: tuple[Endpoint, ...], *, whole: bool = True
) -> Iterable[Section]:
    """Both rulesets; those that are not `whole` are as for these endpoints alone."""
    addresses = router.observe_host().addresses(without=layout.uplink_host)
    of_router = of_host = "as for this workspace alone"
    if whole:
        of_router = f"see it live: ip netns exec {layout.namespace} nft list ruleset"
        of_host = f"see it live: nft list table inet {layout.table}"
    yield Section(
        f"firewall of the router namespace ({of_router})",
        ruleset.render_tables(firewall.router_tables(layout, network, endpoints, addresses)).rstrip(),
    )
    yield Section(
        f"firewall of the host ({of_host})",
        ruleset.render_tables(firewall.host_tables(layout, network, endpoints)).rstrip(),
    )


def explain_names(layout: Layout, record: Record) -> Iterable[Section]:
    """The section on names and keys: how ssh finds and trusts it, and who may log in."""
    wanted = record.wanted
    lines = (
        f"{hosts_file.HOSTS}: {wanted.ip} {names.hostname(record.name)}",
        f"host key (root's only): {layout.host_key(record.name)}",
        f"known hosts: {layout.known_hosts}",
        f"ssh drop-in: {layout.ssh_config}",
        *(f"authorised: {key}" for key in wanted.authorized_keys or ()),
        *(f"authorised, of hutch's own: {layout.key(holder)}" for holder in key_holders(wanted)),
    )
    yield Section("names and keys", "\n".join(lines))


def guards(record: Record) -> str:
    """The mounts that keep a guest's devices and setuid files from counting on the host."""
    return "\n".join(shlex.join(shares.render_guard(path, record.members_own.get(path))) for path in record.written)


def explain_launch(layout: Layout, launch: Launch) -> Iterable[Section]:
    """The sections on its service: the units, and the script that it runs."""
    for unit, text in (
        (launch.unit, render_service(launch, layout)),
        (layout.slice(launch.workspace), render_slice(launch)),
    ):
        yield Section(f"unit {unit}", text.rstrip())
    yield Section(
        f"script of the service: {layout.unit_script(launch.workspace)}",
        render_script(launch, sys.executable, record=str(layout.audit_ends(launch.workspace))).rstrip(),
    )


def fed(argv: Sequence[str], text: str) -> str:
    """A command with its standard input, for a shell."""
    return f"{shlex.join(argv)} <<'END'\n{text}END"
