"""trust: what the hutch.toml of a checkout asks for, and the answer of the person at the terminal. Every word of such a
file is somebody else's."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hutch.api import Hutch
from hutch.api.trusting import Trust
from hutch.cli.common import Options, global_options, print_json, print_table, printable
from hutch.cli.declare import words
from hutch.errors import HutchError, UsageError
from hutch.spec.lookup import LOCAL_FILE

if TYPE_CHECKING:
    from hutch.apply.accepting import Offer
    from hutch.host.identity.answers import Asks

HEADER = ("ACCEPTED", "NOW", "FILE")
NOT_NEEDED = "is in no checkout: it is your own, and needs no trust"


@click.command()
@click.argument("path", required=False, type=click.Path())
@click.option("--yes", is_flag=True, help="Accept it as shown, without asking.")
@click.option("--revoke", is_flag=True, help="Forget that the file was accepted.")
@click.option("--list", "as_list", is_flag=True, help="List the files that you have accepted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and ask nothing.")
@global_options
def trust(options: Options, path: str | None, yes: bool, revoke: bool, as_list: bool, as_json: bool) -> None:
    """Show what the hutch.toml of a checkout asks for, and ask whether you accept it. PATH is the file, or a directory
    with one.

    A hutch.toml that has a `.git` above it counts for nothing before: `plan`, `up` and the like refuse it. What you
    accept is this file as it is now; when it changes, you are asked again, and shown what has changed. The answer is
    yours alone, also behind sudo, and needs no root. Without a terminal, and without --yes, it is no."""
    if revoke + as_list + yes > 1:
        raise UsageError("--yes, --revoke and --list go one at a time")
    its, found = Trust(Hutch()), place(options, path)
    if as_list:
        show_answers(its, as_json=as_json)
    elif revoke:
        file, was_there = its.revoke(found)
        options.say(f"{on_one_line(file)} {'is not accepted any more' if was_there else 'was not accepted'}")
    else:
        answer(options, its, found, yes=yes, as_json=as_json)


def place(options: Options, path: str | None) -> Path | None:
    """The file that is meant: a directory means the one in it."""
    if path is None:
        return options.path
    return Path(path, LOCAL_FILE) if os.path.isdir(path) else Path(path)


def answer(options: Options, its: Trust, path: Path | None, *, yes: bool, as_json: bool = False) -> None:
    """Show what a file asks for and, unless that was accepted before, have the person decide. HutchError for a no."""
    offer = its.offer(path)
    if offer is None:
        options.say(f"{path or 'the hutch.toml'} {NOT_NEEDED}")
        return
    if as_json:
        print_json(to_json(offer))
    else:
        show(offer)
    if offer.is_accepted:
        options.say("this was accepted already")
        return
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise HutchError(
                "nobody can be asked without a terminal, so the answer is no",
                resolution=f"read it, and if you accept it: hutch trust --yes {shlex.quote(offer.file)}",
            )
        if not click.confirm("accept this file as it is now?", err=True):
            raise HutchError(f"{offer.file} was not accepted, and counts for nothing")
    its.accept(offer)
    options.say(f"accepted: {on_one_line(offer.file)} as it is now, for {its.person.name}")


def show(offer: Offer) -> None:
    """Print what the file asks for; of one that was accepted and has changed since, what has changed."""
    # Spares the start-up of `hutch trust` for its help.
    from hutch.apply.accepting import day

    click.echo(f"{on_one_line(offer.file)}, in the checkout {on_one_line(offer.checkout)}")
    if offer.before is None or offer.is_accepted:
        click.echo("asks for:" if offer.asks else "asks for no workspace")
        lines = list(told(offer.asks, {}))
    else:
        click.echo(f"has changed since it was accepted ({day(offer.before.when)}):")
        lines = list(told(offer.asks, offer.before.asks)) or ["none of its requests"]
    for line in lines:
        click.echo(printable(f"  {line}"))


def on_one_line(path: str) -> str:
    """A path as it goes to the terminal: a repository names its directories, and may do so in order to lie here."""
    return printable(path.replace("\n", "⏎"))


def told(now: Asks, before: Asks) -> Iterator[str]:
    """The lines for all workspaces that differ, against what was accepted, or else against the defaults."""
    for name in (*now, *(name for name in before if name not in now)):
        if name not in now:
            yield f"{name}: not declared any more"
            continue
        lines = list(told_one(now[name], before.get(name, {})))
        if lines or name not in before:
            yield name
            yield from (f"  {line}" for line in lines)


def told_one(now: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """The lines for one workspace: each key with both values, a script line by line."""
    # Spares the start-up of `hutch trust` for its help.
    from hutch.apply.accepting import usual
    from hutch.plan.planner import plain

    for key in (*now, *(key for key in before if key not in now)):
        old, new = (values.get(key, plain(usual(key))) for values in (before, now))
        if old == new:
            continue
        if "\n" in f"{old}{new}" and isinstance(new, str):
            yield f"{key}:"
            lines = difflib.unified_diff(str(old or "").splitlines(), new.splitlines(), n=len(new), lineterm="")
            yield from (f"  {line}" for line in list(lines)[3:])
        else:
            yield f"{key}: {in_words(old, key)} → {in_words(new, key)}"


def in_words(value: Any, key: str) -> str:
    """A value as a plan shows it, and as it is where another version of hutch wrote it down."""
    try:
        return words(value, key)
    except (KeyError, TypeError, ValueError, AttributeError):
        return json.dumps(value)


def to_json(offer: Offer) -> dict[str, Any]:
    return {
        "file": offer.file,
        "checkout": offer.checkout,
        "sha256": offer.sha256,
        "accepted": offer.is_accepted,
        "asks": offer.asks,
        "before": None if offer.before is None else offer.before.asks,
    }


def show_answers(its: Trust, *, as_json: bool) -> None:
    """List what was accepted, with how the files are now."""
    # Spares the start-up of `hutch trust` for its help.
    from hutch.apply.accepting import day

    found = list(its.answers())
    if as_json:
        print_json([{**answer.to_json(), "now": now} for answer, now in found])
    elif found:
        print_table(HEADER, [(day(answer.when), now, on_one_line(answer.file)) for answer, now in found])
