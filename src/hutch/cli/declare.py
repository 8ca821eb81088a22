"""Commands around the file: init, plan, up, schema."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hutch.api import Hutch, silent
from hutch.api.trusting import is_in_checkout
from hutch.cli.common import FORCE, Options, by_entry, global_options, needs_root, print_json, printable
from hutch.cli.completing import declared_names, existing_names, places
from hutch.cli.progress import Bar
from hutch.errors import HutchError, UsageError
from hutch.files import kept_open, write_all
from hutch.spec.entries import Publish
from hutch.spec.lookup import render_starter
from hutch.spec.names import is_name
from hutch.spec.sharing import holder_words
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
    is_judged = is_in_checkout(path)
    with suppress(OSError):
        os.rmdir(path)  # a placeholder, see protected paths in docs/mounts.md; what protects it comes to the file too
    try:
        with kept_open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)) as descriptor:
            os.fchmod(descriptor, 0o644)  # whatever the umask
            write_all(descriptor, render_starter(name, is_judged=is_judged).encode())
    except FileExistsError:
        raise HutchError(f"{path} is there already; it was left as it is") from None
    except OSError as error:
        raise HutchError(f"{path} cannot be written: {error.strerror}") from error
    up = "hutch up" if by_entry(["up"]) else "sudo hutch up"
    options.say(f"wrote {path}; next: {'hutch trust, and ' if is_judged else ''}{up}")


@click.command()
@NAMES
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 3 when anything would change.")
@click.option("--no-start", is_flag=True, help="As for `up --no-start`.")
@click.option("--prune", is_flag=True, help="Also remove workspaces that this file no longer declares.")
@ADOPT
@global_options
def plan(
    options: Options,
    names: tuple[str, ...],
    as_json: bool,
    check: bool,
    no_start: bool,
    prune: bool,
    adopt: bool,
) -> int:
    """Show the actions of `up`, with reasons. Nothing is changed. Without root, it is about your own workspaces."""
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
@FORCE
@click.option("--json", "as_json", is_flag=True, help="Print the executed plan as JSON.")
@needs_root
def up(
    options: Options,
    names: tuple[str, ...],
    no_start: bool,
    prune: bool,
    adopt: bool,
    yes: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make the host as the file says; returns when every workspace is ready for ssh."""
    begun = time.monotonic()
    with closing(Bar(options)) as bar:
        hutch = Hutch(listen=bar.listen, progress=bar.show)
        confirm = silent if yes or not sys.stdin.isatty() else ask
        config = hutch.load(options.path)
        result = hutch.up(config, names, start=not no_start, prune=prune, adopt=adopt, force=force, confirm=confirm)
    if as_json:
        print_json(result.to_json())
    elif result.changes and not options.quiet:
        print_plan(result, err=True)
        if problem := hutch.ssh_problem():
            options.listen("ssh", "warning", problem)
        options.say(f"done in {time.monotonic() - begun:.2f} s")
    else:
        options.say("\n".join([*plan_notes(result), "nothing to do"]))


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.option(
    "--engine",
    required=True,
    metavar="PLACE",
    shell_complete=places,
    help="local, incus, or incus:MEMBER for a member of a cluster.",
)
@click.option("--write", is_flag=True, help="Change the line of hutch.toml that says so.")
@click.option("--yes", is_flag=True, help="Do not ask before stopping a workspace in which somebody is at work.")
@FORCE
@needs_root
def move(options: Options, name: str, engine: str, write: bool, yes: bool, force: bool) -> None:
    """Have a workspace run by this host, by a server, or by another member of its cluster. Its home goes along.

    The engine is what hutch.toml says, so the file must say so first, or --write changes that line. The workspace is
    stopped meanwhile, and the old one is kept until the new one is ready."""
    begun = time.monotonic()
    kind, _, member = engine.partition(":")
    with closing(Bar(options)) as bar:
        hutch = Hutch(listen=bar.listen, progress=bar.show)
        confirm = silent if yes or not sys.stdin.isatty() else ask
        result = hutch.move(name, kind, member=member, path=options.path, write=write, force=force, confirm=confirm)
    if not any(action.action == "move" for action in result.actions):
        options.say(f"{name} is there already")
    elif not options.quiet:
        print_plan(result, err=True)
        options.say(f"done in {time.monotonic() - begun:.2f} s")


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
        weight = f" ({change.weight})" if weighted else ""
        lines.append(f"{change.key}: {old} → {new}{weight}{of_kits(change.kits)}{of_ceiling(change.ceiling)}")
    if action.affected is not None:
        since = "" if action.affected.since is None else f"; running since {time.ctime(action.affected.since)}"
        lines.append(f"affects: {', '.join(action.affected.sessions) or 'nobody'}{since}")
        lines += [f"in the way: {printable(work)}" for work in action.affected.unsaved]
    return [*lines, *(f"note: {note}" for note in action.notes)]


def of_ceiling(words: str) -> str:
    return f", the ceiling's: {words}" if words else ""


def of_kits(kits: Sequence[str]) -> str:
    return f", by the kit{'s' if len(kits) > 1 else ''} {', '.join(kits)}" if kits else ""


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
        mode = value["mode"] or ("readonly" if value["readonly"] else "writable")
        return f"{value['source']} on {value['target']}{'' if mode == 'writable' else f', {mode}'}"
    if key == "env":
        return "=".join(value)
    if key == "idle":
        return f"{value['then']} after {value['after']}"
    if key == "share_with":
        return holder_words(value)
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
