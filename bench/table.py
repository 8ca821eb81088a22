"""What a scenario is, and what it yields: one line of the table, with what is promised of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Samples
from bench.ours import Hutch


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. With a `reference` the bound is on the ratio of medians, without on the median."""

    name: str
    what: str
    unit: str  # "s", "bytes", "bytes/s" or ""
    ours: Samples
    reference: Samples | None = None
    reference_name: str = ""
    bound: float | None = None
    note: str = ""
    at_least: bool = False  # the bound is the least that is promised, not the most

    @property
    def value(self) -> float:
        return self.ours.median / self.reference.median if self.reference else self.ours.median

    @property
    def passed(self) -> bool:
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Setting:
    """What the scenarios share."""

    hutch: Hutch
    tree: Path
    work: Path
    python: str  # the interpreter that runs hutch
    system_python: str
    rounds: int
    rounds_of_vms: int  # their starts take seconds
    quick: bool
    stock: Path  # where the stock guest is, if a row wants it
    kernel: Path  # where the kernel for virtual machines by hand is, if a row wants it
    only: frozenset[str] = frozenset()

    def wants(self, name: str) -> bool:
        """Whether the row `name` was asked for."""
        return not self.only or name in self.only


@dataclass(frozen=True, slots=True)
class Scenario:
    """A function, and the names of the rows that it yields."""

    rows: tuple[str, ...]
    run: Callable[[Setting], Iterator[Row]]
