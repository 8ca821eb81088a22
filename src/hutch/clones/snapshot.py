"""The host's work as commits: HEAD, and on top of it what is not committed, as one commit.

No filter, hook or monitor runs for it, neither the person's own nor one that a repository configures: the content of a
file goes as it lies there. A file that git's index knows as unchanged goes as the index has it, so files that a filter
has written (git-lfs) stay what was committed. Repositories within the checkout are not looked into: a submodule goes as
the commit that the index names, any other repository stays out, as ignored files do.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from hutch.clones.git import Git, Repository, Scratch, person, scratch, told
from hutch.errors import HutchError
from hutch.files import kept_open, open_regular

MESSAGE = "Work that was not committed on the host when this clone was made\n"
KEPT_KEYS = frozenset(
    f"core.{name}"
    for name in (
        *("autocrlf", "bigfilethreshold", "checkstat", "eol", "filemode", "ignorecase", "precomposeunicode"),
        *("sparsecheckout", "sparsecheckoutcone", "symlinks", "trustctime"),
    )
)
"""The keys of a repository's configuration that say how its files are read, and start nothing."""
GITLINK = "160000"
BY_STAT = "index-by-stat"
YOUNGEST = 4_000_000_000 * 10**9  # nanoseconds; git's own times have 32 bits of seconds
UNFILTERED = frozenset((b"unspecified", b"unset"))


def commit_work(repository: Repository, *, committed: bool) -> str:
    """The commit with which a clone begins: HEAD, or a new one on top of it that holds what is not committed, unless
    only `committed` work is wanted. Raises HutchError where there is neither."""
    if not committed:
        with (
            told(f"{repository.top}: its uncommitted work cannot be committed", "--committed leaves it out"),
            scratch(repository, work=_config(repository)) as place,
        ):
            _copy_index(repository, place)
            _update(place, repository.top)
            tree = place.git.line("write-tree")
            if tree != _tree_before(place.git, repository):
                return _commit(place.git, repository, tree)
    if not repository.head:
        raise HutchError(f"{repository.top} has no commit yet", resolution="commit something first")
    return repository.head


def _tree_before(git: Git, repository: Repository) -> str:
    """The files of HEAD as git names them; before the first commit, that there are none."""
    if repository.head:
        return git.line("rev-parse", f"{repository.head}^{{tree}}")
    return git.line("hash-object", "-t", "tree", os.devnull)


def identity(repository: Repository) -> tuple[str, str]:
    """The person's name and address for commits."""
    entry = person()
    name = repository.config.get("user.name") or entry.pw_gecos.partition(",")[0] or entry.pw_name
    return name, repository.config.get("user.email") or f"{entry.pw_name}@localhost"


def _config(repository: Repository) -> dict[str, str]:
    kept = {key: value for key, value in repository.config.items() if key in KEPT_KEYS}
    home = person().pw_dir
    ignored = repository.config.get("core.excludesfile", "~/.config/git/ignore")
    return {**kept, "core.excludesfile": home + ignored[1:] if ignored.startswith("~/") else ignored}


def _copy_index(repository: Repository, place: Scratch) -> None:
    """Copy the index, and what says which files are ignored. git takes an entry that is as old as the index itself for
    one that may have changed, so the copy keeps its age; a second one is younger than any file."""
    for name in _names(repository.directory):
        if name == "index" or name.startswith("sharedindex."):
            _copy(Path(repository.directory, name), Path(place.directory, name))
    _copy(Path(repository.directory, "index"), Path(place.directory, BY_STAT), keep_age=False)
    for above, name in ((repository.common, "exclude"), (repository.directory, "sparse-checkout")):
        _copy(Path(above, "info", name), Path(place.directory, "info", name))


def _names(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


def _copy(source: Path, target: Path, *, keep_age: bool = True) -> None:
    """Copy a regular file, if there is one."""
    try:
        descriptor = open_regular(source, follow=False)
    except OSError:
        return
    with kept_open(descriptor), open(descriptor, "rb", closefd=False) as content:
        found = os.fstat(descriptor)
        with open(target, "wb") as copy:
            shutil.copyfileobj(content, copy)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns) if keep_age else (YOUNGEST, YOUNGEST))


def _update(place: Scratch, top: str) -> None:
    """Bring the files of the checkout into the index."""
    changed = _changed(place.git)
    filtered = _filtered(place.git, changed)
    if filtered:
        # Only the filter could tell whether their content has changed; where size and times are the same, it has not.
        by_stat = replace(
            place.git, environment={**place.git.environment, "GIT_INDEX_FILE": f"{place.directory}/{BY_STAT}"}
        )
        changed = (changed - filtered) | (filtered & _changed(by_stat))
    others = (name for name in _split(place.git.run("ls-files", "-z", "--others", "--exclude-standard")))
    wanted = changed | {name for name in others if not name.endswith(b"/")}  # that would be a repository
    names = b"".join(name + b"\0" for name in sorted(wanted) if _is_work(top, name))
    if names:
        place.git.run("update-index", "-z", "--add", "--remove", "--replace", "--stdin", stdin=names)


def _changed(git: Git) -> set[bytes]:
    """The files that differ from the index."""
    items = _split(git.run("diff-files", "--raw", "-z", "--no-renames", "--ignore-submodules=all"))
    found = zip(items, items, strict=True)
    return {name for said, name in found if not said.startswith(b":" + GITLINK.encode())}


def _filtered(git: Git, names: Collection[bytes]) -> set[bytes]:
    """The files among them that a filter is to write and read."""
    if not names:
        return set()
    told = b"".join(name + b"\0" for name in names)
    items = _split(git.run("check-attr", "-z", "--stdin", "filter", stdin=told))
    return {name for name, _, value in zip(items, items, items, strict=True) if value not in UNFILTERED}


def _split(output: bytes) -> Iterator[bytes]:
    return iter(output.split(b"\0")[:-1])


def _is_work(top: str, name: bytes) -> bool:
    """Whether git can keep what is there now: a file, a link, or nothing any more."""
    try:
        mode = os.lstat(os.path.join(os.fsencode(top), name)).st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)


def _commit(git: Git, repository: Repository, tree: str) -> str:
    name, email = identity(repository)
    who = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", email))
    }
    parents = ("-p", repository.head) if repository.head else ()
    return replace(git, environment={**git.environment, **who}).line("commit-tree", *parents, "-m", MESSAGE, tree)
