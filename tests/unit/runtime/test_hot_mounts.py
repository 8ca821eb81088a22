"""Which mounts of a container leave and come when its file changes, and where a guest has them."""

from __future__ import annotations

import os

import pytest

from hutch.backends.launch import HotMount, Step
from hutch.runtime import hot_mounts as hot
from hutch.runtime.hot_mounts import HotMounts, changes, points_of
from hutch.runtime.steps import StepFailed


def hot_mounts(*targets: str) -> list[HotMount]:
    """In the order in which they are shown; "/src=2" is another directory at /src."""
    bind, attach, detach = (Step((action,), action) for action in ("bind", "attach", "detach"))
    return [HotMount(text.partition("=")[0], f"/places/{text}", bind, attach, detach) for text in targets]


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
    assert changes(hot_mounts(*shown), hot_mounts(*wanted)) == (hot_mounts(*leave), hot_mounts(*come))


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


class Guest:
    """A container whose mounts are what was done to them: `shown` is what it has, at its place and outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *shown: str) -> None:
        self.shown = {mount.target: mount.place for mount in hot_mounts(*shown)}
        self.broken: set[str] = set()
        self.done: list[str] = []
        self.is_stubborn = False
        monkeypatch.setattr(hot, "do", self.do)
        monkeypatch.setattr(os, "makedirs", lambda path, exist_ok: None)
        monkeypatch.setattr(hot, "observe_mountinfo", self.mountinfo)
        monkeypatch.setattr(hot, "mounts_at", lambda place: [place])

    def do(self, why: str, argv: tuple[str, ...], seconds: float) -> None:
        self.done.append(" ".join(argv))
        if argv[0] in self.broken:
            raise StepFailed(f"cannot {why}")
        if argv[0] == "detach" and not self.is_stubborn:
            for target in argv[2:]:
                del self.shown[target]

    def mountinfo(self, process: str = "self", most: int = 0) -> str:
        """Inside for a pid, outside else; each place is a root of its own on one device."""
        found = {place: place for place in self.shown.values()} if process == "self" else self.shown
        lines = (
            f"{n} 1 8:1 {root} {point} rw - ext4 /dev/sda1 rw" for n, (point, root) in enumerate(found.items(), 30)
        )
        return "\n".join(lines)


def test_what_leaves_and_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost leaves first, the outermost comes first; its PID 1 is told to each."""
    guest = Guest(monkeypatch, "/a", "/a/b")
    found = HotMounts(hot_mounts("/a", "/a/b"), 7)
    assert found.renew(hot_mounts("/c", "/c/d")) == ""
    assert guest.done == [
        *("detach 7 /a/b", "umount --lazy /places//a/b", "detach 7 /a", "umount --lazy /places//a"),
        *("bind", "attach 7", "bind", "attach 7"),
    ]
    assert found.shown == hot_mounts("/c", "/c/d")


def test_one_that_cannot_be_shown_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch, "/a")
    guest.broken = {"attach"}
    found = HotMounts(hot_mounts("/a"), 7)
    assert found.renew(hot_mounts("/b", "/c")) == "cannot attach\ncannot attach"
    assert guest.done[2:] == [
        "bind",
        "attach 7",
        "umount --lazy /places//b",
        "bind",
        "attach 7",
        "umount --lazy /places//c",
    ]
    assert found.shown == []


def test_one_that_a_guest_keeps_is_told_and_stays_known(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch, "/a", "/b")
    guest.is_stubborn = True
    found = HotMounts(hot_mounts("/a", "/b"), 7)
    assert found.renew(hot_mounts("/b")) == "/a is still mounted: the guest is in the way"
    assert found.shown == hot_mounts("/a", "/b")


def test_a_guest_with_too_many_mounts_to_look_through(monkeypatch: pytest.MonkeyPatch) -> None:
    Guest(monkeypatch, "/a")
    monkeypatch.setattr(hot, "MOST_TEXT", 10)
    monkeypatch.setattr(hot, "observe_mountinfo", lambda process="self", most=0: "x" * 10)
    found = HotMounts(hot_mounts("/a"), 7)
    assert found.renew([]) == "/a cannot be taken away: the guest has too many mounts"
    assert found.shown == hot_mounts("/a")
