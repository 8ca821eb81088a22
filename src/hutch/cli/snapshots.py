"""snapshot, snapshots, restore, fork: points in time of a workspace."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from hutch.api import Hutch, silent
from hutch.cli.common import Options, needs_root, print_json, print_table, printable
from hutch.cli.completing import declared_names, existing_names
from hutch.errors import HutchError, UsageError


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.argument("tag", required=False)
@needs_root
def snapshot(options: Options, name: str, tag: str | None) -> None:
    """Keep the home of a workspace as it is at this moment, with its root if persist = "all", and print the tag: the
    time, unless it is given.

    One that runs is paused meanwhile. For workspaces of an Incus server."""
    click.echo(Hutch(listen=options.listen).snapshot(name, tag or ""))


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.option("--delete", metavar="TAG", help="Delete this snapshot instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@needs_root
def snapshots(options: Options, name: str, delete: str | None, as_json: bool) -> None:
    """List the snapshots of a workspace, oldest first."""
    hutch = Hutch(listen=options.listen)
    if delete is not None:
        hutch.delete_snapshot(name, delete)
        return
    entries = hutch.snapshots(name)
    if as_json:
        print_json(entries)
        return
    rows = [(entry["tag"], taken_words(entry), size_words(entry), entry["problem"] or "complete") for entry in entries]
    print_table(("TAG", "TAKEN", "SIZE", "STATE"), [tuple(map(printable, row)) for row in rows])


def taken_words(entry: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["taken"])) if entry["taken"] else "-"


def size_words(entry: dict[str, Any]) -> str:
    """The size, where the server tells it."""
    return f"{entry['size'] / 2**20:.0f} MiB" if entry["size"] else "-"


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.argument("tag")
@click.option("-y", "--yes", is_flag=True, help="Stop it without asking, which nobody could answer without a terminal.")
@needs_root
def restore(options: Options, name: str, tag: str, yes: bool) -> None:
    """Make the home of a workspace as it was in a snapshot, and its root if persist = "all". What they have now is
    gone, so take one first.

    One that runs is stopped, once that is allowed, and started again."""
    Hutch(listen=options.listen).restore(name, tag, confirm=silent if yes else ask)


def ask(what: str) -> None:
    if not (sys.stdin.isatty() and click.confirm(f"{what}; do it?", err=True)):
        raise HutchError(f"nothing was changed: {what}", resolution="--yes does not ask")


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.argument("news", nargs=-1, metavar="[NEW]...", shell_complete=declared_names)
@click.option("--count", type=click.IntRange(1, 1000), help="Instead of names: NAME-1 to NAME-COUNT.")
@click.option("--snapshot", "tag", metavar="TAG", help="As it was in this snapshot; default: as it is now.")
@click.option("--start", is_flag=True, help="Start the new ones.")
@needs_root
def fork(options: Options, name: str, news: tuple[str, ...], count: int | None, tag: str | None, start: bool) -> None:
    """Make new workspaces with the home of another one, and with its root where that is kept.

    hutch.toml declares them first. Name, address, host key and machine id are their own. They do not run yet, unless
    --start."""
    if bool(news) == (count is not None):
        raise UsageError("name the new workspaces, or give --count")
    # Spares the start-up of `hutch snapshot`.
    from hutch.apply.snapshots import forks_of

    hutch = Hutch(listen=options.listen)
    hutch.fork(hutch.load(options.path), name, news or forks_of(name, count or 0), tag=tag or "", start=start)
