"""What is said to a guest when a command runs in it by ssh, and what is believed of what it says."""

from __future__ import annotations

import re
import signal
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hutch.access.remote_script import (
    KEPT,
    LINE,
    READ_PROGRAM,
    SIGNALS,
    Command,
    Ear,
    encode,
    overlap,
    render_first,
    render_line,
    render_pid,
    render_root,
    render_second,
    render_signal,
)
from tests.unit.facts import check_golden

NONCE = "0123456789abcdef"
COMMAND = Command("/home/dev", {"PATH": "/bin", "GREETING": "it's"}, ["printf", "%s\n", "a b", "", "-x", "\udcff"])


def decode(program: bytes) -> bytes:
    """What READ_PROGRAM makes of it, by printf's rules."""
    text = b"".join(program.split(b"\n\n")[0].split(b"\n"))
    return re.sub(rb"\\0([0-7]{3})", lambda found: bytes([int(found[1], 8)]), text)


def test_the_line_means_the_same_to_every_shell() -> None:
    assert not set(READ_PROGRAM) & set("'\\!\n")
    assert render_line(NONCE) == f"exec /bin/sh -c '{READ_PROGRAM}' {NONCE}"


def test_programs() -> None:
    programs = {
        "first": render_first(COMMAND, NONCE, terminal=False),
        "first on a terminal": render_first(COMMAND, NONCE, terminal=True),
        "second": render_second(NONCE, by_force=False),
        "second by force": render_second(NONCE, by_force=True),
        "root": render_root(NONCE),
    }
    texts = (f"# {name}\n{decode(program).decode('utf-8', 'backslashreplace')}" for name, program in programs.items())
    check_golden("remote/programs.sh", "\n".join(texts))


@given(st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=2 * LINE))
def test_a_program_is_short_lines_of_printable_ascii(text: str) -> None:
    lines = encode(text).split(b"\n")
    assert lines[-2:] == [b"", b""]
    assert all(0 < len(line) <= LINE and re.fullmatch(rb"[ -~]*", line) for line in lines[:-2])
    assert decode(encode(text)) == text.encode()


@pytest.mark.parametrize(
    ("argv", "last"),
    [
        (["ls", "-l"], ["ls", "-l"]),
        (["a=b"], ["nice", "-n", "0", "--", "a=b"]),
        (["-"], ["nice", "-n", "0", "--", "-"]),
        (["-x", "a=b"], ["-x", "a=b"]),
    ],
)
def test_env_takes_no_command_for_its_own(argv: list[str], last: list[str]) -> None:
    assert Command("/", {"A": "1"}, argv).words() == ["A=1", *last]


def test_words_to_the_second_program() -> None:
    assert render_pid(12) == b"12\n"
    assert [render_signal(number) for number in (signal.SIGINT, signal.SIGTSTP)] == [b"INT\n", b"TSTP\n"]
    assert set(SIGNALS.values()) == {"INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "TSTP", "CONT"}


def hear(ear: Ear, data: bytes, cuts: list[int]) -> bytes:
    """What an ear passes on of data that comes in pieces, and ends."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    return b"".join([*(ear.take(piece) for piece in pieces if piece), ear.take(b"")])


START, END = b"%s:start;" % NONCE.encode(), b"\0%s:end:" % NONCE.encode()
NOISE = st.lists(st.sampled_from([b"x", b"\0", START[:-1], END[:-3], b"7", b";", b"\0\0"]), max_size=6).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=6)


@given(NOISE, NOISE, CUTS, st.integers(0, 255), st.booleans())
def test_only_what_the_command_says_is_passed_on(
    before: bytes, said: bytes, cuts: list[int], code: int, has_end: bool
) -> None:
    assume(START not in before)
    ear = Ear(NONCE, has_end=has_end)
    data = before + START + said + (END + b"%d;after" % code if has_end else b"")
    assert hear(ear, data, cuts) == said
    assert ear.has_started
    assert ear.code == (code if has_end else None)


@given(NOISE, CUTS)
def test_without_an_end_everything_is_passed_on(said: bytes, cuts: list[int]) -> None:
    ear = Ear(NONCE, has_end=True)
    assert hear(ear, START + said, cuts) == said
    assert ear.code is None


@given(st.binary(max_size=300), CUTS)
def test_a_guest_that_never_starts_says_nothing(data: bytes, cuts: list[int]) -> None:
    ear = Ear(NONCE, has_end=True)
    assert hear(ear, data, cuts) == b""
    assert not ear.has_started


@pytest.mark.parametrize("word", [b"256;", b"-1;", b";", b"1234;", b"1 ;", b"x;"])
def test_an_end_that_is_none(word: bytes) -> None:
    ear = Ear(NONCE, has_end=True)
    assert hear(ear, START + END + word, []) == END + word
    assert ear.code is None


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_command_may_end_before_it_has_started(size: int) -> None:
    """A signal came first."""
    ear = Ear(NONCE, has_end=True)
    data = NONCE.encode() + b":ready:7;" + END + b"130;"
    assert not any(ear.take(data[at : at + size]) for at in range(0, len(data), size))
    assert (ear.code, ear.has_started) == (130, False)


def test_nothing_is_waited_for_but_behind_a_zero_byte() -> None:
    ear = Ear(NONCE, has_end=True)
    assert ear.take(START + b"0") == b"0"
    assert ear.take(b"prompt\0") == b"prompt"
    assert ear.take(b"more") == b"\0more"


def test_what_is_kept_of_the_talk_before_is_bounded() -> None:
    ear = Ear(NONCE, has_end=False)
    for _ in range(100):
        ear.take(b"\x1b" * 1000)
    assert len(ear.early) == KEPT


@pytest.mark.parametrize(("said", "pid"), [(b"ready:12;", 12), (b"ready:0;", None), (b"ready:12", None)])
def test_the_process_number(said: bytes, pid: int | None) -> None:
    ear = Ear(NONCE, has_end=False)
    ear.take(b"noise" + NONCE.encode() + b":" + said)
    assert ear.pid() == pid


def test_an_explanation_holds_no_words_of_ours() -> None:
    ear = Ear(NONCE, has_end=False)
    ear.take(f"{NONCE}:hello;doas: no\r\n{NONCE}:ready:12;".encode())
    assert ear.hears("hello") and not ear.hears("watching")
    assert ear.explain() == "doas: no"


def test_overlap() -> None:
    assert [overlap(data, b"abcab") for data in (b"", b"xa", b"xab", b"abcab", b"xabca", b"b")] == [0, 1, 2, 2, 4, 0]
