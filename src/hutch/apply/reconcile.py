"""The host as the records want it: network, names, keys, shares. Every call writes only what differs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hutch.apply.serving import (
    ejected_routes,
    endpoints_of,
    in_force,
    known,
    own_keys,
    peers_of,
    views_of,
    wanted_services,
)
from hutch.audit.inbox import ensure_inboxes
from hutch.audit.writing import ensure_readers
from hutch.backends import is_machine
from hutch.backends.port import port_of
from hutch.backends.share import private_layer
from hutch.errors import HutchError
from hutch.files import entries, remove_flat, write_atomic
from hutch.host.doctor.tools import check_tools
from hutch.host.identity import hosts_file, ssh, user_view
from hutch.host.identity.holders import ensure_holders_key, entering
from hutch.host.network import router
from hutch.host.network.firewall import Endpoint
from hutch.host.network.namespace import has_namespace, inside
from hutch.host.services.lock import host_lock
from hutch.host.services.service import observe_service, remove_retired, remove_services, start_services, stop_service
from hutch.host.services.units import ensure_rooms, remove_units
from hutch.host.storage import shares
from hutch.host.storage.bind import is_file
from hutch.host.storage.quota import ensure_quota
from hutch.images.record import observe_images
from hutch.run import Gathering, run
from hutch.runtime.observe import observe, observe_facts
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import NetworkRecord, Record, has_processes, present, served
from hutch.spec.sharing import RETIRED, is_group
from hutch.state import make_directory, read_ages, read_network, read_records, remove_network, write_network


def with_uplink(layout: Layout, network: Network, applied: Network | None) -> Network:
    """The network with its uplink chosen: the one it had as it was last set up, or the first free one. An uplink on the
    host that no record tells of was left by a lost record."""
    if network.uplink:
        return network
    if applied is not None and applied.uplink:
        return replace(network, uplink=applied.uplink)
    host = router.observe_host()
    return replace(network, uplink=router.find_uplink(layout, host) or router.choose_uplink(network, host))


_choosing = ExitStack()
"""The holder of the host's lock while a first network is chosen and made."""


@contextmanager
def first_network(layout: Layout, *, is_needed: bool = True) -> Iterator[None]:
    """Hold the host's lock where there is no network yet and one `is_needed`, until there is: a free uplink is chosen,
    and nobody else may choose the same one before it is set up."""
    with _choosing:
        if is_needed and read_network(layout) is None:
            _choosing.enter_context(host_lock())
        yield


def reconcile_network(
    layout: Layout, network: Network, file: str, records: Mapping[str, Record], looking: Gathering | None = None
) -> None:
    """Reconcile router, filters, resolvers and kernel settings."""
    serving = in_force(layout, records)
    endpoints = endpoints_of(serving, network)
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
    views = views_of(layout, network, endpoints)
    if views:
        check_tools(("bwrap", "setpriv"), "this host cannot keep egress lists yet")
        if is_same:
            renew_views(layout, views)
    survivor = find_survivor(layout, serving) if facts.links is None and is_same else None
    router.ensure_router(layout, network, endpoints, host, facts, survivor)
    reconnect(layout, network, serving, router.loose_ports(network, endpoints, facts))
    ensure_settings(layout, record, endpoints)
    ensure_services(layout, network, views)
    if layout.repairs.exists():
        # Spares the start-up of `hutch start` where nothing of others' is repaired.
        from hutch.apply.repeating import repeat_repairs

        repeat_repairs(layout, network, facts.host_listing)


def ensure_settings(layout: Layout, record: NetworkRecord, endpoints: Iterable[Endpoint]) -> None:
    """Make kernel settings of the host; their values before are noted first."""
    settings = router.wanted_sysctls(layout, endpoints)
    different = router.observe_sysctls(settings)
    if different:
        write_network(layout, replace(record, sysctls={**different, **record.sysctls}))
        router.write_sysctls({name: settings[name] for name in different})


def renew_views(layout: Layout, views: str) -> None:
    """Give the views to an egress proxy that runs. It comes before the rules: the entries that these ask for under the
    new policies, such as addresses of names that stay listed, are there by then."""
    # Spares the start-up of `hutch start` where nobody is watched.
    from hutch.host.network import egress_proxy

    service = egress_proxy.wanted_egress_proxy(layout, egress_proxy.own_programs())
    if observe_service(service) is not None:
        ensure_views(layout, views)
        if not egress_proxy.renew_egress_proxy(layout, views):
            stop_service(layout, service.pid_file)


def ensure_views(layout: Layout, views: str) -> None:
    """Write the views, with inboxes by which the egress proxy tells the records of those whom it watches."""
    # Spares the start-up of `hutch start` where nobody is watched.
    from hutch.audit.telling import inboxes_lock, make_inbox
    from hutch.files import held
    from hutch.host.network import egress_proxy

    if egress_proxy.has_views(layout, views):
        return
    egress_proxy.write_views(layout, views)
    for name in egress_proxy.watched_names(views):
        with suppress(OSError), held(inboxes_lock(layout, name)):  # without one, what it has to tell waits
            make_inbox(layout, name, layout.egress_uid)


def ensure_services(layout: Layout, network: Network, views: str) -> None:
    """Start each service that does not run as wanted, once the rules are in place and have been read back; one that an
    older version has started by another name would be in its way."""
    remove_retired(layout)
    if views or layout.egress_control.exists():
        # Spares the start-up of `hutch start` where nobody is watched.
        from hutch.host.network import egress_proxy

        if not views:
            stop_service(layout, str(egress_proxy.pid_file(layout)))
            egress_proxy.forget_views(layout)
        else:
            ensure_views(layout, views)
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


def reconcile_keys(layout: Layout, records: Mapping[str, Record]) -> dict[str, tuple[str, ...]]:
    """Reconcile host keys of workspaces, and the keys that hutch makes for users and groups; returns their holders with
    the workspaces that they open."""
    serving = known(layout, records)
    for name in serving:
        ssh.ensure_key(layout.host_key(name), names.hostname(name), published=ssh.is_published(layout, name))
    keys = own_keys(serving)
    for holder in keys:
        ensure_holders_key(layout, holder)
    for path in entries(layout.keys):
        if (is_group(path.name) or path.name == RETIRED) and path.name not in keys:
            remove_flat(path)  # members may have kept it: the next one is another
    return keys


def reconcile_trust(layout: Layout, records: Mapping[str, Record]) -> None:
    """Reconcile keys, names in /etc/hosts, known hosts and the ssh drop-in."""
    keys = reconcile_keys(layout, records)
    peers = peers_of(layout, known(layout, records))
    hosts_file.ensure_hosts(layout, {peer.name: peer.ip for peer in peers if peer.ip})
    ssh.ensure_trust(layout, peers, keys)


def reconcile_homes(layout: Layout, records: Mapping[str, Record]) -> None:
    """Make homes exist, belong to their owners, and be nosuid,nodev together with all else that guests can write; but
    for those on something that systemd has yet to mount: their services see to these."""
    here = own_records(layout, records)
    for record in here.values():  # before anything is made in one of them
        home, uid = record.wanted.home, record.wanted.uid
        assert home is not None
        gid, _ = ssh.owner_of(uid)
        with suppress(HutchError, NotADirectoryError):
            if not (shares.waits_for_mount(home) or record.has_brought_home):
                shares.ensure_home(Path(home), uid, gid)
    for name, record in here.items():
        workspace = record.wanted
        gid, _ = ssh.owner_of(workspace.uid)
        # A home that fails does not hold up the others: whoever starts it has been told by check_shares.
        with suppress(HutchError, NotADirectoryError):
            shares.ensure_closed(layout.workspace(name), gid)
            for mount in workspace.mounts:
                is_roots = record.member is None  # a member makes it with their own rights
                if (
                    mount.create
                    and is_roots
                    and not os.path.lexists(mount.source)
                    and not shares.waits_for_mount(mount.source)
                ):
                    shares.ensure_home(Path(mount.source), workspace.uid, gid)
            shares.ensure_mount_points(name, workspace, gid)
            if any(mount.is_private for mount in workspace.mounts):
                # Spares the start-up of `hutch start` where nothing is private.
                from hutch.host.storage.private_files import ensure_private_files

                ensure_private_files(layout, name, workspace, gid)
        limit_home(layout, record)
    reconcile_guards(layout, here)


def own_records(layout: Layout, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records in force without those of ejected workspaces, which see to their directories themselves."""
    return {name: record for name, record in in_force(layout, records).items() if not record.ejected}


def reconcile_guards(layout: Layout, own: Mapping[str, Record]) -> None:
    """Make what guests can write, or could since their last start, nosuid,nodev, and nothing else. `own` are the
    records of own_records()."""
    guests: dict[str, set[shares.Guest]] = {}
    for record in own.values():
        for path in record.written:
            guests.setdefault(path, set()).add(shares.Guest(record.uid_base, record.wanted.uid))
    shares.ensure_shares(layout, guests, guests, members_own(own))


def members_own(own: Mapping[str, Record]) -> dict[str, int]:
    """The directories that members share, and nobody else does, with their uids."""
    of_others = {path for record in own.values() for path in set(record.written) - record.members_own.keys()}
    theirs = {path: uid for record in own.values() for path, uid in record.members_own.items()}
    return {path: uid for path, uid in theirs.items() if path not in of_others}


def limit_home(layout: Layout, record: Record) -> None:
    """Limit its home to `disk`, like its root, where the file system can; `up` and `status` tell where it cannot. What
    it writes in private mounts counts with it."""
    assert record.wanted.home is not None
    limits = {record.wanted.home: layout.quota(record.name)}
    for mount in record.wanted.mounts:
        if mount.is_private and not is_file(mount.source):
            layer = private_layer(layout, record.name, mount)
            limits[layer] = Path(f"{layer}.quota")
            make_directory(layout.private(record.name), 0o700)
            make_directory(Path(layer), 0o700)
    with suppress(HutchError, OSError):
        for path, note in limits.items():
            ensure_quota(path, record.uid_base, record.wanted.disk, note)


def reconcile_user_views(layout: Layout, records: Mapping[str, Record]) -> None:
    """Reconcile the user views, which owners read, and those that a workspace is shared with."""
    found = present(records)
    ensure_rooms(map(layout.runtime, found))
    machines = [name for name, r in found.items() if r.booted is not None and is_machine(r.booted.workspace)]
    facts = {name: observe_facts(layout, name) for name in machines}
    used = {id for record in found.values() for id in record.images}
    images = {image.id: image.facts for image in observe_images(layout, used)}
    applied = read_network(layout)
    network = applied.network if applied else None
    user_view.ensure_user_views(layout, found, facts, read_ages(layout), network, images)
    for name, record in found.items():
        ensure_inboxes(layout, name, entering(record))
        ensure_readers(layout, name, user_view.viewers_of(record))


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
    if not present(records):
        dismantle(layout)
    elif not served(records):
        remove_host_part(layout)
        reconcile_trust(layout, records)
        reconcile_user_views(layout, records)
    else:
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


def reconcile_again(layout: Layout, network: NetworkRecord | None, records: Mapping[str, Record]) -> None:
    """Make the host as it was set up last, for these records."""
    if network is not None or not served(records):
        on, file = (network.network, network.file) if network else (Network(), "")  # stand-ins, which nobody looks at
        reconcile_host(layout, on, file, records)
    else:
        dismantle(layout)


def leave_builds(layout: Layout) -> None:
    """Take away what a build of an image has made of the host, unless workspaces need it."""
    records = read_records(layout)
    if not present(records):
        dismantle(layout)
    elif not served(records):
        remove_host_part(layout)


def dismantle(layout: Layout) -> None:
    """The last workspace is gone: take away everything on the host that is not a home, a key or an image."""
    hosts_file.ensure_hosts(layout, {})
    ssh.remove_trust(layout)
    remove_flat(layout.user_views)
    remove_host_part(layout)


def remove_host_part(layout: Layout) -> None:
    """Take away all that serves workspaces which this host runs: there is none."""
    # Spares the start-up of `hutch start`.
    from hutch.host.services.unit_texts import occasional_units

    clear(layout)
    remove_network(layout)
    lasting = (layout.target, layout.network_unit, *layout.fold_units, layout.slice_of_all)
    remove_units((*lasting, *occasional_units(layout)))


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
