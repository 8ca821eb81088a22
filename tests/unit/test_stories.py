"""How pages of real outputs are compared and written: their dots, and the parts that differ each time."""

from __future__ import annotations

import pytest

from tests.host.pages import elided, masked

SAID = ["CHECK  STATE  MEANS", "KVM  ok  here", "names  ok  asked", "→ KVM: try it", "→ names: look"]


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ([], SAID),
        (["anything"], SAID),
        (["CHECK", "...", "names  ok  old", "...", "→ names: old"], ["CHECK", "...", "names", "...", "→ names"]),
        (["CHECK", "...", "names  warning  old", "..."], ["CHECK", "...", "names", "..."]),
        (["..."], ["..."]),
        (["...", "gone  ok"], ["...", *SAID]),
        (["...", "→ KVM: x"], ["...", "→ KVM", "→ names"]),
    ],
)
def test_dots_stand_for_lines_up_to_the_next_that_is_shown(shown: list[str], told: list[str]) -> None:
    found = elided(shown, SAID)
    assert len(found) == len(told)
    assert all(line.startswith(beginning) for line, beginning in zip(found, told, strict=True)), found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("done in 0.82 s", "done in 11.20 s"),
        ("since Wed Nov 25 20:37:29 2026", "since Thu Nov  5 01:02:03 2026"),
        (
            "2026-11-25 20:14:07  allowed  a.example  -  dns  1      -",
            "2026-11-26 20:14:08  allowed  a.example  -  dns  12     -",
        ),
        ("`hutch up` (pid 294, since 19:49:36)", "`hutch up` (pid 7, since 00:00:00)"),
        ("port 80 after 0 ms: no", "port 80 after 12 ms: no"),
        ("has 192.168.83.0/24 or 192.168.84.0/30", "has 192.168.83.0/24 or 192.168.84.8/30"),
        ("web  container  running", "web   container  running"),
    ],
)
def test_parts_that_differ_each_time_are_alike(one: str, other: str) -> None:
    assert masked(one) == masked(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("web: ready", "web: stopped"),
        ("a.example  -  dns  1  -", "b.example  -  dns  1  -"),
        ("       state: stopped → running", "   state: stopped → running"),
    ],
)
def test_all_else_counts(one: str, other: str) -> None:
    assert masked(one) != masked(other)
