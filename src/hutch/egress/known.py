"""The names that led a workspace to addresses, what is open to it by them, and for how long. Pure: the caller tells the
time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from hutch.egress.sets import Element, Place

MOST_OPEN = 1 << 12
"""The most elements that one workspace has in the kernel's sets, which are everybody's: each takes 2^15."""
MOST_TOLD = 1 << 14
"""The most pairs of a name and an address that one workspace was told, opened or not: a list may come."""
LINGERS = 3.0  # seconds that the kernel may have an element longer, since its seconds are whole
MOST_NAMES = 4096
"""The most addresses of which the name that led there is known."""


@dataclass(slots=True)
class _Open:
    """An element: until when it is open, by the answer to which name, and by whose decision (its mark, None for the
    list's). `there` is until when and with which mark the kernel has it, as far as is known."""

    until: float
    by: str
    mark: int | None
    there: tuple[float, int | None] | None = None

    @property
    def latest(self) -> float:
        """The time at which the kernel has let go of it, whether or not it took what is wanted."""
        return max(self.until, self.there[0]) if self.there is not None else self.until


class Known:
    """The answers that one workspace was given. Times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}
        self._open: dict[Element, _Open] = {}
        self._next_look = 0.0
        self._name: OrderedDict[str, str] = OrderedDict()

    def tell(self, now: float, name: str, addresses: Mapping[str, float]) -> bool:
        """Note an answer: `name` leads to addresses, each until its time, whatever an earlier answer said. False where
        one workspace is told no more."""
        told = {(name, address): until for address, until in addresses.items()}
        is_told = self._have_room(now, self._told, told, MOST_TOLD)
        if is_told:
            self._told.update(told)
        return is_told

    def open(
        self,
        now: float,
        name: str,
        wanted: Mapping[Element, tuple[float, int | None]],
        in_force: Collection[int | None] = (None,),
    ) -> bool:
        """Note elements that `name` opens, each until its time and by its mark. False where that is more than one
        workspace has.

        Where several names lead to one address, it is open as long as the one says that says the longest, by its
        newest answer and by its mark, for as long as that mark is in force.
        """
        if not self._have_room(now, self._open, wanted, MOST_OPEN):
            return False
        for element, (until, mark) in wanted.items():
            found = self._open.get(element)
            if found is None:
                self._open[element] = _Open(until, name, mark)
            elif found.by == name or until >= found.until or found.mark not in in_force:
                found.until, found.by, found.mark = until, name, mark
        return True

    def places(self, elements: Iterable[Element], now: float) -> dict[Element, Place]:
        """The places of elements, as they are to be in the kernel's sets from now on."""
        found = {each: self._open[each] for each in elements}
        return {
            each: (opened.until - now, opened.mark, opened.there[1] if opened.there is not None else None)
            for each, opened in found.items()
        }

    def note_there(self, elements: Iterable[Element]) -> None:
        """Note that the kernel has elements as they are to be."""
        for each in elements:
            self._open[each].there = self._open[each].until, self._open[each].mark

    def is_there(self, element: Element) -> bool:
        """Whether the kernel has an element as it is to be, as far as is known."""
        found = self._open[element]
        return found.there == (found.until, found.mark)

    def forget_answers(self) -> None:
        """Forget what the workspace was told: it may be gone for good. What is open stays open until it is over."""
        self._told.clear()
        self._name.clear()

    def is_over(self, now: float) -> bool:
        """Whether nothing is open any more."""
        self._forget(now)
        return not self._open

    def _have_room(self, now: float, there: Collection[object], wanted: Iterable[object], most: int) -> bool:
        """Whether no more than so many are there with those that are wanted, once what is over has been forgotten:
        at most once a second, since that takes milliseconds."""
        more = sum(each not in there for each in wanted)
        if len(there) + more > most and now >= self._next_look:
            self._next_look = now + 1.0
            self._forget(now)
            more = sum(each not in there for each in wanted)
        return len(there) + more <= most

    def _forget(self, now: float) -> None:
        for pair in [pair for pair, until in self._told.items() if until <= now]:
            del self._told[pair]
        for element in [element for element, found in self._open.items() if found.latest + LINGERS <= now]:
            del self._open[element]

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
        """(name, address, until when) of the answers that are still valid, the longest last."""
        found = ((name, address, until) for (name, address), until in self._told.items() if until > now)
        yield from sorted(found, key=lambda item: item[2])
