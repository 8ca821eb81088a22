"""What is given to owners and to the group `hutch`: the bytes of access control lists, modes, and who is an owner."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from hutch.host.identity.user_view import ENTER, READ, Access, viewer_of
from hutch.spec.record import Record
from tests.unit.facts import workspace


@pytest.mark.parametrize(
    ("access", "mode", "rights"),
    [
        (Access(1000, None, READ), 0o640, {"owner": 6, 1000: 4, "group": 0, "mask": 4, "others": 0}),
        (Access(1000, 27, READ), 0o640, {"owner": 6, 1000: 4, "group": 4, "mask": 4, "others": 0}),
        (Access(1000, 27, ENTER), 0o710, {"owner": 7, 1000: 1, "group": 1, "mask": 1, "others": 0}),
    ],
)
def test_a_list(access: Access, mode: int, rights: dict[str | int, int]) -> None:
    data = access.render_list()
    assert struct.unpack("<I", data[:4]) == (2,)
    tags = {1: "owner", 4: "group", 0x10: "mask", 0x20: "others"}
    found = {tags.get(tag, id): right for tag, right, id in struct.iter_unpack("<HHI", data[4:])}
    assert (access.mode, found) == (mode, rights)


@pytest.mark.parametrize(("gid", "mode"), [(None, 0o600), (27, 0o640)])
def test_without_an_owner_there_is_no_list(gid: int | None, mode: int) -> None:
    access = Access(None, gid, READ)
    assert (access.mode, access.render_list()) == (mode, b"")


def test_who_sees_a_workspace() -> None:
    web = Record("web", "/hutch.toml", workspace(owner=1000), "an-image", 1 << 30, "0" * 32)
    assert viewer_of(web) == web.wanted.owner == 1000
    assert viewer_of(replace(web, wanted=replace(web.wanted, owner=0))) is None
    handed_over = replace(web.with_booted(), wanted=replace(web.wanted, owner=1001))
    assert viewer_of(handed_over) is None  # it runs for the one, and is described for the other
    assert viewer_of(handed_over.with_booted()) == 1001
