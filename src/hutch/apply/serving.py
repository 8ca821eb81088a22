"""The host's services for workspaces, as they follow from the records: members of the network, services, keys, peers.

Here they are only described; `reconcile` makes them, and `inspecting` compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hutch.host.hardware.vsock import has_vsock
from hutch.host.identity import ssh
from hutch.host.network.dns import own_names, service_user, wanted_resolvers
from hutch.host.network.firewall import Member
from hutch.host.network.watch import wanted_watch
from hutch.host.services.service import Service, observe_service
from hutch.host.services.units import observe_ejected
from hutch.runtime.observe import observe_state
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Record, holds_identity, served

IDENTITY = ("type", "hypervisor", "ip", "mac", "cid", "user", "owner", "home")


def in_force(layout: Layout, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records as this host must serve them: a workspace that holds an identity keeps it until it is restarted, and
    all that it can write stays guarded."""
    found = {}
    for name, record in served(records).items():
        wanted, booted = record.wanted, record.effective
        if booted != wanted and holds_identity(observe_state(layout, record)):
            identity = {key: getattr(booted, key) for key in IDENTITY}
            # Mounts that it runs with are guarded, and not created: directories may have been moved.
            running = (replace(mount, create=False) for mount in booted.mounts if mount not in wanted.mounts)
            mounts = (*running, *wanted.mounts)
            record = replace(record, wanted=replace(wanted, **identity, mounts=mounts))
        found[name] = record
    return found


def members_of(records: Mapping[str, Record], network: Network) -> tuple[Member, ...]:
    """The workspaces as the firewall sees them, and the place that is kept for image builds."""
    port = names.port(names.BUILDER, "container")
    members = [Member(names.BUILDER, port, names.BUILDER_MAC, names.builder_address(network.subnet))]
    for name, record in served(records).items():
        workspace = record.wanted
        assert workspace.ip is not None and workspace.mac is not None
        port = names.port(name, workspace.type)
        members.append(Member(name, port, workspace.mac, workspace.ip, workspace.publish, policy_of(workspace)))
    return tuple(members)


def ejected_routes() -> frozenset[str]:
    """The ways to workspaces that have been ejected: they keep their addresses, in the midst of the others'."""
    return frozenset(f"{note.ip}/32" for note in observe_ejected().values())


def views_of(layout: Layout, network: Network, members: Iterable[Member]) -> str:
    """The views for the egress proxy; "" where nobody is watched, and there is to be none."""
    if not any(member.policy.is_watched for member in members):
        return ""
    # Spares the start-up of `hutch start` where nobody is watched.
    from hutch.host.network.egress_proxy import render_views

    return render_views(layout, network, members)


def wanted_services(layout: Layout, network: Network, *, is_watched: bool) -> tuple[Service, ...]:
    """The services that all workspaces share."""
    common = (*wanted_resolvers(layout, network, service_user(), own_names()), wanted_watch(layout, network))
    if not is_watched:
        return common
    # Spares the start-up of `hutch start` where nobody is watched.
    from hutch.host.network.egress_proxy import wanted_egress_proxy

    return (*common, wanted_egress_proxy(layout))


def missing_services(layout: Layout, network: Network, members: Iterable[Member]) -> list[str]:
    """The services that do not run as wanted, or have other views than they should, in words."""
    views = views_of(layout, network, members)
    wanted = wanted_services(layout, network, is_watched=bool(views))
    missing = [f"{service.name} does not run" for service in wanted if observe_service(service) is None]
    if views and not missing:
        # Spares the start-up of `hutch start` where nobody is watched.
        from hutch.host.network.egress_proxy import has_views

        missing += [] if has_views(layout, views) else ["the egress proxy was told something else"]
    return missing


def own_keys(layout: Layout, serving: Mapping[str, Record]) -> dict[int, str]:
    """The private keys that hutch makes for users, by uid."""
    workspaces = [record.wanted for record in serving.values()]
    holders = (uid for wanted in workspaces for uid in ssh.key_holders(wanted.authorized_keys, wanted.uid))
    return {uid: str(layout.key(uid)) for uid in holders}


def peers_of(layout: Layout, serving: Mapping[str, Record]) -> tuple[ssh.Peer, ...]:
    """The workspaces as the ssh client is to see them; without a host key where there is none."""
    peers = []
    for name, record in serving.items():
        workspace = record.wanted
        assert workspace.ip is not None
        traits = ssh.likely_traits(workspace)
        proxy = ssh.proxy_of(workspace, traits, has_vsock=traits.has_vsock and has_vsock())
        host_key = ssh.read_key(layout.host_key(name))
        peers.append(ssh.Peer(name, workspace.ip, workspace.user, host_key, proxy))
    return tuple(peers)
