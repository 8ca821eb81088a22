"""What grows with the number of workspaces and members, and what must not. See docs/scale.md."""

from __future__ import annotations

import pwd
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.backends.incus import home_volume
from hutch.engines.incus import preparing
from hutch.engines.incus.placement import Candidate, eligible, place_all
from hutch.plan.actions import Kind
from hutch.plan.resolve import resolve
from hutch.spec import names
from tests.unit.facts import LAYOUT, NETWORK
from tests.unit.scale import PLACE, Farm, declared, name_of

WORKSPACES, MEMBERS = 10_000, 200
GOAL = 5.0  # seconds of computing, for a plan of 1,000: it takes 0.2 where nothing else runs
SIXTEEN_GIB = 1 << 34


@pytest.fixture(autouse=True)
def alice(monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.struct_passwd(("alice", "x", PLACE.account, PLACE.account, "", "/home/alice", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)


def asked_by_plans(workspaces: int, directory: Path) -> list[list[str]]:
    """What a plan asks the cluster: where all are new; where nothing has changed; where one key of all has."""
    farm = Farm(workspaces, min(MEMBERS, workspaces), directory)
    asked: list[list[str]] = []

    def plan() -> set[Kind]:
        began = time.process_time()
        found = {action.action for action in farm.plan().actions}
        assert time.process_time() - began < GOAL
        asked.append(list(farm.asked))
        farm.asked.clear()
        return found

    assert plan() == {"create"}
    farm.bring_up()
    farm.asked.clear()
    assert plan() == {"no change"}
    farm.config = replace(farm.config, workspaces=declared(workspaces, nesting=True))
    assert plan() == {"restart"}
    return asked


def test_a_plan_for_a_thousand_asks_as_much_as_one_for_ten(tmp_path: Path) -> None:
    asked = asked_by_plans(10, tmp_path / "few")
    assert asked_by_plans(1000, tmp_path / "many") == asked
    assert [len(each) for each in asked] == [8, 2, 10]


def test_only_the_emptiest_members_are_asked_for_their_memory(tmp_path: Path) -> None:
    farm = Farm(10, MEMBERS, tmp_path)
    able = [candidate(name, 0) for name in farm.members]
    loads = preparing.with_loads(farm.engine.connect(PLACE), able)
    assert sorted(each.name for each in loads) == farm.members
    asked = [path for path in farm.asked if path.endswith("/state")]
    assert asked == [f"/1.0/cluster/members/{name}/state" for name in farm.members[: preparing.ASKED]]


# Placement and failure, with the functions that choose, on the largest cluster that is thought of.


def candidate(name: str, number: int) -> Candidate:
    """A member: one in ten has GPUs and takes only who asks for them, one in fifty is for those that name it."""
    groups = ("default", "gpu") if number % 10 == 1 else ("default",)
    scheduler = "group" if number % 10 == 1 else "manual" if number % 50 == 2 else "all"
    return Candidate(name, is_online=True, architecture="x86_64", scheduler=scheduler, groups=groups)


class Simulation:
    """A cluster that workspaces come to and go from while members come and go. `at` is workspace -> member."""

    def __init__(self) -> None:
        self.members = {f"m{number:03}": candidate(f"m{number:03}", number) for number in range(MEMBERS)}
        self.at: dict[str, str] = {}
        self.memory = random.Random(83)

    def come(self, workspaces: list[str], target: str = "auto") -> None:
        assert not self.at.keys() & set(workspaces)
        counts = Counter(self.at.values())
        able = eligible(self.members.values(), target, "x86_64")
        loaded = [replace(each, instances=counts[each.name], free=self.memory.randrange(SIXTEEN_GIB)) for each in able]
        self.at |= place_all(workspaces, loaded)

    def turn(self, number: int, *, is_online: bool) -> None:
        """Have a member die or be evacuated, or come back: no new workspaces go there meanwhile, and none leaves."""
        name = f"m{number:03}"
        self.members[name] = replace(self.members[name], is_online=is_online)

    def spread(self, target: str = "auto") -> set[int]:
        """The numbers of workspaces on the members that take new ones."""
        counts = Counter(self.at.values())
        return {counts[each.name] for each in eligible(self.members.values(), target, "x86_64")}


def numbered(first: int, last: int) -> list[str]:
    return [name_of(number) for number in range(first, last)]


def test_ten_thousand_on_two_hundred_members() -> None:
    cluster = Simulation()
    cluster.come(numbered(0, 9000))
    taken = {name for name, each in cluster.members.items() if each.scheduler == "all"}
    assert set(cluster.at.values()) == taken  # none on members that others have to name
    assert len(cluster.spread()) <= 2 and max(cluster.spread()) - min(cluster.spread()) <= 1

    cluster.come(numbered(9000, 9500), "@gpu")
    assert cluster.spread("@gpu") == {25}
    assert {cluster.at[name] for name in numbered(9000, 9500)} == {
        name for name, each in cluster.members.items() if "gpu" in each.groups
    }

    # A tenth of the members dies, or is evacuated. Who is there stays theirs, and new ones go elsewhere.
    lost = range(0, MEMBERS, 10)
    before = dict(cluster.at)
    for number in lost:
        cluster.turn(number, is_online=False)
    cluster.come(numbered(9500, WORKSPACES))
    dead = {f"m{number:03}" for number in lost}
    assert not dead & {cluster.at[name] for name in numbered(9500, WORKSPACES)}
    assert {name: cluster.at[name] for name in before} == before
    assert max(cluster.spread()) - min(cluster.spread()) <= 1

    # They come back, emptier than the others: new ones go there until all have as many, and nobody is moved.
    for number in lost:
        cluster.turn(number, is_online=True)
    gap = sum(max(cluster.spread()) - count for count in counts_of(cluster))
    cluster.come(numbered(WORKSPACES, WORKSPACES + gap))
    assert len(cluster.spread()) == 1
    assert {cluster.at[name] for name in numbered(WORKSPACES, WORKSPACES + gap)} <= taken


def counts_of(cluster: Simulation) -> list[int]:
    counts = Counter(cluster.at.values())
    return [counts[each.name] for each in eligible(cluster.members.values(), "auto", "x86_64")]


def test_all_members_away_is_no_place() -> None:
    cluster = Simulation()
    for number in range(MEMBERS):
        cluster.turn(number, is_online=False)
    assert eligible(cluster.members.values(), "auto", "x86_64") == []


def test_nobody_has_the_name_or_address_of_another() -> None:
    """Whatever is removed and declared in between: an address goes to nobody else while its workspace is remembered."""
    first = resolve(declared(WORKSPACES // 2), {}, NETWORK, LAYOUT, 1000, (), PLACE)
    gone = {name: workspace for number, (name, workspace) in enumerate(first.items()) if number % 3}
    second = resolve(declared(WORKSPACES), {**first, **gone}, NETWORK, LAYOUT, 1000, (), PLACE)
    assert {name: workspace.ip for name, workspace in first.items()} == {name: second[name].ip for name in first}
    assert len({workspace.ip for workspace in second.values()}) == WORKSPACES
    assert len({workspace.mac for workspace in second.values()}) == WORKSPACES
    assert len({home_volume(name) for name in second}) == WORKSPACES
    reserved = {names.gateway(PLACE.subnet), names.builder_address(PLACE.subnet)}
    assert not reserved & {workspace.ip for workspace in second.values()}
