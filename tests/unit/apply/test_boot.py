"""The host's own unit, and whoever holds the lock while systemd starts or stops it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch.apply import boot, reconcile
from hutch.errors import HutchError
from hutch.spec.names import Layout


@pytest.fixture
def host(tmp_path: Path) -> boot.Host:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.state.mkdir()
    layout.run.mkdir()
    return boot.Host(layout)


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """What is cleared, and nothing is."""
    found: list[Layout] = []
    monkeypatch.setattr(reconcile, "clear", found.append)
    return found


@contextmanager
def held(host: boot.Host) -> Iterator[None]:
    """Somebody else holds the lock."""
    descriptor = os.open(host.layout.lock, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_a_reconciled_host_needs_no_lock(host: boot.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "has_namespace", lambda layout: True)
    host.layout.reconciled.touch()
    with held(host):
        host.start()


def test_whoever_holds_the_lock_may_reconcile_the_host(host: boot.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def has_namespace(layout: Layout) -> bool:
        nonlocal looks
        looks += 1
        return looks > 2

    monkeypatch.setattr(boot, "has_namespace", has_namespace)
    monkeypatch.setattr(boot, "PATIENCE", 0.01)
    host.layout.reconciled.touch()
    with held(host):
        host.start()
    assert looks == 3


def test_what_was_reconciled_before_its_network_went_is_not(host: boot.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "has_namespace", lambda layout: False)
    host.layout.reconciled.touch()
    with pytest.raises(HutchError, match="no workspace"):
        host.start()


def test_a_cleared_host_needs_no_lock(host: boot.Host, monkeypatch: pytest.MonkeyPatch, cleared: list[Layout]) -> None:
    monkeypatch.setattr(boot, "has_namespace", lambda layout: False)
    with held(host):
        host.stop()
    assert cleared == []


@pytest.mark.parametrize("is_stopping", [False, True])
def test_only_a_host_that_stays_up_is_cleared(
    host: boot.Host, monkeypatch: pytest.MonkeyPatch, cleared: list[Layout], *, is_stopping: bool
) -> None:
    """One that goes down is not left reconciled all the same: its kernel may stay."""
    monkeypatch.setattr(boot, "has_namespace", lambda layout: True)
    monkeypatch.setattr(boot, "is_stopping", lambda: is_stopping)
    host.layout.reconciled.touch()
    host.stop()
    assert cleared == ([] if is_stopping else [host.layout])
    assert host.layout.reconciled.exists() is not is_stopping
