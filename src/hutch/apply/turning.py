"""`hutch start`, `stop` and `restart`: plans them by the records, and has the plan carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hutch.apply.membership import refuse_others
from hutch.apply.recovery import recover
from hutch.apply.starting import check_shares, execute
from hutch.backends import is_machine
from hutch.engines import here, observe_all
from hutch.errors import HutchError
from hutch.host.services.lock import lock
from hutch.plan.actions import Verb
from hutch.plan.turning import SO_NOT, no_network, plan_turn
from hutch.runtime.control import Listener
from hutch.spec.names import Layout
from hutch.spec.record import Record, present
from hutch.state import read_network, read_records


def turn(
    layout: Layout,
    verb: Verb,
    names: Sequence[str],
    find: Callable[[str], Record],
    listen: Listener,
    *,
    force: bool = False,
) -> None:
    """Turn workspaces on or off; `find` gives the record of one. One that could not be started again is not stopped,
    nor without `force` one with whose root git work would go."""
    refuse_others(layout, names)
    if verb != "start" and not force:
        # Spares the start-up of `hutch start`. It comes without the lock, since it may take as long as git does.
        from hutch.apply.vanishing import check_roots

        records = present(read_records(layout))  # another command may be making the others, and is waited for below
        found = {name: records[name] for name in names if name in records and not records[name].ejected}
        check_roots(layout, found, "nothing was stopped")
    with lock(layout):
        if verb != "stop":
            recover(layout, listen)
        records = {name: find(name) for name in names}
        seen = observe_all(layout, records)
        network = read_network(layout) if verb != "stop" else None  # a damaged record prevents no stop
        plan = plan_turn(verb, network, records, seen)
        if starting := here({a.workspace: records[a.workspace] for a in plan.actions if a.starts}):
            check_host(layout, list(starting.values()), SO_NOT[verb])
        execute(layout, plan, read_records(layout), listen)


def check_host(layout: Layout, starting: Sequence[Record], so_not: str) -> None:
    """Refuse workspaces that this host cannot start, or whose image is not in the cache."""
    for record in starting:
        if not layout.image_root(record.image).is_dir():
            raise HutchError(
                f"{record.name}: its image {record.image} is not in the cache{so_not}",
                resolution="`hutch up` builds it again",
            )
    if machines := [record for record in starting if is_machine(record.wanted)]:
        # Spares the start-up of `hutch start` for containers.
        from hutch.apply.machines import check_accelerator, check_machines

        check_machines((record.file, record.name, record.wanted) for record in machines)
        check_accelerator(layout, [((record.file, record.name, record.wanted), record.image) for record in machines])
    check_shares((record.file, record.name, record.wanted) for record in starting)
    if read_network(layout) is None:
        raise no_network()
