"""`hutch run` as it is typed; the workspace is one of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from hutch.errors import ConfigError, HutchError, Problem
from hutch.spec.implied import Choice, Request
from tests.unit.cli.conftest import Run


class FakeHere:
    """A workspace that notes what is done to it."""

    is_new = is_written = is_there = False
    is_running = True
    inside = directory = "/srv/shop"
    choice = Choice("shop", "/f/shop.toml", notes=("a \x1b note",))
    problem: HutchError | None = None
    done: ClassVar[list[Any]]

    def __init__(self, hutch: Any, request: Request, *, file: Path | None = None) -> None:
        self.hutch, self.name, self.file = hutch, "shop", Path("/f/shop.toml")
        self.done.append((request, file))

    def is_ready(self) -> bool:
        return self.is_running

    def up(self, confirm: Any) -> None:
        self.done.append("up")
        if self.problem is not None:
            raise self.problem

    def enter(self, argv: tuple[str, ...]) -> int:
        self.done.append(argv)
        return 7

    def remove(self) -> None:
        self.done.append("remove")
        if self.problem is not None:
            raise self.problem

    def take_back(self) -> None:
        self.done.append("take back")

    def forget(self) -> bool:
        self.done.append("forget")
        return self.problem is None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[FakeHere]:
    class Own(FakeHere):
        done: ClassVar[list[Any]] = []

    monkeypatch.setattr("hutch.cli.run.Here", Own)
    return Own


def test_the_command_and_its_code_pass_through(hutch: Run, here: type[FakeHere]) -> None:
    result = hutch(
        "run", "--name", "shop", "--vm", "--with", "node", "--ignore-file", "-f", "x.toml", "--", "ls", "--rm", "-f"
    )
    assert (result.code, result.out) == (7, "")
    assert result.err == "hutch: warning: shop: a \N{REPLACEMENT CHARACTER} note\n"
    assert here.done == [(Request("shop", True, True, ("node",)), Path("x.toml")), ("ls", "--rm", "-f")]


def test_what_comes_behind_the_command_is_its_own(hutch: Run, here: type[FakeHere]) -> None:
    assert hutch("run", "claude", "--help", "-v").code == 7
    assert here.done[-1] == ("claude", "--help", "-v")


def test_it_is_brought_up_first(hutch: Run, here: type[FakeHere]) -> None:
    here.is_running = False
    assert hutch("run", "true").code == 7
    assert here.done[1:] == ["up", ("true",)]


def test_a_failure_leaves_no_file_that_was_not_there(hutch: Run, here: type[FakeHere]) -> None:
    here.is_running, here.is_written, here.problem = False, True, HutchError("no")
    result = hutch("run", "true")
    assert (result.code, result.err.splitlines()[-1]) == (1, "hutch: no")
    assert here.done[1:] == ["up", "take back"]
    here.is_written, here.done = False, []
    assert hutch("run", "true").code == 1
    assert here.done[1:] == ["up"]
    here.problem, here.done = ConfigError([Problem("is wrong")]), []
    assert hutch("run", "--vm", "true").code == 2
    assert here.done[1:] == ["up", "take back"]


def test_it_is_thrown_away_afterwards(hutch: Run, here: type[FakeHere]) -> None:
    assert hutch("run", "--rm", "true").code == 7
    assert here.done[1:] == [("true",), "remove", "forget"]
    here.problem = HutchError("nothing was removed")
    result = hutch("run", "--rm", "true")
    assert result.code == 7
    assert result.err.splitlines()[1:] == [
        "hutch: nothing was removed",
        "hutch: warning: shop: it was not removed, and stays",
    ]


def test_what_is_not_shared_is_told_with_its_line(hutch: Run, here: type[FakeHere]) -> None:
    here.inside = ""
    assert hutch("run", "true").err.splitlines()[-1] == (
        "hutch: warning: shop: /srv/shop is not shared, so this begins in the home; in /f/shop.toml: "
        'mounts = [{ source = "/srv/shop", target = "/srv/shop" }]'
    )


def test_the_line_is_one_that_a_file_in_that_directory_may_have(hutch: Run, here: type[FakeHere]) -> None:
    here.inside = ""
    here.directory = "/f"
    assert hutch("run", "true").err.endswith('mounts = [{ source = ".", target = "/f" }]\n')


@pytest.mark.parametrize("is_clone", [False, True])
def test_a_new_workspace_tells_what_it_shares(
    hutch: Run, here: type[FakeHere], monkeypatch: pytest.MonkeyPatch, is_clone: bool
) -> None:
    here.choice = Choice("shop", "/f/shop.toml", directory="/srv/shop", is_clone=is_clone)
    monkeypatch.setattr(here, "clone", lambda self, **options: "/home/dev/shop", raising=False)
    monkeypatch.setattr(here, "enter", lambda self, command, directory="": 0)
    assert hutch("run", "true").err == ("" if is_clone else "shop: shares /srv/shop\n")
    here.is_there = True
    assert hutch("run", "true").err == ""
    here.is_there = False
    assert hutch("run", "-q", "true").err == ""


def test_a_shell_needs_a_terminal(hutch: Run, here: type[FakeHere], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.isatty", lambda number: False)
    result = hutch("run")
    assert (result.code, here.done) == (2, [])
    assert "a shell needs a terminal" in result.err
    monkeypatch.setattr("os.isatty", lambda number: True)
    assert hutch("run").code == 7
    assert here.done[-1] == ()


def test_a_shell_in_a_directory_that_was_shared_is_told_the_way_out(
    hutch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `hutch rm` unmounts is gone for who has entered it, and what was below is at its path."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    gone.mkdir()
    result = hutch("run", "true")
    assert result.code == 1
    assert result.err.startswith("hutch: the current directory is gone\n  → `cd .` where its path is still there")
