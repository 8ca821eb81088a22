"""One command at a time changes a host, and who has to wait is told for whom."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.services import lock as locks
from hutch.host.services.lock import (
    COMMANDS,
    LOOKS,
    Busy,
    Holder,
    find_holder,
    host_lock,
    lock,
    spoken,
    take_place,
)
from hutch.spec.names import Layout
from hutch.state import make_directory


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@contextmanager
def held(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_the_lock_is_waited_for_and_given_back(layout: Layout) -> None:
    for _ in range(2):
        with lock(layout, patience=0.0):
            assert layout.lock.stat().st_mode & 0o7777 == 0o600
            with (
                pytest.raises(HutchError, match=r"has been changing this host for more than 0\.05 s") as caught,
                lock(layout, patience=0.05),
            ):
                pass
            assert f"(pid {os.getpid()}, since " in caught.value.brief
    assert layout.lock.read_bytes() == b""


def test_a_member_has_so_many_places_and_a_child_keeps_its_parent_s(layout: Layout) -> None:
    taken = [take_place(layout, 1002, COMMANDS, "commands", patience=0.0) for _ in COMMANDS]
    inherited = os.dup(taken[0])
    os.close(taken[0])
    with pytest.raises(Busy, match="root is at work on commands of yours already"):
        take_place(layout, 1002, COMMANDS, "commands", patience=0.1)
    taken += [take_place(layout, 1002, LOOKS, "a look", patience=0.0)]
    taken += [take_place(layout, uid, COMMANDS, "commands", patience=0.0) for uid in (1001, 1003, 2**32 - 2)]
    with lock(layout, patience=0.0):
        pass
    os.close(inherited)
    taken[0] = take_place(layout, 1002, COMMANDS, "commands", patience=0.0)
    for descriptor in taken:
        os.close(descriptor)


def test_the_lock_is_given_back_after_a_failure(layout: Layout) -> None:
    with pytest.raises(ZeroDivisionError), lock(layout):
        raise ZeroDivisionError
    with held(layout.lock):
        pass


def test_whoever_waits_for_long_is_told_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(locks, "listener", told.append)
    monkeypatch.setattr(locks, "POLITE", 0.05)
    with lock(layout), pytest.raises(HutchError), lock(layout, patience=0.2):
        pass
    assert len(told) == 1
    assert f"(pid {os.getpid()}, since " in told[0]
    with lock(layout, patience=0.0):
        pass
    assert len(told) == 1


def test_all_hutches_of_a_host_share_a_lock(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HOST_LOCK", str(tmp_path))
    with lock(layout), host_lock(patience=0.0), host_lock(patience=0.0):  # whoever holds it may take it again
        pass
    with held(tmp_path), pytest.raises(HutchError, match=f"pid {os.getpid()}"), host_lock(patience=0.05):
        pass
    for _ in range(2):
        with host_lock(patience=0.0):
            pass
    assert os.listdir(tmp_path) == ["state"]


def test_the_lock_is_no_link(layout: Layout) -> None:
    make_directory(layout.state)
    layout.lock.symlink_to("/etc/hostname")
    with pytest.raises(OSError), lock(layout):
        pass


def test_a_holder_is_who_holds_it_and_not_who_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert find_holder(descriptor) is None
        with held(path):
            holder = find_holder(descriptor)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert "pytest" in " ".join(holder.command)
        assert 0 <= time.time() - holder.since < 86400
        assert find_holder(descriptor) is None
    finally:
        os.close(descriptor)


def test_how_a_holder_is_named() -> None:
    now = time.time()
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    assert str(Holder(123, ("hutch", "up"), now)) == f"`hutch up` (pid 123, since {clock})"
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - 90000))
    assert str(Holder(123, ("hutch", "up"), now - 90000)) == f"`hutch up` (pid 123, since {day})"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/usr/bin/python3", "/usr/bin/hutch", "rm", "web"), "hutch rm web"),
        (("/opt/venv/bin/python", "-m", "hutch", "up"), "hutch up"),
        (("/usr/bin/python3", "deploy.py", "--all"), "/usr/bin/python3 deploy.py --all"),
        (("hutch", "up", "\x1b[2J"), "hutch up \ufffd[2J"),
        (("hutch", *["x" * 50] * 9), "hutch " + "x" * 50 + " " + "x" * 22 + "…"),
        ((), ""),
    ],
)
def test_command_lines_as_they_were_typed(command: tuple[str, ...], words: str) -> None:
    assert spoken(command) == words
