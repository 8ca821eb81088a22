"""What the watch makes of a look that fails."""

from __future__ import annotations

import errno
import os

import pytest

from hutch.failure import HutchError
from hutch.host.storage import protection_watch
from hutch.host.storage.protecting import Share
from hutch.host.storage.protection_watch import Changing, try_to_renew

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
    """A guest can have that happen: it ends nobody, and the rest is not left as it is."""
    fail_with(monkeypatch, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    with pytest.raises(Changing):
        try_to_renew(SHARE)


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), HutchError("no", resolution="do")])
def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_with(monkeypatch, error)
    assert "no" in try_to_renew(SHARE)
