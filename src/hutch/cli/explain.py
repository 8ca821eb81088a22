"""explain: everything behind a workspace, in a form that a sysadmin can read and replay."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from hutch.api import Hutch
from hutch.cli.common import Options, global_options, needs_root, printable, workspace_names
from hutch.spec import names


@click.command()
@click.argument("name", shell_complete=workspace_names)
@global_options
@needs_root
def explain(options: Options, name: str) -> None:
    """Print the exact commands, firewall rules and files behind a workspace."""
    from hutch.apply.converge import in_force, members_of
    from hutch.host import dns, firewall, hosts_file, router, ruleset
    from hutch.state import read_network, read_records

    hutch = Hutch()
    launch, record, places = hutch.launch(name), hutch.record(name), hutch.places
    network_record = read_network(places)
    assert network_record is not None
    network, records = network_record.network, read_records(places)
    members = members_of(in_force(places, records), network)
    host = router.observe_host()
    gateway = names.gateway(network.subnet)
    section("workspace", f"{name}: {record.wanted.type}, {record.wanted.ip}, {record.wanted.mac}, from {record.file}")
    section(
        "network",
        f"router namespace {places.namespace}, bridge {network.bridge} ({gateway}, {network.subnet}), "
        f"uplink {places.uplink_host} to {places.uplink_router} ({network.uplink})",
    )
    inner = firewall.router_tables(places, network, members, host.addresses(without=places.uplink_host))
    section(
        f"firewall of the router namespace (see it live: ip netns exec {places.namespace} nft list ruleset)",
        ruleset.render_tables(inner),
    )
    section(
        f"firewall of the host (see it live: nft list table inet {places.table})",
        ruleset.render_tables(firewall.host_tables(places, network, members)),
    )
    resolvers = dns.wanted_resolvers(places, network, dns.service_user())
    section("resolvers", "\n".join(replayable(r.argv, r.namespace) for r in resolvers))
    section(
        "names and keys",
        "\n".join(
            (
                f"{hosts_file.HOSTS}: {record.wanted.ip} {names.hostname(name)}",
                f"host key (root's only): {places.host_key(name)}",
                f"known hosts: {places.known_hosts}",
                f"ssh drop-in: {places.ssh_config}",
                *(f"authorised: {key}" for key in record.wanted.authorized_keys or ()),
                *(f"authorised, of hutch's own: {key}" for key in key_files(hutch, name)),
            )
        ),
    )
    section(
        "files, root's only, before each start", "\n".join(f"{f.path}\n{indented(f.content)}" for f in launch.files)
    )
    environment = (
        f"unshare --mount --propagation slave -- nsenter --net={launch.network_namespace} -- bash\n"
        f"mkdir -p {shlex.join(launch.directories)}"
    )
    section("start: in namespaces of its own", environment)
    section(
        "",
        "\n".join(
            f"{shlex.join(step.argv)}  # {step.why}" for chain in (*launch.mounts, *launch.connect) for step in chain
        ),
    )
    section(f"then, in the cgroup {launch.cgroup}", shlex.join(launch.argv))
    section("after it ended", "\n".join(f"{shlex.join(step.argv)}  # {step.why}" for step in launch.cleanup))


def key_files(hutch: Hutch, name: str) -> list[Path]:
    from hutch.host.ssh import key_holders

    wanted = hutch.record(name).wanted
    assert isinstance(wanted.owner, int)
    return [hutch.places.key(uid) for uid in key_holders(wanted.authorized_keys, wanted.owner)]


def section(title: str, text: str) -> None:
    if title:
        click.echo(f"\n# {title}")
    click.echo(printable(text))


def replayable(argv: tuple[str, ...], namespace: str) -> str:
    return (f"nsenter --net={namespace} -- " if namespace else "") + shlex.join(argv)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
