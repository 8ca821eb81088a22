"""Commands around the file: init, plan, up, schema."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hutch.api import Hutch, silent
from hutch.cli.common import Options, global_options, needs_root, print_json, printable
from hutch.cli.completing import declared_names
from hutch.cli.progress import Bar
from hutch.errors import HutchError, UsageError
from hutch.spec.entries import Publish
from hutch.spec.lookup import render_starter
from hutch.spec.names import is_name
from hutch.spec.values import render_size

if TYPE_CHECKING:
    from hutch.plan.actions import Action, Plan, Repair

ADOPT = click.option("--adopt", is_flag=True, help="Take over workspaces that another file declared.")
NAMES = click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=declared_names)

SIZES = ("memory", "disk")
LONGEST = 70


@click.command()
@click.argument("name", required=False, default="dev")
@global_options
def init(options: Options, name: str) -> None:
    """Write a commented starter hutch.toml in the current directory, with a workspace called NAME."""
    if not is_name(name):
        raise UsageError(f"{name!r} is not a name for a workspace", resolution="use a-z, 0-9 and inner hyphens")
    path = options.path or Path("hutch.toml")
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(render_starter(name))
    except FileExistsError:
        raise HutchError(f"{path} is there already; it was left as it is") from None
    except OSError as error:
        raise HutchError(f"{path} cannot be written: {error.strerror}") from error
    path.chmod(0o644)
    options.say(f"wrote {path}; next: sudo hutch up")


@click.command()
@NAMES
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 3 when anything would change.")
@click.option("--no-start", is_flag=True, help="As for `up --no-start`.")
@click.option("--prune", is_flag=True, help="Also remove workspaces that this file no longer declares.")
@ADOPT
@needs_root
def plan(
    options: Options,
    names: tuple[str, ...],
    as_json: bool,
    check: bool,
    no_start: bool,
    prune: bool,
    adopt: bool,
) -> int:
    """Show what `up` would do and why. Nothing is changed."""
    hutch = Hutch()
    result = hutch.plan(hutch.load(options.path), names, start=not no_start, prune=prune, adopt=adopt)
    if as_json:
        print_json(result.to_json())
    else:
        print_plan(result)
    return 3 if check and result.changes else 0


@click.command()
@NAMES
@click.option("--no-start", is_flag=True, help="Create and update, but start nothing.")
@click.option("--prune", is_flag=True, help="Also remove workspaces that this file no longer declares.")
@ADOPT
@click.option("--yes", is_flag=True, help="Do not ask before stopping a workspace in which somebody is at work.")
@click.option("--json", "as_json", is_flag=True, help="Print the executed plan as JSON.")
@needs_root
def up(
    options: Options,
    names: tuple[str, ...],
    no_start: bool,
    prune: bool,
    adopt: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make the host as the file says; returns when every workspace is ready for ssh."""
    begun = time.monotonic()
    with closing(Bar(options)) as bar:
        hutch = Hutch(listen=bar.listen, progress=bar.show)
        confirm = silent if yes or not sys.stdin.isatty() else ask
        config = hutch.load(options.path)
        result = hutch.up(config, names, start=not no_start, prune=prune, adopt=adopt, confirm=confirm)
    if as_json:
        print_json(result.to_json())
    elif result.changes and not options.quiet:
        print_plan(result, err=True)
        if problem := hutch.ssh_problem():
            options.listen("ssh", "warning", problem)
        options.say(f"done in {time.monotonic() - begun:.2f} s")
    else:
        options.say("\n".join([*plan_notes(result), "nothing to do"]))


def ask(plan: Plan) -> None:
    """Let the person at the terminal decide whether others are disturbed."""
    print_plan(plan, err=True)
    names = ", ".join(sorted(plan.disturbed))
    if not click.confirm(f"somebody is at work in {names}; stop it all the same?", err=True):
        raise HutchError("nothing was changed", resolution="--yes does not ask")


def print_plan(plan: Plan, *, err: bool = False) -> None:
    """Print one line for each workspace, one more for each reason and note; then the repairs."""
    names = (*(a.workspace for a in plan.actions), *(repair.workspace or "host" for repair in plan.repairs))
    width = max(map(len, names), default=0)
    for action in plan.actions:
        click.echo(f"{action.workspace.ljust(width)}  {action.action}", err=err)
        for line in explain_action(action):
            click.echo(f"{' ' * width}    {line}", err=err)
    repairs: dict[str | None, list[Repair]] = {}
    for repair in plan.repairs:
        repairs.setdefault(repair.workspace, []).append(repair)
    for whose, its in repairs.items():
        click.echo(f"{(whose or 'host').ljust(width)}  repair", err=err)
        for repair in its:
            click.echo(f"{' ' * width}    {printable(str(repair))}", err=err)
    if not plan.actions:
        click.echo("the file declares no workspace", err=err)
    for note in plan_notes(plan):
        click.echo(note, err=err)


def plan_notes(plan: Plan) -> list[str]:
    return [f"note: {note}" for note in plan.notes]


def explain_action(action: Action) -> list[str]:
    weighted = action.action in ("live", "restart", "recreate", "no change")
    lines = []
    for change in action.reasons:
        old, new = shown_pair(change.key, change.old, change.new)
        lines.append(f"{change.key}: {old} → {new}{f' ({change.weight})' if weighted else ''}")
    if action.affected is not None:
        since = "" if action.affected.since is None else f"; running since {time.ctime(action.affected.since)}"
        lines.append(f"affects: {', '.join(action.affected.sessions) or 'nobody'}{since}")
    return [*lines, *(f"note: {note}" for note in action.notes)]


# Values of hutch.toml as a plan shows them: on one line, in the words of the file, and safe for a terminal.


def shown_pair(key: str, old: Any, new: Any) -> tuple[str, str]:
    """Two values of a key, shortened unless they would look the same."""
    short = shown(old, key), shown(new, key)
    return short if short[0] != short[1] else (words(old, key), words(new, key))


def shown(value: Any, key: str = "") -> str:
    """A value of a key, shortened."""
    text = words(value, key)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "…"


def words(value: Any, key: str = "") -> str:
    """All of a value, as JSON has it, in the words of the file."""
    if value is None:
        text = "unset"
    elif key in SIZES and isinstance(value, int):
        text = render_size(value)
    elif isinstance(value, list):
        text = ", ".join(entry(item, key) for item in value) or "none"
    elif isinstance(value, dict):
        text = entry(value, key)
    else:
        text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return printable(text.replace("\n", "⏎"))


def entry(value: Any, key: str) -> str:
    """An entry of a list, or a small table."""
    if key == "publish":
        return str(Publish(**value))
    if key == "mounts":
        return f"{value['source']} on {value['target']}{', readonly' if value['readonly'] else ''}"
    if key == "env":
        return "=".join(value)
    if key == "idle":
        return f"{value['then']} after {value['after']}"
    if key == "authorized_keys":
        kind, _, rest = value.partition(" ")
        blob, _, comment = rest.partition(" ")
        return f"{kind} …{blob[-8:]} {comment}".rstrip()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.command()
@global_options
def schema(options: Options) -> None:
    """Print the JSON Schema of hutch.toml, for editors."""
    # Spares the start-up of `hutch up`, which has no use for pydantic's schema.
    from hutch.spec.schema import render_schema

    print_json(render_schema())
