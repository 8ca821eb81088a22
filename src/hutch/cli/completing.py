"""Completion of a word of the command line. It must not fail, and is asked at every press of a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hutch.errors import HutchError
from hutch.spec.names import Layout

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

OPEN = ":"
"""The end of a word that goes on: no space comes behind it."""
END_BASH = "    return 0\n"
OPEN_BASH = f"    [[ ${{#COMPREPLY[@]}} != 1 || ${{COMPREPLY[0]}} != *{OPEN} ]] || compopt -o nospace\n"
END_ZSH = "        compadd -U -V unsorted -a completions\n"
OPEN_ZSH = f"""\
        local -a open=(${{(M)completions:#*{OPEN}}}) closed=(${{completions:#*{OPEN}}})
        (( ! $#open )) || compadd -U -V unsorted -S '' -a open
        (( ! $#closed )) || compadd -U -V unsorted -a closed
"""
PATCHES = {"bash": (END_BASH, OPEN_BASH + END_BASH), "zsh": (END_ZSH, OPEN_ZSH), "fish": ("", "")}
"""Texts of click's scripts, and their replacements here. fish knows by itself."""


def render_completion(shell: str) -> str:
    """The script for a shell: click's, which puts no space behind a word that goes on."""
    # Spares the start-up of `hutch ls`.
    from click.shell_completion import get_completion_class

    from hutch.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    return found(cli, {}, "hutch", "_HUTCH_COMPLETE").source().replace(*PATCHES[shell], 1)


def _layout() -> Layout | None:
    try:
        return Layout.from_environment()
    except HutchError:
        return None


def existing_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The workspaces that the caller may look at."""
    # Spares the start-up of `hutch ls`.
    from hutch.host.identity.user_view import visible_names

    layout = _layout()
    return [name for name in visible_names(layout) if name.startswith(incomplete)] if layout else []


def kept_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The removed workspaces whose homes are kept. Nobody but root can look at them."""
    # Spares the start-up of `hutch ls`.
    from hutch.state import read_records

    layout = _layout()
    try:
        records = read_records(layout) if layout else {}
    except HutchError:
        return []
    return [n for n, r in records.items() if r.removed and not r.ejected and n.startswith(incomplete)]


def declared_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The workspaces of the file, where that can be read, and those that are there."""
    # Spares the start-up of `hutch ls`.
    from hutch.spec.lookup import glance, look_for_file

    file = ctx.params.get("file") or ctx.find_root().params.get("file")
    try:
        found = look_for_file(Path(file) if file else None)
        declared = set(glance(found)) if found else set()
    except (HutchError, OSError):
        declared = set()
    own = [name for name in declared if name.startswith(incomplete)]
    return sorted({*own, *existing_names(ctx, param, incomplete)})


def kit_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The kits of the caller, of the host and of hutch. Those of a file are in that to read."""
    # Spares the start-up of `hutch ls`.
    from hutch.spec.kit_files import shelves

    found = {name for shelf in shelves(os.environ, os.getuid()) for name in shelf.names()}
    return sorted(name for name in found if name.startswith(incomplete))


def places(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The engines. No server is asked for its members at the press of a key."""
    return [place for place in ("incus", f"incus{OPEN}", "local") if place.startswith(incomplete)]


def copied_paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Files of the host, and workspaces; not the files in these. bash makes three words of a word with a colon."""
    # Spares the start-up of `hutch ls`.
    from click.shell_completion import CompletionItem

    given = [*(ctx.params.get("source") or ()), ctx.params.get("target")]
    if OPEN in incomplete.partition("/")[0] or given[-1] == OPEN or given[-2:] == [OPEN, None]:
        return []
    names = [CompletionItem(f"{name}{OPEN}") for name in existing_names(ctx, param, incomplete)]
    return [CompletionItem(incomplete, type="file"), *names]


def image_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The images in the cache. Nobody but root can look into them."""
    layout = _layout()
    try:
        found = [entry.name for entry in os.scandir(layout.images) if entry.is_dir()] if layout else []
    except OSError:
        found = []
    return sorted(name for name in found if name.startswith(incomplete) and name[:1] != "." and name != "kernels")
