"""Clashes: values that two workspaces of one host must not share. Pure; the caller puts them into words.

The questions are about the workspaces of one file, and about those of all files of a host. Those that another host runs
share no more than the addresses with this one's.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping

from hutch.frozen import dataclass
from hutch.spec import names
from hutch.spec.model import WorkspaceSpec
from hutch.spec.record import is_local

Real = Callable[[str], str]
"""Resolves symbolic links: two paths may lead to one directory."""

IDENTIFIERS: Mapping[str, Callable[[str, WorkspaceSpec], object]] = {
    "ip": lambda name, workspace: workspace.ip,
    "mac": lambda name, workspace: workspace.mac or names.mac(name),
    "cid": lambda name, workspace: (workspace.cid or names.cid(name)) if is_local(workspace) else None,
    # Its name has room for 15 bytes only.
    "interface": lambda name, workspace: names.port(name, workspace.type) if is_local(workspace) else None,
}


@dataclass(frozen=True)
class Clash:
    """A value that `name` has in common with `other`, which comes before it.

    `index` is that of an entry of `publish`; `homes` are those of `other` and of `name`.
    """

    other: str
    name: str
    value: object = None
    index: int = 0
    homes: tuple[str, str] = ("", "")


def same_identifiers(workspaces: Mapping[str, WorkspaceSpec], key: str) -> Iterator[Clash]:
    """Workspaces with one address, MAC, context id or interface, be it given or derived. This host reaches all of them
    by their addresses; the rest is a matter of each engine."""
    seen: dict[object, str] = {}
    for name, workspace in workspaces.items():
        value = IDENTIFIERS[key](name, workspace)
        other = seen.setdefault(value if key == "ip" else (workspace.engine, value), name)
        if value is not None and other != name:
            yield Clash(other, name, value)


def same_ports(workspaces: Mapping[str, WorkspaceSpec]) -> Iterator[Clash]:
    """Ports of the host that are published twice, maybe by one workspace: each leads to one place, on each of the
    host's addresses. Elsewhere, which member a workspace publishes on is the server's choice: that refuses a port which
    is taken."""
    seen: dict[tuple[str, int, str], dict[str, str]] = {}
    for name, workspace in workspaces.items():
        for index, publish in enumerate(workspace.publish):
            host = "" if is_local(workspace) else name
            others = seen.setdefault((host, publish.host_port, publish.protocol), {})
            # A port on every address collides with all that are there already.
            found = (others.get(ip) for ip in (publish.host_ip, "")) if publish.host_ip else others.values()
            other = next((other for other in found if other is not None), None)
            if other is not None:
                yield Clash(other, name, f"{publish.host_port}/{publish.protocol}", index)
            others.setdefault(publish.host_ip, name)


def same_homes(workspaces: Mapping[str, WorkspaceSpec], real: Real) -> Iterator[Clash]:
    """Homes that are another workspace's too, or lie inside another's: a home is one workspace's."""
    homes: dict[str, str] = {}  # home -> its workspace
    inside: dict[str, str] = {}  # directory -> a home somewhere in it
    for name, workspace in workspaces.items():
        if workspace.home is None:
            continue
        home = posixpath.normpath(real(workspace.home))
        above = list(parents(home))
        around = next((path for path in (home, *above) if path in homes), inside.get(home))
        if around is not None:
            yield Clash(homes[around], name, homes=(around, home))
        homes.setdefault(home, name)
        for path in above:
            inside.setdefault(path, home)


def parents(path: str) -> Iterator[str]:
    """The directories that a path is in, from the nearest to the root."""
    while (above := posixpath.dirname(path)) != path:
        yield above
        path = above


def is_inside(path: str, tree: str) -> bool:
    """Whether `path` is `tree` or in it, by name."""
    return posixpath.normpath(path) == tree or path.startswith(tree.rstrip("/") + "/")
