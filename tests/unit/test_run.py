"""How the end of a command is put in words."""

from __future__ import annotations

import signal

import pytest

from hutch.run import describe


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (3, "failed with code 3"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-signal.SIGRTMIN, "was killed by SIGRTMIN"),
        (-(signal.SIGRTMIN + 3), f"was killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_how_it_ended(returncode: int, words: str) -> None:
    assert describe(returncode) == words
