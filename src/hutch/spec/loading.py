"""Loading: turns a hutch.toml into a Config, or into all of its problems at once.

Reads the file, the user database and public keys; changes nothing, prints nothing. The rules for one value are in
spec/values and spec/entries, those for several together in spec/crosscheck.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

from hutch.errors import ConfigError, Problem
from hutch.spec import crosscheck
from hutch.spec.crosscheck import Draft
from hutch.spec.field_types import Invalid
from hutch.spec.lookup import LARGEST_FILE, LONGEST_LINE, is_unwieldy
from hutch.spec.model import Config, Incus, Network, WorkspaceSpec
from hutch.spec.names import Layout, is_name
from hutch.spec.owner import Owner, default_owner, expand, expand_keys, find_owner, unique
from hutch.spec.validation import FieldProblem, Table, choices, dotted, nearest, shorten, undotted, validate
from hutch.spec.validation import Path as KeyPath
from hutch.spec.values import NAME_HINT, HostPath

SECTIONS = ("network", "defaults", "workspaces", "engines")
STAND_INS: Table = {"type": "container"}  # so that the rest of a workspace without a type can be checked

Check = Callable[[str, WorkspaceSpec, Network], Iterable[Problem]]


def no_check(name: str, workspace: WorkspaceSpec, network: Network) -> Iterable[Problem]:
    """The check of a caller who has none."""
    return ()


def load(path: Path, *, layout: Layout, check: Check = no_check) -> Config:
    """The configuration in `path`, with paths, owners and keys resolved. Raises ConfigError with every problem.

    `check` returns further problems of a workspace; they need no more than a key, a message and a hint.
    """
    file = os.path.realpath(path)
    text = read_file(file)
    data = parse_toml(file, text)
    findings: list[FieldProblem] = []
    config = read_config(file, data, findings, layout, check)
    if findings:
        raise ConfigError(locate(file, text, findings))
    return config


# The file.


def read_file(file: str) -> str:
    """The text of a hutch.toml that is safe to believe, through one descriptor."""

    def refuse(message: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(message, hint=hint, file=file)])

    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW)
    except OSError as error:
        raise refuse(f"cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is not a regular file")
        if status.st_mode & 0o022:
            raise refuse("can be written by its group or by others", f"chmod go-w {file}")
        with open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(content) > LARGEST_FILE:
        raise refuse("is larger than 1 MiB")
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError([Problem("is not UTF-8 text", file=file, line=line)]) from None
    if line := is_unwieldy(text):
        raise ConfigError([Problem(f"the line is longer than {LONGEST_LINE} characters", file=file, line=line)])
    return text


def parse_toml(file: str, text: str) -> Table:
    """The tables of the file. A syntax error is its only problem: behind it nothing can be told."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        problem = Problem("nests too deeply", file=file)
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        message = str(error)
        place = re.search(r" \(at line ([0-9]+), column [0-9]+\)$", message)
        end = re.search(r" \(at end of document\)$", message)
        line = int(place[1]) if place else text.rstrip("\n").count("\n") + 1 if end else 0
        reason = message[: (place or end or re.search("$", message)).start()]  # type: ignore[union-attr]
        problem = Problem(f"is not valid TOML: {shorten(reason, 200)}", file=file, line=line)
    raise ConfigError([problem])


def locate(file: str, text: str, findings: Iterable[FieldProblem]) -> list[Problem]:
    """The findings with their lines and the values as they are written, in the order of the file; each once, though a
    finding in [defaults] is made again in every workspace."""
    # Spares the start-up of `hutch up` for files that are right.
    from hutch.spec.positions import Positions

    positions = Positions(text)
    found = ((finding, positions.find(finding.path)) for finding in dict.fromkeys(findings))
    problems = [
        Problem(finding.message, dotted(finding.path), shorten(place.text), finding.hint, file, place.line)
        for finding, place in found
    ]
    return sorted(problems, key=lambda problem: (problem.line, problem.key))


# The tables.


def read_config(file: str, data: Table, findings: list[FieldProblem], layout: Layout, check: Check) -> Config:
    """The Config of the whole file; wrong values are added to `findings` and left out."""
    for key, value in data.items():
        if key not in SECTIONS:
            lost = isinstance(value, dict) and "type" in value
            hint = f"did you mean [workspaces.{key}]?" if lost else nearest(key, SECTIONS)
            findings.append(FieldProblem((key,), "unknown key", hint))
    checked = validate(Network, table_at(data, ("network",), findings), ("network",))
    network = checked.value
    findings += [*checked.findings, *crosscheck.check_network(network)]
    drafts = read_workspaces(data, findings)
    resolver = Resolver(Path(file).parent, findings)
    drafts = [resolver.resolve(draft) for draft in drafts]
    subnet_is_wrong = any(finding.path[:2] == ("network", "subnet") for finding in checked.findings)
    subnet = None if subnet_is_wrong else network.subnet
    findings += crosscheck.check_workspaces(
        drafts, subnet, layout=layout, file=file, real=functools.cache(os.path.realpath)
    )
    for draft in drafts:
        findings += backend_findings(draft, network, check)
    return Config(
        file=file,
        network=network,
        workspaces={draft.name: draft.workspace for draft in drafts},
        incus=read_engines(data, findings),
    )


def table_at(data: Table, path: KeyPath, findings: list[FieldProblem]) -> Table:
    """The table at the end of `path`, empty when absent."""
    value = data.get(str(path[-1]), {})
    if isinstance(value, dict):
        return value
    findings.append(FieldProblem(path, "must be a table", f"[{dotted(path)}]"))
    return {}


def read_engines(data: Table, findings: list[FieldProblem]) -> Incus | None:
    """The `[engines.…]` tables, of which there is one."""
    engines = table_at(data, ("engines",), findings)
    findings += [
        FieldProblem(("engines", key), "unknown engine", nearest(key, ["incus"])) for key in engines if key != "incus"
    ]
    if "incus" not in engines:
        return None
    path = ("engines", "incus")
    incus = validate(Incus, table_at(engines, path, findings), path)
    findings += incus.findings
    return incus.value


def read_workspaces(data: Table, findings: list[FieldProblem]) -> list[Draft]:
    """A draft of every workspace, on top of the valid part of `[defaults]`."""
    said = table_at(data, ("defaults",), findings)
    defaults = validate(WorkspaceSpec, {**STAND_INS, **said}, ("defaults",), STAND_INS)
    findings += defaults.findings
    drafts = []
    workspaces = table_at(data, ("workspaces",), findings)
    types = get_args(get_type_hints(WorkspaceSpec)["type"])
    for name in workspaces:
        at = ("workspaces", name)
        named = is_name(name)
        if not named:
            findings.append(FieldProblem(at, "cannot name a workspace", NAME_HINT))
        own = table_at(workspaces, at, findings)
        if own is not workspaces[name]:
            continue
        if "type" not in said and "type" not in own:
            findings.append(FieldProblem((*at, "type"), "is missing", choices(WorkspaceSpec, "type")))
        checked = validate(WorkspaceSpec, {**defaults.table, **own}, at, STAND_INS)
        findings += checked.findings
        inherited = frozenset(said) & frozenset(defaults.table) - frozenset(own)
        drafts.append(
            Draft(
                name=name,
                workspace=checked.value,
                own=frozenset(own) & frozenset(checked.table),
                inherited=inherited,
                kept={**checked.kept, **{key: kept for key, kept in defaults.kept.items() if key in inherited}},
                whole=named and own.get("type", said.get("type")) in types,
            )
        )
    return drafts


def backend_findings(draft: Draft, network: Network, check: Check) -> Iterator[FieldProblem]:
    """The problems that `check` finds in a workspace, at the place in the file where the key was given."""
    if not draft.whole:
        return
    table = ("workspaces", draft.name)
    for problem in check(draft.name, draft.workspace, network):
        path = undotted(problem.key) or table
        if path[:2] == table and len(path) > 2:
            path = draft.path(str(path[2]), *path[3:])
        yield FieldProblem(path, problem.message, problem.hint)


class Resolver:
    """Looks up what a workspace names on the host: its owner, paths under homes, and public keys.

    Lookups are remembered for the length of one load. A name that leads nowhere is a finding and is left out.
    """

    def __init__(self, directory: Path, findings: list[FieldProblem]) -> None:
        self.directory = directory
        self.findings = findings
        self.find_owner = functools.cache(find_owner)
        self.expand_keys = functools.cache(expand_keys)

    def resolve(self, draft: Draft) -> Draft:
        workspace = draft.workspace
        owner = self.owner(draft)
        kept = {key: list(indexes) for key, indexes in draft.kept.items()}
        mounts = []
        for index, mount in enumerate(workspace.mounts):
            source = self.path(mount.source, owner, draft.path("mounts", index, "source"))
            if source is not None:
                mounts.append(dataclasses.replace(mount, source=source))
            else:
                kept["mounts"].remove(int(draft.path("mounts", index)[-1]))
        image = workspace.image
        scheme, _, tree = image.partition(":")
        if scheme in ("rootfs", "nix"):
            image = f"{scheme}:{self.path(tree, owner, draft.path('image')) or tree}"
        home = workspace.home
        resolved = dataclasses.replace(
            workspace,
            owner=None if workspace.owner is None else owner.uid,
            image=image,
            home=None if home is None else self.path(home, owner, draft.path("home")),
            mounts=tuple(mounts),
            authorized_keys=self.keys(draft, owner),
        )
        return dataclasses.replace(draft, workspace=resolved, kept=kept)

    def owner(self, draft: Draft) -> Owner:
        said = draft.workspace.owner
        if said is not None:
            try:
                return self.find_owner(said)
            except Invalid as error:
                self.findings.append(FieldProblem(draft.path("owner"), error.message, error.hint))
        default = default_owner(os.environ, os.getuid())
        try:
            return self.find_owner(default)
        except Invalid as error:
            if said is None:
                message = f"is not said, and the default, uid {default}, {error.message}"
                self.findings.append(FieldProblem(draft.path("owner"), message, error.hint))
            return Owner(uid=default, gid=default, home=None, name=str(default))

    def path(self, path: str, owner: Owner, at: KeyPath) -> str | None:
        """`path` made absolute and checked once more: homes and the file's directory are now part of it."""
        try:
            return HostPath().parse(expand(path, owner, self.directory))
        except Invalid as error:
            self.findings.append(FieldProblem(at, error.message, error.hint))
            return None

    def keys(self, draft: Draft, owner: Owner) -> tuple[str, ...] | None:
        said = draft.workspace.authorized_keys
        if said is None:  # all keys of the owner, whom the record may know better
            return None
        lines: list[str] = []
        for index, entry in enumerate(said):
            try:
                lines += self.expand_keys(entry, owner, self.directory)
            except Invalid as error:
                self.findings.append(FieldProblem(draft.path("authorized_keys", index), error.message, error.hint))
        return unique(lines)
