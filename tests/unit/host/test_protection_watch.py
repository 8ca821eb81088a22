"""What is looked at once more, and what the watch makes of a look that fails."""

from __future__ import annotations

import errno
import os

import pytest

from hutch.failure import HutchError
from hutch.host.storage import protecting, protection_watch
from hutch.host.storage.protecting import LOOKS, Share, Way
from hutch.host.storage.protection_watch import AGAIN, Changing, renew, try_to_renew, watch

SHARE = Share("/place", "/source", "1000", "1000", "/note", "web", "default")


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def renew(share: Share) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(protection_watch, "renew", renew)


def test_what_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, None)
    assert try_to_renew(SHARE) == ""


def test_what_changes_meanwhile_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    with pytest.raises(Changing):
        try_to_renew(SHARE)


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), HutchError("no", resolution="do")])
def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_with(monkeypatch, error)
    assert "no" in try_to_renew(SHARE)


def test_the_rest_is_mounted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest can have what sorts before it come and go."""
    mounted: list[Way] = []

    def mount_pair(place: str, way: Way, *, is_readonly: bool) -> None:
        if way == (".a", "x"):
            raise FileNotFoundError(errno.ENOENT, "it")
        mounted.append(way)

    monkeypatch.setattr(protection_watch, "mount_pair", mount_pair)
    monkeypatch.setattr(protection_watch, "parse_mountinfo", lambda text: [("", "", "/place", "", "")])
    monkeypatch.setattr(SHARE, "hold", lambda: [(".a", "x"), (".git", "config")])
    with pytest.raises(Changing):
        renew(SHARE)
    assert mounted == [(".a",), (".git",), (".git", "config")]


def test_a_look_comes_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then only the end of the process counts: mounts change by the look itself."""
    process, looks, waited = os.pidfd_open(os.getpid()), iter((True, False)), []

    class Poll:
        def __init__(self) -> None:
            self.count = 0

        def register(self, what: object, events: int) -> None:
            self.count += 1

        def poll(self, timeout: int | None = None) -> list[tuple[int, int]]:
            waited.append((self.count, timeout))
            return [(process, 1)] if timeout is None else []

    def look(share: Share) -> str:
        if next(looks):
            raise Changing
        return ""

    monkeypatch.setattr("select.poll", Poll)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: process)
    monkeypatch.setattr(protection_watch, "try_to_renew", look)
    watch([SHARE], os.getpid())
    assert waited == [(1, AGAIN), (2, None)]


@pytest.mark.parametrize("tries", [1, 2, LOOKS + 1])
def test_what_vanishes_is_looked_for_again(monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    """But not for ever, and then it is taken as it was."""
    seen: list[str] = []

    def find(source: str, more: object, *, is_default: bool) -> dict[str, str]:
        seen.append(source)
        return {f"/source/{len(seen)}": ""}

    monkeypatch.setattr(protecting, "find_protected", find)
    monkeypatch.setattr(protecting, "ensure_placeholders", lambda *arguments: len(seen) == tries)
    assert SHARE.hold() == [(str(min(tries, LOOKS)),)]
