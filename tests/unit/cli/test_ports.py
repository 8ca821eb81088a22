"""`hutch ports` and `hutch forward`: which ports are asked for, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hutch.access.listening import Forward, ForwardEvent, Listener
from hutch.api.workspace import Workspace
from hutch.errors import HutchError
from tests.unit.cli.conftest import Run

ENDED = "nothing of web is forwarded any more\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], bool, list[int]]]:
    """What was asked for; a port begins for each, and then comes Ctrl-C."""
    found: list[tuple[list[int], bool, list[int]]] = []

    def forward(self: Workspace, ports: Any, *, auto: bool, reverse: Any) -> Iterator[ForwardEvent]:
        found.append((list(ports), auto, list(reverse)))
        yield from (ForwardEvent("open", Forward(port, port)) for port in ports)
        yield from (ForwardEvent("open", Forward(port, port, is_reverse=True)) for port in reverse)
        raise KeyboardInterrupt

    monkeypatch.setattr(Workspace, "forward", forward)
    return found


def test_a_table_and_json(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workspace, "ports", lambda self: [Listener(22, "::", "sshd"), Listener(3000, "127.0.0.1")])
    lines = hutch("ports", "web").out.splitlines()
    assert [line.split() for line in lines] == [
        ["ADDRESS", "PORT", "PROGRAM"],
        ["::", "22", "sshd"],
        ["127.0.0.1", "3000", "-"],
    ]
    assert json.loads(hutch("ports", "web", "--json").out) == [
        {"address": "::", "port": 22, "program": "sshd"},
        {"address": "127.0.0.1", "port": 3000, "program": None},
    ]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], ([], True, [])),
        (["auto"], ([], True, [])),
        (["3000", "80", "3000"], ([3000, 80], False, [])),
        (["3000", "auto"], ([3000], True, [])),
        (["--reverse", "5432"], ([], False, [5432])),
        (["auto", "--reverse", "5432"], ([], True, [5432])),
    ],
)
def test_what_is_asked_for(
    words: list[str], wanted: tuple[list[int], bool, list[int]], hutch: Run, asked: list[Any]
) -> None:
    result = hutch("forward", "web", *words)
    assert (result.code, result.err, asked) == (0, ENDED, [wanted])
    lines = [f"127.0.0.1:{port} -> web:{port}" for port in wanted[0]]
    lines += [f"host.internal:{port} -> 127.0.0.1:{port}" for port in wanted[2]]
    assert result.out.splitlines() == lines


@pytest.mark.parametrize("words", [["0"], ["65536"], ["-1"], ["http"], ["\u0663"], ["--reverse", "80"]])
def test_a_wrong_port_is_refused(words: list[str], hutch: Run, asked: list[Any]) -> None:
    assert (hutch("forward", "web", *words).code, asked) == (2, [])


def test_what_is_said(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Workspace, ports: Any, **options: Any) -> Iterator[ForwardEvent]:
        yield ForwardEvent("open", Forward(80, 40000))
        yield ForwardEvent("open", Forward(3000, 40001))
        yield ForwardEvent("closed", Forward(3000, 40001))
        yield ForwardEvent("left", Forward(4000, 4000))
        yield ForwardEvent("crowded")
        yield ForwardEvent("unnamed")
        raise HutchError("web is stopped", resolution="`hutch start web`")

    monkeypatch.setattr(Workspace, "forward", forward)
    result = hutch("forward", "web")
    assert result.code == 1
    assert result.out == "127.0.0.1:40000 -> web:80\n127.0.0.1:40001 -> web:3000\n"
    assert result.err.splitlines() == [
        "port 80 of this host is below 1024, so it is 40000",
        "port 3000 of this host is taken, so it is 40001",
        "127.0.0.1:40001 -> web:3000: nothing listens there any more",
        "web:4000: no port of this host could be had for it",
        "web: more than 64 ports listen; name those that you want",
        "web: host.internal does not lead to 127.0.0.1 there; name that instead",
        ENDED.strip(),
        "hutch: web is stopped",
        "  → `hutch start web`",
    ]
