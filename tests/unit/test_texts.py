"""Text of somebody else's, on a terminal."""

from __future__ import annotations

import pytest

from hutch.texts import printable

GONE = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "longest", "kept", "shown"),
    [
        ("größer ✓", None, "", "größer ✓"),
        ("\x1b[2J\u202e\ud800", None, "", f"{GONE}[2J{GONE}{GONE}"),
        ("a\tb\nc\r", None, "", f"a{GONE}b{GONE}c{GONE}"),
        ("a\tb\nc\r", None, "\n\t", f"a\tb\nc{GONE}"),
        ("abcd", 4, "", "abcd"),
        ("abcde", 4, "", "abc…"),
        ("", 4, "", ""),
    ],
)
def test_nothing_is_a_command(text: str, longest: int | None, kept: str, shown: str) -> None:
    assert printable(text, longest, kept=kept) == shown
