"""The command line in this very process, as root, in an empty directory, with a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.cli import main
from hutch.run import nobody
from hutch.spec.names import Layout


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.delenv("HUTCH_FILE", raising=False)
    monkeypatch.setenv("HUTCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HUTCH_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return Layout.from_environment()


@pytest.fixture
def hutch(layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `hutch` with these arguments."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr("hutch.run.listener", nobody)  # a process of its own begins without one
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)

    return run


@pytest.fixture
def not_root(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root, hutch does not look how workspaces stand that it may not see."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that hutch would have become."""
    commands: list[list[str]] = []

    class Became(SystemExit):
        pass

    def replace(argv: list[str]) -> None:
        commands.append(list(argv))
        raise Became(0)

    monkeypatch.setattr("hutch.run.replace", replace)
    return commands
