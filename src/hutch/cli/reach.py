"""ssh, exec, cp: ways into a workspace."""

from __future__ import annotations

import os

import click

from hutch import run
from hutch.api import Hutch
from hutch.cli.common import Options, global_options, needs_root, workspace_names
from hutch.errors import HutchError, UsageError
from hutch.spec.names import hostname, is_name

NAME = click.argument("name", shell_complete=workspace_names)


@click.command()
@NAME
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@global_options
def ssh(options: Options, name: str, command: tuple[str, ...]) -> None:
    """OpenSSH to workspace-NAME. As with ssh, a shell inside reads COMMAND; `hutch exec` has none in between."""
    host = host_of(name)
    check_up(name)
    run.replace(["ssh", host, *(["--", *command] if command else [])])


@click.command(name="exec")
@NAME
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--root", is_flag=True, help="As root inside instead of the login user.")
@global_options
@needs_root
def execute(options: Options, name: str, command: tuple[str, ...], root: bool) -> int:
    """Run COMMAND inside: hutch exec NAME -- COMMAND... Arguments, streams, exit code and signals pass through."""
    return Hutch().workspace(name).attach(command, root=root)


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.argument("target")
@global_options
def cp(options: Options, source: tuple[str, ...], target: str) -> None:
    """Copy files and directories; NAME:path is the workspace side, relative to the login user's home."""
    ends = [end(text) for text in (*source, target)]
    if not any(remote for remote, _ in ends):
        raise UsageError("neither side is in a workspace", resolution="write one as NAME:path")
    for text, (remote, _) in zip((*source, target), ends, strict=True):
        if remote:
            check_up(text.partition(":")[0])
    run.replace(["scp", "-q", "-r", "-p", *(path for _, path in ends)])


def end(text: str) -> tuple[bool, str]:
    """(is it in a workspace, the argument for scp). A path with a slash before any colon is the host's."""
    if not text:
        raise UsageError("a path is empty")
    name, colon, path = text.partition(":")
    if colon and "/" not in name:
        return True, f"{host_of(name)}:{path or '.'}"
    return False, text if text.startswith("/") else f"./{text}"


def check_up(name: str) -> None:
    """Say at once what ssh would wait for in vain. Only root can read how a workspace stands."""
    if os.geteuid() != 0:
        return
    hutch = Hutch()
    hutch.record(name)
    now = hutch.observe(name)
    if not now.is_up:
        raise HutchError(f"{name} is {now.state}", resolution=f"`hutch start {name}`")


def host_of(name: str) -> str:
    if not is_name(name):
        raise UsageError(f"{name!r} is not the name of a workspace")
    return hostname(name)
