"""The server that has a workspace, known by more than its name.

The name of a remote is the user's, who may give it to another server; another user's client may know another server by
it; and a client whose rights were narrowed is told that nothing is there. So a project carries a random word, which
hutch notes for each workspace that it makes there: what is asked about it elsewhere is no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hutch.engines.incus.answers import texts
from hutch.engines.incus.failures import NoAnswer, Refused
from hutch.engines.incus.server import find_project, word_of
from hutch.errors import HutchError
from hutch.files import read_or_none, write_atomic

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client
    from hutch.spec.names import Layout
    from hutch.spec.record import Place


def note(layout: Layout, names: Iterable[str], place: Place, word: str) -> None:
    """Note where workspaces are, before they are made there."""
    for name in names:
        content = f"{place.remote} {place.project} {word}\n".encode()
        if read_or_none(layout.server(name)) != content:
            layout.server(name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(layout.server(name), content, mode=0o600)


def known(layout: Layout, name: str, place: Place) -> str | None:
    """The word of the project that a workspace was made in; None where nobody knows, or may know."""
    try:
        said = (read_or_none(layout.server(name)) or b"").decode("ascii", "replace").split()
    except PermissionError:
        return None
    return said[2] if len(said) == 3 and said[:2] == [place.remote, place.project] else None


def mismatch(layout: Layout, name: str, place: Place, project: Mapping[str, Any] | None) -> HutchError | None:
    """The error where this `project`, or none, is what the remote has, and it is not the one with the workspace."""
    word = known(layout, name, place)
    if word is None or (project is not None and word_of(texts(project.get("config"))) == word):
        return None
    other = "no project" if project is None else "another project"
    return HutchError(
        f"{name} was made on another server, or its project was removed: {place.remote} has {other} {place.project}",
        resolution=f"`incus remote list` shows the remotes; where its project is gone for good, "
        f"`hutch rm --force {name}` forgets it",
    )


def mismatches(layout: Layout, client: Client, names: Iterable[str]) -> dict[str, HutchError]:
    """Why the server's word on these workspaces does not count, for those where it does not. One question."""
    place = client.place
    asked = [name for name in names if known(layout, name, place) is not None]
    if not asked:
        return {}
    try:
        project = find_project(client)
    except (NoAnswer, Refused) as error:
        return dict.fromkeys(asked, error)
    errors = ((name, mismatch(layout, name, place, project)) for name in asked)
    return {name: error for name, error in errors if error is not None}
