"""The host as the records want it: network, names, keys, shares. Every call writes only what differs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hutch.apply.serving import ejected_routes, in_force, members_of, own_keys, peers_of, views_of, wanted_services
from hutch.backends import is_machine
from hutch.backends.port import port_of
from hutch.errors import HutchError
from hutch.files import remove_flat, write_atomic
from hutch.host.doctor.tools import check_tools
from hutch.host.identity import hosts_file, ssh, user_view
from hutch.host.network import router
from hutch.host.network.firewall import Member
from hutch.host.network.namespace import has_namespace, inside
from hutch.host.services.lock import host_lock
from hutch.host.services.service import observe_service, remove_retired, remove_services, start_services, stop_service
from hutch.host.services.units import ensure_rooms, remove_units
from hutch.host.storage import shares
from hutch.host.storage.quota import ensure_quota
from hutch.run import Gathering, run
from hutch.runtime.observe import observe, observe_facts
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import NetworkRecord, Record, has_processes, present
from hutch.state import read_network, remove_network, write_network


def with_uplink(layout: Layout, network: Network) -> Network:
    """The network with its uplink chosen: the one it had, or the first free one. An uplink on the host that no record
    tells of was left by a lost record."""
    if network.uplink:
        return network
    record = read_network(layout)
    if record is not None and record.network.uplink:
        return replace(network, uplink=record.network.uplink)
    host = router.observe_host()
    return replace(network, uplink=router.find_uplink(layout, host) or router.choose_uplink(network, host))


_choosing = ExitStack()
"""The holder of the host's lock while a first network is chosen and made."""


@contextmanager
def first_network(layout: Layout) -> Iterator[None]:
    """Hold the host's lock where there is no network yet, until there is: a free uplink is chosen, and nobody else may
    choose the same one before it is set up."""
    with _choosing:
        if read_network(layout) is None:
            _choosing.enter_context(host_lock())
        yield


def reconcile_network(
    layout: Layout, network: Network, file: str, records: Mapping[str, Record], looking: Gathering | None = None
) -> None:
    """Reconcile router, filters, resolvers and kernel settings."""
    serving = in_force(layout, records)
    members = members_of(serving, network)
    before = read_network(layout)
    if before is not None and before.network != network:
        remove_services(layout)
        router.remove_router(layout)
        looking = None  # the observed router is gone
    # The record comes first: after a crash it is what tells the next run what is ours, and what was there.
    record = new_record(layout, network, file) if before is None else replace(before, network=network, file=file)
    write_network(layout, record)
    host, facts = router.observe_all(layout, network, looking)
    host = host.without_routes(ejected_routes())
    is_same = before is not None and before.network == network
    views = views_of(layout, network, members)
    if views:
        check_tools(("bwrap", "setpriv"), "this host cannot keep lists of what workspaces may reach yet")
        if is_same:
            renew_views(layout, views)
    survivor = find_survivor(layout, serving) if facts.links is None and is_same else None
    router.ensure_router(layout, network, members, host, facts, survivor)
    reconnect(layout, network, serving, router.loose_ports(network, members, facts))
    ensure_settings(layout, record, members)
    ensure_services(layout, network, views)
    if layout.repairs.exists():
        # Spares the start-up of `hutch start` where nothing of others' is repaired.
        from hutch.apply.repeating import repeat_repairs

        repeat_repairs(layout, network, facts.host_listing)


def ensure_settings(layout: Layout, record: NetworkRecord, members: Iterable[Member]) -> None:
    """Make kernel settings of the host; their values before are noted first."""
    settings = router.wanted_sysctls(layout, members)
    different = router.observe_sysctls(settings)
    if different:
        write_network(layout, replace(record, sysctls={**different, **record.sysctls}))
        router.write_sysctls({name: settings[name] for name in different})


def renew_views(layout: Layout, views: str) -> None:
    """Give the views to an egress proxy that runs. It comes before the rules: the entries that these ask for under the
    new policies, such as addresses of names that stay listed, are there by then."""
    # Spares the start-up of `hutch start` where nobody is watched.
    from hutch.host.network import egress_proxy

    service = egress_proxy.wanted_egress_proxy(layout)
    if observe_service(service) is not None:
        if not egress_proxy.has_views(layout, views):
            egress_proxy.write_views(layout, views)
        if not egress_proxy.renew_egress_proxy(layout, views):
            stop_service(layout, service.pid_file)


def ensure_services(layout: Layout, network: Network, views: str) -> None:
    """Start each service that does not run as wanted, once the rules are in place and have been read back; one that an
    older version has started by another name would be in its way."""
    remove_retired(layout)
    if views or layout.egress_control.exists():
        # Spares the start-up of `hutch start` where nobody is watched.
        from hutch.host.network import egress_proxy

        if not views:
            stop_service(layout, egress_proxy.wanted_egress_proxy(layout).pid_file)
            egress_proxy.forget_views(layout)
        elif not egress_proxy.has_views(layout, views):
            egress_proxy.write_views(layout, views)
    wanted = wanted_services(layout, network, is_watched=bool(views))
    start_services(layout, [service for service in wanted if observe_service(service) is None])


def find_survivor(layout: Layout, serving: Iterable[str]) -> int | None:
    """The main process of a workspace that is up, if any is: it runs in the router's namespace."""
    states = (observe(layout, name) for name in serving)
    return next((now.pid for now in states if has_processes(now.state) and now.pid is not None), None)


def reconnect(layout: Layout, network: Network, serving: Mapping[str, Record], loose: Iterable[str]) -> None:
    """Put ports of running workspaces on the bridge again as a start does: down first, and up once the filters are
    seen. One that is only being started does so itself."""
    for name in loose:
        if name not in serving or observe(layout, name).state != "running":
            continue
        port = port_of(name, serving[name].wanted, layout, network)
        batch = layout.runtime(name) / "port"
        write_atomic(batch, port.render_batch().encode(), mode=0o600)
        run(inside(layout, ["ip", "link", "set", port.outer, "down"]))
        for stage in port.connect(str(batch)):
            for step in stage:
                run(inside(layout, step.argv))


def new_record(layout: Layout, network: Network, file: str) -> NetworkRecord:
    """The record that is noted before anything is made. Where another hutch has the host forward packets already, the
    value that it found before is noted here too: whichever of them leaves last puts it back."""
    found = router.observe_forwarders()
    others = {name: state for name, alias in found.items() if (state := router.tagged_state(alias))}
    values = {}
    for state in others.values():
        with suppress(HutchError):  # a record of theirs that is damaged is theirs to repair
            record = read_network(Layout(state, layout.run))
            values.update(record.sysctls if record is not None else {})
    sysctls = {name: value for name, value in values.items() if name == router.FORWARDING}
    return NetworkRecord(network, file, sysctls, tuple(name for name in found if name not in others))


def restorable(record: NetworkRecord, forwarders: Iterable[str]) -> dict[str, str]:
    """The settings to put back as they were; none once something else has come for which the host forwards packets."""
    return record.sysctls if set(forwarders) <= set(record.forwarders) else {}


def reconcile_keys(layout: Layout, records: Mapping[str, Record]) -> dict[int, str]:
    """Reconcile host keys of workspaces, and the keys that hutch makes for users; returns those by uid."""
    serving = in_force(layout, records)
    for name in serving:
        ssh.ensure_key(layout.host_key(name), names.hostname(name), published=ssh.is_published(layout, name))
    keys = own_keys(layout, serving)
    for uid in keys:
        gid, who = ssh.owner_of(uid)
        ssh.ensure_key(layout.key(uid), f"hutch key of {who}", uid=uid, gid=gid)
    return keys


def reconcile_trust(layout: Layout, records: Mapping[str, Record]) -> None:
    """Reconcile keys, names in /etc/hosts, known hosts and the ssh drop-in."""
    keys = reconcile_keys(layout, records)
    peers = peers_of(layout, in_force(layout, records))
    hosts_file.ensure_hosts(layout, {peer.name: peer.ip for peer in peers})
    ssh.ensure_trust(layout, peers, keys)


def reconcile_homes(layout: Layout, records: Mapping[str, Record]) -> None:
    """Make homes exist, belong to their owners, and be nosuid,nodev together with all else that guests can write; but
    for those on something that systemd has yet to mount: their services see to these."""
    guests: dict[str, set[shares.Guest]] = {}
    here = {name: record for name, record in in_force(layout, records).items() if not record.ejected}
    for record in here.values():  # before anything is made in one of them
        home, uid = record.wanted.home, record.wanted.uid
        assert home is not None
        gid, _ = ssh.owner_of(uid)
        with suppress(HutchError, NotADirectoryError):
            if not shares.waits_for_mount(home):
                shares.ensure_home(Path(home), uid, gid)
    for name, record in here.items():
        workspace = record.wanted
        gid, _ = ssh.owner_of(workspace.uid)
        # A home that fails does not hold up the others: whoever starts it has been told by check_shares.
        with suppress(HutchError, NotADirectoryError):
            shares.ensure_closed(layout.workspace(name), gid)
            for mount in workspace.mounts:
                if mount.create and not os.path.lexists(mount.source) and not shares.waits_for_mount(mount.source):
                    shares.ensure_home(Path(mount.source), workspace.uid, gid)
            shares.ensure_mount_points(name, workspace, gid)
        limit_home(layout, record)
        guest = shares.Guest(record.uid_base, workspace.uid)
        for path in shares.writable_paths(workspace):
            guests.setdefault(path, set()).add(guest)
    shares.ensure_shares(layout, guests, guests)


def limit_home(layout: Layout, record: Record) -> None:
    """Limit its home to `disk`, like its root, where the file system can; `up` and `status` tell where it cannot."""
    assert record.wanted.home is not None
    with suppress(HutchError, OSError):
        ensure_quota(record.wanted.home, record.uid_base, record.wanted.disk, layout.quota(record.name))


def reconcile_user_views(layout: Layout, records: Mapping[str, Record]) -> None:
    """Reconcile the user views, which owners and the group `hutch` read."""
    found = present(records)
    ensure_rooms(map(layout.runtime, found))
    machines = [name for name, r in found.items() if r.booted is not None and is_machine(r.booted.workspace)]
    user_view.ensure_user_views(layout, found, {name: observe_facts(layout, name) for name in machines})


def reconcile_host(
    layout: Layout,
    network: Network,
    file: str,
    records: Mapping[str, Record],
    looking: Gathering | None = None,
    connect: Callable[[], None] = lambda: None,
    *,
    is_unit: bool = False,
) -> None:
    """Make the host as the records want it, or bare again when there is no workspace left.

    `connect` is called once the network is in place: a workspace that waits to join it need not wait for names and
    keys. `is_unit` is said by the host's own unit, which is active once it has reconciled the host.
    """
    if present(records):
        if not has_namespace(layout):
            layout.reconciled.unlink(missing_ok=True)
        reconcile_homes(layout, records)
        reconcile_network(layout, network, file, records, looking)
        _choosing.close()  # whoever chooses one from now on sees this
        connect()
        reconcile_trust(layout, records)
        reconcile_user_views(layout, records)
        # Spares the start-up of `hutch start` where there is no systemd.
        from hutch.apply.units import hand_over

        hand_over(layout, network, records, is_unit=is_unit)
    else:
        dismantle(layout)


def reconcile_again(layout: Layout, network: NetworkRecord | None, records: Mapping[str, Record]) -> None:
    """Make the host as it was set up last, for these records."""
    if network is not None:
        reconcile_host(layout, network.network, network.file, records)
    else:
        dismantle(layout)


def dismantle(layout: Layout) -> None:
    """The last workspace is gone: take away everything on the host that is not a home, a key or an image."""
    hosts_file.ensure_hosts(layout, {})
    ssh.remove_trust(layout)
    remove_flat(layout.user_views)
    clear(layout)
    remove_network(layout)
    remove_units((layout.target, layout.network_unit, layout.slice_of_all))


def clear(layout: Layout) -> None:
    """Take away all that serves running workspaces, as a reboot does; records stay."""
    layout.reconciled.unlink(missing_ok=True)
    shares.ensure_shares(layout, ())
    record = read_network(layout)
    remove_services(layout)
    if record is None:
        router.remove_router(layout)
        return
    with host_lock():  # another hutch that comes now must find forwarding either as it was or in use
        router.remove_router(layout)
        router.write_sysctls(restorable(record, router.observe_forwarders()))
