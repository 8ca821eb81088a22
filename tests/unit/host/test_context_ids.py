"""Which vsock context id a machine gets at its start: its own, unless somebody has taken it."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hutch.host.hardware import context_id

COMMAND = ["qemu", "-device", "vhost-vsock-pci,guest-cid=77,vhostfd=6", "-append", "=77,vhost-vsock-pci,guest-cid=77,"]
Kernel = Callable[[Callable[[int], bool]], list[int]]


class Became(Exception):
    """Raised in place of becoming another program."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel in which somebody has taken some of the ids; says which ones it was asked for."""

    def play(is_taken: Callable[[int], bool]) -> list[int]:
        asked: list[int] = []

        def ioctl(descriptor: int, request: int, argument: bytes) -> int:
            assert request == 0x4008AF60
            asked.append(int.from_bytes(argument, "little"))
            if is_taken(asked[-1]):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            return 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        return asked

    return play


def test_it_has_the_id_that_nobody_else_has(kernel: Kernel) -> None:
    asked = kernel(lambda cid: False)
    assert (context_id.claim(9, 77), asked) == (77, [77])


def test_it_gets_another_where_somebody_has_it(kernel: Kernel) -> None:
    """Not the next one: whoever took the first has taken that, too."""
    asked = kernel(lambda cid: len(asked) < 4)
    cid = context_id.claim(9, 77)
    assert asked[0] == 77 and asked[-1] == cid and len(set(asked)) == 4
    assert all(context_id.FIRST <= number <= context_id.LAST for number in asked)
    assert 78 not in asked


def test_it_is_over_where_all_are_taken(kernel: Kernel) -> None:
    asked = kernel(lambda cid: True)
    with pytest.raises(OSError, match="no context id is free"):
        context_id.claim(9, 77)
    assert len(asked) == context_id.MOST_TRIES


def become(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What it becomes, with COMMAND, at a device of its own."""
    became: list[str] = []

    def execvp(program: str, words: list[str]) -> None:
        became.extend(words)
        raise Became

    descriptor = 77
    (tmp_path / "device").touch()
    monkeypatch.setattr(context_id, "DEVICE", str(tmp_path / "device"))
    monkeypatch.setattr(sys, "argv", ["context_id.py", "77", str(tmp_path / "cid"), str(descriptor), "--", *COMMAND])
    monkeypatch.setattr(os, "execvp", execvp)
    try:
        with pytest.raises(Became):
            context_id.main()
        assert os.path.samefile("/proc/self/fd/77", tmp_path / "device") and os.get_inheritable(descriptor)
    finally:
        for entry in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.path.samefile(f"/proc/self/fd/{entry}", tmp_path / "device"):
                    os.close(int(entry))
    return became


def test_its_command_is_told_and_so_is_the_file(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The device's own word alone: what else is on the command line may be anybody's."""
    asked = kernel(lambda cid: cid == 77)
    became = become(monkeypatch, tmp_path)
    assert became == [*COMMAND[:2], COMMAND[2].replace("=77,", f"={asked[-1]},"), *COMMAND[3:]]
    assert (tmp_path / "cid").read_text() == f"{asked[-1]}\n"
    assert f"77 is somebody else's: this start has {asked[-1]}" in capfd.readouterr().err


def test_nothing_is_said_where_it_has_its_own(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel(lambda cid: False)
    assert become(monkeypatch, tmp_path) == COMMAND
    assert (tmp_path / "cid").read_text() == "77\n"
    assert capfd.readouterr().err == ""
