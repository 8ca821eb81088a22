"""eject: a workspace that goes on without hutch."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hutch.api.engine import Hutch, unasked
from hutch.cli.common import Options, global_options, needs_root
from hutch.cli.completing import existing_names
from hutch.errors import HutchError


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.option(
    "--to", type=click.Path(path_type=Path), help="The directory for it; default: /var/lib/hutch-ejected/NAME."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@global_options
@needs_root
def eject(options: Options, name: str, to: Path | None, yes: bool) -> None:
    """Make plain units and files of a workspace, which go on working without hutch. Home, keys and address stay.

    A container that runs is started again as a unit of its own. hutch keeps its address for it, and manages it no more.
    """
    hutch = Hutch(listen=options.listen)
    asks = not yes and sys.stdin.isatty()
    there = hutch.eject(name, to.absolute() if to else None, confirm=ask if asks else unasked)
    options.say(f"{name}: ejected; {there}/README says what is what")
    options.say(f"{name}: take it out of hutch.toml: a file that declares it is refused")
    click.echo(str(there))


def ask(what: str) -> None:
    if not click.confirm(f"{what}; do it?", err=True):
        raise HutchError("nothing was changed", resolution="--yes does not ask")
