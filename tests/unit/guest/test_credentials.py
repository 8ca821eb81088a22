"""Identity in, credentials out."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.guest.credentials import (
    Identity,
    render_credentials,
    render_environment,
    render_sshd_environment,
    render_tmpfiles,
    session_environment,
)
from tests.unit.facts import KEY, check_golden

WEB = Identity(  # noqa: S604 - no shell is run
    hostname="web",
    user="dev",
    uid=1000,
    shell="/bin/bash",
    address="192.168.83.2",
    prefix=24,
    gateway="192.168.83.1",
    authorized_keys=(f"{KEY} alice@host", f"{KEY} hutch key of root"),
    env=(("COLOUR", "#fff"), ("EDITOR", "vim")),
    match="Name=host0",
)


def readable(text: str) -> str:
    """tmpfiles lines with what they carry written out."""
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if line.startswith("f+~") and " /usr/local/bin/" not in line:
            lines += [f"    {inner}" for inner in base64.b64decode(line.split(" ")[-1]).decode().splitlines()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ["system.hostname", "network.network.50-hutch", "sysusers.extra", "tmpfiles.extra"])
def test_credentials(name: str) -> None:
    text = render_credentials(WEB)[name]
    check_golden(f"credentials/{name}", readable(text) if name == "tmpfiles.extra" else text)


def test_nesting() -> None:
    nested = replace(WEB, subordinates=((10_000, 5), (10_006, 7)))
    check_golden("credentials/tmpfiles.extra-nesting", readable(render_tmpfiles(nested)))


def test_these_are_all() -> None:
    assert len(render_credentials(WEB)) == 4


def test_nothing_to_say_empties_the_files() -> None:
    """A kept root may hold an older environment."""
    bare = Identity("web", "dev", 1000, "/bin/sh", "192.168.83.2", 24, "192.168.83.1", (), (), "Name=host0")
    lines = [line for line in render_tmpfiles(bare).splitlines() if line.startswith("f+~")]
    found = {line.split(" ")[1]: base64.b64decode(line.split(" ")[-1]).decode() for line in lines[1:-1]}
    assert found == {
        "/etc/ssh/authorized_keys.d/dev": "",
        "/etc/environment": 'HUTCH_CONTEXT="/run/hutch-context.md"\n',
        "/etc/ssh/sshd_config.d/20-hutch-environment.conf": 'SetEnv "HUTCH_CONTEXT=/run/hutch-context.md"\n',
        "/run/hutch-context.md": "",
    }


def test_the_workspaces_own_word_for_the_context_counts() -> None:
    assert session_environment((("A", "b"),)) == (("HUTCH_CONTEXT", "/run/hutch-context.md"), ("A", "b"))
    assert session_environment((("HUTCH_CONTEXT", "/mine"),)) == (("HUTCH_CONTEXT", "/mine"),)


def test_environment() -> None:
    assert render_environment((("A", "b c"), ("D", 'e"f'))) == 'A="b c"\nD="e"f"\n'


def test_sshd_is_told_in_one_line() -> None:
    assert render_sshd_environment(()) == ""
    env = (("A", "#fff"), ("B", 'say "hi"'), ("C", "a\\b\\"), ("D", "it's"), ("E", ""))
    assert render_sshd_environment(env) == (
        r'SetEnv "A=#fff" "B=say \"hi\"" "C=a\\b\\" "D=it' + "'" + r's" "E="' + "\n"
    )


def words_of(line: str) -> list[str]:
    """As OpenSSH's argv_split() takes a line of double-quoted words apart."""
    words, current, quoted, rest = [], "", False, iter(line)
    for character in rest:
        if character == "\\":
            current += next(rest)
        elif character == '"':
            quoted = not quoted
            if not quoted:
                words.append(current)
                current = ""
        elif quoted:
            current += character
        else:
            assert character == " "
    assert not quoted
    return words


printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]))


@given(st.lists(st.tuples(st.sampled_from(["A", "B_C", "_"]), printable), max_size=4))
def test_no_value_adds_a_word_or_a_line(env: list[tuple[str, str]]) -> None:
    text = render_sshd_environment(tuple(env))
    assert text.count("\n") == bool(env)
    assert words_of(text.removeprefix("SetEnv").rstrip("\n")) == [f"{name}={value}" for name, value in env]


@given(printable)
def test_no_value_adds_a_tmpfiles_line(value: str) -> None:
    hostile = Identity("web", "dev", 1000, "/bin/sh", "1.1.1.1", 24, "1.1.1.1", (f"k {value}",), (("A", value),), "")
    assert len(render_tmpfiles(hostile).splitlines()) == 8
    assert render_tmpfiles(hostile).isascii()
