"""What is given to those who see a workspace: the bytes of access control lists, modes, and who that is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hutch.host.identity.user_view import ENTER, READ, Access, viewers_of
from hutch.spec.record import Record
from hutch.spec.sharing import Viewers
from tests.unit.facts import workspace

ALICE, ALL = Viewers((1000,)), Viewers((1000, 1001), (27, 1200))


@pytest.mark.parametrize(
    ("access", "mode", "rights"),
    [
        (Access(ALICE, READ), 0o640, [(1, 6), (2, 4, 1000), (4, 0), (0x10, 4), (0x20, 0)]),
        (
            Access(ALL, READ),
            0o640,
            [(1, 6), (2, 4, 1000), (2, 4, 1001), (4, 0), (8, 4, 27), (8, 4, 1200), (0x10, 4), (0x20, 0)],
        ),
        (Access(Viewers((), (27,)), ENTER), 0o710, [(1, 7), (4, 0), (8, 1, 27), (0x10, 1), (0x20, 0)]),
        (Access(ALICE, 5, for_files=True), 0o2750, [(1, 7), (2, 5, 1000), (4, 0), (0x10, 5), (0x20, 0)]),
    ],
)
def test_a_list(access: Access, mode: int, rights: list[tuple[int, ...]]) -> None:
    """The kernel takes entries in the order of their tags alone."""
    data = access.render_list()
    assert struct.unpack("<I", data[:4]) == (2,)
    found = [(tag, right) if id == 0xFFFFFFFF else (tag, right, id) for tag, right, id in iter_entries(data)]
    assert (access.mode, found) == (mode, rights)


def iter_entries(data: bytes) -> Iterator[tuple[int, ...]]:
    return struct.iter_unpack("<HHI", data[4:])


def test_files_inherit_the_right_to_read() -> None:
    access = Access(ALL, READ | ENTER, keeper=600, for_files=True)
    assert access.lists["system.posix_acl_default"] == Access(ALL, READ).render_list()
    assert Access(ALL, READ).lists["system.posix_acl_default"] == b""


def test_without_anybody_there_is_no_list() -> None:
    access = Access(Viewers(), READ)
    assert (access.mode, access.render_list()) == (0o600, b"")


def test_who_sees_a_workspace() -> None:
    web = Record("web", "/hutch.toml", workspace(owner=1000), "an-image", 1 << 30, "0" * 32)
    assert viewers_of(web) == Viewers((1000,))
    assert viewers_of(replace(web, wanted=replace(web.wanted, owner=0))) == Viewers()
    shared = replace(web, wanted=replace(web.wanted, share_with=("@1200", "2000", "1000", "@27")))
    assert viewers_of(shared) == Viewers((1000, 2000), (27, 1200))
    handed_over = replace(shared.with_booted(), wanted=replace(shared.wanted, owner=1001))
    assert viewers_of(handed_over) == Viewers()  # it runs for the one, and is described for the other
    assert viewers_of(handed_over.with_booted()) == Viewers((1000, 1001, 2000), (27, 1200))
