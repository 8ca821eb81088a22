"""The command's side of Launches that the host's systemd runs: as units, see runtime/units.

What a service runs lies in root's own directory of the workspace, and systemd starts it without us: at boot, after a
failure, or because somebody says so with systemctl. Once it starts it has copies of its own in the runtime directory,
so what is written meanwhile counts from the next start on.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from hutch.errors import HutchError
from hutch.files import read_or_none, write_atomic
from hutch.host.services import units
from hutch.host.services.cgroup import Cgroup
from hutch.host.services.process import start_time
from hutch.run import PIPE, Popen, TimeoutExpired, run, start
from hutch.runtime.launched import read_launch, write_launch
from hutch.runtime.status import read_status, write_status
from hutch.runtime.units import render_limits, render_script, render_service, render_slice
from hutch.spec.names import Places
from hutch.spec.programs import own_program
from hutch.state import make_directory

if TYPE_CHECKING:
    from typing import Any

    from hutch.backends.launch import Launch, Limits
    from hutch.runtime.control import Listener, Settle

LAST_LINES = 12
RENEWAL_SECONDS = 60.0  # that a guest can hold up a change of what it is shown
STOP_SECONDS = 60.0  # for one that systemd runs although nobody knew
GRACE = 15.0  # seconds beyond its own deadlines that systemd is given


def provide(places: Places, launches: Iterable[Launch]) -> None:
    """Have the units say what these Launches say, from their next start on."""
    texts = {}
    for launch in launches:
        directory = places.unit_script(launch.workspace).parent
        make_directory(directory, 0o700)
        content = render_script(launch, places, sys.executable).encode()
        if read_or_none(places.unit_script(launch.workspace)) != content:
            write_atomic(places.unit_script(launch.workspace), content, mode=0o700)
        write_launch(directory / "launch.json", asdict(launch), is_lasting=True)
        texts[places.slice(launch.workspace)] = render_slice(launch)
        texts[launch.unit] = render_service(launch, places)
    units.ensure_units(texts)


def withdraw(places: Places, name: str) -> None:
    """Take a workspace's units away."""
    units.remove_units((places.unit(name), places.slice(name)))


def start_all(
    places: Places,
    names: Iterable[str],
    make: Callable[[str], Launch],
    listen: Listener,
    settling: Callable[[], AbstractContextManager[Settle]],
) -> dict[str, str]:
    """See control.start_all."""
    names = list(names)
    # systemd may just be starting one again, with what it was told before.
    stop(places, names, patience=STOP_SECONDS)
    provide(places, [make(name) for name in names])
    with settling() as settle:
        settle(lambda: None)
    units.systemctl("reset-failed", *map(places.unit, names), check=False)  # what we are told to do counts as no retry
    starting: dict[str, Popen[bytes]] = {}
    try:
        for name in names:
            starting[name] = start(("systemctl", "--no-ask-password", "start", places.unit(name)), stderr=PIPE)
        return _await_all(places, starting, listen)
    except BaseException:
        for process in starting.values():
            process.kill()
            process.communicate()
        stop(places, [name for name in names if not _is_running(places, name)])
        raise


def _await_all(places: Places, starting: dict[str, Popen[bytes]], listen: Listener) -> dict[str, str]:
    """Wait until each is ready or has failed: systemd keeps the deadlines."""
    failures = {}
    waiting = {os.pidfd_open(process.pid): name for name, process in starting.items()}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        for descriptor, _ in poll.poll():
            name = waiting.pop(descriptor)
            poll.unregister(descriptor)
            os.close(descriptor)
            process = starting.pop(name)
            _, said = process.communicate()
            if process.returncode == 0:
                listen(name, "ready", "")
            else:
                failures[name] = _why(places, name, said.decode("utf-8", "replace"))
                stop(places, [name])  # systemd would try again by itself
                listen(name, "failed", failures[name])
    return failures


def _is_running(places: Places, name: str) -> bool:
    status = read_status(str(places.status(name)))
    return status is not None and status["state"] == "running"


def _why(places: Places, name: str, said: str) -> str:
    """Why it did not come up: in the words of what failed, or of systemd, with the end of its log."""
    status = read_status(str(places.status(name)))
    reason = status["reason"] if status is not None and status["state"] == "failed" else ""
    found = units.properties(places.unit(name), "Result", "InvocationID")
    result, invocation = found["Result"], found["InvocationID"]
    if not reason:
        reason = f"systemd says {result!r} of {places.unit(name)}" if result != "success" else said.strip()
    tail = _journal(LAST_LINES, f"_SYSTEMD_INVOCATION_ID={invocation}").strip() if invocation else ""
    return f"{reason}; the end of its log:\n{tail}" if tail else reason


def journal(places: Places, name: str, lines: int) -> str:
    """The last lines of what a workspace's service wrote, and systemd of it."""
    return _journal(lines, f"--unit={places.unit(name)}")


def _journal(lines: int, *what: str) -> str:
    command = ("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={lines}", *what)
    return run(command, check=False).stdout


def stop(places: Places, names: Iterable[str], *, patience: float = 0.0) -> None:
    """End services in order, and by force when their own time is over; `patience` is how long that may take."""
    found = {name: unit for name in names if (units.directory() / (unit := places.unit(name))).is_file()}
    if not found:
        return
    try:
        units.systemctl("stop", *found.values(), timeout=patience + 2 * GRACE)
    except HutchError:  # a guest can take all the time that its service has, that of what ends it too
        for name in found:
            with closing(Cgroup(places.unit_cgroup(name))) as cgroup:
                cgroup.kill()
        units.systemctl("stop", *found.values(), timeout=patience + 2 * GRACE)


def renew(places: Places, launch: Launch) -> dict[str, str]:
    """See control.renew. Limits are the slice's; what is mounted changes in the service's own mount namespace."""
    name, before = launch.workspace, read_launch(places.launch(launch.workspace))
    status = read_status(str(places.status(name)))
    if before is None or status is None or not (status["leader"] or launch.links):
        raise _ended(name)
    if launch.links:
        provide(places, [launch])
        complaints = {"memory": _leave_memory(launch)}
    else:
        limits, why = _bearable(launch.limits, status["cgroup"])
        provide(places, [replace(launch, limits=limits)])
        units.set_properties(places.slice(name), *render_limits(limits))
        complaints = {"memory": why, **_renew_mounts(before, asdict(launch), status)}
    revision = time.time_ns()
    write_launch(places.launch(name), {**asdict(launch), "revision": revision})
    _write_renewed(places, name, {**status, "revision": revision, "complaints": complaints})
    return {key: why for key, why in complaints.items() if why}


def _leave_memory(launch: Launch) -> str:
    """Give a machine the memory that its Launch leaves it. Returns why not."""
    from hutch.runtime.monitor import leave_memory

    if launch.balloon is None:
        return ""
    return leave_memory(f"{launch.runtime}/control", launch.library, launch.balloon)


def _bearable(limits: Limits, group: str) -> tuple[Limits, str]:
    """What a slice can be limited to now, and why that is not what is wanted. The kernel would end processes of the
    guest's to make room for less memory than is in use."""
    with closing(Cgroup(os.path.dirname(group))) as cgroup:
        used = cgroup.memory_in_use()
    if limits.memory is None or used is None or used <= limits.memory:
        return limits, ""
    return replace(limits, memory=used), f"{used >> 20} MiB are in use; that much has to be given up first"


def _renew_mounts(before: dict[str, Any], wanted: dict[str, Any], status: dict[str, Any]) -> dict[str, str]:
    """By a program of ours that goes there for it: to the mounts of the very process that was meant."""
    name, pid = wanted["workspace"], status["pid"]
    change = {"shown": before["grafts"], "wanted": wanted["grafts"], "resize": wanted["resize"]}
    change["leader"], change["started"] = status["leader"]
    try:
        mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise _ended(name) from None
    try:
        if start_time(pid) != status["started"]:
            raise _ended(name)
        program = own_program("hutch.runtime.renewal", sys.executable)
        command = ("nsenter", f"--mount=/proc/self/fd/{mounts}", "--", *program)
        process = start(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, pass_fds=(mounts,))
    finally:
        os.close(mounts)
    try:
        said, error = process.communicate(json.dumps(change).encode(), timeout=RENEWAL_SECONDS)
    except TimeoutExpired:
        process.kill()
        process.communicate()
        raise HutchError(f"{name}: its mounts cannot be changed: the guest is in the way") from None
    if process.returncode:
        raise HutchError(f"{name}: its mounts cannot be changed", details=error.decode("utf-8", "replace"))
    found: dict[str, str] = json.loads(said)
    return found


def _write_renewed(places: Places, name: str, status: dict[str, Any]) -> None:
    """Unless its service has said something else meanwhile, that it has ended, or is about to."""
    now = read_status(str(places.status(name)))
    if now is None or (now["pid"], now["started"], now["state"]) != (status["pid"], status["started"], status["state"]):
        raise _ended(name)
    if start_time(now["pid"]) != now["started"]:  # a shell has yet to be started that says so
        raise _ended(name)
    write_status(str(places.status(name)), status)


def _ended(name: str) -> HutchError:
    return HutchError(f"{name} has just ended", resolution=f"`hutch up {name}`")
