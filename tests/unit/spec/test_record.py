"""What a workspace's record and what is seen of it mean together."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from hutch.spec.model import Mount
from hutch.spec.record import (
    Age,
    Booted,
    Freshness,
    Observation,
    Record,
    State,
    freshness_of,
    has_processes,
    holds_identity,
    is_local,
    present,
    served,
    state_of,
    waiting_words,
)
from tests.unit.facts import workspace

WEB = Record("web", "/srv/hutch.toml", workspace(), "image-1", 0x7000_0000, "0" * 32)


def test_a_state_is_told_from_both() -> None:
    assert state_of(None, Observation("running")) == "absent"
    assert state_of(replace(WEB, removed=True), Observation()) == "absent"
    assert state_of(WEB, Observation()) == "stopped"
    assert state_of(WEB, Observation("failed")) == "failed"


def test_what_has_processes_holds_an_identity_and_not_the_other_way_round() -> None:
    states = get_args(State)
    assert {state for state in states if has_processes(state)} == {"starting", "running", "stopping"}
    assert {state for state in states if holds_identity(state) and not has_processes(state)} == {
        "suspended",
        "unreachable",
    }


def test_what_is_served_is_there_and_is_this_hosts() -> None:
    far = replace(WEB, name="far", wanted=replace(WEB.wanted, engine="incus"))
    gone = replace(WEB, name="gone", removed=True)
    records = {found.name: found for found in (WEB, far, gone)}
    assert list(present(records)) == ["far", "web"]
    assert list(served(records)) == ["web"]
    assert is_local(WEB.wanted) and not is_local(far.wanted)


def test_what_counts_is_what_it_was_started_with() -> None:
    assert WEB.effective == WEB.wanted
    changed = replace(WEB.with_booted(), wanted=workspace(user="me"))
    assert changed.effective == WEB.wanted


def mounts(*directories: str) -> tuple[Mount, ...]:
    return tuple(Mount(path, path) for path in directories)


def test_what_was_writable_since_a_start_stays_so_until_the_next() -> None:
    """A guest's root may be in a directory that a live change took away. One that came counts from before it came."""
    home = str(WEB.wanted.home)
    running = replace(WEB, wanted=workspace(mounts=mounts("/a", "/b"))).with_booted()
    assert running.before_live_change() == running
    readonly = (replace(mounts("/b")[0], readonly=True), *mounts("/c"))
    changing = replace(running, wanted=workspace(mounts=readonly)).before_live_change()
    assert changing.written == (home, "/c", "/a", "/b")
    assert changing.booted is not None
    changed = replace(changing, booted=replace(changing.booted, workspace=changing.wanted))
    assert changed.written == (home, "/c", "/a", "/b")
    assert changed.before_live_change() == changed
    stopped = changed.to_be_booted()
    assert stopped.written == (home, "/c", "/a", "/b")
    assert stopped.to_be_booted() == stopped
    assert stopped.with_booted().written == (home, "/c")


# Images.

LAB = Record("lab", "/srv/hutch.toml", workspace("lab", type="vm"), "image-1", 0x7001_0000, "1" * 32).with_booted()
DAY = "2026-11-27T12:00:00+00:00"
AGE = Age("2026-11-01T00:00:00+00:00", DAY, ("bash", "libssl3t64"), "2026-11-02T00:00:00+00:00", ("linux-image-amd64",))
SINCE = 1793534400.0  # 2026-11-01
MADE_ANEW = "`hutch image refresh` makes it anew"


def waiting(count: int, words: str, *more: tuple[str, str], way: str = MADE_ANEW) -> Freshness:
    return Freshness(AGE.created, DAY, count, ((f"image: {words}", way), *more) if count else more)


@pytest.mark.parametrize(
    ("record", "seen", "ages", "told"),
    [
        (WEB, Observation(), {}, Freshness()),
        (WEB, Observation(), {"image-1": Age(AGE.created)}, Freshness(AGE.created)),  # nobody asked
        (WEB, Observation(), {"image-1": Age(AGE.created, DAY)}, waiting(0, "")),
        (WEB, Observation(), {"image-1": AGE}, waiting(2, "2 security updates waiting (asked 2026-11-27)")),
        (
            replace(WEB, image="image-2", booted=Booted(WEB.wanted, "image-1")),
            Observation("running"),
            {"image-1": AGE, "image-2": Age(DAY, DAY)},
            waiting(2, "2 security updates waiting (asked 2026-11-27)", way="a restart moves it to a newer one"),
        ),
        (
            replace(WEB, image="image-2", booted=Booted(WEB.wanted, "image-1")),
            Observation("stopped"),
            {"image-1": AGE, "image-2": Age(DAY, DAY)},
            Freshness(DAY, DAY, 0),
        ),
        (
            replace(WEB, wanted=workspace(persist="all")).with_booted(),
            Observation(),
            {"image-1": AGE},
            Freshness(AGE.created),
        ),
        (LAB, Observation(), {"image-1": AGE}, waiting(3, "3 security updates waiting (asked 2026-11-27)")),
        (
            LAB,
            Observation("running", since=SINCE),
            {"image-1": replace(AGE, security=(), kernel=())},
            waiting(0, "", ("kernel: a newer one is there since 2026-11-02", "a restart boots it")),
        ),
        (
            LAB,
            Observation("running", since=SINCE + 172800),
            {"image-1": replace(AGE, security=(), kernel=())},
            waiting(0, ""),
        ),
        (
            replace(LAB, wanted=replace(LAB.wanted, persist="all")).with_booted(),
            Observation(),
            {"image-1": AGE},
            waiting(1, "1 security update waiting (asked 2026-11-27)"),
        ),
    ],
)
def test_how_fresh_is_what_it_runs_on(record: Record, seen: Observation, ages: dict[str, Age], told: Freshness) -> None:
    assert freshness_of(record, seen, ages) == told


def test_a_kernel_is_told_where_nobody_asks() -> None:
    """The kernel of a machine with a foreign tree is told, without a number of updates."""
    ages = {"image-1": Age(AGE.created, packed=AGE.packed)}
    found = freshness_of(LAB, Observation("running", since=SINCE), ages)
    assert (found.updates, [what for what, _ in found.warnings]) == (
        None,
        ["kernel: a newer one is there since 2026-11-02"],
    )


def test_words_for_what_is_waiting() -> None:
    assert waiting_words(0, DAY) == "no security updates waiting (asked 2026-11-27)"
    assert waiting_words(0, "") == "nobody has asked for security updates yet"
