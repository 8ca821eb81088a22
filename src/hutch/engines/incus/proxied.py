"""Incus's plain HTTP, by way of `incus remote proxy`: it passes ETags, which `incus query` of the 6.0 series does not.

The user's client listens at a socket, and carries what is said there to the server, with the user's trust. It does so
for one change, and dies with hutch. The socket is in a file system that is mounted nowhere: nobody else finds it, and
nothing of it is left, whatever ends hutch. The client may be anything that its user wants, so a connection counts only
if the process at its other end is the one that was started: another server's would take it for root's word.

Requests are HTTP/1.0, whose answers end with their connections.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from hutch import run
from hutch.frozen import dataclass
from hutch.libc import mount_nowhere
from hutch.run import CommandFailed, Completed

IDLE_SECONDS = 10
"""After so long without a request the client ends by itself: should hutch be killed before the kernel knows that the
client is to die with it."""
LOWEST = 64
"""The least number of the descriptor that the client inherits: a shell before it may open small ones."""
AGAIN = 0.005  # seconds
GONE = 1.0  # seconds for a client to end that has hung up
CHUNK = 1 << 16
MOST_HEAD = 1 << 16  # bytes
STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")
ETAG = re.compile(rb'"?[A-Za-z0-9+/=_-]{1,128}"?')


@dataclass(frozen=True)
class Reply:
    """An answer in HTTP. `etag` is "" where it has none that can be repeated."""

    code: int
    etag: str
    body: bytes


def render(method: str, path: str, body: Any = None, etag: str = "") -> bytes:
    """A request. With an ETag, the server refuses it as soon as there is another."""
    data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [f"{method} {path} HTTP/1.0", "Host: incus"]
    if etag:
        lines.append(f"If-Match: {etag}")
    if data:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii") + data


def read(said: bytes) -> Reply | None:
    """The answer that all of a connection is; None where it is none, or not whole."""
    head, end, body = said.partition(b"\r\n\r\n")
    if not end or len(head) > MOST_HEAD:
        return None
    first, *lines = head.split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    status = STATUS.fullmatch(first)
    if status is None or headers.get(b"content-length", b"%d" % len(body)) != b"%d" % len(body):
        return None
    etag = headers.get(b"etag", b"")
    return Reply(int(status[1]), etag.decode() if ETAG.fullmatch(etag) else "", body)


class Proxy:
    """A client that carries requests. `command` makes its command line of the path of the socket, and `uid` is its
    user. To be closed."""

    def __init__(self, command: Callable[[str], list[str]], uid: int) -> None:
        low = mount_nowhere("tmpfs", mode="0700", uid=str(uid), size="64k", nr_inodes="16")
        try:
            self._place = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, LOWEST)
        finally:
            os.close(low)
        try:
            self._path = f"/proc/self/fd/{self._place}/api"  # theirs as well as ours
            self._argv = command(self._path)
            self._process = run.start(self._argv, stderr=run.PIPE, pass_fds=[self._place])
        except BaseException:
            os.close(self._place)
            raise

    def ask(self, request: bytes, *, timeout: float, most: int) -> Completed | CommandFailed:
        """What the server says to a request, as the output of a command that has ended well; or how the client has
        ended, or why nobody waits for it any longer. See run.exchange."""
        deadline = time.monotonic() + timeout
        try:
            with closing(self._connect(deadline)) as line:
                said = _exchange(line, request, deadline, most)
        except TimeoutError:
            return self._failed(f"did not answer within {timeout:g} s")
        except OSError:
            return self._ended()
        return Completed(0, said, b"") if len(said) <= most else self._failed(f"said more than {most} bytes")

    def _connect(self, deadline: float) -> socket.socket:
        """A connection, as soon as the client listens."""
        while True:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.settimeout(_left(deadline))
                line.connect(self._path)
                pid, _, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if pid != self._process.pid:
                    raise ConnectionAbortedError
                return line
            except (FileNotFoundError, ConnectionRefusedError):
                line.close()
                if self._process.poll() is not None:
                    raise
            except BaseException:
                line.close()
                raise
            time.sleep(AGAIN)

    def _ended(self) -> Completed | CommandFailed:
        try:
            code = self._process.wait(GONE)
        except run.TimeoutExpired:
            return self._failed("has hung up")
        return Completed(code, b"", self._errors())

    def _failed(self, reason: str) -> CommandFailed:
        return CommandFailed(self._argv, reason, self._errors().decode("utf-8", "replace"), None)

    def _errors(self) -> bytes:
        """The errors that it has told so far. Nobody waits for more: a process that it has left behind may keep the
        pipe open for ever."""
        assert self._process.stderr is not None
        pipe = self._process.stderr.fileno()
        os.set_blocking(pipe, False)
        try:
            return os.read(pipe, run.MOST_ERRORS)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        with self._process:
            self._process.kill()
        os.close(self._place)


def _exchange(line: socket.socket, request: bytes, deadline: float, most: int) -> bytes:
    """Say a request, and hear all that comes, but for what is more than `most` bytes. Raises OSError for nothing."""
    line.settimeout(_left(deadline))
    line.sendall(request)
    said = bytearray()
    while len(said) <= most:
        line.settimeout(_left(deadline))
        data = line.recv(CHUNK)
        if not data:
            break
        said += data
    if not said:
        raise ConnectionResetError
    return bytes(said)


def _left(deadline: float) -> float:
    """The seconds that are left. Raises TimeoutError where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
