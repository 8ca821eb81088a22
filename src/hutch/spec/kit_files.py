"""Kits: where each is looked for by its name, and what is wrong with it. Reads files; how kits and a workspace become
one is in spec/joining.

The first that is there counts, and hides the others of its name: the table of the hutch.toml, the file of the person
who calls, that of the host, and the one that comes along with hutch. A file is read when a workspace uses its kit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from hutch.errors import ConfigError, Problem
from hutch.frozen import dataclass
from hutch.spec.checkouts import HINT
from hutch.spec.crosscheck import Draft
from hutch.spec.joining import Used
from hutch.spec.lookup import resolved
from hutch.spec.model import Kit
from hutch.spec.names import is_name
from hutch.spec.person import caller
from hutch.spec.reading import Judge, judge_nothing, locate, parse_toml, read_file
from hutch.spec.validation import FieldProblem, Table, nearest, validate
from hutch.spec.validation import Path as KeyPath
from hutch.spec.values import NAME_HINT

HOST_KITS = Path("/etc/hutch/kits")
OWN_KITS = Path(__file__).with_name("kits")
"""The kits that come along."""
KITS = "kits"
"""The directory of a person's kits, in that of their configuration."""

Whose = Literal["file", "user", "host", "hutch"]
Believe = Callable[[str, str], Judge]
"""Raises an error for a file that may not say what it is to say, by its path and the one that this leads to; and is
answered with the judge of the directory that it is opened in, which may be another one by then."""


def believe_all(found: str, file: str) -> Judge:
    """The answer of a caller whom no file can harm."""
    return judge_nothing


@dataclass(frozen=True)
class KitPlace:
    """A file that has a kit, as a table or by itself."""

    whose: Whose
    file: str


@dataclass(frozen=True)
class Shelf:
    """A directory of kits. `owners` are the uids whose files are believed there, None for everybody's; `reader` is the
    user who may have put links there, 0 for root."""

    whose: Whose
    directory: Path
    owners: frozenset[int] | None = None
    reader: int = 0

    def file(self, name: str) -> Path:
        return self.directory / f"{name}.toml"

    def has(self, name: str) -> bool:
        """Whether it has a kit of that name. One that cannot be looked at counts: reading it says why."""
        try:
            os.lstat(self.file(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def names(self) -> list[str]:
        try:
            found = os.listdir(self.directory)
        except OSError:
            return []
        return sorted(stem for stem, end in map(os.path.splitext, found) if end == ".toml" and is_name(stem))


def shelves(environ: Mapping[str, str], uid: int) -> tuple[Shelf, ...]:
    """The directories in which kits are looked for, in that order, when the process of `uid` asks."""
    person, theirs = caller(environ, uid), []
    if person.config is not None:
        theirs = [Shelf("user", person.config / KITS, frozenset((0, person.uid)), person.uid)]
    return (*theirs, Shelf("host", HOST_KITS, frozenset((0,))), Shelf("hutch", OWN_KITS))


@dataclass(frozen=True)
class FoundKit:
    """A kit: `file` has it, as a table of a hutch.toml or, with this `text`, by itself. `problems` keep it from being
    used."""

    whose: Whose
    file: str
    used: Used
    text: str = ""
    findings: tuple[FieldProblem, ...] = ()
    problems: tuple[Problem, ...] = ()

    def all_problems(self, more: Iterable[FieldProblem] = ()) -> tuple[Problem, ...]:
        """The problems of a file of its own, `more` findings included. Those of a table are its hutch.toml's."""
        findings = (*self.findings, *more)
        located = locate(self.file, self.text, findings, ("kits", self.used.name)) if findings else []
        return (*self.problems, *located)


def read_table(file: str, name: str, table: object) -> FoundKit:
    """A kit of the hutch.toml `file`."""
    at = ("kits", name)
    wrong = () if is_name(name) else (FieldProblem(at, "cannot name a kit", NAME_HINT),)
    if not isinstance(table, dict):
        return FoundKit("file", file, Used(name, Kit(), {}), findings=(FieldProblem(at, "must be a table"),))
    checked = validate(Kit, table, at)
    return FoundKit("file", file, Used(name, checked.value, checked.kept), findings=(*wrong, *checked.findings))


def read_kit(shelf: Shelf, name: str, believe: Believe = believe_all) -> FoundKit:
    """A kit that a directory has. One that cannot be read is empty, and has its problems with it."""
    found = shelf.file(name)
    file = resolved(found)
    try:
        if shelf.whose == "hutch":
            text = found.read_text(encoding="utf-8")
        else:
            judge = believe(str(found), file)
            text = read_file(file, shelf.owners, way="make it your own", reader=shelf.reader, judge=judge)
        table = parse_toml(file, text)
    except ConfigError as error:
        return FoundKit(shelf.whose, file, Used(name, Kit(), {}), problems=error.problems)
    checked = validate(Kit, table, ("kits", name))
    used = Used(name, checked.value, checked.kept)
    return FoundKit(shelf.whose, file, used, text, tuple(checked.findings))


class Kits:
    """The kits of one hutch.toml, by name: those of its own tables, and those that its workspaces use. Each is read
    once."""

    def __init__(self, file: str, tables: Table, believe: Believe = believe_all) -> None:
        self._file = file
        self._tables = tables
        self._believe = believe
        self._shelves = shelves(os.environ, os.getuid())
        self._found: dict[str, FoundKit] = {name: read_table(file, name, table) for name, table in tables.items()}

    def find(self, name: str) -> FoundKit | None:
        """The kit of that name; None where there is none."""
        if name not in self._found:
            shelf = next((shelf for shelf in self._shelves if shelf.has(name)), None)
            if shelf is None:
                return None
            self._found[name] = read_kit(shelf, name, self._believe)
        return self._found[name]

    def used(self, names: tuple[str, ...], path: Callable[[int], KeyPath]) -> Iterator[Used | FieldProblem]:
        """The kits that a workspace names, and what is wrong with a name, whose place in the file `path` tells."""
        for index, name in enumerate(names):
            found = self.find(name)
            if name in names[:index]:
                yield FieldProblem(path(index), "is used already", "each kit once; of two that differ, the later wins")
            elif found is None:
                hint = nearest(name, self.names())
                yield FieldProblem(path(index), "is no kit of this file, of yours, of the host's or of hutch's", hint)
            else:
                yield found.used

    def check_choice(self, drafts: Iterable[Draft]) -> Iterator[FieldProblem]:
        """A file in a checkout has no choice among the kits of the person who calls: these may hold what is not a
        repository's to have. What other kits bring is judged as if the file said it."""
        for draft in drafts:
            for index, name in enumerate(draft.workspace.use):
                found = self.find(name)
                if found is not None and found.whose == "user":
                    message = "is a kit of your own, and a file in a checkout does not choose among these"
                    yield FieldProblem(draft.path("use", index), message, HINT)

    def places(self, name: str) -> Iterator[KitPlace]:
        """The places that have a kit of that name; the first one counts."""
        if name in self._tables:
            yield KitPlace("file", self._file)
        yield from (KitPlace(shelf.whose, str(shelf.file(name))) for shelf in self._shelves if shelf.has(name))

    def names(self) -> list[str]:
        """The names of all kits that a workspace of the file could use."""
        return sorted({*self._tables, *(name for shelf in self._shelves for name in shelf.names())})

    def directory(self, place: KeyPath) -> Path:
        """The directory that relative paths at this place are meant from."""
        kit = self._found.get(str(place[1])) if place[0] == "kits" else None
        return Path(kit.file if kit is not None else self._file).parent

    def findings(self) -> Iterator[FieldProblem]:
        """The findings about tables of the hutch.toml."""
        for kit in self._found.values():
            if kit.whose == "file":
                yield from kit.findings

    def files(self) -> dict[str, FoundKit]:
        """The kits that were read from files of their own."""
        return {name: kit for name, kit in self._found.items() if kit.whose != "file"}

    def scripts(self) -> dict[str, str]:
        """The setup script of each kit."""
        return {name: kit.used.kit.setup for name, kit in self._found.items()}
