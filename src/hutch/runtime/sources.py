"""Where a guest tells how it fares, and where it is told to end. Everything that comes in here is the attacker's.

A container's guest is heard by sd_notify, passed on by systemd-nspawn. A virtual machine's is heard by sd_notify over
vsock (see calls) or, where there is none, through a virtio-serial port; its monitor says why it ended. Each source has
a descriptor to poll; `hear` takes what has come.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterator

    from hutch.runtime.main_process import Main

    Said = tuple[str, str]
    """("ready", how a machine said so); ("leader", a pid); ("outcome", why it ended, in QMP's words); ("note", for
    the log)."""

MOST_BYTES = 1 << 16  # of a port, until it has said that it is ready


class Source:
    """Something that a guest is heard through."""

    @property
    def is_spent(self) -> bool:
        """Whether nothing more of it is wanted."""
        return False

    def fileno(self) -> int:
        raise NotImplementedError

    def hear(self) -> Iterator[Said]:
        """Take what has come."""
        raise NotImplementedError

    def last_words(self) -> Iterator[Said]:
        """What is still to be heard of a guest that has ended."""
        return iter(())

    def power_off(self) -> None:
        """Ask the guest to end in order. Only the first of a guest's sources is asked."""

    def leave_memory(self, size: int, whole: int) -> str | None:
        """Have the machine's balloon leave it `size` bytes of the `whole`. Returns why that cannot be, "" when it has
        been asked; None for a source that has nothing to do with it."""
        return None

    def close(self) -> None:
        """Let go of what is its own; Main closes the links."""


def open_sources(main: Main, library: str) -> list[Source]:
    """What there is to hear of a guest, by the names of its links; the first can be told to end it. `library` is where
    qemu.qmp is."""
    opened = [open_source(main, library) for name, open_source in SOURCES.items() if name in main.links]
    if main.vsock is not None:
        opened.append(_open_calls(*main.vsock))
    return opened or [Notifications(main.notify, main.pid)]


class Notifications(Source):
    """What systemd-nspawn sends by sd_notify."""

    def __init__(self, listener: socket, pid: int) -> None:
        self._listener = listener
        self._pid = pid

    def fileno(self) -> int:
        return self._listener.fileno()

    def hear(self) -> Iterator[Said]:
        try:
            said = self._listener.recv(4096).decode("utf-8", "replace")
        except OSError:
            return
        for line in said.splitlines():
            key, _, value = line.partition("=")
            if key == "X_NSPAWN_LEADER_PID" and value.isascii() and value.isdigit() and len(value) < 10:
                yield "leader", value
            elif line == "READY=1":
                yield "ready", ""

    def power_off(self) -> None:
        # nspawn takes a second one as "at once".
        os.kill(self._pid, signal.SIGTERM)


class Port(Source):
    """A virtual machine's port: it hears "poweroff", and says READY=1 unless it has done so over vsock. See
    hutch-port.service in images/adapt.sh."""

    def __init__(self, connection: socket) -> None:
        self._connection = connection
        self._rest = b""
        self._left = MOST_BYTES
        connection.setblocking(False)

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def is_spent(self) -> bool:
        """Its buffer fills up then, which is the guest's own affair."""
        return self._left <= 0

    def hear(self) -> Iterator[Said]:
        try:
            data = self._connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._left -= len(data) or self._left  # nothing: the other end is closed
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-64:]
        if b"READY=1" in (line.rstrip(b"\r") for line in lines):
            self._left = 0
            yield "ready", "its port"

    def power_off(self) -> None:
        try:
            self._connection.send(b"poweroff\n")
        except OSError:
            pass  # its buffer is full or it is gone: the deadline decides


def _open_monitor(main: Main, library: str) -> Source:
    from hutch.runtime.monitor import Monitor

    return Monitor(main.links["monitor"], library)


def _open_calls(listener: socket, caller: int) -> Source:
    from socket import socket

    from hutch.runtime.calls import Calls

    return Calls(socket(fileno=listener.detach()), caller)


def _open_cloud_hypervisor(main: Main, library: str) -> Source:
    from hutch.runtime.cloud_hypervisor import open_machine

    return open_machine(main)


SOURCES: dict[str, Callable[[Main, str], Source]] = {
    "port": lambda main, _: Port(main.links["port"]),
    "monitor": _open_monitor,
    "events": _open_cloud_hypervisor,
}
"""What each of a Launch's links is heard by, in the order in which the sources are asked to end the guest."""
