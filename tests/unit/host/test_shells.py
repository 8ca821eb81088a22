"""The line in files of the host's own, which gives them back byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.host.identity.shells import render_aliases, render_line
from tests.unit.facts import LAYOUT, SECOND

SCRIPT = Path("/etc/zsh/hutch.zsh")


@pytest.mark.parametrize("content", [b"", b"setopt x\n", b"setopt x", b"a\n\nb\n", b"\xff\n"])
def test_a_line_comes_and_goes(content: bytes) -> None:
    with_line = render_line(content, LAYOUT, SCRIPT)
    assert with_line.startswith(content)
    assert b"if [ -r /etc/zsh/hutch.zsh ]; then . /etc/zsh/hutch.zsh; fi #" in with_line
    assert render_line(with_line, LAYOUT, SCRIPT) == with_line
    assert render_line(with_line, LAYOUT, None) == content
    both = render_line(with_line, SECOND, SCRIPT)
    assert render_line(both, SECOND, None) == with_line


def test_what_was_added_behind_it_stays() -> None:
    for content in (b"a", b"a\n", b""):
        assert render_line(render_line(content, LAYOUT, SCRIPT) + b"b\n", LAYOUT, None).splitlines()[-1] == b"b"


def test_aliases_of_another_hutch_say_which() -> None:
    assert render_aliases(LAYOUT, "bash", ["a-b"]).splitlines()[:2] == [
        "alias workspace_a-b='ssh workspace-a-b'",
        "alias workspace_a-b_start='hutch start a-b'",
    ]
    second = render_aliases(SECOND, "fish", ["web"]).splitlines()
    assert second[1].endswith("; env HUTCH_STATE_DIR=/srv/second HUTCH_RUN_DIR=/run/second hutch start web $argv; end")
