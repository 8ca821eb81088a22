"""Clones of the host's repositories in workspaces: made there, compared, and fetched.

All of it runs as the person who owns the workspace, by the person's own ssh: on the host no program runs that a
repository or a workspace names, and root has no part in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hutch.access.piped import Overdue, Piped, Take
from hutch.api.copying import Tail
from hutch.api.job import Call, change
from hutch.api.result import Fetched, FetchedBranch
from hutch.api.running import Kept, TooMuch
from hutch.api.transports import ssh_side
from hutch.clones import inside, tracked
from hutch.clones.git import PATIENCE, Repository, Scratch, find_repository, scratch
from hutch.clones.notes import Clone, known_note, locked, read_note, write_note
from hutch.clones.receive import Receiver, check_commits, keep
from hutch.clones.refs import HEADS, Sent, clashing, is_branch, tracking
from hutch.clones.snapshot import commit_work, identity
from hutch.errors import HutchError, UsageError
from hutch.run import PIPE, Popen, describe
from hutch.spec.field_types import Invalid
from hutch.spec.owner import find_owner
from hutch.spec.record import has_processes

if TYPE_CHECKING:
    from hutch.api.workspace import Workspace

CHUNK = 1 << 16
SLACK = 1 << 30  # bytes of an index, and of what a thin pack lacks
HOUR = 3600.0  # seconds that objects may take on their way
MOST_TEXT = 64 << 20  # bytes of a diff


def as_owner(workspace: Workspace, method: str, **arguments: Any) -> Any:
    """Call a function of this file; for root, in a process that is the workspace's owner."""
    if os.geteuid() != 0:
        functions: dict[str, Callable[..., Any]] = {"clone": clone, "diff": diff, "fetch": fetch}
        return functions[method](workspace, **arguments)
    wanted = workspace.hutch.record(workspace.name).wanted.owner
    try:
        owner = find_owner(wanted if wanted is not None else 0)
    except Invalid as error:
        raise HutchError(f"{workspace.name}: its owner {error}") from error
    if owner.home is None:
        raise HutchError(f"{workspace.name} belongs to uid {owner.uid}, which has no account on this host")
    call = Call(workspace.hutch.layout, method, arguments, workspace.name, account=(owner.uid, owner.gid))
    return read_result(method, change(call))


def read_result(method: str, value: Any) -> Clone | Fetched | str:
    """The result of a function of this file, by what a process of the owner's says of it. Raises HutchError where that
    is none."""
    try:
        if method == "clone":
            return Clone(**{key.name: str(value[key.name]) for key in fields(Clone)})
        if method == "diff":
            return str(value)
        keys = [key.name for key in fields(FetchedBranch)]
        branches = tuple(FetchedBranch(*(str(each[key]) for key in keys)) for each in value["branches"])
        return Fetched(branches, tuple(map(str, value["gone"])), tuple(map(str, value["left_out"])))
    except (LookupError, TypeError) as error:
        raise HutchError(f"a process of the owner's gives no valid result of {method}") from error


def clone(workspace: Workspace, source: str, *, committed: bool) -> Clone:
    """Make a clone of a checkout in the workspace's home; see `Workspace.clone`."""
    repository = find_repository(source)
    tracked.check_free(repository, workspace.name)
    _check_up(workspace)
    with locked(workspace.hutch.layout.instance, workspace.name):
        return _made(workspace, repository, committed=committed)


def _made(workspace: Workspace, repository: Repository, *, committed: bool) -> Clone:
    """The clone that there is, or a new one."""
    name, instance = workspace.name, workspace.hutch.layout.instance
    before = read_note(instance, name)
    if before is not None and _is_there(before):
        if before.repository != repository.top:
            raise HutchError(f"{name} works on a clone of {before.repository}", resolution="use another workspace")
        return before
    start = commit_work(repository, committed=committed)
    made = Clone(name, repository.top, os.path.basename(repository.top), repository.branch or name, start)
    tracked.write_start(repository, name, start)
    with ExitStack() as undo:
        undo.callback(tracked.write_start, repository, name, "")
        _give(repository, made)
        write_note(instance, made)
        undo.pop_all()
    return made


def diff(workspace: Workspace, *, stat: bool) -> str:
    """The changes in the clone since it was made; see `Workspace.diff`."""
    made, repository = _look(workspace)
    command = inside.send_command(made.directory, "work")
    with _received(repository, made, command, [made.start], limit=MOST_TEXT * 64) as (sent, place):
        if not sent.tree:
            raise HutchError(f"{made.workspace} does not list its files")
        shape = ("--stat=120", "--summary") if stat else ("--patch",)
        words = ("diff-tree", "-r", "--find-renames", "--no-color", "--no-ext-diff", "--no-textconv", *shape)
        return _text_of(made.workspace, place.limited.start(*words, made.start, sent.tree, stdout=PIPE, stderr=PIPE))


def fetch(workspace: Workspace, branch: str, *, prune: bool, limit: int) -> Fetched:
    """Bring branches of the clone into the host's repository; see `Workspace.fetch`."""
    if branch and not is_branch(branch):
        raise UsageError(f"{branch!r} is not the name of a branch")
    made, repository = _look(workspace)
    name = made.workspace
    tracked.check_free(repository, name)
    before = tracked.tracked(repository, name)
    command = inside.send_command(made.directory, "branch" if branch else "branches", branch)
    with _received(repository, made, command, [made.start, *before.values()], limit=limit) as (sent, place):
        found = {each: object for each, object in sent.branches.items() if branch in ("", each)}
        if branch and not found:
            raise HutchError(
                f"{name} has no branch {branch}", resolution=f"`hutch fetch {name}` brings all that it has"
            )
        gone = set() if branch else before.keys() - found.keys()
        if clash := clashing({*before, *found} - (gone if prune else set())):
            raise HutchError(
                f"{name}: there was a branch {clash}, and now there is one below it",
                resolution=f"`hutch fetch --prune {name}` removes branches here that are gone inside",
            )
        check_commits(name, place, found.values(), tracked.known_commits(repository))
        keep(repository, place)
    if prune:
        tracked.write(repository, name, dict.fromkeys(gone, ""))
    tracked.write(repository, name, {each: object for each, object in found.items() if before.get(each) != object})
    _remember(made, found)
    branches = (FetchedBranch(x, tracking(name, x), before.get(x, ""), found[x]) for x in sorted(found))
    return Fetched(tuple(branches), tuple(sorted(gone)), sent.left_out)


def _look(workspace: Workspace) -> tuple[Clone, Repository]:
    """The note on the clone, and its repository."""
    _check_up(workspace)
    made = known_note(workspace.hutch.layout.instance, workspace.name)
    if not os.path.isdir(made.repository):
        raise HutchError(f"{made.repository} is not there any more, of which {made.workspace} has a clone")
    return made, find_repository(made.repository)


def _check_up(workspace: Workspace) -> None:
    workspace.hutch.record(workspace.name)
    state = workspace.hutch.observe(workspace.name).state
    if not has_processes(state):
        raise HutchError(f"{workspace.name} is {state}", resolution=f"`hutch start {workspace.name}`")


def _is_there(made: Clone) -> bool:
    errors = Tail()
    code = ssh_side(made.workspace, HOUR).carry(inside.found_command(made.directory), ignore, errors.take, ())
    if code not in (0, 1):
        raise inside.explain(made.workspace, made.directory, code, errors.text(), "it cannot be asked for its clone")
    return code == 0


def ignore(data: bytes) -> None:
    """Drop what a workspace says that nobody asked for."""


def _give(repository: Repository, made: Clone) -> None:
    """Send the clone's first commit, with all that is behind it, and have the workspace make a clone of it."""
    who, errors = identity(repository), Tail()
    tags = tracked.tags_of(repository)
    refs = [(f"{HEADS}{made.branch}", made.start), (tracking("host", made.branch), made.start), *tags]
    wanted = "".join(f"{object}\n" for object in sorted({object for _, object in refs})).encode()
    with scratch(repository) as place, open(os.path.join(place.directory, "errors"), "w+b") as said:
        words = ("pack-objects", "--revs", "--stdout", "--delta-base-offset", "-q")
        with _ended(place.git.start(*words, stdin=PIPE, stdout=PIPE, stderr=said.fileno())) as process:

            def pieces() -> Iterator[bytes]:
                yield inside.make_input(refs, repository.shallow())
                assert process.stdin is not None and process.stdout is not None
                with suppress(BrokenPipeError), process.stdin as told:  # its exit code says why
                    told.write(wanted)
                while data := os.read(process.stdout.fileno(), CHUNK):
                    yield data
                if (code := process.wait(PATIENCE)) != 0:
                    said.seek(0)
                    words = said.read(CHUNK).decode("utf-8", "replace").strip()
                    raise HutchError(f"{repository.top} cannot be packed: git {describe(code)}", details=words)

            command = inside.make_command(made.directory, made.branch, repository.format, who)
            code = ssh_side(made.workspace, HOUR).carry(command, ignore, errors.take, pieces())
    if code != 0:
        raise inside.explain(made.workspace, made.directory, code, errors.text(), "the clone could not be made")


@contextmanager
def _ended(process: Popen[bytes]) -> Iterator[Popen[bytes]]:
    """A process that has ended when the context is left."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


@contextmanager
def _received(
    repository: Repository, made: Clone, command: list[str], known: Collection[str], *, limit: int
) -> Iterator[tuple[Sent, Scratch]]:
    """What the workspace sends, checked, in a scratch repository. `limit` are bytes."""
    errors, lines = Tail(), "".join(f"{object}\n" for object in sorted(set(known))).encode()
    with (
        scratch(repository, limit + SLACK) as place,
        Receiver(made.workspace, repository, place, limit) as receiver,
    ):
        code = ssh_side(made.workspace, HOUR).carry(command, receiver.take, errors.take, [lines])
        if code != 0:
            raise inside.explain(made.workspace, made.directory, code, errors.text(), "its work could not be sent")
        yield receiver.finish(), place


def _text_of(workspace: str, process: Popen[bytes]) -> str:
    """The output of git, as text."""
    kept, errors = Kept(MOST_TEXT), Tail()
    assert process.stdout is not None and process.stderr is not None
    takes: dict[int, Take] = {process.stdout.fileno(): kept.take, process.stderr.fileno(): errors.take}
    with closing(Piped(process)) as piped:
        try:
            code = piped.carry(takes, seconds=PATIENCE)
        except (TooMuch, Overdue):
            raise HutchError(
                f"{workspace} has changed more than can be shown",
                resolution=f"`hutch diff --stat {workspace}`, or fetch its branches and look at them with git",
            ) from None
    if code != 0:
        raise HutchError(f"{workspace}: git cannot compare its files", details=errors.text() or describe(code))
    return kept.text()


def _remember(made: Clone, branches: dict[str, str]) -> None:
    """Tell the clone what the host has, so that `hutch rm` knows it for saved. It is no failure of the fetch where the
    clone does not take it."""
    lines = "".join(f"{object} {name}\n" for name, object in branches.items()).encode()
    with suppress(HutchError):
        ssh_side(made.workspace, PATIENCE).carry(inside.remember_command(made.directory), ignore, ignore, [lines])
