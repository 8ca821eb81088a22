"""The view that `hutch doctor` has of a host's other software, and its repairs there when asked to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from hutch.apply import reconcile
from hutch.apply.coexistence import Repairs, wanted_repairs
from hutch.apply.hardware import any_machine
from hutch.apply.leaving import take_away
from hutch.apply.ownership import load_found
from hutch.apply.serving import ejected_routes, endpoints_of, in_force
from hutch.errors import HutchError, troubles_told
from hutch.host.doctor import repairs
from hutch.host.doctor.entry import entry_files, observe_entrance
from hutch.host.doctor.repairs import Told
from hutch.host.doctor.tools import QEMU, find_program
from hutch.host.hardware.accelerator import observe_accelerator, recall_accelerator
from hutch.host.network import router
from hutch.host.network.neighbours import Neighbours, Workspaces, observe_neighbours, observe_orphans
from hutch.host.services.lock import host_lock, lock
from hutch.run import run
from hutch.spec.lookup import look_for_file
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.state import read_network, read_records

INSTALLING = 1800.0  # seconds that a package manager may take


def look(layout: Layout, file: Path | None) -> Neighbours:
    """Observe the neighbours. `file` is the hutch.toml whose network is meant where none is set up yet."""
    is_root = os.geteuid() == 0
    return observe_neighbours(layout, workspaces_of(layout, file, is_root=is_root), is_root=is_root)


def workspaces_of(layout: Layout, file: Path | None, *, is_root: bool) -> Workspaces:
    record, addresses, damage = None, {}, ""
    if is_root:
        try:
            record = read_network(layout)
            serving = in_force(layout, read_records(layout))
            addresses = {name: found.wanted.ip for name, found in serving.items() if found.wanted.ip is not None}
        except HutchError as error:
            damage = error.brief
    network = record.network if record is not None else declared_network(layout, file)
    if not network.uplink:
        host = router.observe_host()
        with suppress(HutchError):
            uplink = router.find_uplink(layout, host) or router.choose_uplink(network, host)
            network = replace(network, uplink=uplink)
    return Workspaces(network, addresses, damage, ejected_routes())


def declared_network(layout: Layout, file: Path | None) -> Network:
    """The network that the file declares. Problems of a hutch.toml are for `plan` to tell."""
    if look_for_file(file) is None:
        return Network()
    try:
        return load_found(layout, file).network
    except HutchError:
        return Network()


@contextmanager
def changing(layout: Layout) -> Iterator[None]:
    """Hold the locks: this hutch's, and that of all hutches, since others' configuration is everybody's."""
    with lock(layout), host_lock():
        yield


def repair(layout: Layout, file: Path | None, tell: Told) -> list[HutchError]:
    """Make the safe repairs that are not there. Returns the failures: the rest is done all the same."""
    failures = []
    with changing(layout):
        for make in _repairs(layout, wanted_repairs(look(layout, file)), tell):
            try:
                with troubles_told():
                    make()
            except HutchError as error:
                failures.append(error)
    return failures


def is_left_behind(layout: Layout) -> bool:
    """Whether somebody deleted the state directory under its workspaces."""
    return str(layout.state) in observe_orphans(layout)


def clear_away(layout: Layout, tell: Told) -> list[HutchError]:
    """Stop the workspaces of a state directory that was deleted, and take away what they have left. Returns the failure
    in a list: other repairs are made all the same."""
    try:
        with troubles_told(), changing(layout):
            if not layout.services.is_dir():
                raise HutchError(
                    f"{layout.run} is not the runtime directory of the workspaces of {layout.state}",
                    resolution="give the HUTCH_RUN_DIR that they were started with",
                )
            tell(f"take away the leftovers of {layout.state}'s workspaces")
            for note in take_away(layout):
                tell(f"not undone: {note}")
            tell(f"leave forwarding on: its earlier value is not known (sysctl {router.FORWARDING.replace('/', '.')})")
    except HutchError as error:
        return [error]
    return []


def _repairs(layout: Layout, wanted: Repairs, tell: Told) -> Iterator[Callable[[], None]]:
    for obstacle in wanted.obstacles:
        yield partial(repairs.ensure_steps, layout, obstacle.repair, tell)
    for drop_in in wanted.files:
        yield partial(repairs.ensure_file, layout, drop_in, tell)
    if wanted.shells:
        yield partial(repairs.ensure_aliases, layout, wanted.shells, tell)
    if wanted.forwarding:
        yield partial(forward, layout, tell)
    if observe_entrance(layout) is not None:
        for drop_in in entry_files(sys.executable):
            yield partial(repairs.ensure_file, layout, drop_in, tell)
    yield partial(try_kvm, layout, tell)


def forward(layout: Layout, tell: Told) -> None:
    """Turn forwarding on, as `up` does; the last workspace takes it back as ever."""
    record = read_network(layout)
    if record is not None:
        tell(f"sysctl -w {router.FORWARDING.replace('/', '.')}=1")
        endpoints = endpoints_of(in_force(layout, read_records(layout)), record.network)
        reconcile.ensure_settings(layout, record, endpoints)


def try_kvm(layout: Layout, tell: Told) -> None:
    """Find out whether guests run under KVM, unless that is known, or there is nothing to boot."""
    if recall_accelerator(layout) is not None or find_program(QEMU) is None:
        return
    machine = any_machine(layout)
    if machine is not None:
        found = observe_accelerator(layout, machine)
        tell(f"boot a guest under KVM: {found.why}")  # a result that may change is not remembered, so it is said


def take_back(layout: Layout, tell: Told) -> list[str]:
    """Take back the repairs. Returns the failures, in words."""
    with changing(layout):
        return repairs.take_back(layout, tell)


def install(command: Sequence[str]) -> None:
    """Install packages, which stay: nobody knows who else wants them by then."""
    run(command, timeout=INSTALLING)
