"""ssh and exec: ways into a workspace."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from hutch import engines, run
from hutch.api import Hutch
from hutch.cli.common import Options, global_options
from hutch.cli.completing import existing_names
from hutch.errors import HutchError, UsageError
from hutch.spec.names import hostname, is_name
from hutch.spec.record import has_processes

NAME = click.argument("name", shell_complete=existing_names)


@click.command()
@NAME
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@global_options
def ssh(options: Options, name: str, command: tuple[str, ...]) -> None:
    """OpenSSH to workspace-NAME. As with ssh, a shell inside reads COMMAND; `hutch exec` has none in between."""
    host = host_of(name)
    if sys.stderr.isatty():
        engines.listener = engines.nobody  # ssh's proxy tells it there
    check_up(name)
    note_ssh(name, command)
    run.replace(["ssh", host, *(["--", *command] if command else [])])


@click.command(name="exec")
@NAME
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--root", is_flag=True, help="As root inside instead of the login user.")
@global_options
def execute(options: Options, name: str, command: tuple[str, ...], root: bool) -> int:
    """Run COMMAND inside: hutch exec NAME -- COMMAND... Arguments, streams, exit code and signals pass through."""
    # Spares the start-up of `hutch ssh`.
    from hutch.api.workspace import Workspace

    return Workspace(name).attach(command, root=root)


def check_up(name: str) -> None:
    """Refuse at once a workspace that ssh would wait for in vain. Callers who may not see that are ssh's affair."""
    hutch = Hutch()
    if os.geteuid() != 0 and name not in hutch.records():
        return
    hutch.record(name)
    now = hutch.observe(name)
    if not has_processes(now.state):
        raise HutchError(f"{name} is {now.state}", resolution=f"`hutch start {name}`")


def note_ssh(name: str, command: Sequence[str]) -> None:
    """Put the session into the record. Nobody sees its end: this process becomes ssh."""
    # Spares the start-up of `hutch exec`, which has imported it by then.
    from hutch.audit.events import words_of
    from hutch.audit.telling import begin

    begin(Hutch().layout, name, "ssh", argv=words_of(command))


def host_of(name: str) -> str:
    if not is_name(name):
        raise UsageError(f"{name!r} is not the name of a workspace")
    return hostname(name)
