"""Loading: turns a hutch.toml into a Config, or into all of its problems at once.

Reads the file and kits, the user database and public keys; changes nothing, prints nothing. The rules for one value
are in spec/values and spec/entries, those for several together in spec/crosscheck; kits are joined by spec/joining.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args, get_type_hints

from hutch.errors import ConfigError, Problem
from hutch.files import real_path
from hutch.spec import crosscheck
from hutch.spec.allowance import Allowance, Look, check_allowance, check_sections, clamped, is_for_member
from hutch.spec.checkouts import Checkout, check_checkout
from hutch.spec.crosscheck import Draft, Entries, table_of
from hutch.spec.field_types import Invalid
from hutch.spec.joining import Used, brought_by_kits, join
from hutch.spec.kit_files import Believe, Kits, believe_all
from hutch.spec.model import Clamped, Config, Incus, Network, WorkspaceSpec
from hutch.spec.names import Layout, is_name
from hutch.spec.owner import Owner, Search, default_owner, expand, expand_keys, find_owner, owner_of_path, unique
from hutch.spec.reading import Judge, judge_nothing, locate, parse_toml, read_file
from hutch.spec.sharing import MOST_SHARED, find_holder
from hutch.spec.validation import FieldProblem, Table, choices, dotted, nearest, undotted, validate
from hutch.spec.validation import Path as KeyPath
from hutch.spec.values import NAME_HINT, HostPath

SECTIONS = ("network", "defaults", "workspaces", "engines", "kits")
STAND_INS: Table = {"type": "container"}  # so that the rest of a workspace without a type can be checked

Check = Callable[[str, WorkspaceSpec, Network], Iterable[Problem]]


def no_check(name: str, workspace: WorkspaceSpec, network: Network) -> Iterable[Problem]:
    """The check of a caller who has none."""
    return ()


def load(
    file: str,
    *,
    layout: Layout,
    check: Check = no_check,
    owners: Collection[int] | None = None,
    believe: Believe = believe_all,
    allowance: Allowance | None = None,
    judge: Judge = judge_nothing,
) -> Config:
    """The configuration in `file`, a path without links, with paths, owners and keys resolved, and kits joined. Raises
    ConfigError with every problem.

    `owners` are the uids whose file is believed, None for everybody's: see believed_owners(). `check` returns
    further problems of a workspace; they need no more than a key, a message and a hint. `believe` is asked about the
    files of kits, `judge` about the directory of this one. `allowance` is a member's, for whom it is loaded.
    """
    text = read_file(file, owners, judge=judge)
    return config_of(file, text, layout=layout, check=check, believe=believe, allowance=allowance)


def config_of(
    file: str,
    text: str,
    *,
    layout: Layout,
    check: Check = no_check,
    checkout: Checkout | None = None,
    believe: Believe = believe_all,
    allowance: Allowance | None = None,
) -> Config:
    """The configuration that a file has with this text; see `load`. One in a `checkout` widens nothing."""
    data = parse_toml(file, text)
    findings: list[FieldProblem] = []
    kits = Kits(file, table_at(data, ("kits",), findings), believe)
    config = read_config(file, data, findings, layout, check, kits, checkout, allowance)
    elsewhere = {("kits", name): kit for name, kit in kits.files().items()}
    here = [finding for finding in findings if finding.path[:2] not in elsewhere]
    problems = locate(file, text, here) if here else []
    for place, kit in elsewhere.items():
        problems += kit.all_problems(finding for finding in findings if finding.path[:2] == place)
    if problems:
        raise ConfigError(problems)
    return config


# The tables.


def read_config(
    file: str,
    data: Table,
    findings: list[FieldProblem],
    layout: Layout,
    check: Check,
    kits: Kits,
    checkout: Checkout | None = None,
    allowance: Allowance | None = None,
) -> Config:
    """The Config of the whole file; wrong values are added to `findings` and left out."""
    for key, value in data.items():
        if key not in SECTIONS:
            lost = isinstance(value, dict) and "type" in value
            hint = f"did you mean [workspaces.{key}]?" if lost else nearest(key, SECTIONS)
            findings.append(FieldProblem((key,), "unknown key", hint))
    network = validate(Network, table_at(data, ("network",), findings), ("network",))
    findings += network.findings
    incus = read_engines(data, findings)
    subnets = right_subnets(network.value, incus, findings)
    findings += crosscheck.check_network(network.value)
    findings += kits.findings()
    drafts = [join_kits(draft, kits, findings) for draft in read_workspaces(data, findings)]
    resolver = Resolver(kits, findings, None if allowance is None else allowance.member.uid)
    drafts = [resolver.resolve(draft) for draft in drafts]
    if incus is not None or any(draft.workspace.engine == "incus" for draft in drafts):
        findings += crosscheck.check_subnets(network.value, subnets, is_said=incus is not None)
    own = (file,) if checkout is None else ()  # one in a checkout is judged by its content, whoever writes it
    files = (*own, *(kit.file for kit in kits.files().values() if kit.whose != "hutch"))
    real = functools.cache(real_path)
    findings += crosscheck.check_workspaces(drafts, subnets, layout=layout, files=files, real=real)
    if checkout is not None:
        findings += check_checkout(data, drafts, checkout, real)
        findings += kits.check_choice(drafts)
    lowered: dict[str, Clamped] = {}
    own_drafts = drafts
    if allowance is not None:
        findings += check_sections(data, network.value, allowance)
        own_drafts = [draft for draft in drafts if is_for_member(draft.workspace, allowance)]
        own_drafts, lowered = allow(own_drafts, allowance, Look(real, owner_of_path), findings)
    for draft in own_drafts:
        findings += backend_findings(draft, network.value, check)
    return Config(
        file=file,
        network=network.value,
        workspaces={draft.name: draft.workspace for draft in own_drafts},
        incus=incus,
        checkout=None if checkout is None else checkout.top,
        brought={draft.name: brought_by_kits(draft, kits.scripts()) for draft in own_drafts},
        clamped=lowered,
        others=frozenset(draft.name for draft in drafts) - {draft.name for draft in own_drafts},
    )


def allow(
    drafts: Sequence[Draft], allowance: Allowance, look: Look, findings: list[FieldProblem]
) -> tuple[list[Draft], dict[str, Clamped]]:
    """The drafts as a member may have them, and what was clamped for that, by name; the rest that is above the ceiling
    is added to `findings`."""
    allowed: list[Draft] = []
    lowered: dict[str, Clamped] = {}
    for draft in drafts:
        workspace, keys = clamped(draft.workspace, draft.says, allowance.ceiling)
        findings += check_allowance(workspace, allowance, look, draft.path)
        allowed.append(dataclasses.replace(draft, workspace=workspace))
        lowered |= {draft.name: keys} if keys else {}
    return allowed, lowered


def join_kits(draft: Draft, kits: Kits, findings: list[FieldProblem]) -> Draft:
    """The draft with the kits in it that it uses; names that lead to none are added to `findings`."""
    found = list(kits.used(draft.workspace.use, functools.partial(draft.path, "use")))
    findings += [each for each in found if isinstance(each, FieldProblem)]
    return join(draft, [each for each in found if isinstance(each, Used)])


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


def right_subnets(network: Network, incus: Incus | None, findings: Iterable[FieldProblem]) -> dict[str, str]:
    """The subnet of each engine, by its name, without those that are wrong in the file."""
    wrong = {finding.path for finding in findings}
    subnets = {"local": network.subnet, "incus": (incus or Incus()).subnet}
    return {engine: subnet for engine, subnet in subnets.items() if crosscheck.SUBNETS[engine] not in wrong}


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
        kept = {**checked.kept, **{key: kept for key, kept in defaults.kept.items() if key in inherited}}
        drafts.append(
            Draft(
                name=name,
                workspace=checked.value,
                own=frozenset(own) & frozenset(checked.table),
                inherited=inherited,
                entries={
                    key: dict(enumerate((*table_of(name, key, inherited), key, index) for index in indexes))
                    for key, indexes in kept.items()
                },
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


def with_real_home(said: int | str) -> Owner:
    """The owner that is meant, with the links on the way to the home resolved: members share nothing by a link, and
    /home is one on some hosts."""
    owner = find_owner(said)
    return owner if owner.home is None else dataclasses.replace(owner, home=Path(real_path(str(owner.home))))


class Resolver:
    """Looks up what a workspace names on the host: its owner, those that it is shared with, paths under
    homes, and public keys.

    Lookups are remembered for the length of one load. A name that leads nowhere is a finding and is left out.
    """

    def __init__(self, kits: Kits, findings: list[FieldProblem], member: int | None = None) -> None:
        """`member` is the uid of the one that it looks for, None for who is behind the process."""
        self.kits = kits
        self.findings = findings
        self.default_owner = default_owner(os.environ, os.getuid()) if member is None else member
        self.find_owner = functools.cache(find_owner if member is None else with_real_home)
        self.find_holder = functools.cache(find_holder)
        self.expand_keys = functools.cache(functools.partial(expand_keys, search=Search()))

    def resolve(self, draft: Draft) -> Draft:
        workspace = draft.workspace
        owner = self.owner(draft)
        mounts, places = [], []
        for index, mount in enumerate(workspace.mounts):
            if mount.mode is not None and mount.readonly is not None:
                message = f'says it twice: there is mode = "{mount.mode}" too'
                path = draft.path("mounts", index, "readonly")
                self.findings.append(FieldProblem(path, message, "leave readonly out, which is the older word"))
            source = self.path(mount.source, owner, draft.path("mounts", index, "source"))
            if source is not None:
                mounts.append(dataclasses.replace(mount, source=source).normalized())
                places.append(draft.path("mounts", index))
        image = workspace.image
        scheme, _, tree = image.partition(":")
        if scheme in ("rootfs", "nix"):
            # The tree that is judged is the one that is read, though a link on the way may lead elsewhere by then.
            image = f"{scheme}:{real_path(self.path(tree, owner, draft.path('image')) or tree)}"
        home = workspace.home
        resolved = dataclasses.replace(
            workspace,
            owner=None if workspace.owner is None else owner.uid,
            share_with=self.holders(draft),
            image=image,
            home=None if home is None else self.path(home, owner, draft.path("home")),
            mounts=tuple(mounts),
            authorized_keys=self.keys(draft, owner),
        )
        entries: dict[str, Entries] = {**draft.entries, "mounts": dict(enumerate(places))}
        return dataclasses.replace(draft, workspace=resolved, entries=entries)

    def owner(self, draft: Draft) -> Owner:
        said = draft.workspace.owner
        if said is not None:
            try:
                return self.find_owner(said)
            except Invalid as error:
                self.findings.append(FieldProblem(draft.path("owner"), error.message, error.hint))
        default = self.default_owner
        try:
            return self.find_owner(default)
        except Invalid as error:
            if said is None:
                message = f"is not said, and the default, uid {default}, {error.message}"
                self.findings.append(FieldProblem(draft.path("owner"), message, error.hint))
            return Owner(uid=default, gid=default, home=None, name=str(default))

    def holders(self, draft: Draft) -> tuple[str, ...]:
        """The users and groups that it is shared with, each once."""
        said, holders = draft.workspace.share_with, []
        if len(said) > MOST_SHARED:
            message = f"names more than {MOST_SHARED} users and groups"
            self.findings.append(FieldProblem(draft.path("share_with"), message, "a group that they are in"))
            return ()
        for index, entry in enumerate(said):
            try:
                holders.append(self.find_holder(entry))
            except Invalid as error:
                self.findings.append(FieldProblem(draft.path("share_with", index), error.message, error.hint))
        return tuple(dict.fromkeys(holders))

    def path(self, path: str, owner: Owner, at: KeyPath) -> str | None:
        """`path` made absolute and checked once more: homes and the file's directory are now part of it."""
        try:
            return HostPath().parse(expand(path, owner, self.kits.directory(at)))
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
                lines += self.expand_keys(entry, owner, self.kits.directory(draft.path("authorized_keys")))
            except Invalid as error:
                self.findings.append(FieldProblem(draft.path("authorized_keys", index), error.message, error.hint))
        return unique(lines)
