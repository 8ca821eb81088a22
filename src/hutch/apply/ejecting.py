"""Ejecting: a workspace goes on as plain units and files, and hutch keeps its address for it and nothing else.

Until the record says that it is gone, it is undone whatever fails, or by the next command; from then on it is finished.
The home is never copied: it is renamed, once there and once back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.apply import reconcile
from hutch.apply.ejected_texts import (
    DNSPYTHON,
    EGRESS_PROGRAMS,
    PACKAGES,
    PROGRAMS,
    PYTHON,
    Ejection,
    modules_of,
    render_files,
    render_units,
)
from hutch.apply.hardware import machine_of
from hutch.apply.launching import surroundings_of
from hutch.apply.machines import check_accelerator
from hutch.apply.serving import endpoints_of, in_force, own_keys, views_of
from hutch.apply.starting import start
from hutch.backends import is_machine, launch_of
from hutch.errors import HutchError, Unmet
from hutch.files import open_to_others, read_or_none, sync_directory, write_atomic
from hutch.host.identity import hosts_file, ssh
from hutch.host.identity.holders import public_key_files
from hutch.host.network import router
from hutch.host.network.dns import own_names, service_user, wanted_resolvers
from hutch.host.network.egress_proxy import Programs, find_dnspython, trial, wanted_egress_proxy
from hutch.host.network.namespace import has_namespace
from hutch.host.network.watch import wanted_watch
from hutch.host.services import units
from hutch.host.storage import shares
from hutch.run import run
from hutch.runtime import control
from hutch.runtime.control import LAST_LINES, Listener
from hutch.runtime.observe import observe
from hutch.spec.ejected import Ejected
from hutch.spec.model import Network
from hutch.spec.names import PACKAGE, Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Record, has_processes, is_local, writable_paths
from hutch.state import (
    EJECT,
    journaled,
    make_directory,
    read_network,
    read_records,
    write_record,
)
from hutch.trees.removing import remove_tree

if TYPE_CHECKING:
    from hutch.host.hardware.accelerator import Accelerator

COPY_SECONDS = 1800.0
START_SECONDS = 120.0  # seconds for network and services, beside the workspace's own deadline
STOP_SECONDS = 120.0  # seconds for all units; the deadline of a machine that is emulated is 30
NEEDED = (
    *("seccomp.install", "runtime.pre_exec", "host.storage.hot_mount", "host.storage.unbind", "trees.changing"),
    *("runtime.hear", "host.services.listen", "host.hardware.tap", "host.hardware.context_id", "host.storage.disk"),
)
TRY = "import sys; sys.path.insert(0, sys.argv[1])"


def check(layout: Layout, record: Record, target: Ejected) -> None:
    """Refuse, before anything is touched, a workspace that cannot be ejected."""
    name = record.name
    for is_so, why, resolution in (
        (not is_local(record.wanted), "an Incus server runs it, not this host", "`incus` itself goes on with it there"),
        (
            not units.has_systemd(),
            "systemd is not this host's process 1, so there is nothing to run units",
            f"`sudo hutch explain {name}` prints the commands behind it",
        ),
        (
            units.directory() != units.LASTING,
            f"units cannot be written to {units.LASTING} on this host",
            f"`sudo hutch explain {name}` prints them, for this host's own configuration",
        ),
        (not os.access(PYTHON, os.X_OK), f"there is no {PYTHON}, which it would need", "install it"),
    ):
        if is_so:
            raise HutchError(f"{name} cannot be ejected: {why}", resolution=resolution)
    if is_machine(record.wanted):
        machine_of(layout, record.image)  # it is there
    _check_place(layout, record, target)


def _check_place(layout: Layout, record: Record, target: Ejected) -> None:
    """Refuse a place that is in use already, or cannot take the home."""
    taken = [str(units.directory() / unit) for unit in _units_of(target) if os.path.lexists(units.directory() / unit)]
    taken += [f"network namespace {target.namespace}"] if has_namespace(target) else []
    taken += [f"interface {target.uplink_host}"] if target.uplink_host in router.observe_host().links else []
    if os.path.lexists(target.state):
        taken.append(str(target.state))
    if taken:
        raise HutchError(
            f"{record.name} cannot be ejected: its new names are taken already",
            details="\n".join(taken),
            resolution="remove the earlier one first (its script `remove`), or give another directory with --to",
        )
    wrong = shares.check_directory(str(target.state.parent), may_be_absent=True)
    if wrong:
        raise HutchError(f"{record.name} cannot be ejected to {target.state}: {target.state.parent} {wrong}")
    _check_roots_own(target.state)
    if target.state.is_relative_to(layout.state):
        raise HutchError(f"{target.state} is in hutch's own state", resolution="give another directory with --to")
    there = next(path for path in target.state.parents if path.is_dir())
    if os.stat(there).st_dev != os.stat(layout.workspace(record.name)).st_dev:
        raise HutchError(
            f"{target.state} is on another file system than {layout.workspace(record.name)}",
            details="A home is moved in one go, so that it cannot be lost on its way.",
            resolution="give a directory of the same one with --to",
        )


def _check_roots_own(directory: Path) -> None:
    if loose := open_to_others(directory):
        raise HutchError(
            f"{directory} is not root's alone: {loose} can be changed by others",
            details="systemd runs files there as root.",
            resolution="give a directory with --to that lies, with all that leads there, where only root can change it",
        )


def eject(layout: Layout, record: Record, target: Ejected, listen: Listener) -> None:
    """Eject a workspace that can be. One that ran runs again afterwards. The caller holds the lock."""
    is_up = has_processes(observe(layout, record.name).state)
    network, records = read_network(layout), read_records(layout)
    if network is None:
        raise HutchError("the network is not set up", resolution="`hutch up` does that")
    going, accelerator = replace(record, ejected=str(target.state)), None
    if is_machine(record.wanted):
        accelerator = check_accelerator(layout, [((record.file, record.name, record.wanted), record.image)])
    with journaled(layout, EJECT, (record.name,)):
        write_record(layout, going)
        try:
            subject = make_subject(layout, records, going, target, network.network, accelerator)
            _move(layout, records, going, subject, is_up=is_up)
        except BaseException as error:
            undo(layout, going)
            reconcile.reconcile_again(layout, network, read_records(layout))
            if is_up and not has_processes(observe(layout, record.name).state):
                start(layout, network.network, network.file, read_records(layout), [record.name], listen)
            if isinstance(error, HutchError):
                raise Unmet(
                    f"{record.name} was not ejected: {error.brief}", details=error.details, resolution=error.resolution
                ) from error
            raise
        home = subject_home(layout, record, target)
        gone = replace(going, removed=True, booted=None, wanted=replace(record.wanted, home=home))
        write_record(layout, gone)
        finish(layout, gone)


def _move(layout: Layout, records: Mapping[str, Record], record: Record, subject: Ejection, *, is_up: bool) -> None:
    """Take all steps that can be undone."""
    target = subject.layout
    _copy(layout, record, target)
    _write(subject)
    _hand_over_forwarding(layout, target)
    control.stop_all(layout, [record.name])
    _release(layout, records, record)
    for own, there in _moved(layout, record, target):
        if os.path.lexists(own):
            os.rename(own, there)
            sync_directory(there.parent)
            sync_directory(own.parent)
    _install(layout, record, subject, is_up=is_up)


def _hand_over_forwarding(layout: Layout, target: Ejected) -> None:
    """Note the earlier state of forwarding, if hutch has turned it on: whoever leaves last puts it back."""
    record = read_network(layout)
    if record is not None and record.sysctls.get(router.FORWARDING) == "0":
        make_directory(target.run)
        found = "".join(f"{name}\n" for name in record.forwarders)
        write_atomic(target.run / "inherited", found.encode(), is_lasting=False)


def make_subject(
    layout: Layout,
    records: Mapping[str, Record],
    record: Record,
    target: Ejected,
    network: Network,
    accelerator: Accelerator | None,
) -> Ejection:
    """The ejected form of a workspace. Its network is as hutch's, with an uplink of its own: one that nobody has, nor
    any ejected workspace that does not run now. Whether a machine has an accelerator is decided here."""
    host = router.observe_host()
    earlier = [Ejected.beside(layout, r.name, Path(r.ejected)) for r in records.values() if r.ejected]
    uplinks = [network.uplink, *(_text(other.uplink_file) for other in earlier)]
    taken = replace(host, routes=(*host.routes, *filter(None, uplinks)))
    own = replace(network, uplink=router.choose_uplink(network, taken))
    wanted = replace(record.wanted, home=subject_home(layout, record, target))
    keys = tuple(_text(path) for path in public_key_files(layout, record.wanted))
    surroundings = surroundings_of(layout, record, own, keys, accelerator)
    hardware = surroundings.hardware
    if hardware is not None:
        kernel, initrd, root = (
            str(target.boot / Path(own).name) for own in (hardware.kernel, hardware.initrd, hardware.root)
        )
        hardware = replace(hardware, kernel=kernel, initrd=initrd, root=root)
    surroundings = replace(
        surroundings,
        layout=target,
        hardware=hardware,
        image_root=str(target.image_root(record.image)),
        python=PYTHON,
        package=str(target.programs),
    )
    (_, endpoint) = endpoints_of({record.name: replace(record, wanted=wanted)}, own)
    views = views_of(target, own, (endpoint,))
    services = [*wanted_resolvers(target, own, service_user(), own_names()), wanted_watch(target, own)]
    if views:
        services.append(wanted_egress_proxy(target, _programs_of_egress(target)))
    return Ejection(
        target,
        launch_of(record.name, wanted, surroundings),
        wanted,
        endpoint,
        own,
        record.uid_base,
        tuple(services),
        views,
    )


def _text(path: Path) -> str:
    return (read_or_none(path) or b"").decode("ascii", "replace").strip()


def subject_home(layout: Layout, record: Record, target: Ejected) -> str:
    """The path of the home afterwards. A directory of the owner's stays where it is."""
    own = record.wanted.home
    return str(target.home(record.name)) if own == str(layout.home(record.name)) else str(own)


def _moved(layout: Layout, record: Record, target: Ejected) -> tuple[tuple[Path, Path], ...]:
    """The directories that are renamed, neither copied nor lost: (hutch's path, the new one)."""
    name = record.name
    own = (layout.home, layout.root, layout.private), (target.home, target.root, target.private)
    return tuple((old(name), new(name)) for old, new in zip(*own, strict=True))


def _copy(layout: Layout, record: Record, target: Ejected) -> None:
    """Copy the image, the keys, and the programs. No guest wrote any of that."""
    name = record.name
    make_directory(target.state)
    gid, _ = ssh.owner_of(record.wanted.uid)
    shares.ensure_closed(target.workspace(name), gid)
    make_directory(target.boot.parent, 0o700)
    if is_machine(record.wanted):
        kernel = machine_of(layout, record.image).kernel
        _copy_image(kernel.parent, target.boot)
        # Not a link: by these hutch counts the machines that keep a kernel in its cache.
        run(["cp", "--archive", "--reflink=auto", "--remove-destination", "--", str(kernel), str(target.boot)])
    else:
        _copy_image(layout.image_root(record.image), target.image_root(record.image))
    archive = ("cp", "--archive", "--")
    run([*archive, str(layout.host_key(name).parent), str(target.host_key(name).parent)])
    make_directory(target.keys)
    held = {path.parent for path in public_key_files(layout, record.wanted)}
    for directory in sorted(held):
        run([*archive, str(directory), str(target.keys / directory.name)])
    _copy_programs(target, modules_of(record.wanted), is_watched=policy_of(record.wanted).is_watched)


def _copy_programs(target: Ejected, modules: tuple[str, ...], *, is_watched: bool) -> None:
    """Copy what its scripts and services run of hutch's, and try it with the host's Python."""
    programs = (*PROGRAMS, *modules, *(EGRESS_PROGRAMS if is_watched else ()))
    if is_watched:
        make_directory(target.programs.parent)
        run(["cp", "--recursive", "--", str(find_dnspython()), str(target.programs.with_name(DNSPYTHON))])
    for program in (*programs, *PACKAGES):
        make_directory((target.programs / program).parent)
    for program in programs:
        shutil.copyfile(PACKAGE / program, target.programs / program)
    for package in PACKAGES:
        (target.programs / package).touch()
    needed = (*NEEDED, *(module.removesuffix(".py").replace("/", ".") for module in modules))
    tried = ", ".join(f"hutch.{name}" for name in needed)
    run([PYTHON, "-I", "-S", "-c", f"{TRY}; import {tried}", str(target.programs.parent)])
    if is_watched:
        run(trial(target, _programs_of_egress(target)))


def _programs_of_egress(target: Ejected) -> Programs:
    return Programs(PYTHON, target.programs, target.programs.with_name(DNSPYTHON), "ejected")


def _copy_image(tree: Path, copy: Path) -> None:
    """Copy an image's tree, or what a machine boots from, by hard links on the same file system: nobody ever writes
    there."""
    linked = run(["cp", "--archive", "--link", "--", str(tree), str(copy)], check=False, timeout=COPY_SECONDS)
    if linked.returncode != 0:
        remove_tree(copy)
        run(["cp", "--archive", "--reflink=auto", "--", str(tree), str(copy)], timeout=COPY_SECONDS)


def _write(subject: Ejection) -> None:
    """Write all texts, and sync the file system, so that neither they nor the copies are lost when the power fails."""
    target = subject.layout
    for path, text in render_files(subject).items():
        make_directory(path.parent, 0o700 if text.is_secret else 0o755)
        write_atomic(path, text.content.encode(), mode=text.mode, is_lasting=False)
    run(["sync", "--file-system", str(target.state)], timeout=COPY_SECONDS)


def _release(layout: Layout, records: Mapping[str, Record], record: Record) -> None:
    """Take hutch's mounts from the directories that the workspace can write; from now on it has its own."""
    others = in_force(layout, {name: r for name, r in records.items() if name != record.name})
    shared = {path for other in others.values() for path in other.written}
    for path in writable_paths(record.wanted):
        if path not in shared:
            shares.release(layout, path)


def _install(layout: Layout, record: Record, subject: Ejection, *, is_up: bool) -> None:
    """Install its names, keys and units where the host looks for them; and start it, if it ran."""
    target, texts = subject.layout, render_units(subject)
    host_key = _text(target.host_key(record.name).with_name(target.host_key(record.name).name + ".pub"))
    peer = ssh.Peer(record.name, subject.endpoint.ip, subject.workspace.user, host_key)
    hosts_file.ensure_hosts(target, {record.name: subject.endpoint.ip})
    ssh.ensure_trust(target, (peer,), own_keys({record.name: record}))
    units.ensure_units(texts)
    unit = target.unit(record.name)
    units.enable_units({unit: record.wanted.autostart})
    if not is_up:
        return
    try:
        units.systemctl("start", unit, timeout=START_SECONDS + subject.launch.start_seconds)
    except HutchError as error:
        others = [each for each in texts if units.properties(each, "ActiveState").get("ActiveState") != "active"]
        logs = "\n".join(units.last_words(each, LAST_LINES).strip() for each in dict.fromkeys((unit, *others)))
        raise HutchError(f"{unit} does not start", details=f"{error.details}\n{logs}".strip()) from error


def _units_of(target: Ejected) -> tuple[str, ...]:
    """The names of all its units, in the order in which they are stopped."""
    return (target.unit(target.name), *target.service_units, target.network_unit, target.slice(target.name))


def undo(layout: Layout, record: Record) -> None:
    """Make the workspace hutch's again, and stopped. May be called again."""
    target = Ejected.beside(layout, record.name, Path(record.ejected))
    units.remove_units(_units_of(target), timeout=STOP_SECONDS)
    hosts_file.ensure_hosts(target, {})
    ssh.remove_trust(target)
    for own, there in _moved(layout, record, target):
        if os.path.lexists(there):
            _move_back(there, own)
    remove_tree(target.run)
    remove_tree(target.state)
    for parent in (target.run.parent, target.state.parent):
        with suppress(OSError):  # there are others in it
            parent.rmdir()
    write_record(layout, replace(record, ejected=""))


def _move_back(there: Path, own: Path) -> None:
    """Move a directory back, never over one that has anything in it."""
    try:
        os.rename(there, own)
    except OSError as error:
        raise HutchError(
            f"{there} cannot be moved back to {own}: {error.strerror}",
            details="Nothing of it is lost.",
            resolution=f"move {own} away, if there is such a directory, and try again",
        ) from error
    sync_directory(own.parent)


def finish(layout: Layout, record: Record) -> None:
    """Delete all that hutch still has of the workspace but its record. May be called again."""
    control.stop_all(layout, [record.name])
    control.forget(layout, record.name)
    remove_tree(layout.host_key(record.name).parent)
    remove_tree(layout.unit_directory(record.name))
    for disk in ("disk", "disk.new"):  # of a machine whose root is not kept, when the power failed
        (layout.workspace(record.name) / disk).unlink(missing_ok=True)
    reconcile.reconcile_again(layout, read_network(layout), read_records(layout))


def is_there(record: Record) -> bool:
    """Whether an ejected workspace has not been removed since."""
    return bool(record.ejected) and (Path(record.ejected) / "README").exists()


def recover_ejected(layout: Layout, names: Sequence[str]) -> None:
    """Undo or finish the half-done ejections of a killed run, before the host is reconciled again."""
    for name, record in read_records(layout).items():
        if name in names and record.ejected:
            (finish if record.removed else undo)(layout, record)
