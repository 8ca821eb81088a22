"""Frozen values: `dataclass(frozen=True)`, with methods that all classes share.

The standard library writes and compiles six methods for each class, and a command pays for that at every start: for the
classes of `hutch start` it is 20 ms, a quarter of what it needs before anything happens. Here a class gets its
fields from the standard library, so `fields`, `replace`, `asdict` and pydantic work as ever, and its methods from this
file. Type checkers see the standard library's own decorator.
"""

from __future__ import annotations

import dataclasses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
    from typing import Any
else:

    def dataclass(*, frozen: bool, kw_only: bool = False) -> Callable[[type], type]:
        """Like `dataclasses.dataclass`, but for frozen classes only: others have no use for it."""
        assert frozen

        def decorate(cls: type) -> type:
            # Without a docstring, the standard library puts the signature there, and takes a millisecond to find it.
            cls.__doc__ = cls.__doc__ or cls.__name__
            made = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
            for name, method in METHODS.items():
                if name not in cls.__dict__:
                    setattr(made, name, method)
            return made

        return decorate


def _init(self: Any, *args: Any, **keywords: Any) -> None:
    cls = type(self)
    positional = cls.__match_args__
    if len(args) > len(positional):
        raise TypeError(f"{cls.__name__} takes {len(positional)} positional arguments, {len(args)} were given")
    given = dict(zip(positional, args, strict=False))
    twice = given.keys() & keywords.keys()
    unknown = keywords.keys() - cls.__dataclass_fields__.keys()
    if twice or unknown:
        raise TypeError(f"{cls.__name__}: {', '.join(sorted(twice or unknown))} {'twice' if twice else 'is unknown'}")
    given |= keywords
    values = self.__dict__
    for name, field in cls.__dataclass_fields__.items():
        if name in given:
            values[name] = given[name]
        elif field.default is not dataclasses.MISSING:
            values[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[name] = field.default_factory()
        else:
            raise TypeError(f"{cls.__name__}: {name} is missing")


def _repr(self: Any) -> str:
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def _eq(self: Any, other: object) -> bool:
    return self.__dict__ == other.__dict__ if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(tuple(self.__dict__.values()))


def _setattr(self: Any, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


METHODS = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _setattr,
    "__delattr__": _delattr,
}
