"""The workspace of a directory: chosen, brought up, entered and thrown away again. `hutch run` is its user."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.api.engine import Hutch
from hutch.api.workspace import Workspace
from hutch.apply.implied import (
    check_person,
    find_record,
    forget_implied,
    is_noted,
    look_around,
    note,
    take_back,
    text_of,
    write_implied,
)
from hutch.apply.restoring import with_restored_records
from hutch.backends.share import sources
from hutch.errors import HutchError, UsageError, ways_in
from hutch.spec.clashes import is_inside
from hutch.spec.implied import Choice, Declared, Request, decide, of_file
from hutch.spec.lookup import look_for_file, resolved
from hutch.spec.person import caller
from hutch.spec.record import is_local
from hutch.spec.rights import lost_directory

if TYPE_CHECKING:
    from hutch.apply.up import Confirm
    from hutch.plan.actions import Plan
    from hutch.spec.model import WorkspaceSpec
    from hutch.spec.record import Record

ATTEMPTS = 5


@ways_in
class Here:
    """The workspace that a directory has: that of the hutch.toml there, or one that the directory implies. To make the
    object chooses it, and writes the file of an implied one; UsageError where there can be none.

    `file` is a hutch.toml to go by instead. The caller need not be root, but for `up` and `remove`.
    """

    def __init__(self, hutch: Hutch, request: Request, directory: str = "", file: Path | None = None) -> None:
        self.hutch, self.layout, self.listen = hutch, hutch.layout, hutch.listen
        self.person = caller(os.environ, os.getuid())
        check_person(self.person)
        self.directory = os.path.realpath(directory or _current_directory())
        self.is_written = False
        self.choice = self._choose(request, file)
        self._text = text_of(self.person, self.choice)
        record = self._record()
        self.is_there = record is not None and not record.removed
        """Whether there was such a workspace before."""
        self.is_new = record is None and not os.path.lexists(self.layout.workspace(self.name))
        """Whether there was no such workspace before, and no home that is kept of one."""

    @property
    def name(self) -> str:
        return self.choice.name

    @property
    def file(self) -> Path:
        return Path(self.choice.file)

    def _choose(self, request: Request, file: Path | None) -> Choice:
        named = look_for_file(file) if file is not None or os.environ.get("HUTCH_FILE") else None
        for _ in range(ATTEMPTS):
            choice = decide(look_around(self.layout, self.person, self.directory, named), request)
            if not choice.name:  # a glance sees no workspace in the file: it is broken, or declares none
                config = self.hutch.load(Path(choice.file))
                types = {name: workspace.type for name, workspace in config.workspaces.items()}
                if not types:
                    raise UsageError(f"{choice.file} declares no workspace", resolution="--ignore-file does without it")
                choice = of_file(Declared(choice.file, types), request)
            if request.kits:
                check_kits(request.kits, choice.text or "")
            try:
                self.is_written = write_implied(self.person, choice)
                return choice
            except FileExistsError:  # of another run, at this very moment, which may mean the same directory or not
                continue
        raise HutchError(
            f"files of workspaces of {self.directory} come and go all the time",
            resolution="try again when nobody else runs hutch there",
        )

    def _record(self) -> Record | None:
        return find_record(self.layout, self.name)

    def is_ready(self) -> bool:
        """Whether it runs just as its file wants it, so that nothing has to be done before it is entered. What was
        brought up last from this very text is known without a plan."""
        record = self._record()
        if record is None or record.removed or record.file != resolved(Path(self.choice.file)):
            return False
        if self.hutch.observe(self.name).state != "running":
            return False
        return is_noted(self.layout, self.person, self.choice, record)

    def check(self) -> None:
        """Raise whatever is wrong with its file, or keeps it from counting."""
        self.hutch.load(self.file)

    def plan(self) -> Plan:
        """The plan that `up` would carry out. Notes where there is nothing to do."""
        plan = self.hutch.plan(self.hutch.load(self.file), [self.name])
        if not plan.changes:
            self.note()
        return plan

    @with_restored_records
    def up(self, confirm: Confirm) -> Plan:
        """Bring it up; see `Hutch.up`."""
        plan = self.hutch.up(self.hutch.load(self.file), [self.name], confirm=confirm)
        self.note()
        return plan

    def note(self) -> None:
        """Note that it was brought up from its file as that was when this object was made."""
        if (record := self._record()) is not None:
            note(self.layout, self.person, self.choice, self._text, record)

    @property
    def inside(self) -> str:
        """The path inside of the current directory, as it runs; "" where it does not share that."""
        return place_inside(self.hutch.record(self.name).effective, self.directory)

    def clone(self, *, committed: bool, is_fresh: bool) -> str:
        """The directory of the clone in the home, which is made where there is none. Unless the workspace `is_fresh`,
        the note on a clone is believed."""
        # Spares the start-up of `hutch run` in a directory that is shared.
        from hutch.clones.notes import read_note

        source = self.choice.directory or self.directory
        if not is_fresh and os.geteuid() != 0:
            made = read_note(self.layout.instance, self.name)
            if made is not None and is_inside(source, made.repository):
                return made.directory
        return Workspace(self.name, self.hutch).clone(source, committed=committed).directory

    def enter(self, argv: Sequence[str], directory: str = "") -> int:
        """Run a command there, or without one the login shell, with this process's own streams and signals; returns its
        exit code. See `Workspace.attach`. `directory` is another place to begin in."""
        workspace = self.hutch.record(self.name).effective
        cwd = directory or self.inside
        return Workspace(self.name, self.hutch).attach([*argv] or [workspace.shell, "-l"], cwd=cwd)

    def remove(self) -> None:
        """Remove it, unless unsaved git work or a live session is in the way: with its home, if it was not there
        before."""
        self.hutch.remove([self.name], purge=self.is_new)

    def take_back(self) -> None:
        """Take back what making this object has written in an implied file, since that cannot be: a new one goes,
        unless there is such a workspace."""
        if self.is_written:
            self.forget()
        else:
            take_back(self.person, self.choice)

    def forget(self) -> bool:
        """Remove its implied file, once there is no such workspace; whether there is none."""
        record = self._record()
        if record is not None and not record.removed:
            return False
        forget_implied(self.person, self.choice)
        return True


def check_kits(names: Sequence[str], text: str) -> None:
    """Refuse the name of a kit that a file with this text could not use, by the option that said it: the file would be
    blamed for a line that goes again. Raises UsageError."""
    # Spares the start-up of `hutch run` without such an option.
    import tomllib

    from hutch.spec.kit_files import Kits
    from hutch.spec.validation import nearest

    try:
        tables = tomllib.loads(text).get("kits", {})
    except (ValueError, RecursionError):  # what is wrong with the file is told with it
        return
    known = Kits("", tables if isinstance(tables, dict) else {}).names()
    for name in names:
        if name not in known:
            brief = f"--with {name}: there is no such kit, neither yours nor the host's or hutch's"
            raise UsageError(brief, resolution=nearest(name, known))


def place_inside(workspace: WorkspaceSpec, directory: str) -> str:
    """The path inside of a directory of the host; "" for one that a workspace does not share."""
    if not is_local(workspace):
        return ""
    shares = [(source, target) for source, target, _ in sources(workspace) if is_inside(directory, source)]
    source, target = max(shares, key=lambda share: len(share[0]), default=("", ""))
    return os.path.normpath(target + directory[len(source) :]) if source else ""


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise lost_directory("gone") from None
