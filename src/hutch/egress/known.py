"""The names that led a workspace to addresses, and for how long. Pure: the caller tells the time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

MOST_TOLD = 65536
"""The most pairs of a name and an address for one workspace. All may be open, and the kernel's sets are everybody's."""
MOST_NAMES = 4096
"""The most addresses of which the name that led there is known."""


class Known:
    """The answers that one workspace was given. Times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}
        self._next_look = 0.0
        self._name: OrderedDict[str, str] = OrderedDict()

    def has_room(self, now: float, wanted: int) -> bool:
        """Whether so many more pairs can be noted, once those that are over have been forgotten."""
        if len(self._until) + wanted > MOST_TOLD and now >= self._next_look:
            self._next_look = now + 1.0  # it takes milliseconds
            self._until = {pair: until for pair, until in self._until.items() if until > now}
        return len(self._until) + wanted <= MOST_TOLD

    def note_told(self, name: str, address: str, until: float) -> None:
        """Note an answer: `name` leads to `address`, until then at least."""
        pair = (name, address)
        self._until[pair] = max(until, self._until.get(pair, until))

    def note_name(self, name: str, address: str) -> None:
        """Note the name that led to `address` last."""
        self._name[address] = name
        self._name.move_to_end(address)
        if len(self._name) > MOST_NAMES:
            self._name.popitem(last=False)

    def name_of(self, address: str) -> str | None:
        """The name that led there last, also when that is over: connections may outlive their answers."""
        return self._name.get(address)

    def valid(self, now: float) -> Iterator[tuple[str, str, int]]:
        """(name, address, seconds left) of the answers that are still valid, whole seconds upwards."""
        for (name, address), until in self._until.items():
            if until > now:
                yield name, address, int(until - now) + 1
