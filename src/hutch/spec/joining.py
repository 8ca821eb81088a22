"""Joining: a workspace and the kits that it uses become one workspace. Pure.

Entries of lists join. Of two mounts on one target, and of two variables of one name, that of the kit which `use` names
later counts, and the workspace's own in any case. Scripts run one after the other, the workspace's last. A kit's list
of destinations narrows what says nothing of `egress`, and adds to a list; a word that the workspace says stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from hutch.frozen import dataclass
from hutch.spec.crosscheck import Draft, Entries
from hutch.spec.model import Brought, Kit, Mount
from hutch.spec.validation import Path

Entry = tuple[Any, Path]
"""An entry of a list or of a table, and its place in a file."""
END = "end of the script"


@dataclass(frozen=True)
class Used:
    """A kit that a workspace uses, as far as it is valid. `kept` maps the entries of its lists to their indexes in the
    file."""

    name: str
    kit: Kit
    kept: Mapping[str, Sequence[int]]

    def path(self, key: str, *inside: str | int) -> Path:
        return ("kits", self.name, key, *inside)


def join(draft: Draft, kits: Sequence[Used]) -> Draft:
    """The draft of a workspace with its kits, in the order of `use`, in it."""
    values: dict[str, Any] = {}
    places: dict[str, Entries] = {}
    for key in Kit.__dataclass_fields__:
        users = [used for used in kits if getattr(used.kit, key)]
        if not users or (key == "egress" and not _takes_egress(draft)):
            continue
        if key == "setup":
            values[key] = join_scripts([(used.name, used.kit.setup) for used in users], draft.workspace.setup)
            places[key] = {used.name: used.path(key) for used in users}
            continue
        found = _merged([each for used in users for each in _brought_by(used, key)], list(_own(draft, key)))
        if key == "env":
            found.sort(key=lambda entry: entry[0][0])
        values[key] = tuple(value for value, _ in found)
        places[key] = {value[0] if key == "env" else index: path for index, (value, path) in enumerate(found)}
    return replace(draft, workspace=replace(draft.workspace, **values), entries={**draft.entries, **places})


def _takes_egress(draft: Draft) -> bool:
    """Whether the lists of kits join: beside a list, and where neither the workspace nor [defaults] says anything."""
    return isinstance(draft.workspace.egress, tuple) or not draft.says("egress")


def _merged(brought: Sequence[tuple[object, Entry]], own: Sequence[tuple[object, Entry]]) -> list[Entry]:
    """The entries of kits that nothing later replaces, in their order, and behind them the workspace's own."""
    found: dict[object, Entry] = {}
    for identity, entry in brought:
        found.pop(identity, None)
        found[identity] = entry
    for identity, _ in own:
        found.pop(identity, None)
    return [*found.values(), *(entry for _, entry in own)]


def _brought_by(used: Used, key: str) -> Iterator[tuple[object, Entry]]:
    """The entries of a kit, each with what tells it from others."""
    for index, value in enumerate(getattr(used.kit, key)):
        at = value[0] if key == "env" else used.kept[key][index]
        yield _identity(key, value), (value, used.path(key, at))


def _own(draft: Draft, key: str) -> Iterator[tuple[object, Entry]]:
    """The entries of the workspace itself, each with what tells it from others. A word is no list."""
    values = getattr(draft.workspace, key)
    for index, value in enumerate(() if isinstance(values, str) else values):
        at = value[0] if key == "env" else index
        yield _identity(key, value), (value, draft.path(key, at))


def _identity(key: str, value: Any) -> object:
    if isinstance(value, Mount):
        return value.target
    return value[0] if key == "env" else value


def join_scripts(scripts: Sequence[tuple[str, str]], own: str) -> str:
    """One script that runs those of kits, given as (kit, script), and then the workspace's own, each by its own
    interpreter. What fails says whose it is."""
    lines = ["#!/bin/sh -e", "# The setup scripts of kits, and then the workspace's own."]
    for name, script in scripts:
        lines += _run_script(f"the kit {name}", script)
    if own:
        lines += _run_script("the workspace", own)
    return "\n".join([*lines, "rm /tmp/hutch-part"]) + "\n"


def _run_script(whose: str, script: str) -> Iterator[str]:
    """The lines that run one script, as a build runs the only one: see images/inside.sh."""
    end, number = END, 1
    while end in script.split("\n"):
        end, number = f"{END} {number}", number + 1
    yield f"cat >/tmp/hutch-part <<'{end}'"
    yield script.removesuffix("\n")
    yield end
    yield "chmod 0700 /tmp/hutch-part"
    interpreter = "" if script.startswith("#!") else "/bin/sh -e "
    yield f"{interpreter}/tmp/hutch-part </dev/null || {{"
    yield f"  code=$?; echo 'the setup script of {whose} failed with code '$code >&2; exit $code"
    yield "}"


def brought_by_kits(draft: Draft, scripts: Mapping[str, str]) -> Brought:
    """The part of a joined workspace that is its kits', as JSON has it; `scripts` has the setup script of each kit."""
    brought: dict[str, dict[str, list[Any]]] = {}
    for key in Kit.__dataclass_fields__:
        values: Any = getattr(draft.workspace, key)
        for at, path in draft.entries.get(key, {}).items():
            if path[0] == "kits":
                kit = str(path[1])
                value = scripts[kit] if key == "setup" else [at, dict(values)[at]] if key == "env" else values[at]
                value = asdict(value) if isinstance(value, Mount) else value
                brought.setdefault(key, {}).setdefault(kit, []).append(value)
    return brought
