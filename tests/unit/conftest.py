"""Unit tests decide, parse and render; they cannot run a command or open a socket.

The interpreter's own audit events say when something tries, whichever module it uses. An audit hook cannot be
removed again, so it asks whether a unit test is running: other tiers may share the process.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.examples import fix_examples
from tests.support.parts import is_of_another

FORBIDDEN = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "pty.spawn",
        "socket.__new__",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.sendmsg",
        "socket.sendto",
        "subprocess.Popen",
    }
)

FILES = sorted(Path(__file__).parent.rglob("test_*.py"))

_running = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if is_of_another(collection_path, config, lambda part, parts: FILES[part::parts]) else None


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _running or event not in FORBIDDEN:
        return
    # An event loop wakes itself through a pair of unnamed sockets, which lead nowhere else.
    if event == "socket.__new__" and arguments[1] == socket.AF_UNIX:
        return
    # Not an Exception, so that no `except` of the code under test hides it.
    pytest.fail(f"a unit test cannot do this: {event}{arguments!r:.200}")


sys.addaudithook(_refuse)
fix_examples()


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    global _running  # noqa: PLW0603 - the hook lives as long as the interpreter, and so does what it asks
    _running = True
    yield
    _running = False
