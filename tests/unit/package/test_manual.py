"""The manual pages say all that the commands and the file know, and hold no roff that nobody wrote."""

from __future__ import annotations

import re

import click
import pytest

from hutch.cli import COMMANDS, cli
from hutch.spec.ceiling import Members
from hutch.spec.schema import MODELS
from package.manual import bold, escape, render_pages, walk

PAGES = render_pages(cli, "1.2.3")
EVERY = dict(walk(cli, ("hutch",)))


def test_every_command_has_a_page() -> None:
    assert PAGES.keys() == {
        "hutch.1",
        "hutch.toml.5",
        "hutch-policy.toml.5",
        *(f"{'-'.join(path)}.1" for path in EVERY),
    }
    assert {f"hutch-{name}.1" for name in COMMANDS} < PAGES.keys()
    assert "hutch-image-rm.1" in PAGES
    for name in COMMANDS:
        assert bold(f"hutch-{name}(1)") in PAGES["hutch.1"]


@pytest.mark.parametrize("path", EVERY)
def test_every_option_is_there_with_its_meaning(path: tuple[str, ...]) -> None:
    text, command = PAGES[f"{'-'.join(path)}.1"], EVERY[path]
    for option in (each for each in command.params if isinstance(each, click.Option)):
        assert option.help
        assert escape(option.help) in text
        for word in option.opts:
            assert escape(word) in text
    assert escape((command.help or "").split("\n")[0]) in text


def test_every_key_is_there_with_its_meaning() -> None:
    text = PAGES["hutch.toml.5"]
    for model in MODELS.values():
        for name, field in model.__dataclass_fields__.items():
            assert f"\n{bold(name)} (" in text, name
            assert escape(field.metadata["meaning"][1:]) in text, name


@pytest.mark.parametrize("name", PAGES)
def test_lines_are_text_or_requests_of_ours(name: str) -> None:
    for line in PAGES[name].splitlines():
        assert not line.startswith("'")
        assert not line.startswith(".") or re.match(r"\.(TH .+|SH .+|TP|PP|nf|fi)$", line), line
        assert line.isascii(), line


def test_text_is_no_request() -> None:
    assert escape(".so /etc/passwd\n'x \\n-a `b`") == "\\&.so /etc/passwd\n\\(aqx \\en\\-a \\(gab\\(ga"


def test_every_key_of_the_ceiling_is_there() -> None:
    text = PAGES["hutch-policy.toml.5"]
    for key in Members.__dataclass_fields__:
        assert f".TP\n{bold(key)} (" in text
    assert escape("Default: 127.0.0.1:1024-65535.") in text
