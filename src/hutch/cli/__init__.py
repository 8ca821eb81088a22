"""The command line. This file is small on purpose: a command's own module is imported when it is called."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from hutch.cli.common import Options, print_error, show_commands
from hutch.errors import HutchError, troubles_told
from hutch.run import ProgramMissing

# command -> (module of this package, function, one line of help): help lists all without importing any.
COMMANDS = {
    "init": ("declare", "init", "Write a commented starter hutch.toml in the current directory."),
    "trust": ("trust", "trust", "Review the hutch.toml of a checkout, and accept it."),
    "plan": ("declare", "plan", "Show the actions of `up`, with reasons."),
    "up": ("declare", "up", "Make the host as the file says: plan, apply, start."),
    "run": ("run", "run", "Run a command, or a shell, in the workspace of this directory."),
    "down": ("lifecycle", "down", "Stop the workspaces of the file; their state stays."),
    "start": ("lifecycle", "start", "Start workspaces; returns when they are ready."),
    "stop": ("lifecycle", "stop", "Stop workspaces."),
    "restart": ("lifecycle", "restart", "Stop and start workspaces."),
    "ls": ("show", "ls", "List workspaces."),
    "status": ("show", "status", "Show workspaces in detail."),
    "ssh": ("reach", "ssh", "OpenSSH to a workspace."),
    "exec": ("reach", "execute", "Run a command inside, without a shell in between."),
    "cp": ("copy", "cp", "Copy files; NAME:path is the workspace side."),
    "diff": ("clone", "diff", "Show the changes of a workspace's clone."),
    "fetch": ("clone", "fetch", "Bring the branches of a workspace's clone into the host's repository."),
    "logs": ("logs", "logs", "Show the machine log and the guest's journal."),
    "console": ("logs", "console", "Attach to the console; ^] detaches."),
    "snapshot": ("snapshots", "snapshot", "Keep a workspace as it is at this moment."),
    "snapshots": ("snapshots", "snapshots", "List the snapshots of a workspace."),
    "restore": ("snapshots", "restore", "Make a workspace as it was in a snapshot."),
    "fork": ("snapshots", "fork", "Make new workspaces out of another one."),
    "egress": ("egress", "egress", "Show what a workspace asked for and reached."),
    "approvals": ("approvals", "approvals", "List names that workspaces were refused and may want."),
    "allow": ("approvals", "allow", "Open a name to a workspace at once, for good or for a while."),
    "deny": ("approvals", "deny", "Close a name to a workspace, and remember the no."),
    "report": ("report", "report", "Show a workspace's activity on one page."),
    "events": ("report", "events", "Print workspaces' events as lines of JSON."),
    "ports": ("ports", "ports", "List the TCP ports that listen inside."),
    "forward": ("ports", "forward", "Make ports inside reachable on this host's loopback."),
    "move": ("declare", "move", "Have a workspace run by this host, a server, or another member of a cluster."),
    "rm": ("lifecycle", "rm", "Stop and remove workspaces; homes are kept unless --purge."),
    "undelete": ("lifecycle", "undelete", "Bring back a removed workspace whose home is kept."),
    "uninstall": ("lifecycle", "uninstall", "Take hutch off this host; homes are kept unless --purge."),
    "explain": ("show", "explain", "Print the commands, rules and files behind a workspace."),
    "eject": ("lifecycle", "eject", "Make plain units and files of a workspace, which need no hutch."),
    "prove": ("prove", "prove", "Try hutch's promises on this host; exits 1 when one is broken."),
    "doctor": ("doctor", "doctor", "Check this host's abilities, and its gaps in enforcement."),
    "image": ("image", "image", "The image cache."),
    "kits": ("kits", "kits", "List the kits that workspaces can use, with their contents."),
    "aliases": ("shells", "aliases", "Print or install shell aliases: workspace_NAME and others."),
    "schema": ("declare", "schema", "Print the JSON Schema of hutch.toml."),
    "completion": ("shells", "completion", "Print a completion script for bash, zsh or fish."),
}

FORMERLY = {"withdraw": "uninstall"}  # the old name goes with the next version
WITH_COMMANDS = ("exec", "run", "ssh")  # commands that take a command line of somebody else's


class LazyGroup(click.Group):
    """Looks commands up in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"hutch.cli.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in FORMERLY:
            if not ctx.resilient_parsing:  # as completion does it
                click.echo(f"hutch: `{args[0]}` is now called `{FORMERLY[args[0]]}`", err=True)
            args = [FORMERLY[args[0]], *args[1:]]
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            # Spares the start-up of `hutch ls`.
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-f", "--file", type=click.Path(), help="The hutch.toml to use.")
@click.option("-q", "--quiet", is_flag=True, help="Only results, errors, and that an image is made.")
@click.option("-v", "--verbose", is_flag=True, help="Show each command that hutch runs.")
@click.version_option(package_name="hutch", message="hutch %(version)s", help="The version.")
@click.pass_context
def cli(ctx: click.Context, file: str | None, quiet: bool, verbose: bool) -> None:
    """A machine of its own for every project, checkout or coding agent: a VM or a container, from one file."""
    ctx.obj = Options(file, quiet, verbose)
    if verbose:
        show_commands()


def name_package(error: HutchError) -> HutchError:
    """The error, with the package to install where a program is missing."""
    if isinstance(error, ProgramMissing):
        # Spares the start-up of `hutch ls`.
        from hutch.host.doctor.tools import check_tools

        try:
            check_tools([os.path.basename(error.argv[0])], error.brief)
        except HutchError as named:
            return named
    return error


def main(argv: Sequence[str] | None = None, commands: click.Group = cli) -> NoReturn:
    """Entry of the `hutch` command, with all commands or some."""
    os.umask(0o022)  # files of hutch's are read by others, whoever runs it; secret ones say so
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is undone
    try:
        with troubles_told():
            result = commands.main(args=None if argv is None else list(argv), prog_name="hutch", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.NoSuchOption as error:
        if error.ctx is not None and error.ctx.command.name in WITH_COMMANDS:
            hint = f"{error.message} If it is the command's, put -- before the command."
            error = click.NoSuchOption(error.option_name, hint, ctx=error.ctx)
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HutchError as error:
        print_error(name_package(error))
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("hutch: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
