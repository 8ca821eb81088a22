"""The shared parts of commands: options, errors, tables, the need for root."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from hutch import engines, texts
from hutch.errors import ConfigError, HutchError, lacks_root
from hutch.frozen import dataclass
from hutch.host.services import lock
from hutch.spec.names import INCUS_CONF, STATE_HOME

F = TypeVar("F", bound=Callable[..., Any])

FORCE = click.option("--force", is_flag=True, help="Even with unsaved git work outside of the home, which is lost.")
MEMBERS: Mapping[str, frozenset[str]] = {
    "up": frozenset({"no_start", "prune", "adopt", "yes", "force", "as_json"}),
    "down": frozenset({"force"}),
    "start": frozenset(),
    "stop": frozenset({"force"}),
    "restart": frozenset({"force"}),
    "rm": frozenset({"purge", "force"}),
    "undelete": frozenset(),
    "allow": frozenset({"duration"}),
    "deny": frozenset(),
    "ls": frozenset({"everything", "kept", "as_json"}),
    "report": frozenset({"since", "verify", "form", "no_files"}),
}
"""The commands that root carries out for members of the group `hutch`, with their options. What they need nobody's
rights for is not among them."""
FOR_ALL = frozenset({"file", "quiet", "verbose"})
"""The options that all of them have."""
OF_ANOTHER = ("HUTCH_STATE_DIR", "HUTCH_RUN_DIR")
"""The variables that mean another hutch than the host's. Members have workspaces in that one alone."""
KEPT_VARIABLES = ("HUTCH_STATE_DIR", "HUTCH_RUN_DIR", "HUTCH_FILE", INCUS_CONF, STATE_HOME)


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
            click.echo(f"hutch: warning: {name}: {printable(text)}", err=True)
        elif event != "failed":  # failures are told once, at the end, with their reasons
            self.say(f"{name}: {event}{f' {text}' if text else ''}")


def global_options(function: F) -> F:
    """Accept -f, -q and -v after the command's name too."""

    @click.option("-f", "--file", type=click.Path(), help="The hutch.toml to use.")
    @click.option("-q", "--quiet", is_flag=True, help="Only results, errors, and that an image is made.")
    @click.option("-v", "--verbose", is_flag=True, help="Show each command that hutch runs.")
    @functools.wraps(function)
    def wrapper(file: str | None, quiet: bool, verbose: bool, **values: Any) -> Any:
        before = click.get_current_context().find_object(Options) or Options()
        options = Options(file or before.file, quiet or before.quiet, verbose or before.verbose)
        begin(options)
        return function(options, **values)

    return wrapper  # type: ignore[return-value]


def options_before(function: F) -> F:
    """Accept the global options before the command's name alone, where its own -f is another one."""

    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        options = click.get_current_context().find_object(Options) or Options()
        begin(options)
        return function(options, **values)

    return wrapper  # type: ignore[return-value]


def begin(options: Options) -> None:
    """Have a command heed its options: say whom it waits for, and mean the hutch that its caller may mean."""
    lock.listener = lambda holder: options.say(f"hutch: waiting for {holder}")
    engines.listener = lambda text: options.say(f"hutch: {text}")
    if options.verbose:
        show_commands()
    mean_the_hosts(options)


def mean_the_hosts(options: Options) -> None:
    """Have a member's command mean the host's own hutch, whatever their environment says: root does not hear it."""
    said = [name for name in OF_ANOTHER if os.environ.get(name)]
    if not said:
        return
    # Spares the start-up of `hutch ls`.
    from hutch.spec.member import has_entry, member_of

    if has_entry() and member_of(os.geteuid()) is not None:
        for name in said:
            del os.environ[name]
        options.say(f"hutch: {' and '.join(said)} is for root's hutches: members have workspaces in the host's own")


def show_commands() -> None:
    """Print every command that is run from now on, as one could type it. To a member, root's are not shown: they name
    directories of others."""
    # Spares the start-up of `hutch ls`.
    import shlex

    from hutch import run  # `ls` starts without it and what it imports
    from hutch.spec import member

    if member.acting is not None:
        return

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
    """Run this very command again, as root."""
    # Spares the start-up of `hutch ls`.
    from hutch import run

    run.replace(through_root(sys.argv[1:]))


def through_root(words: Sequence[str]) -> list[str]:
    """The command line by which root runs hutch with these words; HutchError where nobody could be asked."""
    # Spares the start-up of `hutch ls`.
    import shutil

    if entry := by_entry(words):
        return entry
    elevate = next((name for name in ("sudo", "doas", "run0") if shutil.which(name)), None)
    if elevate is None or not sys.stdin.isatty():
        raise lacks_root(by_group(words))
    click.echo(f"hutch: this needs root, asking {elevate}", err=True)
    # All clear the environment, and doas has no option to keep a part of it; env sets it again.
    kept = [f"{name}={os.environ[name]}" for name in KEPT_VARIABLES if name in os.environ]
    env = ["env", *kept] if kept else []
    program = os.path.abspath(sys.argv[0])
    own = [sys.executable, "-m", "hutch"] if os.path.basename(program) == "__main__.py" else [program]
    return [elevate, "--", *env, *own, *words]


def by_entry(words: Sequence[str]) -> list[str]:
    """The command line by which root runs hutch with these words for a member, without a question; [] where the caller
    is none, no program starts the entry point for them, or the command is not for members."""
    # Spares the start-up of `hutch ls`.
    from hutch.host.doctor.entry import open_way
    from hutch.spec.member import has_entry, member_of

    if command_of(words) not in MEMBERS or not has_entry() or member_of(os.getuid()) is None:
        return []
    way = open_way()
    file = os.environ.get("HUTCH_FILE")
    said = ["--file", file] if file else []  # what is said later counts
    return [*way, *said, *words] if way else []


def by_group(words: Sequence[str]) -> str:
    """The way in for somebody who could type the command as a member, and is none; "" for everything else."""
    # Spares the start-up of `hutch ls`.
    from hutch.spec.member import GROUP, has_entry, member_of

    is_way = command_of(words) in MEMBERS and has_entry() and member_of(os.getuid()) is None
    return f"or have root add you to the group {GROUP}" if is_way else ""


def command_of(words: Sequence[str]) -> str:
    """The command among the words of a command line: the first that is no global option, nor the value of one."""
    rest = iter(words)
    for word in rest:
        if word in ("-f", "--file"):
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return ""


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
    """`text` as commands print it, with its lines: it may come from a guest."""
    return texts.printable(text, kept="\n\t")


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
