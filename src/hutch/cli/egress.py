"""egress: the questions and connections of a workspace, and those that were refused. Names are chosen inside it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing

import click

from hutch.api import Hutch
from hutch.cli.common import Options, options_before, print_json, print_row, print_table, printable
from hutch.cli.completing import existing_names
from hutch.egress.record import Seen, aggregate
from hutch.spec.policy import policy_of

HEADER = ("LAST", "VERDICT", "NAME", "ADDRESS", "PORT", "COUNT", "WHY")
LEAST = (19, 7, 40, 15, 8, 5, 3)
"""The least widths of the columns, for rows that are still to come."""
LONGEST_NAME = 60
NOT_WATCHED = "nothing is recorded with this policy; `learn = true` beside `egress` records, and lets pass"


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Go on as it happens; on a terminal it does by itself. (A file goes first: hutch -f FILE egress.)",
)
@click.option("--suggest", is_flag=True, help="Print a list for hutch.toml instead, made from the record.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, or with -f an object a line.")
@options_before
def egress(options: Options, name: str, follow: bool, suggest: bool, as_json: bool) -> None:
    """Show what a workspace asked for and reached, with what became of it."""
    if suggest and (follow or as_json):
        raise click.UsageError("--suggest goes without -f and --json.")
    hutch = Hutch()
    is_watched = policy_of(hutch.record(name).wanted).is_watched
    if not is_watched:
        click.echo(f"hutch: {name}: {NOT_WATCHED}", err=True)
    if suggest:
        if is_watched or hutch.egress(name):
            click.echo(hutch.suggest_egress(name), nl=False)
            options.say(f"names are chosen by whoever works in {name}: look at each before you put this in hutch.toml")
    elif is_watched and (follow or (sys.stdout.isatty() and not as_json)):
        show_as_it_comes(hutch, name, as_json=as_json)
    else:
        seen = aggregate(hutch.egress(name))
        if as_json:
            print_json([item.to_json() for item in seen])
        elif seen or is_watched:
            print_table(HEADER, [cells(item) for item in seen])


def show_as_it_comes(hutch: Hutch, name: str, *, as_json: bool) -> None:
    """Print the events that are there, and new ones until Ctrl-C, which is no failure here."""
    widths: Sequence[int] = ()
    try:
        with closing(hutch.follow_egress(name)) as batches:
            for batch in batches:
                seen = aggregate(batch)
                if as_json:
                    for item in seen:
                        print_json(item.to_json(), indent=None)
                elif not widths:
                    widths = print_table(HEADER, [cells(item) for item in seen], LEAST)
                else:
                    for item in seen:
                        print_row(cells(item), widths)
    except KeyboardInterrupt:
        return


def cells(seen: Seen) -> tuple[str, ...]:
    """A row of the table."""
    name = seen.name or "-"
    row = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.time)),
        seen.verdict,
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…",
        seen.address or "-",
        show_port(seen),
        str(seen.count),
        seen.why or "-",
    )
    return tuple(map(printable, row))


def show_port(seen: Seen) -> str:
    """The kind of an event, in a word: a question, or a connection to a port, by its protocol."""
    if seen.what == "dns":
        return "dns"
    protocol = seen.protocol or "-"
    return protocol if seen.port is None else f"{seen.port}/{protocol}"
