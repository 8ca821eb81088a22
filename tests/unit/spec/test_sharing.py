"""Users and groups that a workspace is shared with, by their numbers and their names."""

from __future__ import annotations

import grp
import pwd
from dataclasses import replace

import pytest

from hutch.plan.actions import Wanted
from hutch.plan.planner import differences
from hutch.spec.record import Record
from hutch.spec.sharing import BY_ROOTS_KEY, Viewers, holder_words, viewers, with_lost_keys
from tests.unit.facts import workspace

WEB = Record("web", "/hutch.toml", workspace(share_with=("1001", "@1200")), "an-image", 1 << 30, "0" * 32)
RUNNING = WEB.with_booted()


def shared(record: Record) -> tuple[str, ...]:
    assert record.booted is not None
    return record.booted.workspace.share_with


def test_each_is_there_once_and_in_order() -> None:
    assert viewers(["@27", "1001", "1000", "1001", "@3", "@27"]) == Viewers((1000, 1001), (3, 27))
    assert not viewers([])


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        ("1000", "alice"),
        ("1999", "1999"),
        ("@1200", "@devs"),
        ("@1999", "@1999"),
        ("@1200 by an earlier key", "@devs by an earlier key"),
        (BY_ROOTS_KEY, "@hutch by root's key"),
    ],
)
def test_people_read_names(holder: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = pwd.struct_passwd(("alice", "x", 1000, 1000, "", "/home/alice", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {1000: alice}.__getitem__)
    monkeypatch.setattr(grp, "getgrgid", {1200: grp.struct_group(("devs", "x", 1200, []))}.__getitem__)
    assert holder_words(holder) == words


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        ((), ("1001", "@1200")),
        (("@9",), ("1001", "@1200")),
        (("@1200",), ("1001", "@1200 by an earlier key")),
        (("0",), ("1001", "@1200", BY_ROOTS_KEY)),
        (("0", "@1200"), ("1001", "@1200 by an earlier key", BY_ROOTS_KEY)),
    ],
)
def test_a_lost_key_is_a_live_change_of_what_runs(lost: tuple[str, ...], found: tuple[str, ...]) -> None:
    noted = with_lost_keys(RUNNING, lost)
    assert shared(noted) == found
    assert with_lost_keys(noted, lost) == noted
    assert noted.wanted == WEB.wanted
    assert noted.booted is not None
    changes = differences(Wanted(noted.booted.workspace, WEB.image), Wanted(WEB.wanted, WEB.image))
    assert [(change.key, change.weight) for change in changes] == [("share_with", "live")] * (noted != RUNNING)


def test_what_never_ran_has_no_key() -> None:
    assert with_lost_keys(WEB, ("0", "@1200")) == WEB


def test_what_is_lost_twice_is_noted_once_more() -> None:
    """The next key of the group, too."""
    again = replace(RUNNING, booted=with_lost_keys(RUNNING, ("@1200",)).with_booted().booted)
    assert shared(with_lost_keys(again, ("@1200",))) == ("1001", "@1200 by an earlier key")
