"""Git work outside of the home, which goes when its workspace stops, since the root is made anew; or when a kept root
is deleted. Shared directories are the host's own and stay.

A container's root is a layer on its image. The host walks that layer, by descriptors, for repositories that were made
or changed; most often there is none, and that is all. Git looks into those in a throw-away container, as it does for a
home. A machine's root is in its memory, so the guest is asked: what it says only adds to what is in the way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

from hutch.access import git_work
from hutch.access.git_work import GIT, PATIENCE
from hutch.backends import is_machine
from hutch.engines import engine_of
from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.host.services.process import is_alive
from hutch.plan.actions import Plan
from hutch.runtime.observe import observe
from hutch.runtime.status import read_status
from hutch.spec.names import Layout
from hutch.spec.record import Record, has_processes, is_local
from hutch.trees.cursor import PINNED_DIRECTORY, open_strictly, opened, walk_with_ways

WALK_SECONDS = 10.0
BARE = ("objects", "refs")  # in a bare repository, beside HEAD
MOST_REPOSITORIES, MOST_BYTES = 100, 64 << 10  # that are looked into, and of their paths: they are one argument
MOST_SAID = 64 << 10  # bytes of a machine's answer
Repositories = Generator[str, None, None]
"""The ways to repositories, which end with the reader."""
WAY = "push it, or move it into the home; --force goes on all the same, and it is lost"


def check_roots(layout: Layout, records: Mapping[str, Record], brief: str) -> None:
    """Refuse to stop workspaces with whose roots git work would go."""
    found = {name: unsaved_in_root(layout, record) for name, record in records.items()}
    if details := [f"{name}: {line}" for name, lines in found.items() for line in lines]:
        raise HutchError(brief, details="\n".join(details), resolution=WAY)


def refuse_unsaved(plan: Plan) -> None:
    """Refuse a plan with which git work goes that lies in the roots of workspaces."""
    if plan.unsaved:
        raise HutchError("nothing was changed: git work would be lost", details="\n".join(plan.unsaved), resolution=WAY)


def unsaved_in_root(layout: Layout, record: Record, *, deletes: bool = False) -> list[str]:
    """Git work that would go with the root of a workspace when it stops, in words, and reasons why nobody can tell;
    where a root is kept, only if what comes `deletes` it. A machine that does not run is not looked into: nobody mounts
    its disk."""
    is_kept = record.effective.persist == "all"
    if is_kept and not deletes:
        return []
    if not is_local(record.wanted):
        return engine_of(layout, record).unsaved_in_root(record)
    state = observe(layout, record.name).state
    if is_machine(record.effective):
        return _told_by_machine(layout, record) if state == "running" else []
    runs = has_processes(state)  # one that is not ready yet may have been entered
    if not runs and not (is_kept and record.booted is not None and layout.root(record.name).exists()):
        return []
    try:
        return _found_in_container(layout, record, runs=runs)
    except FileNotFoundError:  # it has ended meanwhile
        return []
    except (HutchError, OSError) as error:
        why = (error.details or error.brief).splitlines()[-1] if isinstance(error, HutchError) else error.strerror
        return [f"its root cannot be looked at for unsaved git work: {why}"[: git_work.LONGEST]]


# Containers.


def _found_in_container(layout: Layout, record: Record, *, runs: bool) -> list[str]:
    """The work in the repositories that a container has in the layer on its image."""
    image = record.booted.image if record.booted is not None else record.image
    with ExitStack() as stack:
        root, namespace = stack.enter_context(_main_process(layout, record.name)) if runs else (None, None)
        if root is None or record.effective.persist == "all":
            upper = stack.enter_context(opened(layout.root(record.name) / "upper"))
        else:
            place = os.path.realpath(layout.runtime(record.name))
            way = f"{place}/scratch/upper".lstrip("/")
            upper = stack.enter_context(kept_open(open_strictly(way, below=root, is_one_mount=False)))
        mounts = "" if namespace is None else f"/proc/{os.getpid()}/fd/{namespace}"

        def look(chosen: list[str]) -> list[str]:
            # Spares the start-up of `hutch stop` where there is nothing to look into.
            from hutch.apply.sealed import look_into_root

            return look_into_root(layout, record, chosen, mounts)

        return look_into(touched_repositories(upper, str(layout.image_root(image))), look)


@contextmanager
def _main_process(layout: Layout, name: str) -> Iterator[tuple[int, int]]:
    """Descriptors of the root directory and of the mount namespace of a workspace's main process, which is the host's
    own: the layer is mounted in that namespace only."""
    status = read_status(str(layout.status(name)))
    if status is None:
        raise FileNotFoundError
    flags = os.O_RDONLY | os.O_CLOEXEC
    with (
        kept_open(os.open(f"/proc/{status.pid}/root", flags | os.O_DIRECTORY)) as root,
        kept_open(os.open(f"/proc/{status.pid}/ns/mnt", flags)) as namespace,
    ):
        if not is_alive(status.pid, status.started):  # somebody else may have the number by now
            raise FileNotFoundError
        yield root, namespace


def touched_repositories(upper: int, image: str) -> Repositories:
    """The ways from the root to the `.git`, or a bare one's HEAD, of each repository of which something lies in a
    layer: one that was made in it, or one of what it lies on, the directory `image`, with a change. Some come more than
    once."""
    with _opened_below(image) as below:
        top = _repository_below(below, "")
        for way, directory, name in walk_with_ways(upper, seconds=WALK_SECONDS):
            path = "/".join((*way, name))
            if top and not way and not _is_whiteout(upper, top):
                yield top
            if name == GIT:
                if not _is_whiteout(directory, name):
                    yield path
            elif name == "HEAD" and _may_be_bare(directory, path):
                yield path
            elif _is_directory(directory, name):
                found = _repository_below(below, path)
                if found and not _hides(directory, name, os.path.basename(found)):
                    yield found


@contextmanager
def _opened_below(image: str) -> Iterator[int | None]:
    """A descriptor of what a layer lies on; None where that is gone."""
    try:
        below = os.open(image, PINNED_DIRECTORY)
    except OSError:
        yield None
        return
    with kept_open(below):
        yield below


def _repository_below(below: int | None, path: str) -> str | None:
    """The way to the `.git`, or a bare one's HEAD, of the repository that a directory of what a layer lies on is; None
    where it is none. Names of a layer are its guest's: a link by the same name leads nowhere."""
    if below is None:
        return None
    try:
        with kept_open(open_strictly(path or ".", below=below, flags=PINNED_DIRECTORY)) as directory:
            for name, parts in ((GIT, (GIT,)), ("HEAD", ("HEAD", *BARE))):
                if all(_has(directory, part) for part in parts):
                    return os.path.join(path, name)
    except OSError:  # the layer has a directory where there is none
        pass
    return None


def _has(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _may_be_bare(directory: int, path: str) -> bool:
    """Whether the HEAD at a path, in that directory, may be a bare repository's; links are not followed here."""
    _, is_inside, inside = f"/{path}".rpartition(f"/{GIT}/")
    if (is_inside and not inside.startswith("modules/")) or git_work.is_in_cache(path):
        return False
    return all(_has(directory, part) for part in BARE)


def _is_directory(directory: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _hides(directory: int, name: str, entry: str) -> bool:
    """Whether a directory of a layer, by its name in another, says that there is no such entry."""
    try:
        with kept_open(open_strictly(name, below=directory, flags=PINNED_DIRECTORY)) as inner:
            return _is_whiteout(inner, entry)
    except OSError:
        return False


def _is_whiteout(directory: int, name: str) -> bool:
    """Whether an entry of a layer says that there is no such entry."""
    try:
        return stat.S_ISCHR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def look_into(repositories: Repositories, look: Callable[[list[str]], list[str]]) -> list[str]:
    """What a look finds in as many of these repositories as are looked into, in words. A guest may have made millions,
    and names of any length: no more than those are kept."""
    chosen, size, more = dict[str, None](), 0, list[str]()  # in their order
    with closing(repositories):
        for path in repositories:
            if path in chosen:
                continue
            size += len(os.fsencode(path))
            if len(chosen) == MOST_REPOSITORIES or size > MOST_BYTES:
                more = ["of more repositories, nobody knows: there are too many to look into"]
                break
            chosen[path] = None
    return [*(look(list(chosen)) if chosen else []), *more]


# Machines.


def _told_by_machine(layout: Layout, record: Record) -> list[str]:
    """The work that a running machine tells of."""
    # Spares the start-up of `hutch stop` for containers.
    from hutch.access.inside import heard_inside

    look = git_work.find_in_root_command(record.effective)
    code, said = heard_inside(layout, record, look, seconds=PATIENCE, most=MOST_SAID)
    found = git_work.found_among(said)
    if code != 0 and observe(layout, record.name).state == "running":
        how = f"within {PATIENCE:g} s" if code is None else f"(exit code {code})"
        found.append(f"it cannot tell {how} whether its root holds unsaved git work")
    return found
