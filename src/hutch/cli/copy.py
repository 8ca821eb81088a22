"""cp: files between the host and workspaces."""

from __future__ import annotations

import os
import tempfile

import click

from hutch.api import copying
from hutch.api.copying import Side
from hutch.api.transports import own_side, ssh_side
from hutch.api.workspace import Workspace
from hutch.cli.common import Options, global_options
from hutch.cli.completing import copied_paths
from hutch.cli.reach import check_up, host_of
from hutch.errors import UsageError
from hutch.spec.field_types import Invalid
from hutch.spec.values import Size


def read_size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        return Size().parse(value)
    except Invalid as error:
        raise click.BadParameter(f"{value!r} {error}") from None


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
            options.listen(name or to, "warning", f"left out: {what}")


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
    if not to:
        return copying.get(side(name), path, place, limit=limit, into=True).left_out
    if not name:
        return copying.put(side(to), path, place, into=True).left_out
    with tempfile.TemporaryDirectory(prefix="hutch-cp-") as directory:
        between = os.path.join(directory, copying.name_of(path) or "all")
        left_out = copying.get(side(name), path, between, limit=limit).left_out
        source = between if copying.name_of(path) else f"{between}/."
        return left_out + copying.put(side(to), source, place, into=True).left_out


def side(name: str) -> Side:
    return ssh_side(name) if os.geteuid() != 0 else own_side(Workspace(name))
