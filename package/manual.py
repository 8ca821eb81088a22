"""Manual pages, made from the commands and from the keys of hutch.toml. script/man and builds of packages write them:

python -m package.manual DIRECTORY
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from hutch.backends import weight_of
from hutch.cli import cli
from hutch.spec.ceiling import BUILT_IN, POLICY_FILE, TABLE, Members
from hutch.spec.model import WorkspaceSpec, has_effect
from hutch.spec.schema import MODELS, definitions

EXIT_STATUS = {
    "0": "done",
    "1": "it failed",
    "2": "the command line or hutch.toml is wrong; nothing was touched",
    "3": "`plan --check` found changes",
}
ENVIRONMENT = {
    "HUTCH_FILE": "The hutch.toml to use, unless -f says another.",
    "HUTCH_STATE_DIR, HUTCH_RUN_DIR": "Other directories than /var/lib/hutch and /run/hutch: a second hutch. "
    "By itself, the first one has a runtime directory of its own too.",
}
FILES = {
    "./hutch.toml, /etc/hutch/hutch.toml": "What is declared; the first that is there.",
    "/etc/hutch/policy.toml": "What members of the group hutch may have at most: see hutch-policy.toml(5).",
    "~/.config/hutch/kits/NAME.toml, /etc/hutch/kits/NAME.toml": "Kits, for the key use.",
    "/var/lib/hutch": "Homes, keys, images and records.",
    "/run/hutch": "What runs.",
    "/etc/ssh/ssh_config.d/50-hutch.conf": "How ssh reaches the workspaces.",
}
POLICY = (
    "It bounds what they declare without being root. No file means the defaults, and so does a key that is left out. "
    "A file that is wrong, or that somebody else than root can write, allows them nothing."
)
PASSED_ON = "ssh and exec pass on the exit code of what runs inside."
WEIGHTS = {
    "live": "A change needs no restart.",
    "restart": "A change needs a restart.",
    "recreate": "A change makes the root anew.",
}
TABLES = {
    "Network": ("[network]", "The network of all workspaces. Every key has a default."),
    "Workspace": ("[workspaces.NAME] and [defaults]", "A workspace; what it leaves out is taken from [defaults]."),
    "Kit": ("[kits.NAME]", "A part that workspaces have in common, for their key use. Every key has a default."),
    "Mount": ("Entries of mounts", 'Tables: { source = "~/src", target = "/src" }.'),
    "Idle": ("The table idle", '{ after = "30min", then = "stop" }'),
    "Incus": ("[engines.incus]", 'For workspaces with engine = "incus".'),
}


# Roff.


def escape(text: str) -> str:
    """`text` as roff has it: nothing in it is a command, and hyphens are those that people type."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return re.sub(r"^\.", r"\\&.", plain, flags=re.MULTILINE)


def bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def heading(name: str, section: int, version: str) -> str:
    return f'.TH "{escape(name.upper())}" {section} "" "hutch {version}" "hutch"'


def items(entries: Mapping[str, str]) -> Iterator[str]:
    """A list of terms, each with what it means."""
    for term, meaning in entries.items():
        yield from (".TP", bold(term), escape(meaning))


def paragraphs(text: str) -> Iterator[str]:
    """Those of a help text; click's marks for it are none of a reader's."""
    for number, part in enumerate(re.split(r"\n\s*\n", text.replace("\b", "").strip())):
        if number:
            yield ".PP"
        yield escape(" ".join(part.split()))


def page(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


# Commands.


def render_pages(group: click.Group, version: str) -> dict[str, str]:
    """All pages, by the names of their files."""
    found = {
        "hutch.1": page(render_top(group, version)),
        "hutch.toml.5": page(render_keys(version)),
        "hutch-policy.toml.5": page(render_policy(version)),
    }
    for path, command in walk(group, ("hutch",)):
        found[f"{'-'.join(path)}.1"] = page(render_command(path, command, version))
    return found


def walk(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, with the words that lead to it."""
    for name, command in subcommands(group, path):
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))


def subcommands(group: click.Group, path: tuple[str, ...]) -> list[tuple[str, click.Command]]:
    ctx = click.Context(group, info_name=path[-1])
    return [(name, command) for name in group.list_commands(ctx) if (command := group.get_command(ctx, name))]


def render_top(group: click.Group, version: str) -> Iterator[str]:
    yield heading("hutch", 1, version)
    yield from (".SH NAME", f"hutch \\- {escape(first_sentence(group))}")
    yield from (".SH SYNOPSIS", f"{bold('hutch')} [{escape('OPTIONS')}] COMMAND [ARGUMENTS]...")
    yield from (".SH DESCRIPTION", *paragraphs(group.help or ""))
    yield from render_options(group)
    commands = {f"hutch-{name}(1)": summary(command) for name, command in subcommands(group, ("hutch",))}
    yield from (".SH COMMANDS", *items(commands))
    yield from (".SH EXIT STATUS", *items(EXIT_STATUS), ".PP", escape(PASSED_ON))
    yield from (".SH ENVIRONMENT", *items(ENVIRONMENT))
    yield from (".SH FILES", *items(FILES))
    yield from (".SH SEE ALSO", f"{bold('hutch.toml')}(5), {bold('systemd-nspawn')}(1), {bold('ssh')}(1)")


def render_command(path: tuple[str, ...], command: click.Command, version: str) -> Iterator[str]:
    name = "-".join(path)
    ctx = click.Context(command, info_name=" ".join(path))
    yield heading(name, 1, version)
    yield from (".SH NAME", f"{escape(name)} \\- {escape(summary(command).rstrip('.'))}")
    usage = " ".join(command.collect_usage_pieces(ctx))
    yield from (".SH SYNOPSIS", f"{bold(' '.join(path))} {escape(usage)}")
    yield from (".SH DESCRIPTION", *paragraphs(command.help or ""))
    yield from render_options(command)
    if isinstance(command, click.Group):
        below = {f"{name}-{each}(1)": summary(found) for each, found in subcommands(command, path)}
        yield from (".SH COMMANDS", *items(below))
    yield from (".SH SEE ALSO", f"{bold('hutch')}(1), {bold('hutch.toml')}(5)")


def render_options(command: click.Command) -> Iterator[str]:
    ctx = click.Context(command, help_option_names=["-h", "--help"])
    options = [each for each in command.get_params(ctx) if isinstance(each, click.Option)]
    records = [record for each in options if (record := each.get_help_record(ctx)) is not None]
    yield from (".SH OPTIONS", *items(dict(records)))


def summary(command: click.Command) -> str:
    return first_sentence(command) + "."


def first_sentence(command: click.Command) -> str:
    text = " ".join((command.help or "").split())
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]


# Keys.


def render_keys(version: str) -> Iterator[str]:
    tables = definitions()
    yield heading("hutch.toml", 5, version)
    yield from (".SH NAME", "hutch.toml \\- workspaces of hutch, and the keys that declare them")
    yield from (".SH DESCRIPTION", escape("A TOML file. A workspace needs a name and a type; all else has a default."))
    yield from (".PP", ".nf", escape('[workspaces.web]\ntype = "container"\npackages = ["git"]'), ".fi")
    for table, (title, meaning) in TABLES.items():
        yield from (f'.SH "{escape(title.upper())}"', escape(meaning))
        for name in MODELS[table].__dataclass_fields__:
            schema = tables[table]["properties"][name]
            yield from (".TP", f"{bold(name)} ({escape(type_of(schema))})")
            yield escape(" ".join(describe(schema, name, table)))
    yield from (".SH SEE ALSO", f"{bold('hutch')}(1), {bold('hutch-schema')}(1)")


def render_policy(version: str) -> Iterator[str]:
    yield heading("hutch-policy.toml", 5, version)
    yield from (".SH NAME", "hutch\\-policy.toml \\- what members of the group hutch may have at most")
    yield from (
        ".SH DESCRIPTION",
        escape(f"{POLICY_FILE} is a TOML file of root's with one table, [{TABLE}]. {POLICY}"),
    )
    yield from (".PP", ".nf", escape('[members]\nworkspaces = 4\nmemory = "8GiB"\nmounts = ["~/src"]'), ".fi")
    yield f'.SH "[{TABLE.upper()}]"'
    for name, schema in definitions({TABLE: Members})[TABLE]["properties"].items():
        default = BUILT_IN.shown(name)
        yield from (".TP", f"{bold(name)} ({escape(type_of(schema))})")
        text = str(schema["description"])
        yield escape(f"{text[:1].upper()}{text[1:]}.{f' Default: {default}.' if default else ''}")
    yield from (".SH SEE ALSO", f"{bold('hutch')}(1), {bold('hutch.toml')}(5)")


def describe(schema: Mapping[str, Any], name: str, table: str) -> Iterator[str]:
    """Sentences about a key."""
    text = str(schema["description"])
    yield f"{text[:1].upper()}{text[1:]}."
    if "default" in schema:
        yield f"Default: {json.dumps(schema['default'])}."
    if table == "Workspace":
        kinds = (WorkspaceSpec(type="container"), WorkspaceSpec(type="vm"))
        first, *others = [(kind.type, WEIGHTS[weight_of(name, kind)]) for kind in kinds if has_effect(name, kind.type)]
        yield first[1]
        for kind, text in others:
            if text != first[1]:
                yield f"In a {kind}: {text[0].lower()}{text[1:]}"


def type_of(schema: Mapping[str, Any]) -> str:
    """What may stand there, in few words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f'"{value}"' for value in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    kinds = schema.get("type", "table")
    names = {"array": "list", "object": "table", "integer": "number", "null": ""}
    found = [names.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return " or ".join(filter(None, found))


def main(directory: str) -> None:
    """Write all pages into a directory."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for name, text in render_pages(cli, project["project"]["version"]).items():
        (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
