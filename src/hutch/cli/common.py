"""The shared parts of commands: options, errors, tables, the need for root."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from hutch.errors import ConfigError, HutchError, lacks_root
from hutch.frozen import dataclass
from hutch.host.services import lock

F = TypeVar("F", bound=Callable[..., Any])

KEPT_VARIABLES = ("HUTCH_STATE_DIR", "HUTCH_RUN_DIR", "HUTCH_FILE")


@dataclass(frozen=True)
class Options:
    """The global options, given before or after the command's name."""

    file: str | None = None
    quiet: bool = False
    verbose: bool = False

    @property
    def path(self) -> Path | None:
        return Path(self.file) if self.file else None

    def say(self, text: str) -> None:
        """Print progress and remarks to stderr, unless -q."""
        if not self.quiet:
            click.echo(text, err=True)

    def listen(self, name: str, event: str, text: str) -> None:
        """Print what the engine tells, but for failures."""
        if event == "warning":
            click.echo(f"hutch: warning: {name}: {text}", err=True)
        elif event != "failed":  # failures are told once, at the end, with their reasons
            self.say(f"{name}: {event}{f' {text}' if text else ''}")


def global_options(function: F) -> F:
    """Accept -f, -q and -v after the command's name too."""

    @click.option("-f", "--file", type=click.Path(), help="The hutch.toml to use.")
    @click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
    @click.option("-v", "--verbose", is_flag=True, help="Show each command that hutch runs.")
    @functools.wraps(function)
    def wrapper(file: str | None, quiet: bool, verbose: bool, **values: Any) -> Any:
        before = click.get_current_context().find_object(Options) or Options()
        options = Options(file or before.file, quiet or before.quiet, verbose or before.verbose)
        lock.listener = lambda holder: options.say(f"hutch: waiting for {holder}")
        if options.verbose:
            show_commands()
        return function(options, **values)

    return wrapper  # type: ignore[return-value]


def show_commands() -> None:
    """Print every command that is run from now on, as one could type it."""
    # Spares the start-up of `hutch ls`.
    import shlex

    from hutch import run  # `ls` starts without it and what it imports

    run.listener = lambda argv: click.echo(printable(f"+ {shlex.join(argv)}"), err=True)


def needs_root(function: F) -> F:
    """Accept the global options, and run the command again through sudo, doas or (by polkit) run0 on a terminal; say so
    otherwise."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **values: Any) -> Any:
        if os.geteuid() != 0:
            become_root()
        return function(*arguments, **values)

    return global_options(wrapper)  # type: ignore[return-value]


def become_root() -> None:
    # Spares the start-up of `hutch ls`.
    import shutil

    elevate = next((name for name in ("sudo", "doas", "run0") if shutil.which(name)), None)
    if elevate is None or not sys.stdin.isatty():
        raise lacks_root()
    # Spares the start-up of `hutch ls`.
    from hutch import run

    click.echo(f"hutch: this needs root, asking {elevate}", err=True)
    # All clear the environment, and doas has no option to keep a part of it; env sets it again.
    kept = [f"{name}={os.environ[name]}" for name in KEPT_VARIABLES if name in os.environ]
    env = ["env", *kept] if kept else []
    run.replace([elevate, "--", *env, os.path.abspath(sys.argv[0]), *sys.argv[1:]])


def print_error(error: HutchError) -> None:
    """Print a failure, here and nowhere else: brief, details, what to do."""
    click.echo(f"hutch: {printable(error.brief)}", err=True)
    if error.details:
        indent = "" if isinstance(error, ConfigError) else "  "
        for line in error.details.splitlines():
            click.echo(indent + printable(line), err=True)
    if error.resolution:
        click.echo(f"  → {printable(error.resolution)}", err=True)


def printable(text: str) -> str:
    """`text` without characters that a terminal would take as a command: it may come from a guest."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], least: Sequence[int] = ()) -> list[int]:
    """Left-aligned columns, two spaces apart. Returns their widths, which are at `least` these, for rows to come."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    widths = [max(pair) for pair in zip(widths, least or widths, strict=True)]
    for row in cells:
        print_row(row, widths)
    return widths


def print_row(row: Sequence[str], widths: Sequence[int]) -> None:
    click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(value: Any, *, indent: int | None = 2) -> None:
    # Spares the start-up of `hutch ssh`.
    import json

    click.echo(json.dumps(value, indent=indent))
