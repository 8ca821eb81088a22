"""down, start, stop, restart, rm, withdraw."""

from __future__ import annotations

import sys

import click

from hutch.api import Hutch
from hutch.cli.common import Options, global_options, needs_root
from hutch.cli.completing import existing_names
from hutch.errors import HutchError

NAMES = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=existing_names)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=existing_names)
@global_options
@needs_root
def down(options: Options, names: tuple[str, ...]) -> None:
    """Stop the named workspaces, or all that the file has brought up."""
    hutch = Hutch(listen=options.listen)
    hutch.stop(names or hutch.brought_up(options.path))


@click.command()
@NAMES
@global_options
@needs_root
def start(options: Options, names: tuple[str, ...]) -> None:
    """Start workspaces; returns when they are ready."""
    Hutch(listen=options.listen).start(names)


@click.command()
@NAMES
@global_options
@needs_root
def stop(options: Options, names: tuple[str, ...]) -> None:
    """Stop workspaces: in order first, by force after a deadline."""
    Hutch(listen=options.listen).stop(names)


@click.command()
@NAMES
@global_options
@needs_root
def restart(options: Options, names: tuple[str, ...]) -> None:
    """Stop and start workspaces; what was pending takes effect."""
    Hutch(listen=options.listen).restart(names)


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.option("--purge", is_flag=True, help="Delete the home, the host key and the address too.")
@click.option("--force", is_flag=True, help="Even with unsaved git work or a live session.")
@global_options
@needs_root
def rm(options: Options, name: str, purge: bool, force: bool) -> None:
    """Stop and remove a workspace. Its home is kept unless --purge."""
    for note in Hutch(listen=options.listen).remove(name, purge=purge, force=force):
        options.say(f"{name}: {note}")
    options.say(f"{name}: removed")


@click.command()
@click.option("--purge", is_flag=True, help="Delete all homes, keys and images too, and the state directory.")
@click.option("--force", is_flag=True, help="With --purge: even with unsaved git work or a live session.")
@click.option("--yes", is_flag=True, help="With --purge: do not ask, which nobody could answer without a terminal.")
@global_options
@needs_root
def withdraw(options: Options, purge: bool, force: bool, yes: bool) -> None:
    """Take hutch off this host, as before it is uninstalled.

    All workspaces are stopped; the network, the names in /etc/hosts, the ssh configuration and installed aliases go,
    and what `hutch doctor --fix` changed of others'. Homes, keys, images and records stay unless --purge: the next
    `hutch up` brings the same workspaces back."""
    hutch = Hutch(listen=options.listen)
    state = hutch.places.state
    question = f"delete {state}, with the homes of all workspaces?"
    if purge and not yes and not (sys.stdin.isatty() and click.confirm(question, err=True)):
        raise HutchError(
            f"nothing was changed: --purge deletes {state} with all homes", resolution="--yes does not ask"
        )
    for note in hutch.withdraw(purge=purge, force=force):
        options.say(note)
    options.say(
        "hutch has left this host" + (f"; homes, keys and images are kept in {state}" if state.exists() else "")
    )
