"""The meaning of `hutch run` in a directory: the workspace of the hutch.toml there, or one that the directory implies,
whose file hutch writes and its user edits.

Pure: apply/implied looks at the host, and writes. An implied file is an ordinary hutch.toml with one workspace, whose
name is the file's. Its first mount is the directory; or its first line says of which checkout it has a clone, which is
not shared at all.
"""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hutch.errors import HutchError, UsageError
from hutch.frozen import dataclass
from hutch.spec.clashes import is_inside
from hutch.spec.field_types import Invalid
from hutch.spec.names import NAME, fingerprint, is_name
from hutch.spec.values import NAME_HINT, HostPath, TargetPath

IMPLIED = re.compile(rf"/.*/\.config/hutch/run/{NAME}\.toml", re.ASCII | re.DOTALL)
CLONED = "# The workspace of a clone of {}, made by `hutch run --clone`, which keeps what you change below."
"""The first line of a file whose workspace has a clone of a directory."""
LONGEST_NAME, LONGEST_STEM = 32, 25
"""Characters of a name, and of what comes before a dash and six digits in it."""
ELSEWHERE = "change to a checkout, or to another directory that a workspace may have"


def directory_of(config: str) -> str:
    """The directory of a user's implied files, by that of their configuration of hutch."""
    return f"{config}/run"


def file_of(config: str, name: str) -> str:
    return f"{directory_of(config)}/{name}.toml"


def template_of(config: str) -> str:
    """The file with keys that a user wants in every implied file that is written from now on."""
    return f"{config}/run.toml"


def note_of(state: str, name: str) -> str:
    """The note of what was brought up last for `hutch run`, see apply/implied, by the directory of a user's notes."""
    return f"{state}/run/{name}.json"


def is_implied(file: str) -> bool:
    """Whether a file, by its real path, is an implied one: some user's, since root may look at all of them."""
    return IMPLIED.fullmatch(file) is not None


@dataclass(frozen=True)
class Request:
    """The options of a command line: a name, "" for none; a virtual machine; the directory itself, although a
    hutch.toml is there; kits; work on a clone of the checkout."""

    name: str = ""
    is_machine: bool = False
    ignores_file: bool = False
    kits: tuple[str, ...] = ()
    is_clone: bool = False


@dataclass(frozen=True)
class Declared:
    """A hutch.toml, and the type of each workspace in it, unvalidated. `stranger` is the uid of an owner who is neither
    root nor the caller; None for theirs."""

    file: str
    types: Mapping[str, Any]
    stranger: int | None = None


@dataclass(frozen=True)
class Step:
    """A directory on the way up from the current one. `is_checkout` says whether it is the top of a checkout of the
    caller's. `common` is the common directory of a git worktree, on the host and inside; `note` tells of one that is
    not shared, and why."""

    path: str
    is_checkout: bool = False
    common: tuple[str, str] | None = None
    note: str = ""
    declared: Declared | None = None


@dataclass(frozen=True)
class Remembered:
    """An implied file that is there. `directory` is the one that it shares, or has a clone of; "" for one that cannot
    be read, which `is_broken`, or shares nothing any more."""

    name: str
    text: str
    directory: str = ""
    type: str = ""
    kits: tuple[str, ...] = ()
    is_broken: bool = False
    is_clone: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What there is around a directory. The first of the `steps` is the directory itself; none is the user's home or
    above it, but for that first one. `config` is the directory of the user's configuration of hutch, `named` the file
    that the user names. `own` are hutch's own directories with what they are, `template` has further keys for new
    files, `owner` is the uid to write into them, if any. `is_taken` says whether a workspace of another file has a
    name, `is_made` whether there is the workspace of an implied file."""

    home: str
    config: str
    steps: Sequence[Step]
    remembered: Mapping[str, Remembered]
    is_taken: Callable[[str], bool]
    is_made: Callable[[str], bool]
    own: Mapping[str, str]
    template: str = ""
    named: Declared | None = None
    owner: int | None = None


@dataclass(frozen=True)
class Choice:
    """The workspace, "" where the file must be read to know it, and the file that declares it. Of an implied one: the
    directory that it shares, the text of its file as it is (None for no file) and as it is to be; `notes` are for the
    user. With `is_clone`, the work is done on a clone of the directory."""

    name: str
    file: str
    directory: str = ""
    before: str | None = None
    text: str | None = None
    notes: tuple[str, ...] = ()
    is_clone: bool = False


def decide(here: Surroundings, request: Request) -> Choice:
    """The workspace that `hutch run` is about. Raises UsageError where there can be none, or more than one."""
    for what, names in (("workspace", [request.name] if request.name else []), ("kit", request.kits)):
        for name in names:
            if not is_name(name):
                raise UsageError(f"{name!r} is not a name for a {what}", resolution=NAME_HINT)
    top = find_top(here)
    declared = here.named
    if declared is None and not request.ignores_file:
        on_the_way = here.steps[: here.steps.index(top) + 1]
        declared = next((step.declared for step in on_the_way if step.declared is not None), None)
    return of_file(declared, request) if declared is not None else of_directory(here, top, request)


def find_top(here: Surroundings) -> Step:
    """The directory that is meant: the nearest one above that is a checkout, or has a workspace; else the current
    one. A file alone has no say below its directory, nor before the current directory's own: its workspace is gone, and
    who removed that does not expect to share all of the directory again."""
    first, *above = here.steps
    files: dict[str, list[str]] = {}
    for name, each in here.remembered.items():
        files.setdefault(each.directory, []).append(name)
    if first.is_checkout or first.path in files:
        return first
    made = (step for step in above if step.is_checkout or any(map(here.is_made, files.get(step.path, ()))))
    return next(made, first)


# A file of somebody's own.


def of_file(declared: Declared, request: Request) -> Choice:
    """The workspace of a hutch.toml."""
    file, types = declared.file, declared.types
    if declared.stranger is not None:
        raise UsageError(
            f"{file} belongs to uid {declared.stranger}, who is neither root nor you",
            resolution=f"read it, and if you trust it name it: `hutch run -f {file}`; or --ignore-file does without it",
        )
    name = request.name or (next(iter(types)) if len(types) == 1 else "")
    if types and not name:
        raise UsageError(
            f"{file} declares several workspaces: {', '.join(types)}", resolution="--name NAME chooses one"
        )
    if types and name not in types:
        raise UsageError(
            f"{file} declares no workspace {name}",
            resolution=f"it declares: {', '.join(types)}; --ignore-file makes one of this directory",
        )
    if types and request.is_machine and types[name] != "vm":
        raise UsageError(
            f"{name} is a {types[name]} by {file}, which --vm does not change",
            resolution='write type = "vm" there; or --ignore-file makes one of this directory',
        )
    if request.kits:
        raise UsageError(
            f"the kits of {name or 'its workspaces'} are those that {file} says, which --with does not change",
            resolution="write them into `use` there; or --ignore-file makes a workspace of this directory",
        )
    return Choice(name, file, is_clone=request.is_clone)


# A directory.


def of_directory(here: Surroundings, top: Step, request: Request) -> Choice:
    """The workspace that a directory implies."""
    check_directory(here, top)
    if request.is_clone and not top.is_checkout:
        raise UsageError(f"{top.path} is in no checkout of git", resolution="`git init` and a commit make one")
    name = request.name or choose_name(here, top.path, is_clone=request.is_clone)
    file, known = file_of(here.config, name), here.remembered.get(name)
    if known is None:
        if request.name and here.is_taken(name):
            raise UsageError(
                f"a workspace {name} is there already, of another file", resolution="choose another --name"
            )
        text = render(here, top, name, request)
        notes = (top.note,) if top.note and not request.is_clone else ()
        return Choice(name, file, top.path, None, text, notes, request.is_clone)
    if not known.is_broken and known.directory != top.path:
        whose = f"the workspace of {known.directory}" if known.directory else f"declared by {file}"
        raise UsageError(f"{name} is {whose}", resolution=f"choose another --name, or edit {file}")
    if request.is_clone and not known.is_clone and not known.is_broken:
        raise UsageError(f"{name} shares {top.path} itself, not a clone of it", resolution="choose another --name")
    return Choice(name, file, top.path, known.text, edited(known, request), is_clone=known.is_clone)


def edited(known: Remembered, request: Request) -> str:
    """The text of an implied file with what the options change in it, and nothing else."""
    kits = list(dict.fromkeys([*known.kits, *request.kits]))
    changes: dict[str, str | list[str]] = {}
    if request.is_machine and known.type != "vm":
        changes["type"] = "vm"
    if kits != list(known.kits):
        changes["use"] = kits
    if not changes or known.is_broken:
        return known.text
    # Spares the start-up of `hutch run` where nothing changes.
    from hutch.spec.editing import with_value

    text = known.text
    for key, value in changes.items():
        text = with_value(text, known.name, key, value)
    return text


def check_directory(here: Surroundings, top: Step) -> None:
    """Refuse a directory that would give away more than a project, or that cannot have the same path inside."""
    path, files = top.path, directory_of(here.config)
    why = ""
    for own, what in here.own.items():
        if is_inside(path, own) or is_inside(own, path):
            why = f"is {what}" if path == own else f"is in {what}" if is_inside(path, own) else f"holds {what}"
    if path == here.home:
        why = "is your home directory, with keys and settings in it"
    elif is_inside(here.home, path):
        why = f"holds your home directory {here.home}"
    elif is_inside(files, path) or is_inside(path, posixpath.dirname(files)):
        why = f"holds {files}, whose files set the rights of workspaces"
    if why:
        raise UsageError(f"{path} {why}: it is not shared with a workspace", resolution=ELSEWHERE)
    for source, target in ((path, path), *((top.common,) if top.common else ())):
        try:
            HostPath().parse(source)
            TargetPath().parse(target)
        except Invalid as error:
            raise UsageError(
                f"{target} {error.message}, so a workspace cannot have it at the same path",
                details=error.hint,
                resolution=ELSEWHERE,
            ) from None


def choose_name(here: Surroundings, path: str, *, is_clone: bool = False) -> str:
    """The name of a directory's workspace: of one that is there, with `is_clone` of one that has a clone, or a new
    one."""
    own = {name: each for name, each in here.remembered.items() if each.directory == path}
    mine = [name for name, each in own.items() if each.is_clone or not is_clone]
    for name_of in (plain_name, distinct_name):
        name = name_of(path)
        if (name in mine and own[name].is_clone == is_clone) or (
            name in here.remembered and here.remembered[name].is_broken
        ):
            return name
    if len(mine) > 1:
        raise UsageError(f"{path} has several workspaces: {', '.join(mine)}", resolution="--name NAME chooses one")
    names = plain_name(path), distinct_name(path)
    free = (name for name in names if name not in here.remembered and not here.is_taken(name))
    name = mine[0] if mine else next(free, "")
    if not name:
        raise UsageError(f"other workspaces are called {' and '.join(names)}", resolution="--name NAME gives a name")
    return name


def plain_name(path: str) -> str:
    """The name of a directory, made fit for a workspace."""
    text = unicodedata.normalize("NFKD", posixpath.basename(path)).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:LONGEST_NAME].strip("-") or "workspace"


def distinct_name(path: str) -> str:
    """The name of a directory whose plain name another one has."""
    return f"{plain_name(path)[:LONGEST_STEM].strip('-')}-{fingerprint(path)}"


# The text of an implied file.


def render(here: Surroundings, top: Step, name: str, request: Request) -> str:
    """The text of a new implied file."""
    keys = read_template(here)
    shared = [] if request.is_clone else [(top.path, top.path), *((top.common,) if top.common else ())]
    mounts = [*({"source": source, "target": target} for source, target in shared), *keys.get("mounts", ())]
    kind = "vm" if request.is_machine else str(keys.get("type", "container"))
    kits = list(dict.fromkeys([*keys.get("use", ()), *request.kits])) if request.kits else []
    shares = f"# The workspace of {top.path}, its first mount, made by `hutch run`, which keeps what you change here."
    return "\n".join(
        [
            CLONED.format(quoted(top.path)) if request.is_clone else shares,
            *(["[defaults]", here.template.strip(), ""] if here.template.strip() else []),
            f"[workspaces.{name}]",
            f"type = {quoted(kind)}",
            *([f"owner = {here.owner}"] if here.owner is not None else []),
            *([f"use = {quoted(kits)}"] if kits else []),
            "mounts = [",
            *(f"    {quoted(mount)}," for mount in mounts),
            "]",
            "",
        ]
    )


def read_template(here: Surroundings) -> dict[str, Any]:
    """The keys that a user wants in every new file. Their values are checked with the file; its own tables would end
    the one that it becomes."""
    file = template_of(here.config)
    try:
        keys = tomllib.loads(here.template)
        is_flat = tomllib.loads(f"[defaults]\n{here.template}") == {"defaults": keys}
    except (ValueError, RecursionError) as error:
        raise HutchError(f"{file} is not valid TOML: {error}") from None
    if not is_flat:
        raise HutchError(
            f"{file} has tables", resolution="it has the keys of [defaults], each on its line: `env = { … }`"
        )
    for key in ("mounts", "use"):
        if not isinstance(keys.get(key, []), list):
            raise HutchError(f"{file}: {key} must be a list")
    return keys


def quoted(value: object) -> str:
    """A value on one line of TOML. JSON's strings, lists, numbers and truths are TOML's."""
    if isinstance(value, dict):
        keys = (key if re.fullmatch(r"[A-Za-z0-9_-]+", key, re.ASCII) else json.dumps(key) for key in value)
        return f"{{ {', '.join(f'{key} = {quoted(each)}' for key, each in zip(keys, value.values(), strict=True))} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(quoted, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str)


def remember(name: str, file: str, text: str, home: str) -> Remembered:
    """An implied file, by its text."""
    try:
        tables = tomllib.loads(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").replace("\r\n", "\n"))
    except (ValueError, RecursionError):
        return Remembered(name, text, is_broken=True)
    try:
        usual, own = tables.get("defaults", {}), tables["workspaces"][name]
        cloned = cloned_in(text)
        source = cloned or str(own["mounts"][0]["source"])
        kind = str(own.get("type", usual.get("type", "")))
        kits = tuple(map(str, own.get("use", usual.get("use", ()))))
    except (LookupError, TypeError, AttributeError):
        return Remembered(name, text)
    expanded = home + source[1:] if source == "~" or source.startswith("~/") else source
    directory = posixpath.normpath(posixpath.join(posixpath.dirname(file), expanded))
    return Remembered(name, text, directory, kind, kits, is_clone=bool(cloned))


def cloned_in(text: str) -> str:
    """The directory of which a file's first line says that its workspace has a clone; "" where it says nothing."""
    before, after = CLONED.split("{}")
    line = text.partition("\n")[0].rstrip("\r")
    if not (line.startswith(before) and line.endswith(after)):
        return ""
    try:
        found = json.loads(line[len(before) : -len(after)])
    except ValueError:
        return ""
    return found if isinstance(found, str) else ""
