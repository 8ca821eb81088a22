"""What two workspaces of one host must not have in common. Pure; whoever asks puts it into words.

Asked about the workspaces of one file, and about those of all files of a host.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping

from hutch.frozen import dataclass
from hutch.spec import names
from hutch.spec.model import Workspace

Real = Callable[[str], str]
"""Resolves symbolic links: two paths may lead to one directory."""

IDENTIFIERS: Mapping[str, Callable[[str, Workspace], object]] = {
    "ip": lambda name, workspace: workspace.ip,
    "mac": lambda name, workspace: workspace.mac or names.mac(name),
    "cid": lambda name, workspace: workspace.cid or names.cid(name),
    "interface": lambda name, workspace: names.port(name, workspace.type),  # whose name has room for 15 bytes only
}


@dataclass(frozen=True)
class Clash:
    """What `name` has in common with `other`, which comes before it.

    `index` is that of an entry of `publish`; `homes` are those of `other` and of `name`.
    """

    other: str
    name: str
    value: object = None
    index: int = 0
    homes: tuple[str, str] = ("", "")


def same_identifiers(workspaces: Mapping[str, Workspace], key: str) -> Iterator[Clash]:
    """Workspaces with one address, MAC, context id or interface, be it given or derived."""
    seen: dict[object, str] = {}
    for name, workspace in workspaces.items():
        value = IDENTIFIERS[key](name, workspace)
        other = seen.setdefault(value, name)
        if value is not None and other != name:
            yield Clash(other, name, value)


def same_ports(workspaces: Mapping[str, Workspace]) -> Iterator[Clash]:
    """Ports of the host that are published twice, maybe by one workspace: each leads to one place, on each of the
    host's addresses."""
    seen: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for name, workspace in workspaces.items():
        for index, publish in enumerate(workspace.publish):
            others = seen.setdefault((publish.host_port, publish.protocol), [])
            for ip, other in others:
                if not ip or not publish.host_ip or ip == publish.host_ip:
                    yield Clash(other, name, f"{publish.host_port}/{publish.protocol}", index)
                    break
            others.append((publish.host_ip, name))


def same_homes(workspaces: Mapping[str, Workspace], real: Real) -> Iterator[Clash]:
    """A home is one workspace's: not another's too, nor inside another's."""
    seen: list[tuple[str, str]] = []
    for name, workspace in workspaces.items():
        if workspace.home is None:
            continue
        home = real(workspace.home)
        for around, other in seen:
            if is_inside(home, around) or is_inside(around, home):
                yield Clash(other, name, homes=(around, home))
                break
        seen.append((home, name))


def is_inside(path: str, tree: str) -> bool:
    """Whether `path` is `tree` or in it, by name."""
    return posixpath.normpath(path) == tree or path.startswith(tree.rstrip("/") + "/")
