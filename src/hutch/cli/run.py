"""run: the workspace of this directory, and into it."""

from __future__ import annotations

import os
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import click

from hutch import run as programs
from hutch.api import Hutch
from hutch.api.here import Here
from hutch.cli.common import Options, global_options, print_error, printable, through_root
from hutch.cli.completing import existing_names, kit_names
from hutch.errors import ConfigError, HutchError, UsageError
from hutch.spec.implied import Request, quoted


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--name",
    default="",
    shell_complete=existing_names,
    help="The workspace, where there are several; or a name for a new one.",
)
@click.option("--vm", "is_machine", is_flag=True, help="A virtual machine, not a container.")
@click.option(
    "--with",
    "kits",
    multiple=True,
    metavar="KIT",
    shell_complete=kit_names,
    help="A kit that the workspace uses from now on; may be repeated.",
)
@click.option("--clone", "is_clone", is_flag=True, help="Work on a clone in the home; the checkout is not shared.")
@click.option("--committed", is_flag=True, help="Begin a clone without the uncommitted work of the checkout.")
@click.option("--rm", "is_removed", is_flag=True, help="Remove it afterwards, unless there is unsaved work in it.")
@click.option("--ignore-file", "ignores_file", is_flag=True, help="As if there were no hutch.toml here.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@global_options
def run(
    options: Options,
    name: str,
    is_machine: bool,
    kits: tuple[str, ...],
    is_clone: bool,
    committed: bool,
    is_removed: bool,
    ignores_file: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND, or a shell, in the workspace of this directory; it is made and started if need be.

    It is the workspace of the hutch.toml here. Without that file, one is made for the directory, or for the checkout
    that it is in, which is shared at the same path; with --clone, it has a clone of the checkout in its home instead,
    see `hutch diff` and `hutch fetch`. Arguments, streams, exit code and signals pass through."""
    if not command and not (os.isatty(0) and os.isatty(1)):
        raise UsageError("a shell needs a terminal", resolution="give a command: hutch run -- COMMAND")
    if committed and not is_clone:
        raise UsageError("--committed is about a clone", resolution="add --clone")
    said = options
    if not sys.stderr.isatty():
        options = replace(options, quiet=True)  # the streams are the command's: nothing but warnings in between
    request = Request(name, is_machine, ignores_file, kits, is_clone)
    here = Here(Hutch(listen=options.listen), request, file=options.path)
    for text in here.choice.notes:
        options.listen(here.name, "warning", printable(text))
    if here.choice.directory and not (here.is_there or here.choice.is_clone):
        said.say(printable(f"{here.name}: shares {here.choice.directory}"))
    is_fresh = not here.is_ready()
    if is_fresh and (code := bring_up(here, options)):
        return code
    try:
        if here.choice.is_clone:
            return here.enter(command, here.clone(committed=committed, is_fresh=is_fresh))
        if not here.inside:
            options.listen(here.name, "warning", printable(unshared(here)))
        return here.enter(command)
    finally:
        if is_removed:
            throw_away(here, options)


def unshared(here: Here) -> str:
    """The warning that a workspace does not share this directory, with the line that would have it shared."""
    source = "." if here.file.parent == Path(here.directory) else here.directory
    mount = quoted({"source": source, "target": here.directory})
    return f"{here.directory} is not shared, so this begins in the home; in {here.file}: mounts = [{mount}]"


def bring_up(here: Here, options: Options) -> int:
    """Have the workspace as its file wants it; returns 0, or the exit code of the command that failed to. The implied
    file of a workspace that was not there before goes after a failure, and what the options changed in another one
    where the result is refused."""
    code: int | None = None
    try:
        code = up_as_root(here, options) if os.geteuid() == 0 else up_through_root(here, options)
    except ConfigError:
        code = ConfigError.exit_code
        raise
    finally:
        if code == ConfigError.exit_code or (code != 0 and here.is_written):
            with suppress(HutchError):
                here.take_back()
    return code


def up_as_root(here: Here, options: Options) -> int:
    # Spares the start-up of `hutch run` where all is as it should be.
    from hutch.cli.declare import ask
    from hutch.cli.progress import Bar
    from hutch.plan.actions import Plan

    def refuse(plan: Plan) -> None:
        raise disturbing(here)

    with closing(Bar(options)) as bar:
        here.hutch.listen, here.hutch.progress = bar.listen, bar.show
        here.up(ask if sys.stdin.isatty() and sys.stderr.isatty() else refuse)
    return 0


def up_through_root(here: Here, options: Options) -> int:
    """`hutch up` by root, as a command of its own; not where a plan finds nothing to do. The command in the workspace
    stays the caller's."""
    if here.is_new:
        here.check()  # so that nobody is asked for a password in vain
    else:
        plan = here.plan()
        if not plan.changes:
            return 0
        if plan.disturbed and not sys.stdin.isatty():
            raise disturbing(here)
    code = as_root(["-f", str(here.file), "up", here.name], options)
    if code == 0:
        here.note()
    return code


def disturbing(here: Here) -> HutchError:
    return HutchError(
        f"{here.name} has to be stopped for changes in {here.file}, and somebody is at work in it",
        resolution=f"`hutch up -f {here.file} {here.name}`, or take the change back",
    )


def throw_away(here: Here, options: Options) -> None:
    """Remove the workspace after its command. Whatever is in the way of that is told, and is not the command's end."""
    try:
        if os.geteuid() == 0:
            here.remove()
        else:
            as_root(["rm", *(["--purge"] if here.is_new else []), here.name], options)
    except HutchError as error:
        print_error(error)
    if not here.forget():
        options.listen(here.name, "warning", "it was not removed, and stays")


def as_root(words: list[str], options: Options) -> int:
    """Have root run another command of hutch's to its end, and return its exit code. Its output goes to standard error;
    it is told of an interrupt as we are, and undoes what is half done."""
    flags = [*(["-q"] if options.quiet else []), *(["-v"] if options.verbose else [])]
    argv = through_root([*flags, *words])
    process = programs.start(argv, stdin=0, stdout=2, stderr=2, env=os.environ)
    try:
        while True:
            with suppress(KeyboardInterrupt):
                code = process.wait()
                return code if code >= 0 else 128 - code
    finally:
        if process.poll() is None:
            with suppress(PermissionError):  # a sudo that has become root's; it ends with the terminal
                process.terminate()
            process.wait()
