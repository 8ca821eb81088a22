"""What `import hutch` promises: names, types, and a page that says what is there."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path
from typing import Any, get_args

import pytest

import hutch
from hutch import aio
from hutch.run import CommandFailed
from hutch.runtime.control import Event

PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text()
METHODS = ("clone", "diff", "fetch", "run", "put", "get", "start", "stop", "status")
TWINS = ("load", "plan", "up")


def signature(of: Any) -> str:
    """As the page writes it: names and defaults."""
    parameters = [
        p.replace(annotation=p.empty, default=Named(p.default) if inspect.isfunction(p.default) else p.default)
        for p in inspect.signature(of).parameters.values()
        if p.name != "self"
    ]
    return str(inspect.Signature(parameters))


class Named:
    def __init__(self, of: Any) -> None:
        self.of = of

    def __repr__(self) -> str:
        return str(self.of.__name__)


def test_every_public_name_is_there_and_told_of() -> None:
    for name in hutch.__all__:
        assert getattr(hutch, name).__doc__, name
        assert f"hutch.{name}" in PAGE, name
    with pytest.raises(AttributeError):
        _ = hutch.nonsense  # type: ignore[attr-defined]


def documented() -> dict[str, str]:
    return dict(re.findall(r"^### `([A-Za-z.]+)(\(.*\))`$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("name", documented())
def test_the_page_gives_signatures_as_they_are(name: str) -> None:
    found: Any = hutch
    for part in name.removeprefix("hutch.").split("."):
        found = getattr(found, part)
    assert inspect.getdoc(found)
    assert documented()[name] == signature(found)


def test_the_page_leaves_nothing_out() -> None:
    methods = {f"Workspace.{name}" for name in vars(hutch.Workspace) if not name.startswith("_")}
    functions = {f"hutch.{name}" for name in hutch.__all__ if inspect.isfunction(getattr(hutch, name))}
    awaited = {f"hutch.aio.{name}" for name in aio.__all__}
    assert documented().keys() == methods | functions | awaited | {"hutch.Workspace"}


def test_the_page_names_every_event() -> None:
    for text in (PAGE, inspect.getdoc(hutch.up) or ""):
        (sentence,) = re.findall(r"events are\s+([^.]*)\.", text)
        assert set(re.findall(r'["`](\w+)["`]', sentence)) == set(get_args(Event))


@pytest.mark.parametrize("name", METHODS)
def test_both_workspaces_are_the_same(name: str) -> None:
    sync, awaited = getattr(hutch.Workspace, name), getattr(aio.Workspace, name)
    assert inspect.iscoroutinefunction(awaited)
    assert awaited.__doc__
    assert str(inspect.signature(sync)) == str(inspect.signature(awaited))


@pytest.mark.parametrize("name", TWINS)
def test_both_functions_are_the_same(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(aio, name))
    assert str(inspect.signature(getattr(hutch, name))) == str(inspect.signature(getattr(aio, name)))


def test_a_layer_does_not_take_the_place_of_a_function() -> None:
    """hutch.plan is a package too, and importing one sets it in its parent."""
    from hutch.plan.planner import pending_of

    assert callable(pending_of)
    assert inspect.isfunction(hutch.plan)


def test_it_is_typed() -> None:
    assert (Path(hutch.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    "error",
    [
        hutch.HutchError("brief", details="details", resolution="resolution"),
        hutch.ConfigError([hutch.Problem("message", key="key", line=3, file="/f")]),
        hutch.RunFailed("web", hutch.Result(("a", "b"), 3, b"out", b"err")),
        hutch.RunTimeout("web", hutch.Result(("a", "b"), 137, "out", "err"), "did not end within 1 s"),
        CommandFailed(["a", "b"], "failed with code 3", "err", 3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back_from_another_process(error: hutch.HutchError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_failure_says_what_failed() -> None:
    error = hutch.RunFailed("web", hutch.Result(("sh", "-c", "a b"), 3, b"", b"first\n" * 20 + b"last\xff\n"))
    assert error.brief == "web: sh failed with code 3"
    assert error.details.splitlines()[-1] == "last\N{REPLACEMENT CHARACTER}"
    assert len(error.details.splitlines()) == 15
    assert error.resolution == "to replay it: hutch exec web -- sh -c 'a b'"
