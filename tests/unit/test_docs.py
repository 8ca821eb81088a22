"""What the documentation says of commands and keys is what they are."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click
import pytest

from hutch.backends import check, weight_of
from hutch.cli import COMMANDS, cli
from hutch.cli.common import MEMBERS
from hutch.spec.ceiling import BUILT_IN, TABLE, Members, read_ceiling
from hutch.spec.model import WORKSPACE_KEYS, WorkspaceSpec, has_effect
from hutch.spec.schema import MODELS, definitions
from hutch.spec.validation import validate
from package.manual import TABLES, summary, type_of, walk
from tests.unit.facts import NETWORK, workspace

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
EVERY = {" ".join(path[1:]): command for path, command in walk(cli, ("hutch",))}
LONGEST_README = 110
KINDS: tuple[Literal["container", "vm"], ...] = ("container", "vm")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def check_generated(page: str, text: str) -> None:
    """Compare what stands between two comments of a page, or write it there with HUTCH_UPDATE_GOLDEN=1."""
    path = DOCS / page
    before, begin, rest = path.read_text(encoding="utf-8").partition("HUTCH_UPDATE_GOLDEN=1 -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    assert begin and end
    wanted = f"{before}{begin}\n{text}\n{end}{after}"
    if os.environ.get("HUTCH_UPDATE_GOLDEN") == "1":
        path.write_text(wanted, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == wanted


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*.", "\\*.")


# The pages that are lists.


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def test_the_page_of_commands() -> None:
    lines = ["| command | what it does |", "|---|---|"]
    for name, command in EVERY.items():
        if isinstance(command, click.Group):
            continue
        usage = command.collect_usage_pieces(click.Context(command, info_name=name))
        words = " ".join(piece for piece in usage if piece != "[OPTIONS]")
        lines.append(f"| `{cell(f'hutch {name} {words}'.rstrip())}` | {cell(summary(command))} |")
    check_generated("commands.md", "\n".join(lines) + "\n")


def test_the_page_of_keys() -> None:
    """One table for each table of the file, in the order of the model."""
    tables = definitions()
    lines = []
    for table, (title, meaning) in TABLES.items():
        is_workspace = table == "Workspace"
        title = re.sub(r"(\[.*?\])", r"`\1`", title)
        lines += [f"## {title}", "", meaning.replace("{", "`{").replace("}", "}`"), ""]
        heads = ["key", "type, default", *(["a change takes"] if is_workspace else []), "meaning"]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name in MODELS[table].__dataclass_fields__:
            schema = tables[table]["properties"][name]
            weight = f" {weights(name)} |" if is_workspace else ""
            lines.append(f"| `{name}` | {values(schema)} |{weight} {cell(str(schema['description']))} |")
        lines.append("")
    check_generated("hutch-toml.md", "\n".join(lines[:-1]) + "\n")


def test_the_page_of_the_ceiling() -> None:
    lines = ["| key | type, default | meaning |", "|---|---|---|"]
    for name, schema in definitions({TABLE: Members})[TABLE]["properties"].items():
        default = BUILT_IN.shown(name)
        shown = cell(f"{type_of(schema)}{f', `{default}`' if default else ''}")
        lines.append(f"| `{name}` | {shown} | {cell(str(schema['description']))} |")
    check_generated("policy.md", "\n".join(lines) + "\n")


def test_the_example_of_the_ceiling_has_every_key() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", (DOCS / "policy.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert read_ceiling(block).said == set(Members.__dataclass_fields__)


def values(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    shown = "" if default is None else f", `{toml(default)}`"
    return cell(f"{type_of(schema)}{shown}")


def toml(value: Any) -> str:
    """A default as it would be written."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def weights(name: str) -> str:
    found = {kind: weight_of(name, WorkspaceSpec(type=kind)) for kind in KINDS if has_effect(name, kind)}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{weight} ({kind})" for kind, weight in found.items())


def test_the_table_of_members_commands() -> None:
    _, _, rest = (DOCS / "people.md").read_text("utf-8").partition("| members have | with |\n|---|---|\n")
    told = {}
    for line in rest.partition("\n\n")[0].splitlines():
        commands, options = (re.findall(r"`(.*?)`", part) for part in line.strip("|").split("|"))
        for command in commands:
            by_option = {option: param.name for param in EVERY[command].params for option in param.opts}
            told[command] = {by_option[option] for option in options}
    assert told == MEMBERS


@pytest.mark.parametrize(("column", "kind"), [(1, "container"), (2, "vm")])
def test_the_weights_of_keys(column: int, kind: str) -> None:
    """Keys without effect on a type are left out."""
    lines = (DOCS / "up.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    told = {
        row[0]: set(re.findall(r"`(\w+)`", row[column])) for row in rows if row[0] in ("live", "restart", "recreate")
    }
    own = [key for key in WORKSPACE_KEYS if has_effect(key, kind)]
    assert told == {weight: {key for key in own if weight_of(key, workspace(type=kind)) == weight} for weight in told}
    assert set.union(*told.values()) == set(own)


# Commands.

CODE = re.compile(
    r"^```[a-z]*\n(?P<fenced>.*?)^```$|^ {4}(?P<indented>\S[^\n]*)$|(?P<tick>`+)(?P<span>.+?)(?<!`)(?P=tick)(?!`)",
    re.DOTALL | re.MULTILINE,
)
CALL = re.compile(
    r"(?<![\w./=-])(?<!exec )(?<!install )(?<!groups )hutch((?: (?:-[qv]|-f \S+|--file \S+))*) "
    r"([a-z]+(?: [a-z]+)?)(?![\w/.-])([^;&|\n]*)"
)


def calls(text: str) -> Iterator[tuple[str, str]]:
    """The commands of hutch in the code of a page: (the command, the rest of the line)."""
    for block in CODE.finditer(text):
        for found in CALL.finditer(re.sub(r"(^|\s)#.*", "", block["fenced"] or block["indented"] or block["span"])):
            words = found[2].split()
            name = " ".join(words) if " ".join(words) in EVERY else words[0]
            yield name, " ".join(words[len(name.split()) :]) + found[3]


@by_page
def test_every_command_and_option_is_there(page: Path) -> None:
    for name, rest in calls(page.read_text(encoding="utf-8")):
        assert name in EVERY, f"hutch {name}"
        options = {option for each in EVERY[name].params for option in (*each.opts, *each.secondary_opts)}
        options |= {"--help", "-h"}
        said = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest.partition(" -- ")[0]))
        if name in ("ssh", "exec"):
            continue  # what follows is another program's
        assert said <= options, f"hutch {name}: {said - options}"


def test_calls_are_found() -> None:
    text = "`sudo hutch -f x.toml up --yes`, `hutch.toml`, `ip netns exec hutch nft list`"
    assert list(calls(text)) == [("up", " --yes")]
    assert [name for name, _ in calls("    hutch image ls   # and hutch\n\n`hutch doctor --fix; hutch nonsense`")] == [
        "image ls",
        "doctor",
        "nonsense",
    ]
    assert set(COMMANDS) < set(EVERY)


# Files.


def declared(text: str) -> Iterator[dict[str, Any]]:
    """The workspaces of the blocks of TOML in a page; a block of keys alone is a part of one."""
    for block in re.findall(r"^```toml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        file = tomllib.loads(block)
        if TABLE in file:  # a policy.toml
            continue
        tables = (
            file
            if {"workspaces", "defaults", "network", "engines", "kits"} & set(file)
            else {"workspaces": {"web": file}}
        )
        assert set(tables) <= {"network", "defaults", "engines", "kits", "workspaces"}
        for table in tables.get("workspaces", {}).values():
            yield {"type": "container", **tables.get("defaults", {}), **table}


@by_page
def test_every_file_is_one_that_hutch_takes(page: Path) -> None:
    for table in declared(page.read_text(encoding="utf-8")):
        found = validate(WorkspaceSpec, table, ("workspaces", "web"))
        assert not found.findings
        assert not [str(problem) for problem in check("web", found.value, NETWORK)]


@by_page
def test_every_path_in_the_checkout_is_there(page: Path) -> None:
    named = re.findall(r"`((?:tests|src|script|nix|docs|examples|bench|package)/[\w./-]+)`", page.read_text("utf-8"))
    assert not [path for path in named if not (CHECKOUT / path).exists()]


def test_every_layer_is_on_the_page_about_architecture() -> None:
    """A row names directories and files of src/hutch."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text.partition("## Layers")[2].partition("## Decisions")[0], re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    source = {path.name for path in (CHECKOUT / "src/hutch").iterdir()} - {"__pycache__", "py.typed"}
    assert named == source - {"__init__.py", "__main__.py"}


# Words.

OWN_WORDS = re.compile(
    r"\b((?i:wardens?|graft(s|ed)?|strangers|carriers|converges?|withdraw(n|s)?|mends?|settle[sd]?|settling)|Places)\b"
)
NO_NOUN = re.compile(
    r"(?:^|[.:;!?]\s+|\| )(What (?:is|has|was|runs|does|comes|makes)|Who (?:is|has)|It is seen to)\b", re.MULTILINE
)
SOURCE = CHECKOUT / "src/hutch"
SOURCES = sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".sh", ".pl"))
SPOKEN_OF = {"install.md": ("withdraw",)}
WRITTEN_IN = {"cli/__init__.py": ("withdraw",), "spec/ranges.py": ("carriers",)}
"""Words that a page, or a file, may have all the same: the old name of a command, as long as that works; and those who
carry telephones."""


@by_page
def test_words_are_the_fields(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = {word[0] for word in OWN_WORDS.finditer(text)} - set(SPOKEN_OF.get(page.name, ()))
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_words_of_the_source_are_the_fields(path: Path) -> None:
    found = {word[0] for word in OWN_WORDS.finditer(path.read_text(encoding="utf-8"))}
    assert found <= set(WRITTEN_IN.get(str(path.relative_to(SOURCE)), ()))


@by_page
def test_sentences_name_their_subject(page: Path) -> None:
    """A head such as "What is shared" hides the thing that the sentence is about."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = [match[0].strip() for match in NO_NOUN.finditer(text) if not match[0].startswith("#")]
    assert not found
