"""What the workspaces of a member have together, and those of all members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hutch.plan.totals import check_totals, running_of
from hutch.spec.allowance import Allowance
from hutch.spec.ceiling import Ceiling, Members
from hutch.spec.member import Member
from hutch.spec.record import Observation, Record
from tests.unit.facts import workspace

ALICE = Member(1000, 1000, "alice", Path("/home/alice"))
GIB = 1 << 30


def record(name: str, owner: int = 1000, *, removed: bool = False, ejected: str = "", **keys: Any) -> Record:
    wanted = workspace(owner=owner, **{"memory": GIB, "vcpus": 1, "disk": GIB, **keys})
    return Record(name, "/x", wanted, "image", 0, "0", removed=removed, ejected=ejected)


def found(
    members: Members, records: Mapping[str, Record], *, remove: tuple[str, ...] = (), **wanted: Mapping[str, Any]
) -> list[str]:
    """The keys of the problems of a plan of alice's; carol, uid 1002, is a member too."""
    specs = {name: record(name, **keys).wanted for name, keys in wanted.items()}
    allowance = Allowance(ALICE, Ceiling(members))
    return [p.key for p in check_totals(allowance, specs, remove, records, {1000, 1002}.__contains__)]


def by_name(*records: Record) -> dict[str, Record]:
    return {each.name: each for each in records}


def test_the_number_of_a_persons_workspaces() -> None:
    two = by_name(record("a"), record("b"))
    assert found(Members(workspaces=2), two, b={}) == []
    assert found(Members(workspaces=2), two, c={}) == ["workspaces.c"]
    assert found(Members(workspaces=0), {}, c={}) == ["workspaces.c"]
    assert found(Members(workspaces=3), two, c={}, d={}) == ["workspaces.d"]
    assert found(Members(workspaces=2), {**two, **by_name(record("x", 1001))}, b={}) == []


def test_a_kept_home_counts_as_one_and_for_its_disk() -> None:
    kept = by_name(record("a", removed=True))
    assert found(Members(workspaces=1), kept, b={}) == ["workspaces.b"]
    assert found(Members(total_disk=GIB), kept, b={}) == ["workspaces.b.disk"]
    assert found(Members(total_memory=GIB, total_vcpus=1), kept, b={}) == []
    assert found(Members(workspaces=1), by_name(record("a", removed=True, ejected="/x")), b={}) == []


def test_the_one_that_is_changed_is_replaced() -> None:
    two = by_name(record("a"), record("b", memory=3 * GIB))
    assert found(Members(total_memory=4 * GIB), two, b={"memory": 3 * GIB}) == []
    assert found(Members(total_memory=4 * GIB), two, b={"memory": 4 * GIB}) == ["workspaces.b.memory"]
    assert found(Members(total_memory=4 * GIB), two, a={"memory": 2 * GIB}, b={"memory": 2 * GIB}) == []


def test_less_is_allowed_where_the_ceiling_was_lowered() -> None:
    two = by_name(record("a", memory=4 * GIB), record("b", memory=4 * GIB))
    assert found(Members(total_memory=2 * GIB), two, b={"memory": 3 * GIB}) == []
    assert found(Members(total_memory=2 * GIB), two, b={"memory": 4 * GIB}) == []
    assert found(Members(total_memory=2 * GIB), two, b={"memory": 5 * GIB}) == ["workspaces.b.memory"]


def test_what_the_plan_removes_gives_back_its_memory_and_keeps_its_place() -> None:
    one = by_name(record("a"))
    assert found(Members(total_memory=GIB), one, remove=("a",), b={}) == []
    assert found(Members(workspaces=1), one, remove=("a",), b={}) == ["workspaces.b"]


def test_all_members_together() -> None:
    others = by_name(record("c", 1002, memory=3 * GIB), record("x", 1001, memory=9 * GIB))
    assert found(Members(all_memory=4 * GIB), others, a={}) == []
    assert found(Members(all_memory=3 * GIB), others, a={}) == ["workspaces.a.memory"]
    assert found(Members(all_workspaces=1), others, a={}) == ["workspaces.a"]
    assert found(Members(all_vcpus=2, all_disk=2 * GIB), others, a={}) == []


def test_names_of_others_are_not_told() -> None:
    records = by_name(record("own"), record("carols", 1002))
    members = Members(total_memory=GIB, all_memory=2 * GIB)
    wanted = {"a": record("a").wanted}
    problems = list(check_totals(Allowance(ALICE, Ceiling(members)), wanted, (), records, {1000, 1002}.__contains__))
    assert [problem.key for problem in problems] == ["workspaces.a.memory"] * 2
    assert "own" in problems[0].hint
    assert not any("carols" in str(problem) for problem in problems)


def test_machines_count_for_what_they_have_unsaid_and_roots_word_for_none() -> None:
    machine = replace(record("a"), wanted=workspace(type="vm", owner=1000, memory=None, vcpus=None, disk=None))
    assert found(Members(total_memory=2 * GIB), by_name(machine), b={}) == []
    assert found(Members(total_memory=2 * GIB), by_name(machine), b={"memory": 2 * GIB}) == ["workspaces.b.memory"]
    unlimited = record("a", memory=None)
    assert found(Members(total_memory=GIB), by_name(unlimited), b={}) == []


def test_what_runs_counts_for_what_it_was_started_with() -> None:
    """A lower number that is put off, or that a machine's balloon alone was told, gives nothing back yet."""
    before = replace(record("a", type="vm", memory=4 * GIB), booted=None).with_booted()
    lowered = replace(before, wanted=replace(before.wanted, memory=GIB))
    for state, goes_on in (("running", True), ("suspended", True), ("stopped", False)):
        running = running_of({"a": lowered}, lambda name, state=state: Observation(state))  # type: ignore[misc]
        assert [workspace.memory for workspace in running.values()] == ([4 * GIB] if goes_on else [])
        wanted = {"b": record("b", memory=2 * GIB).wanted}
        allowance = Allowance(ALICE, Ceiling(Members(total_memory=4 * GIB)))
        problems = check_totals(allowance, wanted, (), {"a": lowered}, lambda uid: False, running)
        assert [problem.key for problem in problems] == (["workspaces.b.memory"] if goes_on else [])
    assert running_of({"a": lowered}, lambda name: Observation("running"), ["a"]) == {}
