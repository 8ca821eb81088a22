"""The command's side of workspaces that run: start, change, stop, and clean up after what was killed.

A workspace is a service (see runtime/units). systemd runs it where that is process 1; elsewhere a small runner does.
Which of the two, `manager_of` says once; both are a Manager.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from hutch.backends.launch import encode_launch
from hutch.errors import HutchError
from hutch.files import read_or_none, write_atomic
from hutch.host.services.cgroup import Cgroup
from hutch.host.services.units import has_systemd
from hutch.run import run
from hutch.runtime.observe import KILLED, observe, read_launch
from hutch.runtime.units import render_script, render_service, render_slice
from hutch.spec import names as derived
from hutch.spec.names import Layout
from hutch.spec.owner import behind
from hutch.spec.record import has_processes
from hutch.state import make_directory

if TYPE_CHECKING:
    from hutch.backends.launch import Launch, Limits

STOP, CLEANUP = 15.0, 10.0  # seconds that a guest has where its Launch cannot be read; and its service after that
GRACE = 5.0  # seconds beyond its own deadlines that a service is given
LAST_LINES = 12

Reconcile = Callable[[Callable[[], None]], None]
Event = Literal[
    "ready",
    "changed",
    "moved",
    "stopped",
    "removed",
    "undeleted",
    "failed",
    "warning",
    "waiting",
    "snapshot",
    "restored",
    "forked",
]
Listener = Callable[[str, Event, str], None]
"""A callback, called with (workspace, event, text)."""


class Manager(Protocol):
    """A service manager of this host. Each method may be called again."""

    def ensure(self, units: Mapping[str, Mapping[str, str]]) -> None:
        """Have exactly these texts in these units, workspace -> unit -> text, from their next start on."""

    def remove(self, name: str) -> None:
        """Take a workspace's units away; it does not run."""

    def prepare(self, name: str) -> None:
        """Begin what can be done before the start that is about to come."""

    def begin(self, launches: Iterable[Launch]) -> None:
        """Begin the part of a start that needs no network; the services have their units."""

    def connect(self) -> None:
        """Let the services that have begun join the network, which is in place."""

    def start(self, launches: Iterable[Launch]) -> dict[int, str]:
        """Finish the starts. Returns descriptors; each can be read once its workspace is ready or has failed."""

    def outcome(self, descriptor: int, name: str) -> str:
        """The reason why a start failed, once its descriptor can be read; "" for one that is ready."""

    def give_up(self) -> None:
        """Wait no longer for the services that were prepared or begun."""

    def stop(self, names: Iterable[str], patience: float) -> None:
        """End services: in order first, by force after so many seconds."""

    def limit(self, name: str, limits: Limits) -> None:
        """Limit a running service to these resources from now on."""

    def log(self, name: str, lines: int, *, last_start: bool = False) -> str:
        """The last lines of a service's output, and of the messages about it."""

    def follow_command(self, name: str) -> tuple[str, ...]:
        """A command that follows the output of a service from now on."""


def manager_of(layout: Layout) -> Manager:
    """The service manager of this host."""
    if has_systemd():
        from hutch.runtime.systemd import Systemd  # not needed on other hosts, whose starts it would hold up

        return Systemd(layout)
    from hutch.runtime.runners import Runners  # the same

    return Runners(layout)


# Starting.


def start_all(
    layout: Layout,
    names: Iterable[str],
    make: Callable[[str], Launch],
    listen: Listener,
    reconcile: Reconcile,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Start workspaces side by side and wait until each is ready or has failed; returns name -> why for the failed.

    `make` makes a workspace's Launch. `reconcile` brings the host to what the records say, and calls what it is given
    as soon as workspaces can join the network. `meanwhile` is called while they are waited for. When interrupted, those
    that are not ready yet are stopped.
    """
    manager, names = manager_of(layout), list(names)
    stop_all(layout, names)  # one that was to be started again after a failure
    failures: dict[str, str] = {}
    for name in names:
        make_directory(layout.runtime(name), 0o700)
    try:
        with asking(layout, names):
            for name in names:
                manager.prepare(name)
            launches = {name: make(name) for name in names}
            provide(layout, manager, launches.values())
            patience = max((launch.start_seconds + launch.stop_seconds for launch in launches.values()), default=0.0)
            manager.begin(launches.values())
            reconcile(manager.connect)
            waiting = manager.start(launches.values())
            meanwhile()
            failures = _await_all(manager, waiting, listen, patience + GRACE)
    except BaseException:
        manager.give_up()
        stop_all(layout, [name for name in names if observe(layout, name).state != "running"])
        raise
    for name, why in failures.items():
        failures[name] = _why(layout, manager, name, why)
    stop_all(layout, failures)  # they would be tried again
    for name, why in failures.items():
        listen(name, "failed", why)
    for name in names:
        if name not in failures and (text := unlimited_launch(layout, launches[name])):
            listen(name, "warning", text)
    return failures


@contextmanager
def asking(layout: Layout, names: Iterable[str]) -> Iterator[None]:
    """Have services know meanwhile whose command they start and end for, as far as there is room for it."""
    asker = os.geteuid() or behind(os.environ) or 0
    paths = [layout.asker(name) for name in names if layout.runtime(name).is_dir()]
    try:
        for path in paths:
            with suppress(OSError):
                path.touch(0o600)
                path.write_text(f"{asker} {os.getpid()}\n", encoding="ascii")
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def provide(layout: Layout, manager: Manager, launches: Iterable[Launch]) -> None:
    """Have the units say what these Launches say, from their next start on."""
    units = {}
    for launch in launches:
        name = launch.workspace
        make_directory(layout.unit_directory(name), 0o700)
        content = render_script(launch, sys.executable, record=str(layout.audit_ends(name))).encode()
        if read_or_none(layout.unit_script(name)) != content:
            write_atomic(layout.unit_script(name), content, mode=0o700)
        noted, content = layout.unit_directory(name) / "launch.json", encode_launch(launch)
        if read_or_none(noted) != content:
            write_atomic(noted, content, mode=0o600)
        units[name] = {layout.slice(name): render_slice(launch), launch.unit: render_service(launch, layout)}
    manager.ensure(units)


def _await_all(manager: Manager, waiting: dict[int, str], listen: Listener, seconds: float) -> dict[str, str]:
    """Wait until each is ready or has failed. The manager keeps their deadlines."""
    failures: dict[str, str] = {}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    while waiting:
        found = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not found:
            failures |= dict.fromkeys(waiting.values(), f"nothing was heard of its start within {seconds:g} s")
            manager.give_up()
            break
        for descriptor, _ in found:
            poll.unregister(descriptor)
            name = waiting.pop(descriptor)
            if why := manager.outcome(descriptor, name):
                failures[name] = why
            else:
                listen(name, "ready", "")
    return failures


def _why(layout: Layout, manager: Manager, name: str, otherwise: str) -> str:
    """The reason why a start failed, in words, with the end of the log."""
    now = observe(layout, name)
    reason = now.reason if now.state == "failed" and now.reason else otherwise
    tail = manager.log(name, LAST_LINES, last_start=True).strip()
    return f"{reason}; the end of its log:\n{tail}" if tail else reason


def unlimited_launch(layout: Layout, launch: Launch | None) -> str:
    """The limits of a running workspace that this host's cgroups do not enforce, in words. A machine's hardware needs
    no cgroup for its limits."""
    if launch is None or launch.memory is not None:
        return ""
    wanted = {"vcpus": ("cpu.max", launch.limits.cpus), "memory": ("memory.max", launch.limits.memory)}
    with closing(Cgroup(layout.slice_cgroup(launch.workspace))) as cgroup:
        missing = [key for key, (file, limit) in wanted.items() if limit and not cgroup.has(file)]
    what = " and ".join(missing)
    return f"this host's cgroups cannot limit {what}: the workspace may use all of it" if what else ""


# Changing what runs.


def renew(layout: Layout, launch: Launch) -> dict[str, str]:
    """Bring a running workspace to a Launch that differs only in what needs no restart: see backends/launch. Returns
    key -> why it cannot be as the Launch says."""
    # Spares the start-up of `hutch start`.
    from hutch.runtime.renewal import renew_mounts, tell_balloon

    name = launch.workspace
    before, now = read_launch(layout.launch(name)), observe(layout, name)
    if not has_processes(now.state):
        raise ended(name)
    if before is None:
        raise HutchError(
            f"{name} cannot be changed while it runs: an older hutch started it, or its launch.json is damaged",
            resolution=f"`hutch restart {name}`",
        )
    manager, complaints = manager_of(layout), {}
    limits, complaints["memory"] = _bearable(layout, launch)
    launch = replace(launch, limits=limits)
    provide(layout, manager, [launch])
    manager.limit(name, limits)
    try:
        if launch.balloon is not None and now.pid is not None:
            complaints["memory"] = tell_balloon(launch.balloon, now.pid)
        if now.leader is not None:
            shown, complaints["mounts"], complaints["disk"] = renew_mounts(before.hot_mounts, launch, now)
            launch = replace(launch, hot_mounts=shown)
    except FileNotFoundError:
        raise ended(name) from None
    if not has_processes(observe(layout, name).state):
        raise ended(name)
    write_atomic(layout.launch(name), encode_launch(launch), mode=0o600, is_lasting=False)
    return {key: why for key, why in complaints.items() if why}


def ended(name: str) -> HutchError:
    return HutchError(f"{name} has just ended", resolution=f"`hutch up {name}`")


def _bearable(layout: Layout, launch: Launch) -> tuple[Limits, str]:
    """The limits that a slice can have now, and the reason why they are not the wanted ones. The kernel would end
    processes of the guest's to make room for less memory than is in use."""
    limits = launch.limits
    with closing(Cgroup(layout.slice_cgroup(launch.workspace))) as cgroup:
        used = cgroup.memory_in_use()
    if launch.memory is not None or limits.memory is None or used is None or used <= limits.memory:
        return limits, ""
    return replace(limits, memory=used), f"{used >> 20} MiB are in use; that much has to be given up first"


# Stopping.


def stop_all(layout: Layout, names: Iterable[str], *, patience: float | None = None) -> None:
    """Stop workspaces side by side: in order first, by force at the deadline (seconds, by default their own); then
    leave nothing behind."""
    names = list(names)
    if patience is None:
        launches = (read_launch(layout.launch(name)) for name in names)
        patience = max((launch.stop_seconds if launch else STOP for launch in launches), default=0.0) + CLEANUP
    forgotten = {name for name in names if is_forgotten(layout, name)}
    with asking(layout, names):
        manager_of(layout).stop(names, patience)
    for name in names:
        clean_up(layout, name, was_forgotten=name in forgotten)


def clean_up(layout: Layout, name: str, *, was_forgotten: bool) -> None:
    """Make sure that nothing of a workspace runs or lies about, by what was booted; harmless when all is well."""
    for path in _cgroups(layout, name):
        with closing(Cgroup(path)) as cgroup:
            if not cgroup.kill():
                raise HutchError(
                    f"{name}: some of its processes cannot be ended",
                    details=f"SIGKILL did not end them; they are in the cgroup {path}",
                    resolution="they hang in the kernel, on storage perhaps; try again when that answers",
                )
            cgroup.remove()
    now = observe(layout, name)
    if not was_forgotten and (now.since is None or now.state == "stopped"):
        return
    namespace, cleanup = _cleanup_of(layout, name)
    if os.path.exists(namespace):
        for argv in cleanup:
            run(["nsenter", f"--net={namespace}", "--", *argv], check=False)
    if now.state != "failed" or now.reason == KILLED:
        layout.status(name).unlink(missing_ok=True)


def _cgroups(layout: Layout, name: str) -> tuple[str, str]:
    """The cgroup of a workspace's processes, and the one that an older hutch used."""
    return layout.cgroup(name), f"{layout.instance}/{name}"


def is_forgotten(layout: Layout, name: str) -> bool:
    """Whether a workspace has processes but no status file: somebody deleted the file. Then its cgroup tells of
    them."""
    if os.path.exists(layout.status(name)):
        return False
    for path in _cgroups(layout, name):
        with closing(Cgroup(path)) as cgroup:
            if cgroup.is_populated():
                return True
    return False


def _cleanup_of(layout: Layout, name: str) -> tuple[str, list[tuple[str, ...]]]:
    """The network namespace that was booted into and the commands to clean up there: by the launch, or, when that
    cannot be read, by the names that every workspace's port has."""
    launch = read_launch(layout.launch(name))
    if launch is not None:
        return launch.network_namespace, [step.argv for step in launch.cleanup]
    ports = {derived.port(name, kind) for kind in ("container", "vm")}
    return str(layout.namespace_path), [("ip", "link", "delete", port) for port in sorted(ports)]


def read_log(layout: Layout, name: str, lines: int) -> str | None:
    """The last lines of a workspace's console, and of its manager's messages. None where they are in the host's journal
    and the caller may not read that."""
    said = manager_of(layout).log(name, lines)
    return said if said or os.geteuid() == 0 or not has_systemd() else None


def forget(layout: Layout, name: str) -> None:
    """Remove the units and the runtime directory of a stopped workspace. A machine's monitor can write in a part of
    that, and its guest may have taken it over."""
    # Spares the start-up of `hutch start`.
    from hutch.trees.removing import remove_tree

    manager_of(layout).remove(name)
    with suppress(HutchError):  # it goes with the next reboot
        remove_tree(layout.runtime(name))
    for parent in (layout.run / "workspaces", layout.run):
        try:
            parent.rmdir()
        except OSError:
            return
