"""The names that led a workspace to addresses, what is open to it by them, and for how long. Pure: the caller tells the
time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from hutch.egress.sets import Element

MOST_OPEN = 1 << 14
"""The most elements that one workspace has in the kernel's sets, which are everybody's: each takes 2^20."""
MOST_TOLD = 1 << 16
"""The most pairs of a name and an address that one workspace was told, opened or not: a list may come."""
LINGERS = 2.0  # seconds that the kernel may have an element longer, since its seconds are whole
MOST_NAMES = 4096
"""The most addresses of which the name that led there is known."""


class Known:
    """The answers that one workspace was given. Times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}
        self._open: dict[Element, tuple[float, str]] = {}  # until when, and the name that says so
        self._next_look = 0.0
        self._name: OrderedDict[str, str] = OrderedDict()

    def tell(self, now: float, name: str, addresses: Mapping[str, float]) -> bool:
        """Note an answer: `name` leads to addresses, each until its time, whatever an earlier answer said. False where
        one workspace is told no more."""
        told = {(name, address): until for address, until in addresses.items()}
        is_told = self._has_room(self._told, told, MOST_TOLD, now)
        if is_told:
            self._told.update(told)
        return is_told

    def open(self, now: float, name: str, wanted: Mapping[Element, float]) -> dict[Element, float] | None:
        """Note elements that `name` opens, each until its time. Returns until when they are to be open: as long as any
        name that leads there says by its newest answer. None where that is more than one workspace has."""
        if not self._has_room(self._open, wanted, MOST_OPEN, now):
            return None
        for element, until in wanted.items():
            longest, by = self._open.get(element, (until, name))
            if by == name or until >= longest:
                self._open[element] = until, name
        return {element: self._open[element][0] for element in wanted}

    def _has_room(self, there: dict[Any, Any], wanted: Mapping[Any, Any], most: int, now: float) -> bool:
        """Whether no more than so many are there with those that are wanted, once what is over has been forgotten:
        at most once a second, since that takes milliseconds."""
        more = sum(one not in there for one in wanted)
        if len(there) + more > most and now >= self._next_look:
            self._next_look = now + 1.0
            for pair in [pair for pair, until in self._told.items() if until <= now]:
                del self._told[pair]
            for element in [element for element, (until, _) in self._open.items() if until + LINGERS <= now]:
                del self._open[element]
            more = sum(one not in there for one in wanted)
        return len(there) + more <= most

    def note_name(self, name: str, address: str) -> None:
        """Note the name that led to `address` last."""
        self._name[address] = name
        self._name.move_to_end(address)
        if len(self._name) > MOST_NAMES:
            self._name.popitem(last=False)

    def name_of(self, address: str) -> str | None:
        """The name that led there last, also when that is over: connections may outlive their answers."""
        return self._name.get(address)

    def valid(self, now: float) -> Iterator[tuple[str, str, float]]:
        """(name, address, until when) of the answers that are still valid, the longest first."""
        found = ((name, address, until) for (name, address), until in self._told.items() if until > now)
        yield from sorted(found, key=lambda item: -item[2])
