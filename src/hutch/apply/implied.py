"""Implied files, `hutch run`'s: looks at the directory that it is called in, and keeps the files of the workspaces that
directories imply, and a note of what was brought up last for each.

All of it is the caller's own, so it is read and written with no more than the caller's rights, also by root.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hutch.apply.declaring import NEW_FILE, replace_text
from hutch.errors import HutchError, explained
from hutch.files import kept_open, write_all
from hutch.host.identity.user_view import read_user_view
from hutch.libc import library
from hutch.spec.checkouts import has_git
from hutch.spec.clashes import is_inside
from hutch.spec.field_types import Invalid
from hutch.spec.implied import (
    Choice,
    Declared,
    Remembered,
    Step,
    Surroundings,
    directory_of,
    file_of,
    note_of,
    remember,
    template_of,
)
from hutch.spec.lookup import LOCAL_FILE, believed_owners, glance
from hutch.spec.names import Layout, is_name
from hutch.spec.owner import FIRST_USER, read_small
from hutch.spec.person import Person
from hutch.spec.record import Record
from hutch.spec.rights import as_person
from hutch.spec.values import NOBODY
from hutch.state import read_record


def check_person(person: Person) -> None:
    """Refuse a person without a home, in which the files and notes would lie."""
    if person.home is None or person.config is None or person.state is None:
        raise HutchError(
            f"{person.name} has no home on this host, where `hutch run` would keep the files of workspaces",
            resolution="call hutch from an account that has one",
        )


def look_around(layout: Layout, person: Person, directory: str, named: Path | None) -> Surroundings:
    """What there is around a directory, whose path is real. `named` is the file that the user names."""
    with as_person(person):
        steps = tuple(observe_steps(directory, person))
        remembered = read_remembered(person)
        template = _read(template_of(str(person.config))) or ""
        owner = os.stat(directory).st_uid if person.uid == 0 else FIRST_USER
    return Surroundings(
        home=str(person.home),
        config=str(person.config),
        steps=steps,
        remembered=remembered,
        is_taken=lambda name: is_taken(layout, person, name),
        is_made=lambda name: is_made(layout, person, name),
        own={str(layout.state): "hutch's own state", str(layout.run): "hutch's own runtime directory"},
        template=template,
        named=Declared(os.path.abspath(named), glance(named)) if named is not None else None,
        owner=None if owner in (0, FIRST_USER, NOBODY) else owner,
    )


# The way up.


def observe_steps(directory: str, person: Person) -> Iterator[Step]:
    """The directory, and those above it; but not the person's home, and nothing above that."""
    believed = believed_owners(None, LOCAL_FILE) or ()
    for path in (directory, *map(str, Path(directory).parents)):
        if path != directory and is_inside(str(person.home), path):
            return
        step = observe_checkout(path, person)
        file = os.path.join(path, LOCAL_FILE)
        declared = None
        if os.path.lexists(file) and not os.path.isdir(file):  # a directory of that name holds it in a shared checkout
            # A link stays one: whoever loads the file looks at where it leads, and whether it may.
            uids = (os.lstat(file).st_uid, _uid_of(file))
            others = [NOBODY if uid is None else uid for uid in uids if uid not in believed]
            declared = Declared(file, glance(Path(file)), others[0] if others else None)
        yield Step(step.path, step.is_checkout, step.common, step.note, declared)


def observe_checkout(path: str, person: Person) -> Step:
    """Whether a directory is the top of a checkout of the person's, as its `.git` says. Anybody may put one into a
    directory such as /tmp, so another's does not count."""
    git = os.path.join(path, ".git")
    try:
        found = os.lstat(git)
    except OSError:
        return Step(path)
    if person.uid not in (0, found.st_uid) or not has_git(path, person.uid):
        return Step(path)
    if stat.S_ISDIR(found.st_mode):
        return Step(path, is_checkout=True)
    if not stat.S_ISREG(found.st_mode):
        return Step(path)
    prefix, _, named = read_line(git).partition("gitdir: ")
    if prefix or not named:
        return Step(path)
    target = os.path.normpath(os.path.join(path, named))
    if common := common_directory(git, target, found.st_uid):
        return Step(path, is_checkout=True, common=common)
    if any(is_inside(target, os.path.join(above, ".git")) for above in Path(path).parents):
        return Step(path)  # a submodule is a part of the checkout above it
    return Step(path, is_checkout=True, note=f"git does not work inside: {git} names {target}, which is not shared")


def common_directory(git: str, target: str, uid: int) -> tuple[str, str] | None:
    """The common directory of a worktree, whose `.git` file names the directory `target`: on the host, without symbolic
    links, and as git will look for it inside; None where there is none.

    Only a repository that knows this worktree, and has the same owner, is one: somebody else may have written that
    file, and may change links on the way while they are looked at. So what is shared is the very path that was checked.
    """
    own = os.path.realpath(target)
    named, back = read_line(os.path.join(own, "commondir")), read_line(os.path.join(own, "gitdir"))
    if not named or not back or os.path.realpath(os.path.join(own, back)) != os.path.realpath(git):
        return None
    common = os.path.realpath(os.path.join(own, named))
    is_known = is_inside(own, os.path.join(common, "worktrees"))
    parts = (os.path.join(common, part) for part in ("objects", "refs"))
    is_repository = all(map(os.path.isdir, parts)) and bool(read_line(os.path.join(common, "HEAD")))
    is_own = all(_uid_of(each) == uid for each in (common, own))
    if not (is_known and is_repository and is_own):
        return None
    return common, os.path.normpath(os.path.join(target, named))


def read_line(path: str) -> str:
    """The one line of one of git's small files; "" for any other file, and none."""
    try:
        text = os.fsdecode(read_small(path, follow=False))
    except (OSError, Invalid):
        return ""
    line = text.removesuffix("\n")
    return "" if "\n" in line or "\0" in line else line


def _uid_of(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


# Implied files.


def read_remembered(person: Person) -> dict[str, Remembered]:
    """The implied files that are there, by name. One that cannot be read is broken."""
    config, home = str(person.config), str(person.home)
    try:
        found = sorted(os.listdir(directory_of(config)))
    except OSError:
        return {}
    names = (entry.removesuffix(".toml") for entry in found if entry.endswith(".toml"))
    files = {name: file_of(config, name) for name in names if is_name(name)}
    return {name: remember(name, file, _read(file) or "\0", home) for name, file in files.items()}


def _read(file: str) -> str | None:
    """The text of a small file of the caller's; None where it cannot be read."""
    try:
        return read_small(file, follow=True).decode()
    except (OSError, Invalid, UnicodeDecodeError):
        return None


def is_taken(layout: Layout, person: Person, name: str) -> bool:
    """Whether a workspace of another file than the person's implied one has a name, or its kept home does."""
    try:
        record = find_record(layout, name)
    except HutchError:  # somebody else's, or damaged
        return True
    return record is not None and not _is_of_file(record, person)


def is_made(layout: Layout, person: Person, name: str) -> bool:
    """Whether there is the workspace of the person's implied file."""
    try:
        record = find_record(layout, name)
    except HutchError:  # somebody else's, or damaged
        return False
    return record is not None and not record.removed and _is_of_file(record, person)


def _is_of_file(record: Record, person: Person) -> bool:
    """Whether the person's implied file declares a workspace."""
    return record.file == os.path.realpath(file_of(str(person.config), record.name))


def find_record(layout: Layout, name: str) -> Record | None:
    """The record of a workspace, as the caller may see it. HutchError for another's."""
    if os.geteuid() == 0:
        return read_record(layout, name)
    view = read_user_view(layout, name)
    return view.record if view is not None else None


def write_implied(person: Person, choice: Choice) -> bool:
    """Write the file of a choice as it is to be; returns whether it is new. Raises FileExistsError where somebody else
    has just made it."""
    if choice.text is None or choice.text == choice.before:
        return False
    if choice.before is not None:
        _replace(person, choice.file, choice.before, choice.text)
        return False
    with as_person(person), explained(f"{choice.file} cannot be written"):
        _write_aside(choice.file, choice.text, 0o644)
        try:  # whole, or not at all, and never in the place of another one
            os.link(_aside(choice.file), choice.file)
            is_there = False
        except FileExistsError:
            is_there = True
        finally:
            os.unlink(_aside(choice.file))
    if is_there:
        raise FileExistsError(choice.file)
    return True


def take_back(person: Person, choice: Choice) -> None:
    """Write the file of a choice as it was before the options changed it."""
    if choice.before is not None and choice.text is not None and choice.text != choice.before:
        _replace(person, choice.file, choice.text, choice.before)


def forget_implied(person: Person, choice: Choice) -> None:
    """Remove the file of a choice, if it is an implied one, and the note on it."""
    with as_person(person), explained(f"the files of {choice.name} cannot be removed"):
        for file in (note_of(str(person.state), choice.name), *([choice.file] if choice.directory else [])):
            with suppress(FileNotFoundError):
                os.unlink(file)


def _replace(person: Person, file: str, before: str, after: str) -> None:
    library()  # imports what nobody may import as the person
    with as_person(person):
        replace_text(os.path.realpath(file), before, after)


def _aside(file: str) -> str:
    """The path at which this process writes a file before that is there."""
    directory, name = os.path.split(file)
    return os.path.join(directory, f".{name}.{os.getpid()}")


def _write_aside(file: str, text: str, mode: int) -> None:
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with suppress(FileNotFoundError):  # of a process of that number that was killed
        os.unlink(_aside(file))
    with kept_open(os.open(_aside(file), NEW_FILE, mode)) as descriptor:
        write_all(descriptor, text.encode())


# Notes.


def is_noted(layout: Layout, person: Person, choice: Choice, record: Record) -> bool:
    """Whether a workspace is what was brought up last from this file, as it is: nothing has to be planned then."""
    with as_person(person):
        note, text = _read(note_of(str(person.state), choice.name)), _read(choice.file)
    try:
        return note is not None and text is not None and json.loads(note) == _note(layout, choice, text, record)
    except ValueError:
        return False


def note(layout: Layout, person: Person, choice: Choice, text: str | None, record: Record) -> None:
    """Note that a workspace was brought up from a file with this text. Where that cannot be noted, or the file has
    changed since, the next run plans."""
    if text is None:
        return
    path, told = note_of(str(person.state), choice.name), json.dumps(_note(layout, choice, text, record))
    with as_person(person), suppress(OSError):
        if _read(choice.file) == text:
            _write_aside(path, told, 0o600)  # `env` may hold secrets
            os.rename(_aside(path), path)


def text_of(person: Person, choice: Choice) -> str | None:
    """The text of the file of a choice; None where the person cannot read it."""
    with as_person(person):
        return _read(choice.file)


def _note(layout: Layout, choice: Choice, text: str, record: Record) -> Any:
    """What a workspace follows from: the file, and the files of kits, whose times tell when one has changed."""
    wanted = json.loads(json.dumps(asdict(record.wanted)))
    kits: list[list[object]] = []
    if record.wanted.use:
        # Spares the start-up of `hutch run` where no kit is used.
        from hutch.spec.kit_files import shelves

        files = [str(shelf.file(kit)) for shelf in shelves(os.environ, os.getuid()) for kit in record.wanted.use]
        kits = [[file, *_times_of(file)] for file in files]
    return {"state": str(layout.state), "file": choice.file, "text": text, "wanted": wanted, "kits": kits}


def _times_of(file: str) -> tuple[int, ...]:
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
