"""The command's side of supervision: start, observe, stop, and clean up after a supervisor that was killed.

Each supervisor holds its workspace's lock from before it is started until it has ended. A command that was killed
may leave one behind that has not said a word yet: the next command waits for that lock before it does anything.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from hutch import run
from hutch.errors import HutchError
from hutch.host.services.cgroup import Cgroup
from hutch.host.services.process import open_process, start_time
from hutch.host.services.units import has_systemd
from hutch.runtime.gate import GO, MOVED, encode_launch
from hutch.runtime.launched import read_launch, write_launch
from hutch.runtime.status import first_words, read_status, write_status
from hutch.spec import names as derived
from hutch.spec.names import Places
from hutch.spec.programs import own_program

if TYPE_CHECKING:
    from typing import Any

    from hutch.backends.launch import Launch

LOCK_SECONDS = 15.0  # that an earlier supervisor has to clean up and end
STOP, CLEANUP = 15.0, 10.0  # seconds that a guest has where its Launch cannot be read; and a supervisor after that
RENEWAL_SECONDS = 60.0  # that a supervisor has to take up another Launch, whatever the guest puts in its way
GRACE = 5.0  # seconds beyond its own deadlines that a supervisor is given

Settle = Callable[[Callable[[], None]], None]
Event = Literal["ready", "changed", "stopped", "failed", "warning", "waiting"]
Listener = Callable[[str, Event, str], None]
"""Told (workspace, event, text)."""


def start_all(
    places: Places,
    names: Iterable[str],
    make: Callable[[str], Launch],
    listen: Listener,
    settling: Callable[[], AbstractContextManager[Settle]],
) -> dict[str, str]:
    """Start workspaces side by side and wait until each is ready or has failed; returns name -> why for the failed.

    `make` makes a workspace's Launch, while its supervisor starts up. `settling` begins to look at the host, and yields
    what settles it while the supervisors make their mounts; none of them joins the network before that says so, by
    calling what it is given. When interrupted, those that are not ready yet are stopped.
    """
    if has_systemd():
        from hutch.runtime import systemd

        return systemd.start_all(places, names, make, listen, settling)
    starting: list[Starting] = []
    seconds = 0.0

    def go() -> None:
        for start in starting:
            start.go()

    try:
        for name in names:
            starting.append(spawn(places, name))  # noqa: PERF401 - each is noted at once
        for start in starting:
            launch = make(start.name)
            content = asdict(launch)
            write_launch(places.launch(start.name), content)
            start.hand(content)
            seconds = max(seconds, launch.start_seconds)
        for start in starting:
            start.enter_guest(places)
        with settling() as settle:
            settle(go)
        failures = _await_all(starting, listen, seconds + GRACE)
        stop_all(places, [start.name for start in starting if start.is_overdue], patience=0.0)
        return failures
    except BaseException:
        for start in starting:
            start.close()  # those that wait for the network give up
        stop_all(places, [start.name for start in starting if not start.is_ready])
        raise
    finally:
        for start in starting:
            start.close()


class Starting:
    """A supervisor on its way. `report` is where it tells how it goes; at `gate` it waits for its Launch, for being
    moved, and for the network."""

    def __init__(self, name: str, pid: int, report: int, gate: int) -> None:
        self.name, self.pid, self.report, self.gate = name, pid, report, gate
        self.is_ready = self.is_overdue = False
        self.rest = b""

    def hand(self, launch: dict[str, Any]) -> None:
        """Give it its Launch; it begins at once."""
        self._write(encode_launch(launch))

    def enter_guest(self, places: Places) -> None:
        """Have it where its guest is to run, before it starts that: the kernel lets wait whoever changes a cgroup, and
        meanwhile it begins to run."""
        with closing(Cgroup(places.cgroup(self.name))) as cgroup, suppress(ProcessLookupError):
            cgroup.enter_guest(self.pid)  # one that has ended says so itself
        self._write(MOVED)

    def go(self) -> None:
        """Let it join the network."""
        self._write(GO)

    def _write(self, data: bytes) -> None:
        try:
            os.write(self.gate, data)
        except BrokenPipeError:
            pass  # it has failed already, and says so on the other descriptor

    def close(self) -> None:
        """May be called again."""
        for descriptor in (self.report, self.gate):
            if descriptor >= 0:
                os.close(descriptor)
        self.report = self.gate = -1


def _await_all(starting: list[Starting], listen: Listener, seconds: float) -> dict[str, str]:
    failures: dict[str, str] = {}
    waiting = {start.report: start for start in starting}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            for start in waiting.values():
                start.is_overdue = True
                failures.setdefault(start.name, f"its supervisor did not answer within {seconds:g} s")
            break
        for descriptor, _ in poll.poll(left * 1000):
            start = waiting[descriptor]
            data = os.read(descriptor, 65536)
            *lines, start.rest = (start.rest + data).split(b"\n")
            for message in map(json.loads, lines):
                start.is_ready |= message["event"] == "ready"
                if message["event"] == "failed":
                    failures[start.name] = message["text"]
                listen(start.name, message["event"], message["text"])
            if start.is_ready or not data:
                poll.unregister(descriptor)
                del waiting[descriptor]
            if not data and not start.is_ready and start.name not in failures:
                failures[start.name] = "its supervisor ended unexpectedly"
    return failures


def spawn(places: Places, name: str) -> Starting:
    """Start the supervisor of one workspace, which then waits for its Launch."""
    places.runtime(name).mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(_Descriptors()) as ours:
        lock = ours.add(_take_lock(places, name))
        if read_status(str(places.status(name))) is not None or is_forgotten(places, name):
            clean_up(places, name)
        log = ours.add(os.open(places.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
        report, their_report = os.pipe2(os.O_CLOEXEC)
        their_gate, gate = os.pipe2(os.O_CLOEXEC)
        handed = (ours.add(their_report), ours.add(their_gate), lock)
        try:
            pid = _run_supervisor(places, name, handed, log)
            # It waits for its Launch. What it does then can be cleaned up after, since it is known that it was there.
            write_status(str(places.status(name)), first_words(pid))
        except BaseException as error:
            os.close(report)
            os.close(gate)
            if isinstance(error, OSError):
                raise HutchError(f"{name}: its supervisor cannot be started: {error}") from error
            raise
    return Starting(name, pid, report, gate)


def _run_supervisor(places: Places, name: str, handed: tuple[int, ...], log: int) -> int:
    process = run.start(
        [
            *("unshare", "--mount", "--propagation", "slave", "--"),
            *("nsenter", f"--net={places.namespace_path}", "--"),
            *own_program("hutch.runtime.entry", sys.executable),
            *(str(places.runtime(name)), places.cgroup(name), *map(str, handed)),
        ],
        stdout=log,
        stderr=log,
        cwd="/",
        pass_fds=handed,
        new_session=True,
    )
    return process.pid


class _Descriptors:
    """Descriptors to close together."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def add(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())


def renew(places: Places, name: str, launch: Launch) -> dict[str, str]:
    """Have a running workspace's supervisor take up a Launch that differs in what needs no restart: see
    backends/launch. Returns key -> why it cannot be as the Launch says."""
    if (read_launch(places.launch(name)) or {}).get("unit"):  # by whom it was started, an older hutch perhaps
        from hutch.runtime import systemd

        return systemd.renew(places, launch)
    revision = time.time_ns()
    write_launch(places.launch(name), {**asdict(launch), "revision": revision})
    supervisor = _open_supervisor(places, name)
    if supervisor is not None:
        _signal_all([supervisor], signal.SIGHUP)
        os.close(supervisor)
    deadline = time.monotonic() + RENEWAL_SECONDS
    while (status := read_status(str(places.status(name)))) is None or status.get("revision") != revision:
        if supervisor is None or time.monotonic() > deadline:
            raise HutchError(f"{name}: its supervisor does not answer", resolution=f"`hutch restart {name}`")
        time.sleep(0.01)
    return {key: str(why) for key, why in status["complaints"].items() if why}


def _take_lock(places: Places, name: str) -> int:
    """Hold the lock of a workspace's supervisor, after the end of an earlier one that is still on its way out."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(places.supervisor_lock(name), flags, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    sent = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            pass
        left = deadline - time.monotonic()
        if left <= 0:
            os.close(descriptor)
            path = places.supervisor_lock(name)
            raise HutchError(
                f"{name}: the supervisor of an earlier start has not ended",
                details=f"it did not let go of {path} within {LOCK_SECONDS:g} s",
                resolution=f"`fuser -v {path}` shows it",
            )
        wanted = signal.SIGTERM if left > GRACE else signal.SIGKILL
        if sent != wanted and (holder := _open_supervisor(places, name)) is not None:
            _signal_all([holder], wanted)
            os.close(holder)
            sent = wanted
        time.sleep(0.01)


def _open_supervisor(places: Places, name: str) -> int | None:
    """A pidfd of the supervisor: by what it says of itself, or where that is damaged or gone, by its place."""
    status = read_status(str(places.status(name)))
    found = None if status is None else open_process(status["pid"], status["started"])
    if found is not None or not places.runtime(name).is_dir():
        return found
    with closing(Cgroup(places.cgroup(name))) as cgroup:
        return next(filter(None, (open_process(pid, start_time(pid)) for pid in cgroup.processes("supervisor"))), None)


def stop_all(places: Places, names: Iterable[str], *, patience: float | None = None) -> None:
    """Stop workspaces side by side: in order first, by force at the deadline (seconds, by default their own); then
    leave nothing behind."""
    names = list(names)
    if patience is None:
        patience = max((_stop_seconds(places, name) for name in names), default=0.0) + CLEANUP
    if has_systemd():
        from hutch.runtime import systemd

        systemd.stop(places, names, patience=patience)
    waiting: dict[int, str] = {}
    try:
        for name in names:
            descriptor = _open_supervisor(places, name)
            if descriptor is not None:
                waiting[descriptor] = name
        _signal_all(waiting, signal.SIGTERM)
        _await_ends(waiting, patience + GRACE)
        _signal_all(waiting, signal.SIGKILL)
        _await_ends(waiting, GRACE)
    finally:
        for descriptor in waiting:
            os.close(descriptor)
    for name in names:
        if places.runtime(name).is_dir():
            os.close(_take_lock(places, name))
        clean_up(places, name)


def _stop_seconds(places: Places, name: str) -> float:
    """How long a workspace may take to stop, by its Launch."""
    launch = read_launch(places.launch(name))
    return STOP if launch is None else float(launch["stop_seconds"])


def _signal_all(descriptors: Iterable[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass  # it has ended meanwhile


def _await_ends(waiting: dict[int, str], patience: float) -> None:
    """Wait for processes by their pidfds; those that end are closed and taken out."""
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + patience
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            del waiting[descriptor]
            os.close(descriptor)


def clean_up(places: Places, name: str) -> None:
    """Make sure that nothing of a workspace runs or lies about, by what was booted; harmless when all is well."""
    forgotten = is_forgotten(places, name)
    with closing(Cgroup(places.cgroup(name))) as cgroup:
        if not cgroup.kill():
            raise HutchError(
                f"{name}: some of its processes cannot be ended",
                details=f"SIGKILL did not end them; they are in the cgroup {places.cgroup(name)}",
                resolution="they hang in the kernel, on storage perhaps; try again when that answers",
            )
        cgroup.remove()
    status = read_status(str(places.status(name)))
    if (status is None and not forgotten) or (status is not None and status["state"] == "stopped"):
        return
    namespace, cleanup = _cleanup_of(places, name)
    if os.path.exists(namespace):
        for argv in cleanup:
            run.run(["nsenter", f"--net={namespace}", "--", *argv], check=False)
    if status is not None and status["state"] != "failed":
        status |= {"state": "stopped", "reason": "", "since": time.time(), "leader": None}
        write_status(str(places.status(name)), status)


def is_forgotten(places: Places, name: str) -> bool:
    """Whether something of a workspace runs although nothing is said of it: somebody deleted what its supervisor said.
    Other than by its status, a workspace is known by its cgroup."""
    if os.path.exists(places.status(name)):
        return False
    for path in (places.cgroup(name), places.unit_cgroup(name)):
        with closing(Cgroup(path)) as cgroup:
            if cgroup.is_populated():
                return True
    return False


def _cleanup_of(places: Places, name: str) -> tuple[str, list[list[str]]]:
    """The network namespace that was booted into and the commands to clean up there: by the launch, or by the names
    that everything has when that cannot be read."""
    launch = read_launch(places.launch(name))
    if launch is not None:
        return launch["network_namespace"], [step["argv"] for step in launch["cleanup"]]
    ports = {derived.port(name, kind) for kind in ("container", "vm")}
    return str(places.namespace_path), [["ip", "link", "delete", port] for port in sorted(ports)]


def forget(places: Places, name: str) -> None:
    """Remove the runtime directory of a stopped workspace. A machine's monitor can write in a part of it, and its guest
    may have taken that over."""
    from hutch.trees.removing import remove_tree

    with suppress(HutchError):  # it goes with the next reboot
        remove_tree(places.runtime(name))
    for parent in (places.run / "workspaces", places.run):
        try:
            parent.rmdir()
        except OSError:
            return
