"""Keys for users and groups of the host, and who may have kept one."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.apply.recovery import withdraw_keys
from hutch.apply.serving import own_keys
from hutch.host.identity import holders
from hutch.host.identity.holders import lost_holders, note_people
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.spec.sharing import BY_ROOTS_KEY
from hutch.state import read_record, write_record
from tests.unit.facts import workspace

SetPeople = Callable[..., None]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def set_people(monkeypatch: pytest.MonkeyPatch) -> SetPeople:
    """Sets who is in the group 1200: by the group's list, and `by_account` as their own group."""

    def set_them(*listed: str, by_account: tuple[str, ...] = (), is_there: bool = True) -> None:
        groups = {1200: grp.struct_group(("devs", "x", 1200, list(listed)))} if is_there else {}
        monkeypatch.setattr(grp, "getgrgid", groups.__getitem__)
        people = [pwd.struct_passwd((name, "x", 2000, 1200, "", "/", "/bin/sh")) for name in by_account]
        monkeypatch.setattr(pwd, "getpwall", lambda: people)

    return set_them


def make_key(layout: Layout, holder: str) -> None:
    layout.key(holder).parent.mkdir(parents=True)
    layout.key(holder).touch()


def test_whoever_leaves_a_group_has_its_key(layout: Layout, set_people: SetPeople) -> None:
    set_people("dave", by_account=("erin",))
    assert lost_holders(layout) == frozenset()
    make_key(layout, "@1200")
    note_people(layout, "@1200")
    assert holders.noted_people(layout, "@1200") == {"dave", "erin"}
    set_people("dave", "frank", by_account=("erin",))  # somebody comes
    assert lost_holders(layout) == frozenset()
    note_people(layout, "@1200")
    set_people("frank", by_account=("erin",))
    assert lost_holders(layout) == {"@1200"}
    note_people(layout, "@1200")  # who left stays noted until there is another key
    assert lost_holders(layout) == {"@1200"}
    set_people(is_there=False)  # a directory that does not answer says nothing of anybody
    assert lost_holders(layout) == frozenset()


def test_who_may_enter(set_people: SetPeople, monkeypatch: pytest.MonkeyPatch) -> None:
    set_people("dave", "gone", "root", by_account=("erin",))
    numbers = {"dave": 1003, "erin": 1004, "root": 0}
    people = {name: pwd.struct_passwd((name, "x", uid, uid, "", "/", "/bin/sh")) for name, uid in numbers.items()}
    monkeypatch.setattr(pwd, "getpwnam", people.__getitem__)
    record = Record("web", "/f", workspace(share_with=("@1200", "1001")), "an-image", 1 << 30, "0" * 32)
    assert holders.entering(record) == {1000, 1001, 1003, 1004}


def test_keys_are_made_anew_and_what_they_open_is_noted(layout: Layout, set_people: SetPeople) -> None:
    set_people("dave")
    record = Record("web", "/f", workspace(share_with=("@1200",)), "an-image", 1 << 30, "0" * 32).with_booted()
    write_record(layout, record)
    for holder in ("0", "@1200", "hutch"):
        make_key(layout, holder)
    note_people(layout, "@1200")
    set_people()
    for _ in range(2):
        withdraw_keys(layout)
        assert [path.name for path in layout.keys.iterdir()] == ["retired"]
        found = read_record(layout, "web")
        assert found is not None
        assert found.booted is not None
        assert found.wanted == record.wanted
        assert found.booted.workspace.share_with == ("@1200 by an earlier key", BY_ROOTS_KEY)
        assert own_keys({"web": found})["retired"] == ("web",)


def test_root_s_key_is_retired_once(layout: Layout) -> None:
    """As after a crash between the two steps: the key that is retired is the one that others have."""
    for holder in ("0", "retired", "hutch"):
        make_key(layout, holder)
    layout.key("retired").write_text("the old one")
    withdraw_keys(layout)
    assert sorted(path.name for path in layout.keys.iterdir()) == ["0", "retired"]
    assert layout.key("retired").read_text() == "the old one"
