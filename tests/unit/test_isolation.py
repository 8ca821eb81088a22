"""That a unit test can neither run a command nor open a socket."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.run import replace, run, start

ATTEMPTS: dict[str, Callable[[], object]] = {
    "hutch.run.run": lambda: run(["true"]),
    "hutch.run.start": lambda: start(["true"]),
    "hutch.run.replace": lambda: replace(["true"]),
    "subprocess.run": lambda: subprocess.run(["true"]),
    "subprocess with a shell": lambda: subprocess.run("true", shell=True),
    "os.system": lambda: os.system("true"),
    "os.popen": lambda: os.popen("true"),
    "os.execv": lambda: os.execv("/bin/true", ["true"]),
    "os.fork": os.fork,
    "os.forkpty": os.forkpty,
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "os.spawnv": lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]),
    "pty.spawn": lambda: pty.spawn(["true"]),
    "TCP": lambda: socket.create_connection(("127.0.0.1", 9)),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "IPv6": lambda: socket.socket(socket.AF_INET6),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "a name": lambda: socket.getaddrinfo("localhost", 80),
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_refused(attempt: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test cannot do this"):
        attempt()


def test_unix_socket_with_a_name_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as unnamed:
        for attempt in (unnamed.bind, unnamed.connect):
            with pytest.raises(pytest.fail.Exception, match="a unit test cannot do this"):
                attempt(path)


def test_event_loop_is_allowed() -> None:
    assert asyncio.run(asyncio.sleep(0, "done")) == "done"
