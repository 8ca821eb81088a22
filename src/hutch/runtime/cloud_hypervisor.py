"""What a machine under cloud-hypervisor says, and how it is told to end. All that comes in here is the attacker's.

cloud-hypervisor reports its events as JSON on a descriptor. Its vsock device is a pair of Unix sockets in a directory
that is the machine's own: a guest that connects to the host's port P reaches the socket `vm_P` there, and who writes
"CONNECT P" to the socket `vm` reaches port P of the guest. The guest tells in the first way that it is ready (see
hutch-port.service in images/adapt.sh), and ends when somebody connects in the second (hutch-poweroff.socket, see
guest/initrd). Its HTTP interface, `api`, has a power button for guests that have another idea of ending in order.

See docs/vsock.md and docs/api.md of cloud-hypervisor. What is in the directory is opened without following links.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket

from hutch.runtime.calls import MOST_AT_ONCE, Calls
from hutch.runtime.sources import Source

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from _socket import socket as link
    from collections.abc import Iterator

    from hutch.runtime.main_process import Main
    from hutch.runtime.sources import Said

READY_PORT = 901  # of the host; what backends/cloud_hypervisor says to the guest
POWEROFF_PORT = 900  # of the guest; below 1024, so that nobody but its root can listen there
BUTTON = b"PUT /api/v1/vm.power-button HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"

PATIENCE = 2.0  # seconds that it has for an answer
MOST_EVENT_BYTES = 1 << 20  # of all events; a boot takes 8 KiB of them
LONGEST_EVENT = 4096

RESET, PANIC = "guest-reset", "guest-panic"  # in QMP's words, which the supervisor knows


class Events:
    """Takes the stream of events apart: objects as JSON, an empty line after each, none within."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_skipping = False

    def feed(self, data: bytes) -> Iterator[str]:
        """The outcomes that are now known of. An event that is too long is passed over."""
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        for text in whole:
            outcome = "" if self._is_skipping or len(text) > LONGEST_EVENT else read_outcome(text)
            self._is_skipping = False
            if outcome:
                yield outcome
        if len(self._rest) > LONGEST_EVENT:
            self._rest = self._rest[-1:]  # the first half of an empty line, perhaps
            self._is_skipping = True


def read_outcome(text: bytes) -> str:
    """Why the machine is about to end, by one event; "" for most. It goes on for a moment in both cases: a reset is
    a new boot of the same machine to cloud-hypervisor, and a panic is nothing but an event."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(event, dict):
        return ""
    what = (event.get("source"), event.get("event"))
    if what == ("vm", "rebooting"):
        return RESET
    properties = event.get("properties")
    if what == ("guest", "panic") and isinstance(properties, dict) and properties.get("event") == "panic":
        return PANIC
    return ""


class CloudHypervisor(Source):
    """A machine, heard through its `events` and what calls by vsock; both are polled as one.

    After a reset the machine cannot come up again by itself, since the processes that serve its shares have ended with
    their connections: it is ended, and the supervisor boots a new one. So it is after a panic.
    """

    def __init__(self, events: link, directory: str, pidfd: int) -> None:
        self._events, self._pidfd = events, pidfd
        self._is_ending = False
        self._parser = Events()
        self._left = MOST_EVENT_BYTES
        self._is_off = False
        self._kept: dict[str, socket.socket] = {}
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._calls = Calls(self._listen(f"vm_{READY_PORT}"))
        self._poll = select.epoll()
        self._poll.register(self._calls, select.EPOLLIN)
        self._poll.register(events, select.EPOLLIN)

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        mask = os.umask(0)  # the machine's uid connects; nobody else gets into the directory
        try:
            listener.bind(f"/proc/self/fd/{self._directory}/{name}")
        finally:
            os.umask(mask)
        listener.listen(MOST_AT_ONCE)
        return listener

    def fileno(self) -> int:
        return self._poll.fileno()

    def hear(self) -> Iterator[Said]:
        for descriptor, _ in self._poll.poll(0):
            if descriptor == self._events.fileno():
                yield from self._hear_event()
            elif descriptor == self._calls.fileno():
                yield from self._hear_calls()

    # Events.

    def _hear_event(self) -> Iterator[Said]:
        yield from self._judge(self._take())
        if not self._left:
            self._poll.unregister(self._events)  # the buffer fills up, and what does not fit in is not written
        if self._is_ending:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _judge(self, data: bytes) -> Iterator[Said]:
        """Of all outcomes the first one counts: a guest that panics resets the machine a moment later."""
        for outcome in self._parser.feed(data):
            if not self._is_ending:
                self._is_ending = True
                yield "outcome", outcome

    def _take(self) -> bytes:
        """The next piece of the events. Nothing is left to take when they are all there were, or too many."""
        try:
            data = self._events.recv(min(4096, self._left), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self._left -= len(data) or self._left
        return data

    def last_words(self) -> Iterator[Said]:
        while self._left and (data := self._take()):
            yield from self._judge(data)

    # Calls by vsock.

    def _hear_calls(self) -> Iterator[Said]:
        if self._is_off:
            self._ask_for_the_end()  # it is further by now, and may hear it
        yield from self._calls.hear()
        if self._calls.is_spent:
            self._poll.unregister(self._calls)
            self._remove(f"vm_{READY_PORT}")

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except OSError:
            pass  # the directory is the machine's

    # Its memory.

    def leave_memory(self, size: int, whole: int) -> str | None:
        body = json.dumps({"desired_balloon": whole - size}).encode()
        head = f"PUT /api/v1/vm.resize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(PATIENCE)
            try:
                self._connect(connection, "api")
                connection.sendall(head.encode() + body)
                first = connection.recv(4096).partition(b"\r\n")[0].decode("ascii", "replace")
            except OSError as error:
                return f"cloud-hypervisor does not answer: {error}"
        is_done = first.startswith("HTTP/1.1 2")
        return "" if is_done else f"cloud-hypervisor refuses: {''.join(filter(str.isprintable, first[:80]))}"

    # The end.

    def power_off(self) -> None:
        self._is_off = True
        self._ask_for_the_end()

    def _ask_for_the_end(self) -> None:
        self._say("vm", f"CONNECT {POWEROFF_PORT}\n".encode())
        self._say("api", BUTTON)

    def _say(self, name: str, text: bytes) -> None:
        """Call a socket of the machine's, and stay on the line. What cannot be said is left to the deadline."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._connect(connection, name)
            connection.send(text)
        except OSError:
            connection.close()
            return
        if name in self._kept:
            self._kept[name].close()
        self._kept[name] = connection

    def _connect(self, connection: socket.socket, name: str) -> None:
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            connection.connect(f"/proc/self/fd/{place}")
        finally:
            os.close(place)

    def close(self) -> None:
        self._calls.close()
        for connection in self._kept.values():
            connection.close()
        self._poll.close()
        os.close(self._directory)


def open_machine(main: Main) -> CloudHypervisor:
    """The source for a machine whose main process has just begun."""
    return CloudHypervisor(main.links["events"], f"{main.runtime}/sockets", main.pidfd)
