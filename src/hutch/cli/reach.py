"""ssh, exec, cp: ways into a workspace."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from hutch import run
from hutch.api import Hutch
from hutch.cli.common import Options, global_options, printable
from hutch.cli.completing import copied_paths, existing_names
from hutch.errors import HutchError, UsageError
from hutch.spec.names import hostname, is_name

if TYPE_CHECKING:
    from hutch.api.copying import Side

NAME = click.argument("name", shell_complete=existing_names)


def read_size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    from hutch.spec.marker import Invalid
    from hutch.spec.values import Size

    try:
        return Size().parse(value)
    except Invalid as error:
        raise click.BadParameter(f"{value!r} {error}") from None


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
def execute(options: Options, name: str, command: tuple[str, ...], root: bool) -> int:
    """Run COMMAND inside: hutch exec NAME -- COMMAND... Arguments, streams, exit code and signals pass through."""
    return Hutch().workspace(name).attach(command, root=root)


@click.command()
@click.argument("source", nargs=-1, required=True, shell_complete=copied_paths)
@click.argument("target", shell_complete=copied_paths)
@click.option("--limit", callback=read_size, default="16GiB", show_default=True, help="Take no more in one go.")
@global_options
def cp(options: Options, source: tuple[str, ...], target: str, limit: int) -> None:
    """Copy files and directories; NAME:path is the workspace side, relative to the login user's home.

    Links stay links; those that lead out of what is copied from a workspace are left out."""
    ends = [end(text) for text in (*source, target)]
    if not any(name for name, _ in ends):
        raise UsageError("neither side is in a workspace", resolution="write one as NAME:path")
    for name in {name for name, _ in ends if name}:
        check_up(name)
    to, place = ends[-1]
    if len(source) > 1:
        place = os.path.join(place, ".")  # several go into a directory that is there
    for name, path in ends[:-1]:
        for what in transfer(name, path, to, place, limit):
            options.listen(name or to, "warning", f"left out: {printable(what)}")


def end(text: str) -> tuple[str, str]:
    """(workspace, path), with "" for the host. A path with a slash before any colon is the host's."""
    if not text:
        raise UsageError("a path is empty")
    name, colon, path = text.partition(":")
    if colon and "/" not in name:
        host_of(name)
        return name, path or "."
    return "", text


def transfer(name: str, path: str, to: str, place: str, limit: int) -> tuple[str, ...]:
    """Copy one path; returns what was left out. From one workspace to another it goes by way of the host."""
    from hutch.api.copying import get, name_of, put

    if not to:
        return get(side(name), path, place, limit=limit, into=True).left_out
    if not name:
        return put(side(to), path, place, into=True).left_out
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hutch-cp-") as directory:
        between = os.path.join(directory, name_of(path) or "all")
        left_out = get(side(name), path, between, limit=limit).left_out
        return left_out + put(side(to), between if name_of(path) else f"{between}/.", place, into=True).left_out


def side(name: str) -> Side:
    from hutch.api.carriers import own_side, ssh_side

    if os.geteuid() != 0:
        return ssh_side(name)
    from hutch.access.piped import Canceller

    return own_side(Hutch().workspace(name), Canceller())


def check_up(name: str) -> None:
    """Say at once what ssh would wait for in vain. Whether it lets in somebody who may not see that is ssh's affair."""
    hutch = Hutch()
    if os.geteuid() != 0 and name not in hutch.records():
        return
    hutch.record(name)
    now = hutch.observe(name)
    if not now.is_up:
        raise HutchError(f"{name} is {now.state}", resolution=f"`hutch start {name}`")


def host_of(name: str) -> str:
    if not is_name(name):
        raise UsageError(f"{name!r} is not the name of a workspace")
    return hostname(name)
