"""The refs of the host's repository that follow a workspace's clone: below refs/remotes/NAME and refs/hutch/NAME, and
nowhere else. Its hooks do not run, and no symbolic ref is followed.
"""

from __future__ import annotations

from collections.abc import Mapping

from hutch.clones.git import Repository, told
from hutch.clones.refs import start_of, tracking
from hutch.errors import HutchError


def check_free(repository: Repository, workspace: str) -> None:
    """Raise HutchError where a remote of the repository's own has its branches where the workspace's would go."""
    taken = sorted(name for name in repository.remotes() if f"{name}/".startswith(f"{workspace}/"))
    if taken:
        raise HutchError(
            f"{repository.top} has a remote called {taken[0]}, whose branches would be mixed with those of {workspace}",
            resolution=f"`git remote rename {taken[0]} …`, or another workspace",
        )


def known_commits(repository: Repository) -> set[str]:
    """The commits that the repository has for certain: those of all its refs."""
    format = "%(objectname) %(objecttype) %(*objectname) %(*objecttype)"
    found = set()
    for line in _lines(repository, f"--format={format}"):
        object, kind, *tagged = line.split(" ")
        if kind == "commit":
            found.add(object)
        elif tagged[1:] == ["commit"]:
            found.add(tagged[0])
    return found | ({repository.head} if repository.head else set())


def tracked(repository: Repository, workspace: str) -> dict[str, str]:
    """The branches of a workspace as they were fetched last, and their commits."""
    above = tracking(workspace)
    lines = _lines(repository, "--format=%(objectname) %(refname)", above)
    return {ref.removeprefix(above): object for object, _, ref in (line.partition(" ") for line in lines)}


def tags_of(repository: Repository) -> list[tuple[str, str]]:
    """The tags of what HEAD holds, and their objects."""
    if not repository.head:
        return []
    lines = _lines(repository, "--format=%(objectname) %(refname)", "--merged", repository.head, "refs/tags")
    return [(ref, object) for object, _, ref in (line.partition(" ") for line in lines)]


def _lines(repository: Repository, *words: str) -> list[str]:
    """The lines about refs; the name of one may have in it what other programs take for the end of a line."""
    said = repository.git.line("for-each-ref", *words)
    return said.split("\n") if said else []


def write(repository: Repository, workspace: str, branches: Mapping[str, str]) -> None:
    """Have the refs of a workspace's branches name these commits; "" removes one. All of them, or none."""
    _change(
        repository, {tracking(workspace, name): object for name, object in branches.items()}, f"hutch fetch {workspace}"
    )


def write_start(repository: Repository, workspace: str, object: str) -> None:
    """Keep the commit with which a clone began; "" lets it go."""
    _change(repository, {start_of(workspace): object}, f"hutch run --clone, {workspace}")


def _change(repository: Repository, refs: Mapping[str, str], why: str) -> None:
    told_of = "".join(
        f"option no-deref\0update {ref}\0{object}\0\0" if object else f"option no-deref\0delete {ref}\0\0"
        for ref, object in refs.items()
    )
    if told_of:
        with told(f"{repository.top}: the refs of the clone cannot be written"):
            repository.git.run(
                "update-ref", "-z", "--stdin", "-m", why, stdin=told_of.encode("utf-8", "surrogateescape")
            )
