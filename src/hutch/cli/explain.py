"""explain: everything behind a workspace, in a form that a sysadmin can read and replay."""

from __future__ import annotations

import click

from hutch.api import Hutch
from hutch.cli.common import Options, global_options, needs_root, printable
from hutch.cli.completing import existing_names


@click.command()
@click.argument("name", shell_complete=existing_names)
@global_options
@needs_root
def explain(options: Options, name: str) -> None:
    """Print the exact commands, firewall rules and files behind a workspace's next start."""
    for number, section in enumerate(Hutch().explain(name)):
        click.echo(printable(f"{chr(10) if number else ''}# {section.title}\n{section.text}"))
