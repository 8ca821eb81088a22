"""Programs that listen, in a workspace or on this host, and a `hutch forward` to reach them by."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from tests.host.instance import Instance

SECONDS = 20.0  # that anything here may take
SERVE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=family) as server:
    print("ready", flush=True)
    while True:
        with server.accept()[0] as client:
            client.sendall(b"inside")
"""
ASK = """
import socket, sys
try:
    print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(99).decode())
except OSError as error:
    print(error.strerror)
"""


class Forwarding:
    """A `hutch forward` that runs, and what it says."""

    def __init__(self, instance: Instance, *words: str, as_user: str = "root") -> None:
        account = instance.world.accounts[as_user]
        session = account.home / "session"  # as a login has one
        if not session.exists():
            session.mkdir(mode=0o700)
            os.chown(session, account.uid, account.uid)
        self.process = subprocess.Popen(
            account.command(*instance.program, "forward", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=instance.directory,
            env=instance.environment({"XDG_RUNTIME_DIR": str(session)}, as_user),
        )
        assert self.process.stdout and self.process.stderr
        self.readers: list[threading.Thread] = []
        self.out, self.err = self._lines(self.process.stdout), self._lines(self.process.stderr)

    def _lines(self, stream: IO[str]) -> queue.Queue[str]:
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            with stream:
                for line in stream:
                    lines.put(line.rstrip("\n"))

        self.readers.append(threading.Thread(target=read))
        self.readers[-1].start()
        return lines

    def says(self, pattern: str, on: Callable[[Forwarding], queue.Queue[str]] = lambda self: self.out) -> str:
        """The first group of the next line that matches."""
        while True:
            try:
                line = on(self).get(timeout=SECONDS)
            except queue.Empty:
                raise AssertionError(f"not said: {pattern}; but: {[*self.out.queue, *self.err.queue]}") from None
            if match := re.fullmatch(pattern, line):
                return match[1] if match.groups() else line

    def complains(self, pattern: str) -> str:
        return self.says(pattern, lambda self: self.err)

    def end(self) -> tuple[int, str]:
        """Ctrl-C: the exit code, and the last line."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS), self.complains("nothing of .* any more")


@contextmanager
def listening(
    instance: Instance, port: int, address: str = "127.0.0.1", *, root: bool = False, name: str = "web"
) -> Iterator[None]:
    """A program that listens inside."""
    options = ["--root"] if root else []
    words = ["exec", *options, name, "--", "python3", "-c", SERVE, address, str(port)]
    with instance.spawn(*words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.terminate()


@contextmanager
def forwarding(instance: Instance, *words: str, as_user: str = "root", name: str = "web") -> Iterator[Forwarding]:
    found = Forwarding(instance, name, *words, as_user=as_user)
    try:
        yield found
    finally:
        found.process.terminate()
        found.process.wait(SECONDS)
        for reader in found.readers:
            reader.join()


def fetch(port: int, address: str = "127.0.0.1") -> str:
    with socket.create_connection((address, port), SECONDS) as client:
        client.settimeout(SECONDS)
        return client.recv(99).decode()


def is_closed(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def await_closed(port: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_closed(port):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def served(port: int = 0) -> Iterator[int]:
    """A program of this host's that listens on the loopback, and its port."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def answer() -> None:
            while True:
                try:
                    with server.accept()[0] as client:
                        client.sendall(b"outside")
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def ask(instance: Instance, port: int, *, name: str = "web") -> str:
    """What a program inside hears at a port of the host."""
    return instance.inside(name, "python3", "-c", ASK, "host.internal", str(port)).stdout.strip()
