"""What the egress proxy opens by an answer, and when it is told of other policies and decisions, with sets that only
note it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from hutch.egress import known as known_module
from hutch.egress import proxy as proxy_module
from hutch.egress.answers import Judged
from hutch.egress.known import Known
from hutch.egress.proxy import EgressProxy, NoRoom
from hutch.egress.sets import Element, Place, SetsFailed, listed_elements
from hutch.egress.views import A, Told, View, listed_by, rule_on
from hutch.spec.decisions import ruled
from hutch.spec.policy import Domain, Policy
from hutch.spec.record import Decision

SOURCE, ONE, OTHER = "192.168.83.2", "203.0.113.1", "203.0.113.2"
LIST = Policy("list", (Domain("a.example", False, 80), Domain("a.example", False, 443)))
WIDER = replace(LIST, domains=(*LIST.domains, Domain("b.example", False, None)))


class Sets:
    """The kernel's sets, and how often something was put there."""

    def __init__(self) -> None:
        self.there: dict[Element, Place] = {}
        self.terms: set[int] = set()
        self.puts: list[int] = []

    def put(self, places: Mapping[Element, Place]) -> None:
        for element, (_, mark, before) in places.items():
            there = self.there.get(element)
            assert there is None or there[1] == (mark if before is None else before), "the kernel takes no other mark"
        self.there.update(places)
        self.puts.append(len(places))

    def add_term(self, source: str, mark: int, seconds: int | None) -> None:
        self.terms.add(mark)

    def end_term(self, source: str, mark: int) -> None:
        self.terms.discard(mark)


class Nobody:
    def forget(self, *told: object) -> None:
        pass


class Stage:
    """An egress proxy that hears of one workspace."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told = Told(("", 0), ("", 0), "hutch", {})
        self.sets = Sets()
        monkeypatch.setattr(proxy_module, "read_views", lambda text: self.told)
        proxy: Any = EgressProxy.__new__(EgressProxy)
        proxy._told, proxy._digest, proxy._terms = self.told, "", set()
        proxy._known, proxy._sets = defaultdict(Known), self.sets
        proxy._journal = proxy._teller = Nobody()
        self.proxy = proxy

    def tell(self, *views: View) -> None:
        self.told = replace(self.told, views={view.address: view for view in views})
        self.sets.puts = []
        self.proxy.renew(repr(views))

    def ask(self, name: str, *addresses: str, seconds: int = 60) -> None:
        view = self.told.views[SOURCE]
        self.proxy._admit(
            view, name, Judged((), tuple((each, seconds) for each in addresses)), rule_on(view, name, A, 5)
        )

    def open(self) -> dict[Element, int | None]:
        """What is open, each with its mark."""
        return {element: mark for element, (_, mark, _) in self.sets.there.items()}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def view(policy: Policy, *decisions: Decision) -> View:
    return View("web", SOURCE, policy.epoch, policy, listed_by(policy), ruled(decisions))


def listed(policy: Policy, address: str, ports: tuple[int, ...] | None) -> dict[Element, int | None]:
    return dict.fromkeys(listed_elements(SOURCE, policy.epoch, address, ports))


def test_an_answer_opens_what_the_list_says_of_its_name(stage: Stage) -> None:
    stage.tell(view(LIST))
    stage.ask("a.example", ONE, OTHER)
    assert stage.open() == listed(LIST, ONE, (80, 443)) | listed(LIST, OTHER, (80, 443))
    assert all(61 < left <= 62 or 60 < left <= 61 for left, *_ in stage.sets.there.values())


def test_another_list_opens_what_was_told_and_is_listed_now(stage: Stage) -> None:
    learning = replace(LIST, learn=True)
    stage.tell(view(learning))
    stage.ask("b.example", OTHER)
    stage.ask("a.example", ONE)
    before = stage.open()
    assert before == listed(learning, ONE, (80, 443))
    stage.tell(view(WIDER))
    assert stage.open() == before | listed(WIDER, ONE, (80, 443)) | listed(WIDER, OTHER, None)
    assert stage.sets.puts == [3]


def test_where_both_lists_do_not_fit_some_of_the_new_one_waits(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is opened beyond the share."""
    monkeypatch.setattr(known_module, "MOST_OPEN", 4)
    stage.tell(view(LIST))
    stage.ask("a.example", ONE)
    stage.tell(view(WIDER))
    assert len(stage.sets.there) == 4
    stage.tell(view(replace(WIDER, learn=True)))
    assert len(stage.sets.there) == 4
    with pytest.raises(NoRoom):
        stage.ask("a.example", OTHER)


FOR_GOOD, FOR_A_WHILE = Decision("*.example", True, 1.0), Decision("a.example", True, 2.0, 9e9)
LENT = ("allowed_lent", f"{SOURCE} . {ONE}")


def test_of_two_decisions_about_one_name_the_one_counts_that_ends_last(stage: Stage) -> None:
    """The other one opens nothing of its own at the same place."""
    now = view(Policy("none"), FOR_GOOD, FOR_A_WHILE)
    marks = {each.decision: each.mark for each in now.ruled}
    stage.tell(now)
    stage.ask("a.example", ONE)
    assert stage.open() == {LENT: marks[FOR_GOOD]}
    stage.ask("a.example", ONE)
    assert stage.sets.puts == [0, 1, 1]


def test_where_one_decision_is_taken_back_the_other_one_opens_what_was_told(stage: Stage) -> None:
    stage.tell(view(Policy("none"), FOR_GOOD, FOR_A_WHILE))
    stage.ask("a.example", ONE)
    now = view(Policy("none"), FOR_A_WHILE)
    stage.tell(now)
    assert stage.open() == {LENT: now.ruled[0].mark} and stage.sets.terms == {now.ruled[0].mark}


def test_what_is_denied_is_not_permitted_again_where_the_kernel_fails(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.tell(view(LIST, Decision("b.example", True, 1.0)))
    stage.ask("b.example", ONE)

    def fail(places: Mapping[Element, Place]) -> None:
        raise SetsFailed

    monkeypatch.setattr(stage.sets, "put", fail)
    with pytest.raises(SetsFailed):
        stage.tell(view(replace(LIST, learn=True), Decision("b.example", False, 2.0)))
    (told,) = stage.proxy._told.views.values()
    assert rule_on(told, "b.example", A, 5).permits == ()
    assert stage.sets.terms == set()


def test_a_decision_opens_the_answers_that_are_valid_in_one_go(stage: Stage) -> None:
    """However many names led there; and once they are open, not again each time that anything is told."""
    learning = replace(LIST, learn=True)
    stage.tell(view(learning))
    for number in range(20):
        stage.ask(f"n{number}.b.example", ONE, f"203.0.113.{number + 2}")
    allowed = view(learning, Decision("*.b.example", True, 1.0))
    stage.tell(allowed)
    assert stage.sets.puts == [21]
    assert set(stage.open().values()) == {allowed.ruled[0].mark} == stage.sets.terms
    stage.tell(replace(allowed, workspace="web"), replace(view(LIST), workspace="lab", address="192.168.83.3"))
    assert stage.sets.puts == [0]


def test_who_comes_back_has_no_more_room_than_before(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_module, "MOST_OPEN", 2)
    stage.tell(view(LIST))
    stage.ask("a.example", ONE)
    stage.tell()
    stage.tell(view(LIST))
    assert stage.sets.puts == []  # what it was told before is forgotten
    with pytest.raises(NoRoom):
        stage.ask("a.example", OTHER)
