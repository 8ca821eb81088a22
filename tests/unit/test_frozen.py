"""The shared methods of frozen values behave as the standard library's generated ones do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import hutch.frozen


def made_by(decorator: Any) -> Any:
    """The same class for either; both are called Value, as their representations say."""

    @decorator(frozen=True)
    class Value:
        size: int
        name: str = "x"
        tags: tuple[str, ...] = dataclasses.field(default_factory=tuple)

    return Value


Ours, Theirs = made_by(hutch.frozen.dataclass), made_by(dataclasses.dataclass)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
CALLS: tuple[Arguments, ...] = (
    ((1,), {}),
    ((1, "a", ("b",)), {}),
    ((), {"size": 2, "tags": ("c",)}),
    ((3,), {"name": "d"}),
)
WRONG: tuple[Arguments, ...] = (((), {}), ((1, 2, 3, 4), {}), ((1,), {"size": 1}), ((1,), {"colour": 1}))


@pytest.mark.parametrize(("positional", "keywords"), CALLS)
def test_as_the_standard_library_has_it(positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    ours, theirs = Ours(*positional, **keywords), Theirs(*positional, **keywords)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert repr(ours) == repr(theirs)
    assert ours == Ours(*positional, **keywords)
    assert hash(ours) == hash(theirs)
    assert dataclasses.replace(ours, size=9) == Ours(**{**dataclasses.asdict(theirs), "size": 9})
    assert ours != theirs
    assert ours != dataclasses.replace(ours, size=10)


@pytest.mark.parametrize(("positional", "keywords"), WRONG)
def test_refuses_what_the_standard_library_refuses(positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    for kind in (Ours, Theirs):
        with pytest.raises(TypeError):
            kind(*positional, **keywords)


def test_cannot_be_changed() -> None:
    value = Ours(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.size = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del value.size
