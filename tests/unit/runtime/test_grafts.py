"""Which mounts of a container leave and come when its file changes, and where a guest has them."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.runtime.grafts import changes, points_of


def grafts(*targets: str) -> list[dict[str, Any]]:
    """In the order in which they are shown; "/src=2" is another directory at /src."""
    return [{"target": text.partition("=")[0], "place": f"/places/{text}"} for text in targets]


@pytest.mark.parametrize(
    ("shown", "wanted", "leave", "come"),
    [
        ([], ["/a"], [], ["/a"]),
        (["/a"], [], ["/a"], []),
        (["/a", "/b"], ["/b", "/c"], ["/a"], ["/c"]),
        (["/a"], ["/a=2"], ["/a"], ["/a=2"]),
        (["/a", "/a/b"], ["/a=2", "/a/b"], ["/a", "/a/b"], ["/a=2", "/a/b"]),
        (["/a/b"], ["/a", "/a/b"], ["/a/b"], ["/a", "/a/b"]),
        (["/a", "/a/b"], ["/a"], ["/a/b"], []),
        (["/a", "/ab"], ["/ab"], ["/a"], []),
        (["/a"], ["/a"], [], []),
    ],
)
def test_changes(shown: list[str], wanted: list[str], leave: list[str], come: list[str]) -> None:
    assert changes(grafts(*shown), grafts(*wanted)) == (grafts(*leave), grafts(*come))


OUTSIDE = """
30 1 8:1 / / rw - ext4 /dev/sda1 rw
31 30 8:1 /srv/a /places/a rw,nosuid - ext4 /dev/sda1 rw
32 30 8:1 /srv/b /places/b rw,nosuid - ext4 /dev/sda1 rw
"""
INSIDE = """
50 1 0:40 / / rw - overlay overlay rw
51 50 8:1 /srv/a /a rw,nosuid - ext4 /dev/sda1 rw
52 50 8:1 /srv/b /b rw,nosuid - ext4 /dev/sda1 rw
53 50 8:1 /srv/a /moved\\040here rw,nosuid - ext4 /dev/sda1 rw
54 50 8:1 /srv/a/inner /inner rw,nosuid - ext4 /dev/sda1 rw
"""


def test_where_a_guest_has_it() -> None:
    assert points_of(INSIDE, OUTSIDE, "/places/a", set()) == ["/a", "/moved here", "/inner"]
    assert points_of(INSIDE, OUTSIDE.replace("/srv/b ", "/srv/a/inner "), "/places/a", set()) == ["/a", "/moved here"]
    assert points_of(INSIDE, OUTSIDE, "/places/b", {"/b"}) == []
    assert points_of(INSIDE, OUTSIDE, "/places/c", set()) == []
