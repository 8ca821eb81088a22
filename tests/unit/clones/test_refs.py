"""What a workspace says before its objects is the attacker's: names lead nowhere else, and nothing goes on for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.clones.refs import (
    HEAD,
    LONGEST_HEADER,
    LONGEST_NAME,
    MOST_REFS,
    TOLD,
    Header,
    Sent,
    clashing,
    is_branch,
    start_of,
    tracking,
)
from hutch.errors import HutchError

ONE, TWO = "1" * 40, "2" * 40


def sent(*refs: str, object: str = ONE) -> Sent:
    header = Header("web", "sha1")
    assert header.take("".join(f"{object} {ref}\n" for ref in refs).encode("utf-8", "surrogateescape")) == b""
    assert header.take(b"pack\nPACK") == b"PACK"
    return header.sent()


@pytest.mark.parametrize("name", ["main", "a/b/c", "fix-1.2_x", "ü", "a@b", "#1", "ma.in", "x" * LONGEST_NAME])
def test_names_of_branches(name: str) -> None:
    assert is_branch(name)


NONE = {
    "empty parts": ("", "/", "a/", "/a", "a//b"),
    "dots": (".", "..", "a/../b", ".a", "a/.b", "a.", "../../heads/main", "a.lock", "a.lock/b"),
    "signs": ("a b", "a\nb", "a\0b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a@{b", "a\x7f"),
    "words": ("@", "HEAD", "-a"),
    "what cannot be printed": ("a\x1b[31m", "\u202ea", "a\udcff"),
    "long": ("x" * (LONGEST_NAME + 1),),
}


@pytest.mark.parametrize("name", [name for names in NONE.values() for name in names])
def test_names_that_are_none(name: str) -> None:
    assert not is_branch(name)


@given(st.text())
def test_any_name_stays_below_its_workspace(name: str) -> None:
    if is_branch(name):
        parts = tracking("web", name).split("/")
        assert parts[:3] == ["refs", "remotes", "web"] and not {"", ".", ".."} & set(parts)


def test_a_list_of_branches() -> None:
    assert sent("refs/heads/main", "refs/heads/a/b", "HEAD") == Sent({"main": ONE, "a/b": ONE, HEAD: ONE})
    assert sent("tree") == Sent({}, ONE)
    assert sent() == Sent({})
    assert start_of("web") == "refs/hutch/web/start"


ODD = ("refs/tags/v1", "refs/remotes/x/y", "main", "refs/heads/HEAD", "refs/heads/-x", "refs/heads/a b", "refs/heads/")
HOSTILE = ("refs/heads/\udcff", "refs/heads/../../hooks", "refs/heads/x\x1b]0;")


@pytest.mark.parametrize("ref", ODD + HOSTILE)
def test_other_names_are_left_out_and_told(ref: str) -> None:
    found = sent(ref, "refs/heads/main")
    assert found.branches == {"main": ONE} and len(found.left_out) == 1
    assert found.left_out[0].isprintable() and found.left_out[0].isascii()


def test_only_some_of_many_are_told() -> None:
    found = sent(*(f"refs/heads/a b{number}" for number in range(TOLD + 5)))
    assert len(found.left_out) == TOLD + 1 and found.left_out[-1] == "and 5 more"


@pytest.mark.parametrize(
    "line",
    ["", "x", f"{ONE}", f"{ONE} ", f"{ONE}1 refs/heads/x", f"{ONE[:-1]}X refs/heads/x", f"-{ONE} x", f"{ONE} a\0b"],
)
def test_what_is_no_list_is_refused(line: str) -> None:
    header = Header("web", "sha1")
    header.take(f"{line}\npack\n".encode())
    with pytest.raises(HutchError, match="an invalid list of branches"):
        header.sent()


def test_names_of_objects_are_as_long_as_the_repository_has_them() -> None:
    header = Header("web", "sha256")
    header.take(f"{ONE} refs/heads/main\npack\n".encode())
    with pytest.raises(HutchError):
        header.sent()


def test_a_branch_below_another_is_a_lie() -> None:
    assert clashing(["a", "a-b", "b/c", "b/d"]) == ""
    assert clashing(["a/b/c", "a"]) == "a"
    with pytest.raises(HutchError, match="a branch a and one below"):
        sent("refs/heads/a", "refs/heads/a/b")


def test_a_list_without_an_end_is_refused() -> None:
    for piece in (f"{TWO} refs/heads/x\n".encode() * 1000, b"x" * 65536):
        header = Header("web", "sha1")
        taken = (header.take(piece) for _ in range(max(MOST_REFS // 1000, LONGEST_HEADER // 65536) + 1))
        with pytest.raises(HutchError, match="more than"):
            list(taken)


@given(st.integers(1, 60))
def test_it_does_not_matter_how_it_is_cut(size: int) -> None:
    whole = f"{ONE} refs/heads/main\n{TWO} refs/heads/b\npack\nPACK\n\0rest\n".encode()
    header, rest = Header("web", "sha1"), b""
    for at in range(0, len(whole), size):
        rest += header.take(whole[at : at + size])
    assert rest == b"PACK\n\0rest\n"
    assert header.sent() == Sent({"main": ONE, "b": TWO})
