"""Failures as values."""

from __future__ import annotations

import pytest

from hutch.errors import ConfigError, HutchError, Problem, UsageError

PROBLEMS: list[tuple[Problem, str]] = [
    (Problem("is missing"), "is missing"),
    (Problem("is missing", key="workspaces.web.type"), "workspaces.web.type: is missing"),
    (Problem("is wrong", key="a.b", value='"x"', hint="write y"), 'a.b = "x": is wrong (write y)'),
    (Problem("is wrong", file="/f"), "/f: is wrong"),
    (Problem("is wrong", key="a", value="1", file="/f", line=3, hint="2"), "/f:3: a = 1: is wrong (2)"),
    (Problem("is wrong", value="1"), "is wrong"),
]


@pytest.mark.parametrize(("problem", "text"), PROBLEMS, ids=[text for _, text in PROBLEMS])
def test_a_problem_on_one_line(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_all_problems_of_a_file() -> None:
    one = Problem("is wrong", file="/f", line=1)
    assert ConfigError([one]).brief == "/f: 1 problem; nothing was changed"
    both = ConfigError(problem for problem in (one, Problem("too", file="/f", line=2)))
    assert both.brief == "/f: 2 problems; nothing was changed"
    assert both.details == "/f:1: is wrong\n/f:2: too"
    assert ConfigError([]).brief == "hutch.toml: 0 problems; nothing was changed"


def test_exit_codes() -> None:
    assert (HutchError("x").exit_code, UsageError("x").exit_code, ConfigError([]).exit_code) == (1, 2, 2)
    assert str(HutchError("brief", details="d", resolution="r")) == "brief"
