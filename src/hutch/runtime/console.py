"""The machine's console: a pseudo-terminal whose output goes to a bounded log and to whoever is attached.

Neither a log that cannot be written nor a client that misbehaves may hold up the guest, let alone end it.
"""

from __future__ import annotations

import os
import select
import socket
import time

CLIENTS = 16  # each is a person with a terminal


class Log:
    """A file that keeps between `limit`/2 and `limit` bytes: the older half makes way as a second file."""

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._file = self._open(path)

    @staticmethod
    def _open(path: str, more: int = 0) -> int:
        """Whoever may pass into its directory may read it."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | more, 0o644)

    def fileno(self) -> int:
        return self._file

    def size(self) -> int:
        return os.fstat(self._file).st_size

    def write(self, data: bytes) -> None:
        """On a full or failing file system output is dropped: the workspace runs on."""
        try:
            if self.size() + len(data) > self.limit // 2:
                self._turn()
            os.write(self._file, data)
        except OSError:
            pass

    def _turn(self) -> None:
        """Begin a new file. It is opened first, so that nothing has changed when there is no room for one."""
        new = f"{self.path}.new"
        turned = self._open(new, os.O_TRUNC)
        os.replace(self.path, f"{self.path}.1")
        os.replace(new, self.path)
        os.close(self._file)
        self._file = turned

    def note(self, text: str) -> None:
        """A line of our own, told apart from the guest's by its prefix."""
        self.write(f"hutch {time.strftime('%Y-%m-%d %H:%M:%S')}: {text}\r\n".encode())

    def since(self, offset: int) -> str:
        return os.pread(self._file, 8192, offset).decode("utf-8", "replace")

    def tail(self, lines: int) -> str:
        text = self.since(max(0, self.size() - 4096))
        kept = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
        return "\n".join("".join(c for c in line if c.isprintable()) for line in kept)

    def close(self) -> None:
        os.close(self._file)


class Console:
    """The host's side of the console. Only root can reach the socket: its directory is root's."""

    def __init__(self, path: str, log: Log, machine_end: int) -> None:
        self.log = log
        self.machine_end = machine_end
        os.set_blocking(self.machine_end, False)
        self.clients: dict[int, socket.socket] = {}
        if os.path.lexists(path):
            os.unlink(path)
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.listener.bind(path)
        self.listener.listen(4)
        self.listener.setblocking(False)

    def register(self, poll: select.poll) -> None:
        poll.register(self.machine_end, select.POLLIN)
        poll.register(self.listener.fileno(), select.POLLIN)

    def handle(self, descriptor: int, poll: select.poll) -> None:
        """Something happened on a descriptor of ours."""
        if descriptor == self.machine_end:
            if not self._from_machine(poll):
                poll.unregister(self.machine_end)  # the guest's end is closed; the pidfd tells the rest
        elif descriptor == self.listener.fileno():
            self._accept(poll)
        elif descriptor in self.clients:
            self._from_client(descriptor, poll)

    def _accept(self, poll: select.poll) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError:
            return  # it has gone away already
        if len(self.clients) == CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self.clients[client.fileno()] = client
        poll.register(client.fileno(), select.POLLIN)

    def _from_machine(self, poll: select.poll | None) -> bool:
        try:
            data = os.read(self.machine_end, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.log.write(data)
        for descriptor, client in list(self.clients.items()):
            try:
                client.send(data)
            except BlockingIOError:
                pass  # a client that does not read misses output; the guest is not held up for it
            except OSError:
                self._drop(descriptor, poll)
        return bool(data)

    def _from_client(self, descriptor: int, poll: select.poll) -> None:
        try:
            data = self.clients[descriptor].recv(4096)
        except OSError:
            data = b""
        if not data:
            self._drop(descriptor, poll)
            return
        try:
            os.write(self.machine_end, data)
        except OSError:
            pass  # the guest does not read, or is gone

    def _drop(self, descriptor: int, poll: select.poll | None) -> None:
        if poll is not None:
            poll.unregister(descriptor)
        self.clients.pop(descriptor).close()

    def drain(self) -> None:
        """Take what the machine still said after it ended."""
        ready = select.poll()
        ready.register(self.machine_end, select.POLLIN)
        while ready.poll(0) and self._from_machine(None):
            pass

    def close(self) -> None:
        self.drain()
        for client in self.clients.values():
            client.close()
        self.listener.close()
        os.unlink(self.path)
