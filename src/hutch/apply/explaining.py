"""What is behind a workspace, as text that a sysadmin can read and replay. Reads the host, changes nothing.

All of it comes from the very functions that make these things; what is put together here is titles and their order.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from hutch.apply.converge import in_force, members_of, views_of, wanted_services
from hutch.apply.starting import make_launch
from hutch.backends.launch import Launch, Step
from hutch.frozen import dataclass
from hutch.host.hardware.accelerator import Accelerator, recall_accelerator
from hutch.host.identity import hosts_file, ssh
from hutch.host.network import firewall, router, ruleset
from hutch.host.network.firewall import Member
from hutch.host.services.units import has_systemd
from hutch.host.storage import shares
from hutch.runtime.limits import control_files
from hutch.runtime.observe import observe
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Places
from hutch.state import Record


@dataclass(frozen=True)
class Section:
    title: str
    text: str


def explain(places: Places, network: Network, records: Mapping[str, Record], record: Record) -> tuple[Section, ...]:
    """Everything that the next start of a workspace makes, and what stands on the host for it."""
    serving = in_force(places, records)
    members = members_of(serving, network)
    return (
        Section("workspace", describe(places, record)),
        Section(f"router namespace {places.namespace}", shlex.join(router.render_namespace(places))),
        *explain_firewall(places, network, members),  # before the links: nothing gets carrier without rules
        *explain_network(places, network, records, members),
        *explain_names(places, serving[record.name]),
        Section("directories that the guest can write, nosuid and nodev on the host", guards(serving[record.name])),
        *explain_launch(places, make_launch(places, record, network, known_accelerator(places, record))),
    )


def known_accelerator(places: Places, record: Record) -> Accelerator | None:
    """What a machine runs under, as far as it has been tried already: here nothing is started."""
    if record.wanted.type != "vm":
        return None
    return recall_accelerator(places) or Accelerator("tcg", None, None, "no guest has been tried yet")


def describe(places: Places, record: Record) -> str:
    """What it is, and which start the rest is about."""
    lines = [f"{record.name}: {record.wanted.type}, {record.wanted.ip}, {record.wanted.mac}, from {record.file}"]
    if observe(places, record.name).is_up:
        same = record == record.with_booted()
        lines.append(
            "it runs, started as shown below"
            if same
            else "it runs, and was started from other settings; what follows is its next start"
        )
    else:
        lines.append("it does not run; what follows is its next start")
    return "\n".join(lines)


def explain_network(
    places: Places, network: Network, records: Mapping[str, Record], members: Sequence[Member]
) -> Iterable[Section]:
    """Uplink, bridge, kernel settings and what serves all."""
    in_router = ["ip", "-n", places.namespace, "-batch", "-"]
    yield Section(
        f"network: bridge {network.bridge} ({network.subnet}), "
        f"uplink {places.uplink_host} to {places.uplink_router} ({network.uplink})",
        "\n".join(
            (
                fed(["ip", "-batch", "-"], router.render_uplink(places, network)),
                fed(in_router, router.render_router_end(places, network)),
                fed(in_router, router.render_bridge(network)),
                fed(in_router, router.render_fence(network)),
                shlex.join(router.render_route(places, network)),
            )
        ),
    )
    settings = router.wanted_sysctls(places, members)
    yield Section("kernel settings", "\n".join(f"echo {value} >/proc/sys/{name}" for name, value in settings.items()))
    views = views_of(places, network, members)
    if has_systemd():
        from hutch.apply.units import wanted_host_units

        for unit, text in wanted_host_units(places, network, records).items():
            yield Section(f"unit {unit}", text.rstrip())
    else:
        services = wanted_services(places, network, is_watched=bool(views))
        lines = (f"{shlex.join(service.command)}  # {service.name}" for service in services)
        yield Section("services", "\n".join(lines))
    if views:
        yield Section("what the warden is told", views)


def explain_firewall(places: Places, network: Network, members: tuple[Member, ...]) -> Iterable[Section]:
    """Both rulesets."""
    addresses = router.observe_host().addresses(without=places.uplink_host)
    yield Section(
        f"firewall of the router namespace (see it live: ip netns exec {places.namespace} nft list ruleset)",
        ruleset.render_tables(firewall.router_tables(places, network, members, addresses)).rstrip(),
    )
    yield Section(
        f"firewall of the host (see it live: nft list table inet {places.table})",
        ruleset.render_tables(firewall.host_tables(places, network, members)).rstrip(),
    )


def explain_names(places: Places, record: Record) -> Iterable[Section]:
    """How ssh finds and trusts it, and who may log in."""
    wanted = record.wanted
    assert isinstance(wanted.owner, int)
    holders = ssh.key_holders(wanted.authorized_keys, wanted.owner)
    lines = (
        f"{hosts_file.HOSTS}: {wanted.ip} {names.hostname(record.name)}",
        f"host key (root's only): {places.host_key(record.name)}",
        f"known hosts: {places.known_hosts}",
        f"ssh drop-in: {places.ssh_config}",
        *(f"authorised: {key}" for key in wanted.authorized_keys or ()),
        *(f"authorised, of hutch's own: {places.key(uid)}" for uid in holders),
    )
    yield Section("names and keys", "\n".join(lines))


def guards(record: Record) -> str:
    """The mounts that keep what a guest makes from counting on the host."""
    return "\n".join(shlex.join(shares.render_guard(path)) for path in shares.writable_paths(record.wanted))


def explain_launch(places: Places, launch: Launch) -> Iterable[Section]:
    """How it is run: by systemd, as units, or by a supervisor of ours."""
    if not launch.unit:
        yield from explain_start(launch)
        return
    from hutch.runtime.units import render_script, render_service, render_slice

    for unit, text in (
        (launch.unit, render_service(launch, places)),
        (places.slice(launch.workspace), render_slice(launch)),
    ):
        yield Section(f"unit {unit}", text.rstrip())
    yield Section(
        f"what the service runs: {places.unit_script(launch.workspace)}",
        render_script(launch, places, sys.executable).rstrip(),
    )


def explain_start(launch: Launch) -> Iterable[Section]:
    """The Launch, in the order in which it is run."""
    files = "\n".join(f"{file.path}\n{indented(file.content)}" for file in launch.files)
    yield Section("files, root's only, before each start", files)
    limits = control_files(asdict(launch.limits))
    yield Section(
        f"limits, in the cgroup {launch.cgroup}", "\n".join(f"echo {value} >{name}" for name, value in limits.items())
    )
    chains = "\n".join(commands(chain) for chain in (*launch.prepare, *launch.connect))
    yield Section(
        "start: in namespaces of its own",
        f"unshare --mount --propagation slave -- nsenter --net={launch.network_namespace} -- bash\n"
        f"mkdir -p {shlex.join(launch.directories)}\n{chains}",
    )
    if launch.helpers:
        beside = (f"{shlex.join(item.argv)} 3<(listening at {item.socket})  # {item.why}" for item in launch.helpers)
        yield Section("beside it, each with its socket as descriptor 3", "\n".join(beside))
    if launch.vsock is not None:
        where = f"the address of one that is free, for the context id {launch.vsock.cid} alone: {launch.vsock.file}"
        yield Section("a port of vsock, at which its guest says that it is ready", where)
    if launch.forbidden is not None:
        families = " ".join(launch.forbidden.other_families_than)
        text = f"SystemCallFilter=~{' '.join(launch.forbidden.system_calls)}\nRestrictAddressFamilies={families}"
        yield Section("what the kernel refuses to all of it, in the words of systemd.exec(5)", text)
    yield Section(f"then, in the cgroup {launch.cgroup}/machine", shlex.join(launch.argv))
    if launch.held:
        title = f"while its PID 1 is held in {launch.cgroup}/machine/payload; PID is its pid on the host"
        yield Section(title, commands(launch.held))
    if launch.inward or launch.grafts:
        shown = commands((*launch.inward, *(graft.attach for graft in launch.grafts)))
        yield Section("as soon as it runs, each with the pid of its PID 1 as one more argument", shown)
    yield Section("after it ended", commands(launch.cleanup))


def commands(steps: Iterable[Step]) -> str:
    return "\n".join(f"{shlex.join(step.argv)}  # {step.why}" for step in steps)


def fed(argv: Sequence[str], text: str) -> str:
    """A command with its standard input, for a shell."""
    return f"{shlex.join(argv)} <<'END'\n{text}END"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
