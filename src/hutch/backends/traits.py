"""The facts of a backend that hutch must know beside its Launches: plain data, at the top of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import field
from typing import TYPE_CHECKING, Protocol

from hutch.frozen import dataclass

if TYPE_CHECKING:
    from hutch.backends.launch import Hardware


def lacks_nothing(hardware: Hardware | None) -> Iterable[str]:
    """The answer of a backend that runs wherever hutch does."""
    return ()


class Host(Protocol):
    """What a hypervisor may ask of the host for what it needs."""

    def program(self, name: str) -> str | None:
        """The path of a command."""

    def said(self, *command: str) -> str:
        """The output of a command; "" where it does not run."""

    def library(self, package: str) -> str:
        """The directory that a package is imported from which hutch depends on."""


def finds_nothing(host: Host) -> dict[str, str]:
    """The facts of a backend that needs nothing of its own."""
    return {}


@dataclass(frozen=True)
class Traits:
    """The traits of one backend: its workspaces' differences from those of others.

    `name` is what its Launches are marked with, and what the registry and `hypervisor` call it. Of those that can run
    a workspace, the one with the highest `rank` does. `find` looks for what a hypervisor needs on a host, its
    "program" first; what it finds is in Hardware under its name. `lacks` says, in words, what is missing. Before a
    start nobody knows which one that is, so backends of one type agree in all but these, `needs_kvm`, `program`,
    `sizes` and `modules`.

    `live` are the keys that need a restart unless the backend changes them while the guest runs. A machine
    (`is_machine`) boots a kernel of its own on hardware that is made for it: it is entered by ssh and has Hardware in
    its surroundings. `memory` are the bytes that it is made with where the file does not say; what it was started with
    stays the most that its balloon can give it. None says that memory is a limit like any other. `console` is the
    unit inside that puts a shell on the console. `needs_kvm` and `can_suspend` are what they say.

    `program` begins the name of the program that runs a guest. `sizes` says how the program is told its "processors"
    and "MiB": an option, and the form of its value. `modules` are those of hutch's own that its commands run, by their
    paths in the package, with what they import: they go along where a workspace is ejected.
    """

    name: str
    rank: int = 0
    program: str = ""
    console: str = ""
    live: frozenset[str] = frozenset()
    is_machine: bool = False
    memory: int | None = None
    needs_kvm: bool = False
    can_suspend: bool = False
    sizes: dict[str, tuple[str, str]] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    find: Callable[[Host], dict[str, str]] = finds_nothing
    lacks: Callable[[Hardware | None], Iterable[str]] = lacks_nothing
