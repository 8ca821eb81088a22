"""The host's own unit, and whoever holds the lock while systemd starts or stops it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.apply import boot, reconcile, refreshing
from hutch.apply.refreshing import NotAllRefreshed, Refreshed
from hutch.errors import HutchError
from hutch.host.services.lock import Busy
from hutch.host.services.unit_texts import START_SECONDS
from hutch.host.storage import shares
from hutch.host.storage.shares import Guest
from hutch.spec.model import Mount
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import write_record
from tests.unit.facts import workspace


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


def test_what_stopped_workspaces_have_written_is_guarded_at_boot(
    host: boot.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last start could write too, until there is another start."""
    found: list[tuple[list[str], set[Guest]]] = []
    monkeypatch.setattr(
        shares,
        "ensure_shares",
        lambda layout, paths, guests, members_own: found.append((list(paths), set().union(*guests.values()))),
    )
    wanted = workspace(mounts=(Mount("/srv/b", "/b"), Mount("/srv/c", "/c", readonly=True)))
    record = Record("web", "/f", workspace(mounts=(Mount("/srv/a", "/a"),)), "image-1", 0x7000_0000, "0" * 32)
    write_record(host.layout, replace(record.with_booted(), wanted=wanted))
    host.guard()
    assert found == [([str(wanted.home), "/srv/b", "/srv/a"], {Guest(0x7000_0000, 1000)})]


def test_logins_do_not_wait_for_whoever_holds_the_lock(host: boot.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert boot.GUARD_PATIENCE < START_SECONDS / 2
    monkeypatch.setattr(boot, "GUARD_PATIENCE", 0.01)
    with held(host), pytest.raises(Busy):
        host.guard()


@pytest.mark.parametrize("fails", [False, True])
def test_only_those_are_made_anew_whose_period_it_is(
    host: boot.Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    """What was made is told, also where others cannot be made."""
    done = [Refreshed("image.2", "image", ("a",), ("c",)), Refreshed("new", "", (), ())]

    def refresh(layout: Layout, names: list[str], *rest: object) -> list[Refreshed]:
        assert names == ["a", "c"]
        if fails:
            raise NotAllRefreshed([HutchError("c: no mirror"), HutchError("x: no tree", details="why")], done)
        return done

    records = {
        name: Record(name, "/f", workspace(name, auto_refresh=period), "image-1", 0x7000_0000, "0" * 32)
        for name, period in (("a", "weekly"), ("b", "never"), ("c", "weekly"), ("d", "daily"))
    }
    monkeypatch.setattr(boot, "read_records", lambda layout: records)
    monkeypatch.setattr(refreshing, "refresh", refresh)
    with pytest.raises(NotAllRefreshed, match="c: no mirror") if fails else nullcontext():
        host.refresh("weekly")
    assert capfd.readouterr().err.splitlines() == [
        "image.2 replaces image",
        "a moves to it at the next start",
        "c keeps its root, and so its image; update it from inside",
        "new was built",
    ]
