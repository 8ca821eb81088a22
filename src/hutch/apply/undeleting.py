"""Workspaces brought back: `rm` without --purge keeps home, host key, address and uid range, and `undelete` makes a
stopped workspace of these again, declared as it was last."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from hutch.apply import reconcile
from hutch.apply.allowing import refuse_brought
from hutch.apply.membership import refuse_others
from hutch.apply.recording import note
from hutch.apply.recovery import recover
from hutch.audit.events import shown
from hutch.errors import HutchError, UsageError
from hutch.files import real_path
from hutch.host.services.lock import lock
from hutch.host.services.units import observe_ejected
from hutch.plan.resolve import allocate, collisions
from hutch.runtime.control import Listener
from hutch.spec.model import Network
from hutch.spec.names import Layout, is_name
from hutch.spec.record import Record, is_local, present
from hutch.state import journaled, read_network, read_record, read_records, write_record

LoadNetwork = Callable[[Path], Network]
"""A function that gives the [network] of a hutch.toml."""


def undelete(layout: Layout, name: str, listen: Listener, load_network: LoadNetwork) -> None:
    """Bring back a removed workspace; see `Hutch.undelete`."""
    with lock(layout):
        recover(layout, listen)
        refuse_others(layout, [name])
        record = find_kept(layout, name)
        applied = read_network(layout)
        with reconcile.first_network(layout):
            network = applied.network if applied else first_network(layout, record, load_network)
            records = read_records(layout)
            brought = with_address(record, network, records)
            refuse_collisions(brought, records)
            refuse_brought(layout, brought, records)
            records[name] = brought
            with journaled(layout, "undelete", (name,)):
                write_record(layout, brought)
                reconcile.reconcile_host(layout, network, applied.file if applied else record.file, records)
    note(layout, name, "undeleted", listen, home=shown(brought.home_words))
    address = "" if brought.wanted.ip == record.wanted.ip else f", with another address, {brought.wanted.ip}"
    listen(name, "undeleted", f"(it is stopped{address}; `hutch start {name}` starts it)")
    if not os.path.exists(record.file):
        way = "a file that declares it takes it over with `hutch up --adopt`"
        listen(name, "warning", f"{record.file}, which declared it, is gone; {way}")
    if not layout.image_root(record.image).is_dir():
        listen(name, "warning", f"its image {record.image} is not in the cache; the next `hutch up` builds it again")


def find_kept(layout: Layout, name: str) -> Record:
    """The record of a removed workspace whose home is kept here. Raises UsageError for any other name."""
    record = read_record(layout, name) if is_name(name) else None
    if record is None:
        raise UsageError(f"no home is kept of a workspace {name}", resolution="`hutch ls --all` lists those that are")
    if record.ejected:
        raise UsageError(f"{name} was ejected and is not hutch's any more", resolution=f"see {record.ejected}")
    if not record.removed:
        raise UsageError(f"{name} is there: its home and address are its own again", resolution=f"`hutch start {name}`")
    if not is_local(record.wanted):
        raise HutchError(
            f"{name}: its home is {record.home_words}",
            resolution=f"`hutch up {name}` makes the workspace around it again",
        )
    if not os.path.isdir(str(record.wanted.home)):
        raise HutchError(
            f"{name} cannot be brought back: its home {record.wanted.home} is gone",
            resolution=f"if its disk is only not mounted, mount it; otherwise `hutch rm --purge {name}`",
        )
    return record


def first_network(layout: Layout, record: Record, load_network: LoadNetwork) -> Network:
    """The network where no workspace has one any more: that of the file which declared the workspace."""
    try:
        found = load_network(Path(record.file))
    except HutchError as error:
        raise HutchError(
            f"{record.name}: the network is not set up, and the file that says how cannot be used: {error.brief}",
            details=error.details,
            resolution=f"`hutch -f FILE undelete {record.name}` with one that has its [network]",
        ) from error
    return reconcile.with_uplink(layout, found, None)


def with_address(record: Record, network: Network, records: Mapping[str, Record]) -> Record:
    """The record of a workspace that is there, with the address that it had: no other gets that. Where the network is
    another one by now, it gets a new one."""
    known = {name: each.wanted for name, each in records.items()}
    in_use = [each.effective.ip or "" for each in records.values()]
    in_use += [note.ip for note in observe_ejected().values()]
    declared = {record.name: replace(record.wanted, ip=None)}
    address = allocate(declared, known, {"local": network.subnet}, in_use)[record.name]
    return replace(record, wanted=replace(record.wanted, ip=address), removed=False, removed_at=None)


def refuse_collisions(brought: Record, records: Mapping[str, Record]) -> None:
    """Refuse what another workspace has by now."""
    others = {name: record.wanted for name, record in present(records).items() if name != brought.name}
    if clashes := collisions({**others, brought.name: brought.wanted}, real_path):
        raise HutchError(
            f"{brought.name} cannot be brought back as it was",
            details="\n".join(clashes),
            resolution="change or remove the other one; or declare it with other values: `hutch up` keeps its home",
        )
