"""What a machine's monitor inherits from the program that opens its network device, which the tests of machines try for
real."""

from __future__ import annotations

import fcntl
import os
import resource
import sys
from pathlib import Path

import pytest

from hutch.host.hardware import tap

MEMORY = 1 << 20


class Became(Exception):
    """Raised in place of becoming another program."""


@pytest.mark.parametrize(("size", "largest"), [(None, MEMORY), (10, MEMORY), (2 * MEMORY, 2 * MEMORY)])
def test_its_largest_file_is_its_memory_or_its_disk(
    size: int | None, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is as large as it is: what its file asks for may be less by now."""
    disk = ""
    if size is not None:
        disk = str(tmp_path / "disk")
        Path(disk).touch()
        os.truncate(disk, size)
    set_to: list[tuple[int, tuple[int, int]]] = []

    def execvp(program: str, words: list[str]) -> None:
        assert words == ["true"]
        raise Became

    monkeypatch.setattr(sys, "argv", ["tap.py", "vm-web", "5", "--largest", str(MEMORY), disk, "--", "true"])
    monkeypatch.setattr(os, "open", lambda *how: 9)
    monkeypatch.setattr(os, "dup2", lambda *how: None)
    monkeypatch.setattr(os, "execvp", execvp)
    monkeypatch.setattr(fcntl, "ioctl", lambda *how: 0)
    monkeypatch.setattr(fcntl, "fcntl", lambda *how: 100)
    monkeypatch.setattr(resource, "setrlimit", lambda *how: set_to.append(how))
    with pytest.raises(Became):
        tap.main()
    assert set_to == [(resource.RLIMIT_FSIZE, (largest, largest))]
