"""The conversation: what the host makes of a workspace that does not keep to it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hutch.prove.conversation import LIMIT, Conversation, observe_evidence
from hutch.prove.facts import looked
from hutch.prove.subject import HeldUp, Subject, output_of
from tests.unit.prove.ground import GROUND


def having_said(*words: str, code: int = 0) -> tuple[str, str]:
    """What became of it when that is said, a piece after each turn."""

    def talk(argv: Any, sentences: Any, take: Any) -> int:
        said = list(words)
        for sentence in sentences:
            if sentence is None:
                if not said:
                    return 137
                take(said.pop(0).encode())
        return code

    evidence = observe_evidence(Conversation(GROUND, ()), talk)
    return evidence.facts["conversation"].verdict, evidence.cut_short


def test_a_whole_one() -> None:
    assert having_said("done\n", "answer\tcleanup\tok\ndone\n") == ("held", "")


def test_two_turns_without_an_answer_are_two() -> None:
    assert having_said("done\n", "done\n") == ("held", "")


@pytest.mark.parametrize(
    "words", [(), ("done\n",), ("done\n", "answer\tcleanup\tok\n"), ("done\n", "done"), ("xdone\ndone\n",)]
)
def test_one_without_its_last_done_is_broken(words: tuple[str, ...]) -> None:
    verdict, why = having_said(*words)
    assert verdict == "broken"
    assert "cut short" in why
    assert "137" in why


def test_one_that_ends_badly_is_broken() -> None:
    assert having_said("done\n", "done\n", code=9) == ("broken", "the conversation inside ended with code 9")


def test_no_more_is_kept_than_the_limit() -> None:
    conversation = Conversation(GROUND, ())
    for _ in range(100):
        conversation.take(b"x" * 10_000)
    assert len(conversation.text) == LIMIT


def test_who_holds_the_host_up_has_broken_it() -> None:
    def look(subject: Subject) -> Any:
        raise HeldUp("find did not end within 5 s")

    fact = looked(look, cast(Subject, None))
    assert fact.verdict == "broken"
    assert "keeps the host from looking" in fact.detail
    assert output_of.__defaults__ == (5.0,)
