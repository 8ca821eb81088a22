"""For all tiers. What a tier allows its tests to do is said in its own conftest."""

from __future__ import annotations

import pytest

from tests.support import again
from tests.support.leaving import LEFT_OUT


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--boundary", choices=["container", "vm"], default="container", help="what workspaces are made of")
    parser.addoption("--part", default="0/1", help="of a tier, every so-manieth file only, such as 0/2 and 1/2")
    parser.addoption("--slow", action="store_true", help="with the tests that take a while")
    parser.addoption("--long", action="store_true", help="with the tests that take minutes")
    parser.addoption("--smoke", action="store_true", help="of the stand, those that every change is to pass")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    again.note(report)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    again.note_end()
    # A part of a tier may have no test left that a run without options has time for.
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not session.config.getoption("--part").endswith("/1"):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(LEFT_OUT, []):
        terminalreporter.section("left out: `script/test --slow` runs those that are only slow, `--all` runs all")
        for line in left_out:
            terminalreporter.write_line(line)
