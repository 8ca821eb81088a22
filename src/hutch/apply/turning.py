"""`hutch start`, `stop` and `restart`: plans them by the records, and has the plan carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hutch.apply.recovery import recover
from hutch.apply.starting import check_shares, execute
from hutch.backends import is_machine
from hutch.errors import HutchError
from hutch.host.services.lock import lock
from hutch.plan.actions import Verb
from hutch.plan.turning import SO_NOT, no_network, plan_turn
from hutch.runtime.control import Listener
from hutch.runtime.observe import observe
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import read_network, read_records


def turn(layout: Layout, verb: Verb, names: Iterable[str], find: Callable[[str], Record], listen: Listener) -> None:
    """Turn workspaces on or off; `find` gives the record of one. One that could not be started again is not stopped."""
    with lock(layout):
        if verb != "stop":
            recover(layout, listen)
        records = {name: find(name) for name in names}
        seen = {name: observe(layout, name) for name in records}
        network = read_network(layout) if verb != "stop" else None  # a damaged record prevents no stop
        plan = plan_turn(verb, network, records, seen)
        if starting := [records[action.workspace] for action in plan.actions if action.starts]:
            check_host(layout, starting, SO_NOT[verb])
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
