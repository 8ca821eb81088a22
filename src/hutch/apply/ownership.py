"""Ownership: a workspace belongs to the file that declared it, until that lets go of it or another one adopts it.

A file that is renamed, or whose directory is moved, is the same file: its old path is gone, it declares what the old
one did, and the file system tells (name_to_handle_at(2): unlike a bare inode number, a handle is not used again).
Editors replace a file when they save it, so the directory counts too; unless the old path's is still there, and only
the file is gone from it: a disk may have been taken out.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import field, replace
from functools import partial
from pathlib import Path

from hutch.apply.accepting import check_accepted, check_parts, check_place
from hutch.apply.allowing import find_allowance, network_of_host
from hutch.apply.membership import check_files
from hutch.apply.restoring import sound_records
from hutch.errors import HutchError, UsageError
from hutch.files import looked_up
from hutch.frozen import dataclass
from hutch.host.identity.answers import directory_of
from hutch.libc import call
from hutch.spec import member
from hutch.spec.allowance import Allowance
from hutch.spec.checkouts import Checkout, find_checkout, identity_of
from hutch.spec.implied import is_implied
from hutch.spec.kit_files import Believe
from hutch.spec.loading import Check, config_of, load, no_check
from hutch.spec.lookup import believed_owners, find_file, resolved
from hutch.spec.model import Config, Network
from hutch.spec.names import Layout
from hutch.spec.owner import owner_of_path
from hutch.spec.person import Person, caller
from hutch.spec.reading import Judge, judge_nothing, read_content, text_of
from hutch.spec.record import Record
from hutch.spec.rights import where_called
from hutch.trees.cursor import upwards

AT_FDCWD, MAX_HANDLE = -100, 128

Written = Mapping[tuple[int, int] | None, tuple[str, str]]
"""Identity of a directory that a guest writes in -> (the workspace, its path)."""


def origin_of(file: str) -> tuple[int, ...]:
    """Handles that identify a file and its directory wherever they are; 0 where the file system gives none."""
    directory = os.path.dirname(file)
    return handle_of(file), 0 if os.path.ismount(directory) else handle_of(directory)


def handle_of(path: str) -> int:
    """The kernel's handle of a file as a number; 0 where there is none."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", MAX_HANDLE, 0), 8 + MAX_HANDLE)
    mount = ctypes.c_int()
    try:
        call("name_to_handle_at", AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), 0)
    except OSError:
        return 0
    size, _ = struct.unpack_from("Ii", handle)
    return int.from_bytes(handle.raw[8 : 8 + size], "big")


def former_paths(
    config: Config, records: Mapping[str, Record], own: tuple[int, ...], exists: Callable[[str], bool]
) -> set[str]:
    """The paths of this very file, whose origin is `own`, before it was renamed or moved, by the records."""
    found = set()
    for name, record in records.items():
        if name not in config.workspaces or record.file == config.file or exists(record.file) or not record.origin:
            continue
        old, new = os.path.dirname(record.file), os.path.dirname(config.file)
        same_file, same_directory = (a == b != 0 for a, b in zip(record.origin, own, strict=True))
        if same_file or (same_directory and (old == new or not exists(old))):
            found.add(record.file)
    return found


def check_ownership(
    config: Config,
    records: Mapping[str, Record],
    former: Collection[str],
    exists: Callable[[str], bool],
    *,
    adopt: bool,
) -> None:
    """Refuse workspaces that are another file's, unless they are to be adopted."""
    if adopt:
        return
    taken = {
        name: record.file
        for name, record in records.items()
        if name in config.workspaces and record.file != config.file and record.file not in former
        # Neither a file in a checkout nor one of `hutch run`'s gets the home that is kept of another file's workspace
        # by its name.
        if not record.removed or config.checkout is not None or is_implied(config.file)
    }
    if taken:
        lines = (f"{name} belongs to {file}{'' if exists(file) else ', which is gone'}" for name, file in taken.items())
        raise HutchError(
            "another file declares a workspace of the same name",
            details="\n".join(lines),
            resolution="rename it in one of the two files, or take it over, home and all: `hutch up --adopt`",
        )


def load_found(layout: Layout, path: Path | None, check: Check = no_check, *, accepted: str | None = None) -> Config:
    """Look for the hutch.toml, see find_file(), and load it; for root only one, and kits, that no guest can have
    written. Its path is resolved once, and what it leads to is both checked and read: a link may lead elsewhere by
    then.

    One in a checkout is loaded if its content is what the caller has accepted, or has the SHA-256 `accepted`; so it
    does not matter who can write it. Raises Untrusted otherwise.

    For a member all is read with their rights, and judged by what root allows them; the network is the host's.
    """
    writers, applied, allowance = writers_of(layout), network_of_host(layout), find_allowance(layout)
    with where_called():
        config, has_hosts = _read(layout, path, check, accepted, writers, allowance)
        if member.acting is not None:
            check_files(config, member.acting)
    return replace(config, network=applied or config.network) if has_hosts else config


def _read(
    layout: Layout,
    path: Path | None,
    check: Check,
    accepted: str | None,
    writers: Writers,
    allowance: Allowance | None,
) -> tuple[Config, bool]:
    """The configuration of the file, and whether its network is the host's, whatever that is."""
    found = find_file(path)
    file, owners = resolved(found), believed_owners(path, found)
    person = caller(os.environ, os.getuid())
    if allowance is not None:
        allowance = replace(allowance, is_own=owner_of_path(file) == allowance.member.uid)
    checkout = find_checkout(str(found), file, person)
    believe = writers.check
    is_written = believe(str(found), file) if checkout is None else judge_nothing
    judge = partial(_judge, file, checkout, person, is_written)
    if checkout is None:
        config = load(
            file, layout=layout, check=check, owners=owners, believe=believe, allowance=allowance, judge=judge
        )
        # A user's configuration may lie elsewhere, behind a link.
        is_runs = is_implied(file) or is_implied(os.path.abspath(found))
        return config, allowance is not None or (is_runs and config.network == Network())
    if person.state is not None:
        answers = str(directory_of(person))
        writers.refuse(answers, os.path.realpath(answers))
    content = read_content(file, owners, judge=judge)
    check_accepted(person, file, checkout, content, accepted)
    text = text_of(file, content)
    config = config_of(file, text, layout=layout, check=check, checkout=checkout, believe=believe, allowance=allowance)
    check_parts(config)
    return config, True


def _judge(file: str, checkout: Checkout | None, person: Person, is_written: Judge, directory: int) -> None:
    """Refuse a file by the directory that it was opened in. While its path was judged, that may have led elsewhere."""
    check_place(file, checkout, person, directory)
    is_written(directory)


def judge_of(layout: Layout, config: Config) -> Judge:
    """The judge with which the file of a configuration, one that is in no checkout, is to be read once more."""
    is_written = writers_of(layout).check(config.file, config.file)
    return partial(_judge, config.file, None, caller(os.environ, os.getuid()), is_written)


@dataclass(frozen=True)
class Writers:
    """Who writes where: directories are known by what they are, since one may be mounted in two places."""

    layout: Layout
    records: Mapping[str, Record] = field(default_factory=dict)
    written: Written = field(default_factory=dict)

    def check(self, found: str, file: str) -> Judge:
        """The same of a file that is to be read, with the judge that is returned."""
        self.refuse(found, file)
        return partial(self._judge, file) if self.written else judge_nothing

    def refuse(self, found: str, file: str) -> None:
        """Refuse what a guest may have written, or led to: root would do as it says. `file` is what the path `found`
        leads to."""
        for directory in (*directories_to(found), *directories_to(file)) if self.written else ():
            self._refuse_in(found, identity_of(directory))

    def _judge(self, file: str, directory: int) -> None:
        with closing(upwards(directory)) as ways:
            for at in ways:
                status = os.fstat(at)
                self._refuse_in(file, (status.st_dev, status.st_ino))

    def _refuse_in(self, found: str, directory: tuple[int, int] | None) -> None:
        if writer := self.written.get(directory):
            name, path = writer
            is_gone = self.records[name].removed and not self.records[name].ejected
            raise UsageError(
                f"{found}: workspace {name} {'could' if is_gone else 'can'} write in {path}, so its guest may "
                "have written this file",
                resolution="move the file to where no workspace writes; or read it, and if all of it is yours: "
                + _way_to_end(self.layout, self.records[name], path),
            )


def writers_of(layout: Layout) -> Writers:
    """Who writes where, for root; nobody else is harmed by what a guest wrote. It is looked for at once: what comes of
    it may be asked with other rights than root's."""
    if os.geteuid() != 0:
        return Writers(layout)
    records = sound_records(layout)
    written = {identity_of(path): (name, path) for name, record in records.items() for path in record.written}
    written.pop(None, None)
    return Writers(layout, records, written)


def believing(layout: Layout) -> Believe:
    """A function that refuses, for root, a file that a guest may have written."""
    return writers_of(layout).check


def _way_to_end(layout: Layout, record: Record, path: str) -> str:
    """How a workspace is made to count no more as one that writes in a directory."""
    name, home = record.name, str(layout.home(record.name))
    if not record.removed:
        return f"take {path} from {name}, and restart that"
    purge = f"`hutch rm --purge {name}`"
    if record.ejected:
        return f"{record.ejected}/remove, which takes {name} off this host, and then {purge}"
    return f"{purge}, which deletes its kept home {home}" if record.wanted.home == home else purge


def directories_to(file: str) -> Iterator[str]:
    """The directories in which a name is looked up on the way to a file, those of symbolic links too: whoever writes in
    one of them chooses the file."""
    with suppress(OSError):  # whoever opens the file meets that too
        for at, _, _ in looked_up(Path(os.getcwd(), file)):
            yield str(at.parent)


def orphans(config: Config, records: Mapping[str, Record], former: Collection[str]) -> Iterable[str]:
    """The workspaces that this file brought up, by whatever path, and declares no more."""
    files, declared = {config.file, *former}, {*config.workspaces, *config.others}
    return [n for n, r in records.items() if r.file in files and n not in declared and not r.removed]
