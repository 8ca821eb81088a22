"""Changes by `hutch doctor --fix` to others' settings: each change as data, the note of it, and its way back.

A change is noted before it is made, and only where it was not there already: what is noted is ours to take back, and
nothing else is. All of it may be made, and taken back, again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hutch.errors import HutchError, troubles_told
from hutch.files import read_or_none, write_atomic
from hutch.frozen import dataclass
from hutch.host.doctor.tools import find_program
from hutch.host.identity import shells
from hutch.run import run
from hutch.spec.names import Layout
from hutch.state import REPAIRS, decode, encode, make_directory


@dataclass(frozen=True)
class RepairStep:
    """A command, the one that takes back what it does, and the one that tells whether it is done: `test` succeeds then,
    and where there is a `line`, that is among the lines it prints."""

    make: tuple[str, ...]
    undo: tuple[str, ...]
    test: tuple[str, ...]
    line: str = ""

    def __str__(self) -> str:
        return shlex.join(self.make)


@dataclass(frozen=True)
class DropIn:
    """A file of ours among another program's configuration, and the command that has it read. `check` is one that, with
    the path of a file, says whether this could be its content. One that `lasts` stays until hutch leaves the host. One
    that `is_part` of a file is lines of ours at the end of somebody else's."""

    path: str
    content: str
    reload: tuple[str, ...] = ()
    mode: int = 0o644
    check: tuple[str, ...] = ()
    lasts: bool = False
    is_part: bool = False

    def __str__(self) -> str:
        return f"a file {self.path}{f', and {shlex.join(self.reload)}' if self.reload else ''}"

    def put_into(self, before: bytes | None) -> bytes:
        """The content of its file, from that before."""
        own = self.content.encode()
        if not self.is_part:
            return own
        there = before or b""
        return there if self.is_in(there) else there + (b"\n" if there and not there.endswith(b"\n") else b"") + own

    def is_in(self, content: bytes) -> bool:
        own = self.content.encode()
        return content.startswith(own) or b"\n" + own in content if self.is_part else content == own

    def taken_from(self, content: bytes) -> bytes | None:
        """The content without it; None where nothing is left, so that the file goes."""
        return (content.replace(self.content.encode(), b"", 1) or None) if self.is_part else None


@dataclass(frozen=True)
class Made:
    """The changes that have been made, in that order; `shells` are those that were given aliases."""

    steps: tuple[RepairStep, ...] = ()
    files: tuple[DropIn, ...] = ()
    shells: tuple[str, ...] = ()


Told = Callable[[str], None]
"""A callback, called with each command, and each file, before it is run or written."""


def read_made(layout: Layout) -> Made:
    """The noted changes. Raises Damaged, a HutchError, when the note is not as it was written."""
    data = read_or_none(layout.repairs)
    if data is None:
        return Made()
    body = decode(REPAIRS, layout.repairs, data)
    steps = (
        RepairStep(tuple(item["make"]), tuple(item["undo"]), tuple(item["test"]), item["line"])
        for item in body["steps"]
    )
    files = (
        DropIn(**{**item, "reload": tuple(item["reload"]), "check": tuple(item.get("check", ()))})
        for item in body["files"]
    )
    return Made(tuple(steps), tuple(files), tuple(body["shells"]))


def write_made(layout: Layout, made: Made) -> None:
    if made == Made():
        layout.repairs.unlink(missing_ok=True)
        return
    make_directory(layout.state)
    write_atomic(layout.repairs, encode(REPAIRS, asdict(made)), mode=0o600)


# Making.


def is_made(step: RepairStep) -> bool:
    """Whether a step is done. The change of a program that is gone is gone with it."""
    if find_program(step.test[0]) is None:
        return False
    result = run(step.test, check=False)
    lines = [line.strip() for line in result.stdout.splitlines()]
    return result.returncode == 0 and (not step.line or step.line in lines)


def ensure_steps(layout: Layout, steps: Iterable[RepairStep], tell: Told) -> None:
    """Do the steps that are not done; after one that fails, no other. The caller holds the lock."""
    for step in steps:
        ensure_step(layout, step, tell)


def ensure_step(layout: Layout, step: RepairStep, tell: Told) -> None:
    """Do the step, unless it is done. Where it fails it is not noted: whoever does it by hand then, keeps it."""
    if is_made(step):
        return
    made = read_made(layout)
    if step not in made.steps:
        write_made(layout, replace(made, steps=(*made.steps, step)))
    tell(shlex.join(step.make))
    try:
        run(step.make, timeout=60.0)
    except HutchError:
        if not is_made(step):
            write_made(layout, replace(made, steps=tuple(noted for noted in made.steps if noted != step)))
        raise


def ensure_file(layout: Layout, file: DropIn, tell: Told) -> None:
    """Write a file and have it read. One that is not as hutch wrote it is left alone; the caller has the lock."""
    path, made = Path(file.path), read_made(layout)
    before = read_or_none(path)
    content = file.put_into(before)
    ours = [noted.content.encode() for noted in made.files if noted.path == file.path]
    if not file.is_part and before not in (None, content, *ours):
        raise HutchError(f"{path} is there, and hutch did not write that", resolution="move it away, and try again")
    if before != content:
        check_content(layout, file, content)
        others = tuple(noted for noted in made.files if noted.path != file.path)
        write_made(layout, replace(made, files=(*others, file)))
        tell(f"write {path}")
        make_directory(path.parent)
        write_atomic(path, content, mode=file.mode)
    if file.reload:
        tell(shlex.join(file.reload))
        run(file.reload)


def check_content(layout: Layout, file: DropIn, content: bytes) -> None:
    """Ask the program whose file it is whether it could read this: a wrong one may shut everybody out. Raises
    HutchError."""
    if not file.check:
        return
    make_directory(layout.state)
    draft = layout.repairs.with_name("draft")
    try:
        write_atomic(draft, content, mode=file.mode, is_lasting=False)
        run([*file.check, str(draft)])
    finally:
        draft.unlink(missing_ok=True)


def ensure_aliases(layout: Layout, wanted: tuple[str, ...], tell: Told) -> None:
    """Give shells the aliases. The caller holds the lock."""
    made = read_made(layout)
    new = tuple(shell for shell in wanted if shell not in made.shells)
    if new:
        write_made(layout, replace(made, shells=(*made.shells, *new)))
    for path in shells.install(layout, wanted):
        tell(f"write {path}")


# Taking back.


def take_back(layout: Layout, tell: Told, *, is_leaving: bool = True) -> list[str]:
    """Take back all that is noted, what lasts only if hutch `is_leaving`. Returns, in words, what could not be: it
    stays noted, and the rest does not. May be called again. The caller holds the lock."""
    made, failures = read_made(layout), list[str]()

    def stays(undo: Callable[..., None], *arguments: Any) -> bool:
        try:
            with troubles_told():
                undo(*arguments, tell)
        except HutchError as error:
            failures.append(f"{error.brief}; {error.resolution}" if error.resolution else error.brief)
            return True
        return False

    kept = made.shells if stays(remove_aliases, layout, made.shells) else ()
    kept_files = {file.path for file in made.files if file.lasts and not is_leaving}
    files = tuple(file for file in made.files if file.path in kept_files or stays(remove_file, file))
    steps = tuple(step for step in reversed(made.steps) if stays(undo_step, step))
    write_made(layout, Made(steps[::-1], files, kept))
    return failures


def remove_aliases(layout: Layout, made: tuple[str, ...], tell: Told) -> None:
    for path in shells.remove(layout, shells=made):
        tell(f"take the aliases out of {path}")


def undo_step(step: RepairStep, tell: Told) -> None:
    if is_made(step):
        tell(shlex.join(step.undo))
        run(step.undo, timeout=60.0)


def remove_file(file: DropIn, tell: Told) -> None:
    """Remove a file; one that somebody has changed is theirs. A program that does not run reads it when it starts."""
    path = Path(file.path)
    there = read_or_none(path)
    if there is None:
        return
    if not file.is_in(there):
        if file.is_part:  # somebody else has taken it out
            return
        raise HutchError(f"{path} has been changed since hutch wrote it", resolution="remove it if you do not need it")
    left = file.taken_from(there)
    tell(f"remove {path}" if left is None else f"take the rule out of {path}")
    if left is None:
        path.unlink()
        if path.parent.name == "hutch":  # a directory of our own
            with suppress(OSError):  # something else is in it
                path.parent.rmdir()
    else:
        write_atomic(path, left)
    if file.reload and find_program(file.reload[0]) is not None:
        tell(shlex.join(file.reload))
        run(file.reload, check=False)
