"""down, start, stop, restart, rm, uninstall, eject."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hutch.api import Hutch, silent
from hutch.cli.common import FORCE, Options, needs_root
from hutch.cli.completing import existing_names, kept_names
from hutch.errors import HutchError

if TYPE_CHECKING:
    from hutch.plan.actions import Verb


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=existing_names)
@FORCE
@needs_root
def down(options: Options, names: tuple[str, ...], force: bool) -> None:
    """Stop the named workspaces, or all that the file has brought up."""
    hutch = Hutch(listen=options.listen)
    hutch.stop(names or hutch.brought_up(options.path), force=force)


def turning(verb: Verb, text: str) -> click.Command:
    """The command that turns workspaces on or off; `text` is its help."""

    @click.command(verb, help=text)
    @click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=existing_names)
    @needs_root
    def command(options: Options, names: tuple[str, ...], **given: bool) -> None:
        getattr(Hutch(listen=options.listen), verb)(names, **given)

    return command if verb == "start" else FORCE(command)


start = turning("start", "Start workspaces; returns when they are ready.")
stop = turning("stop", "Stop workspaces: in order first, by force after a deadline.")
restart = turning("restart", "Stop and start workspaces; pending changes take effect.")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=existing_names)
@click.option("--purge", is_flag=True, help="Delete the home, the host key and the address too.")
@click.option("--force", is_flag=True, help="Even with unsaved git work or a live session.")
@needs_root
def rm(options: Options, names: tuple[str, ...], purge: bool, force: bool) -> None:
    """Stop and remove workspaces. Their homes are kept unless --purge."""
    Hutch(listen=options.listen).remove(names, purge=purge, force=force)


@click.command()
@click.argument("name", shell_complete=kept_names)
@needs_root
def undelete(options: Options, name: str) -> None:
    """Bring back a removed workspace whose home is kept, stopped: with its host key, owner and address.

    It is as it was declared last. `hutch ls --all` lists what is kept; `hutch rm --purge` deletes it."""
    Hutch(listen=options.listen).undelete(name, options.path)


@click.command()
@click.option("--purge", is_flag=True, help="Delete all homes, keys and images too, and the state directory.")
@click.option("--force", is_flag=True, help="With --purge: even with unsaved git work or a live session.")
@click.option("--yes", is_flag=True, help="With --purge: do not ask, which nobody could answer without a terminal.")
@needs_root
def uninstall(options: Options, purge: bool, force: bool, yes: bool) -> None:
    """Take hutch off this host, as before its package is removed.

    All workspaces are stopped; the network, the names in /etc/hosts, the ssh configuration and installed aliases go,
    and what `hutch doctor --fix` changed of others'. Homes, keys, images and records stay unless --purge: the next
    `hutch up` brings the same workspaces back."""
    hutch = Hutch(listen=options.listen)
    state = hutch.layout.state
    question = f"delete {state}, with the homes of all workspaces?"
    if purge and not yes and not (sys.stdin.isatty() and click.confirm(question, err=True)):
        raise HutchError(
            f"nothing was changed: --purge deletes {state} with all homes", resolution="--yes does not ask"
        )
    for note in hutch.uninstall(purge=purge, force=force):
        options.say(note)
    options.say("hutch has left this host")


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.option(
    "--to", type=click.Path(path_type=Path), help="The directory for it; default: /var/lib/hutch-ejected/NAME."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@needs_root
def eject(options: Options, name: str, to: Path | None, yes: bool) -> None:
    """Make plain units and files of a workspace, which go on working without hutch. Home, keys and address stay.

    A container that runs is started again as a unit of its own. hutch keeps its address for it, and manages it no more.
    """
    hutch = Hutch(listen=options.listen)
    asks = not yes and sys.stdin.isatty()
    there = hutch.eject(name, to.absolute() if to else None, confirm=ask if asks else silent)
    options.say(f"{name}: ejected; {there}/README explains the files")
    options.say(f"{name}: take it out of hutch.toml: a file that declares it is refused")
    click.echo(str(there))


def ask(what: str) -> None:
    if not click.confirm(f"{what}; do it?", err=True):
        raise HutchError("nothing was changed", resolution="--yes does not ask")
