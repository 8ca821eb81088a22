"""Members: who is one, by the user database, and for whom root's process works, by what sudo and the like say."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping

import pytest

from hutch.errors import HutchError
from hutch.spec import member
from hutch.spec.member import Member, behind_entry, concerned, member_of

GROUPS = {"carol": [1002, 1200], "alice": [1000], "root": [0, 1200]}


@pytest.fixture(autouse=True)
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        uid: pwd.struct_passwd((name, "x", uid, uid, "", home, "/bin/sh"))
        for uid, name, home in ((0, "root", "/root"), (1000, "alice", "/home/alice"), (1002, "carol", "/home/carol"))
    }
    monkeypatch.setattr(pwd, "getpwuid", known.__getitem__)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: {each.pw_name: each for each in known.values()}[name])
    monkeypatch.setattr(grp, "getgrnam", {"hutch": grp.struct_group(("hutch", "x", 1200, ["carol"]))}.__getitem__)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: GROUPS[name])


def test_members_are_in_the_group_and_not_root() -> None:
    carol = member_of(1002)
    assert carol is not None
    assert (carol.uid, carol.gid, carol.name, str(carol.home)) == (1002, 1002, "carol", "/home/carol")
    assert [member_of(uid) for uid in (0, 1000, 4711)] == [None, None, None]


def test_a_host_without_the_group_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert member_of(1002) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"SUDO_UID": "1002"},
        {"DOAS_USER": "carol"},
        {"PKEXEC_UID": "1002"},
        {"SUDO_UID": "1002", "PKEXEC_UID": "1002", "USER": "alice"},
    ],
    ids=str,
)
def test_who_had_root_start_the_entry_point(environ: Mapping[str, str]) -> None:
    assert behind_entry(environ) == member_of(1002)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"USER": "carol", "LOGNAME": "carol"},
        {"SUDO_UID": "1002", "PKEXEC_UID": "1000"},
        {"SUDO_UID": "1002", "DOAS_USER": "nobody-here"},
        {"SUDO_UID": "-1002"},
        {"SUDO_UID": "1_002"},
        {"SUDO_UID": "١٠٠٢"},
        {"SUDO_UID": "9" * 400},
        {"SUDO_UID": ""},
        {"SUDO_UID": "0"},
        {"SUDO_UID": "1000"},
        {"DOAS_USER": "alice"},
        {"DOAS_USER": "a\0b"},
    ],
    ids=str,
)
def test_everybody_else_is_refused(environ: Mapping[str, str]) -> None:
    with pytest.raises(HutchError, match=r"not known for whom|is not in the group hutch"):
        behind_entry(environ)


def test_root_s_process_is_bound_by_whom_it_works_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert concerned(0) is None
    assert concerned(1002) == member_of(1002)
    monkeypatch.setattr(member, "acting", Member(1002, 1002, "carol", None))
    assert concerned(0) == member.acting
