"""The host's services for workspaces, as they follow from the records: endpoints of the network, services, keys, peers.

Here they are only described; `reconcile` makes them, and `inspecting` compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hutch.engines import elsewhere, engine_of
from hutch.host.identity import ssh
from hutch.host.identity.holders import key_holders
from hutch.host.network.dns import own_names, service_user, wanted_resolvers
from hutch.host.network.firewall import Endpoint
from hutch.host.network.watch import wanted_watch
from hutch.host.services.service import Service, observe_service
from hutch.host.services.units import observe_ejected
from hutch.runtime.observe import observe_state
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Record, holds_identity, is_local, present, served
from hutch.spec.sharing import BY_ROOTS_KEY, RETIRED

IDENTITY = ("type", "hypervisor", "ip", "mac", "cid", "user", "owner", "home")


def in_force(layout: Layout, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records as this host must serve them: a workspace that holds an identity keeps it until it is restarted."""
    found = {}
    for name, record in served(records).items():
        wanted, booted = record.wanted, record.effective
        if booted != wanted and holds_identity(observe_state(layout, record)):
            identity = {key: getattr(booted, key) for key in IDENTITY}
            record = replace(record, wanted=replace(wanted, **identity))
        found[name] = record
    return found


def known(layout: Layout, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of the workspaces that people of this host know by name and key, whoever runs them."""
    return dict(sorted({**in_force(layout, records), **elsewhere(present(records))}.items()))


def endpoints_of(records: Mapping[str, Record], network: Network) -> tuple[Endpoint, ...]:
    """The workspaces as the firewall sees them, and the place that is kept for image builds."""
    port = names.port(names.BUILDER, "container")
    endpoints = [Endpoint(names.BUILDER, port, names.BUILDER_MAC, names.builder_address(network.subnet))]
    for name, record in served(records).items():
        workspace = record.wanted
        assert workspace.ip is not None and workspace.mac is not None
        where = names.port(name, workspace.type), workspace.mac, workspace.ip
        endpoints.append(Endpoint(name, *where, workspace.publish, policy_of(workspace), record.decisions))
    return tuple(endpoints)


def ejected_routes() -> frozenset[str]:
    """The ways to workspaces that have been ejected: they keep their addresses, in the midst of the others'."""
    return frozenset(f"{note.ip}/32" for note in observe_ejected().values())


def views_of(layout: Layout, network: Network, endpoints: Iterable[Endpoint]) -> str:
    """The views for the egress proxy; "" where nobody is watched, and there is to be none."""
    if not any(endpoint.policy.is_watched for endpoint in endpoints):
        return ""
    # Spares the start-up of `hutch start` where nobody is watched.
    from hutch.host.network.egress_proxy import render_views

    return render_views(layout, network, endpoints)


def wanted_services(layout: Layout, network: Network, *, is_watched: bool) -> tuple[Service, ...]:
    """The services that all workspaces share."""
    common = (*wanted_resolvers(layout, network, service_user(), own_names()), wanted_watch(layout, network))
    if not is_watched:
        return common
    # Spares the start-up of `hutch start` where nobody is watched.
    from hutch.host.network.egress_proxy import own_programs, wanted_egress_proxy

    return (*common, wanted_egress_proxy(layout, own_programs()))


def missing_services(layout: Layout, network: Network, endpoints: Iterable[Endpoint]) -> list[str]:
    """The services that do not run as wanted, or have other views than they should, in words."""
    views = views_of(layout, network, endpoints)
    wanted = wanted_services(layout, network, is_watched=bool(views))
    missing = [f"{service.name} does not run" for service in wanted if observe_service(service) is None]
    if views and not missing:
        # Spares the start-up of `hutch start` where nobody is watched.
        from hutch.host.network.egress_proxy import has_views

        missing += [] if has_views(layout, views) else ["the egress proxy was told something else"]
    return missing


def own_keys(serving: Mapping[str, Record]) -> dict[str, tuple[str, ...]]:
    """The holders of the keys that hutch makes, each with the workspaces that the key opens; groups come last, and
    what is retired."""
    found: dict[str, tuple[str, ...]] = {}
    for name, record in serving.items():
        is_opened = record.booted is not None and BY_ROOTS_KEY in record.booted.workspace.share_with
        for holder in (*key_holders(record.wanted), *((RETIRED,) if is_opened else ())):
            found[holder] = (*found.get(holder, ()), name)
    return dict(sorted(found.items(), key=lambda item: (not item[0].isdigit(), len(item[0]), item[0])))


def peers_of(layout: Layout, serving: Mapping[str, Record]) -> tuple[ssh.Peer, ...]:
    """The workspaces as the ssh client is to see them; without a host key where there is none."""
    peers = []
    for name, record in serving.items():
        workspace = record.wanted
        if not is_local(workspace):
            peers.append(engine_of(layout, record).peer(record))
            continue
        assert workspace.ip is not None
        host_key = ssh.read_key(layout.host_key(name))
        peers.append(ssh.Peer(name, workspace.ip, workspace.user, host_key))
    return tuple(peers)
