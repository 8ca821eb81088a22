"""What stands in for systemd reads a unit as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.backends import launch_of
from hutch.host.services.units import quoted
from hutch.runtime.runner import Unit, split
from hutch.runtime.units import MOST_RESTART_SECONDS, RESTART_SECONDS, STARTS_SECONDS, STEPS, render_service
from tests.unit.facts import LAYOUT, surroundings, workspace

TEXT = render_service(launch_of("web", workspace(), surroundings()), LAYOUT)


def unit_of(directory: Path, text: str) -> Unit:
    path = directory / "hutch@web.service"
    path.write_text(text, encoding="utf-8")
    return Unit(str(path))


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return unit_of(tmp_path, TEXT)


def test_a_unit_as_it_is_rendered(unit: Unit) -> None:
    run, booted = "/var/lib/hutch/workspaces/web/unit/run", f"{LAYOUT.runtime('web')}/run"
    assert unit.commands("ExecStart") == [["/bin/sh", run, "start"]]
    assert unit.commands("ExecStartPost") == [["/bin/sh", booted, "ready"]]
    assert unit.commands("ExecStop") == [["/bin/sh", booted, "stopping"]]
    assert unit.commands("ExecStopPost") == [["/bin/sh", booted, "stopped"]]
    assert unit.text("NetworkNamespacePath") == "/run/netns/hutch"
    assert unit.codes("SuccessExitStatus") == unit.codes("RestartForceExitStatus") == {133}
    assert (unit.number("RestartSec"), unit.number("RestartMaxDelaySec")) == (RESTART_SECONDS, MOST_RESTART_SECONDS)
    assert (unit.number("RestartSteps"), unit.number("StartLimitIntervalSec")) == (STEPS, STARTS_SECONDS)
    assert (unit.number("TimeoutStartSec"), unit.number("TimeoutStopSec")) == (60.0, 15.0)


def test_all_that_it_needs_is_rendered(unit: Unit) -> None:
    """Nothing is left to what it would take otherwise."""
    for key in ("StartLimitBurst", "StartLimitIntervalSec", "RestartSec", "RestartMaxDelaySec", "RestartSteps"):
        assert unit.number(key) > 0, key
    assert unit.number("TimeoutStartSec") > 0 and unit.number("TimeoutStopSec") > 0


def test_settings_of_one_name(tmp_path: Path) -> None:
    text = "# A=no\n[Service]\nA=1\nB=x=y z\nA=2\n\nA\nExecStartPre=-/bin/a b\nExecStartPre=/bin/c\nCodes=1 22\n"
    unit = unit_of(tmp_path, text)
    assert (unit.text("A"), unit.text("B"), unit.text("C"), unit.text("C", "else")) == ("2", "x=y z", "", "else")
    assert (unit.number("A"), unit.number("C"), unit.number("C", 7.5)) == (2.0, 0.0, 7.5)
    assert (unit.codes("Codes"), unit.codes("C")) == ({1, 22}, set())
    assert unit.commands("ExecStartPre") == [["/bin/a", "b"], ["/bin/c"]]
    assert unit.commands("ExecStop") == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", []),
        ("a", ["a"]),
        ("a  b ", ["a", "b"]),
        ('a "" b', ["a", "", "b"]),
        ('"a b" c', ["a b", "c"]),
        (r'"a\"b" "\\" "\\n" "\n" "\\\\\""', ['a"b', "\\", "\\n", "\n", '\\\\"']),
        ('"50%%" "$$1" $$x', ["50%", "$1", "$x"]),
    ],
)
def test_words_of_a_command(command: str, words: list[str]) -> None:
    assert split(command) == words


printable = st.characters(exclude_categories=["Cs", "Cc"])  # no file can declare another character
texts = st.text(printable | st.just("\n"), max_size=20) | st.text(st.sampled_from('\\"n\n $%a'), max_size=12)


@given(st.lists(texts, min_size=1, max_size=6))
def test_words_are_read_as_they_are_written(words: list[str]) -> None:
    assert split(" ".join(map(quoted, words))) == words


@given(words=st.lists(texts, min_size=1, max_size=4))
def test_commands_are_read_as_they_are_written(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """One that may fail has a dash before it."""
    command = " ".join(map(quoted, words))
    unit = unit_of(tmp_path_factory.mktemp("unit"), f"[Service]\nExecStart=/a {command}\nExecStop=-{command}\n")
    assert unit.commands("ExecStart") == [["/a", *words]]
    assert unit.commands("ExecStop") == [words]
