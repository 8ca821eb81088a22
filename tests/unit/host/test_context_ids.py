"""Which context id a machine gets at its start: its own, unless somebody has taken it."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.host.hardware import tap

WORDS = ["tap.py", "vm-web", "5", "--vsock", "77", "/run/cid", "6", "--"]
COMMAND = ["qemu", "-device", "vhost-vsock-pci,guest-cid=77,vhostfd=6", "-append", "vhost-vsock-pci,guest-cid=777,"]
Kernel = Callable[[Callable[[int], bool]], list[int]]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel in which somebody has taken some of the ids; says which ones it was asked for."""

    def play(is_taken: Callable[[int], bool]) -> list[int]:
        asked: list[int] = []

        def ioctl(descriptor: int, request: int, argument: bytes) -> int:
            if request == tap.SET_GUEST_CID:
                asked.append(int.from_bytes(argument, "little"))
                if is_taken(asked[-1]):
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            return 0

        real, opened = os.open, tmp_path / "device"
        opened.touch()
        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        monkeypatch.setattr(os, "open", lambda path, *how: real(opened if path.startswith("/dev/") else path, *how))
        return asked

    return play


def test_it_has_the_id_that_nobody_else_has(kernel: Kernel, tmp_path: Path) -> None:
    asked = kernel(lambda cid: False)
    device, cid = tap.claim(77, str(tmp_path / "cid"))
    os.close(device)
    assert (cid, asked) == (77, [77])
    assert (tmp_path / "cid").read_text() == "77\n"


def test_it_gets_another_where_somebody_has_it(
    kernel: Kernel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not the next one: whoever took the first has taken that, too."""
    taken = set(range(77, 1000))
    asked = kernel(lambda cid: cid in taken or len(asked) < 4)
    device, cid = tap.claim(77, str(tmp_path / "cid"))
    os.close(device)
    assert tap.FIRST_CID <= cid <= tap.LAST_CID and cid not in taken and len(set(asked)) == 4
    assert (tmp_path / "cid").read_text() == f"{cid}\n"
    assert f"77 is somebody else's: this start has {cid}" in capfd.readouterr().err


def test_it_is_over_where_all_are_taken(kernel: Kernel, tmp_path: Path) -> None:
    kernel(lambda cid: True)
    with pytest.raises(SystemExit, match="no vsock context id was free"):
        tap.claim(77, str(tmp_path / "cid"))


def test_its_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's own word alone: what else is on the command line may be anybody's."""
    became: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", [*WORDS, *COMMAND])
    monkeypatch.setattr(os, "open", lambda *how: 9)
    monkeypatch.setattr(fcntl, "ioctl", lambda *how: 0)
    monkeypatch.setattr(fcntl, "fcntl", lambda source, *how: source)
    monkeypatch.setattr(os, "dup2", lambda source, target: target)
    monkeypatch.setattr(os, "execvp", lambda program, words: became.append(words))
    monkeypatch.setattr(tap, "claim", lambda wanted, file: (8, 4711))
    tap.main()
    changed = COMMAND[2].replace("=77,", "=4711,")
    assert became == [[*COMMAND[:2], changed, *COMMAND[3:]]]
