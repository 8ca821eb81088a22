"""A program of its own: waits until a machine's guest says that it is ready, and ends then. Nothing of it stays. All
that comes in here is the attacker's, and everything else on the host, other machines too, may call the same number.

    main(NOTED, SOURCE..., PID)

A SOURCE is one of: port PATH, a virtio-serial port; vsock CID FILE UID, calls over the host's vsock, to a port that is
chosen here and whose address is written to FILE for the uid, by who has the context id that the file CID says by then
(a script of before an upgrade has the number); socket DIRECTORY NAME, such calls as a socket in a directory of the
machine's. NOTED is made once all of them are open, and the process PID gets SIGUSR1 when the guest is ready.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from socket import AF_UNIX, AF_VSOCK, SOCK_STREAM, VMADDR_CID_ANY, VMADDR_PORT_ANY, socket
from typing import NoReturn

HOST_CID = 2  # the context id by which every guest calls its host
MOST_BYTES = 1 << 16  # of a port
MOST_CALLS = 1024
MOST_AT_ONCE = 16
LONGEST_CALL = 4096


class SerialPort:
    """A virtual machine's serial port: the guest says READY=1 on it unless it has done so over vsock. See
    hutch-port.service in guest/tree."""

    name = "its port"

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe's, which has no end that way
        self._rest = b""
        self._left = MOST_BYTES

    def fileno(self) -> int:
        return self._file

    @property
    def is_spent(self) -> bool:
        """Whether all bytes that count have been read. Its buffer fills up then, which is the guest's own affair."""
        return self._left <= 0

    def hears_ready(self) -> bool:
        try:
            data = os.read(self._file, 4096)
        except BlockingIOError:  # the machine reads from it as well
            return False
        self._left -= len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-64:]
        return b"READY=1" in (line.rstrip(b"\r") for line in lines)


class Calls:
    """Calls by which a guest says, in sd_notify's words, that it is ready. Where others can call as well,
    `caller` gives the machine's context id, once it has one: the kernel says whose a call is, and those of others are
    not answered."""

    name = "vsock"

    def __init__(self, listener: socket, caller: Callable[[], int | None] | None = None) -> None:
        self._listener = listener
        listener.setblocking(False)
        self._caller = caller
        self._calls: dict[int, socket] = {}
        self._left = MOST_CALLS
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    @property
    def is_spent(self) -> bool:
        return not self._left

    def hears_ready(self) -> bool:
        for descriptor, _ in self._poll.poll(0):
            if descriptor == self._listener.fileno():
                self._accept()
            elif descriptor in self._calls and self._is_ready(self._calls.pop(descriptor)):
                self.close()
                return True
        return False

    def _accept(self) -> None:
        try:
            call, address = self._listener.accept()
        except OSError:
            return  # it has gone away already
        if self._caller is not None and address[0] != self._caller():
            call.close()  # and is not counted: another machine is not to use up what this one has
            return
        self._left -= 1
        if not self._left:
            call.close()
            self.close()
        elif len(self._calls) >= MOST_AT_ONCE:
            call.close()
        else:
            call.setblocking(False)
            self._calls[call.fileno()] = call
            self._poll.register(call, select.EPOLLIN)

    def _is_ready(self, call: socket) -> bool:
        """Whether a call says that the guest is ready. A message comes in one piece. The call is over with it, and has
        to be: systemd waits for that, and not every machine tells us that its guest has closed its end."""
        self._poll.unregister(call)
        try:
            said = call.recv(LONGEST_CALL)
        except OSError:
            said = b""
        call.close()
        return b"READY=1" in said.splitlines()

    def close(self) -> None:
        """Take no more calls: whoever calls from now on is refused at once, rather than left to wait."""
        self._left = 0
        for call in self._calls.values():
            call.close()
        self._calls = {}
        self._listener.close()


def read_cid(path: str) -> int | None:
    """The context id that a file says; None where it says none yet."""
    if path.isdecimal():
        return int(path)
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def listen_to_vsock(cid: str, file: str, uid: int) -> Calls:
    """Listen for calls over vsock. The kernel chooses the port, so that nobody can have taken it; whoever guesses it is
    told apart by what the kernel says of a caller."""
    listener = socket(AF_VSOCK, SOCK_STREAM)
    listener.bind((VMADDR_CID_ANY, VMADDR_PORT_ANY))
    listener.listen(MOST_AT_ONCE)
    port = listener.getsockname()[1]
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.write(descriptor, f"vsock-stream:{HOST_CID}:{port}\n".encode())
    os.fchown(descriptor, uid, uid)
    os.close(descriptor)
    return Calls(listener, lambda: read_cid(cid))


def listen_in(directory: str, name: str) -> Calls:
    """Listen at a socket that the machine connects to for its guest, in a directory that the machine can change."""
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    listener = socket(AF_UNIX, SOCK_STREAM)
    mask = os.umask(0)  # the machine's uid connects; nobody else gets into the directory
    try:
        listener.bind(f"/proc/self/fd/{place}/{name}")
    finally:
        os.umask(mask)
    listener.listen(MOST_AT_ONCE)
    return Calls(listener)


def open_sources(words: list[str]) -> list[SerialPort | Calls]:
    found: list[SerialPort | Calls] = []
    while words:
        kind, *words = words
        if kind == "port":
            found.append(SerialPort(words.pop(0)))
        elif kind == "vsock":
            found.append(listen_to_vsock(words.pop(0), words.pop(0), int(words.pop(0))))
        else:
            found.append(listen_in(words.pop(0), words.pop(0)))
    return found


def await_ready(sources: list[SerialPort | Calls]) -> str:
    """The name of the source by which the guest said that it is ready; "" when all sources are spent."""
    heard = {source.fileno(): source for source in sources}
    poll = select.poll()
    for descriptor in heard:
        poll.register(descriptor, select.POLLIN)
    while heard:
        for descriptor, _ in poll.poll():
            source = heard[descriptor]
            if source.hears_ready():
                return source.name
            if source.is_spent:
                poll.unregister(descriptor)
                del heard[descriptor]
    return ""


def main(noted: str, *words: str) -> NoReturn:
    *others, pid = words
    try:
        sources = open_sources(others)
    except OSError as error:
        sys.exit(f"the guest's ready port cannot be opened: {error}")
    os.close(os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    how = await_ready(sources)
    if not how:
        sys.exit("the guest said too much before it was ready, and is not heard any more")
    os.write(1, f"ready, says the guest over {how}\n".encode())
    os.kill(int(pid), signal.SIGUSR1)
    sys.exit(0)
