"""diff and fetch: the work of a workspace's clone, brought to the host."""

from __future__ import annotations

import click

from hutch.api.result import Fetched
from hutch.api.workspace import Workspace
from hutch.cli.common import Options, global_options, print_json, print_table, printable
from hutch.cli.completing import existing_names
from hutch.cli.copy import read_size

NAME = click.argument("name", shell_complete=existing_names)
SHORT = 12  # digits of a commit that are shown


@click.command()
@NAME
@click.option("--stat", is_flag=True, help="The files and how much of each, without the lines.")
@global_options
def diff(options: Options, name: str, stat: bool) -> None:
    """Show the changes of a workspace's clone since it was made, committed or not.

    It is for reading: characters that a terminal would take as a command are replaced, also in a pipe. `hutch fetch`
    brings the commits as they are."""
    click.echo(readable(Workspace(name).diff(stat=stat)), nl=False)


def readable(text: str) -> str:
    """A diff without what a terminal would take as a command. A carriage return that ends a line is harmless."""
    return "\r\n".join(map(printable, text.split("\r\n")))


@click.command()
@NAME
@click.argument("branch", default="")
@click.option("--prune", is_flag=True, help="Remove branches from the repository that are gone inside.")
@click.option("--limit", callback=read_size, default="4GiB", show_default=True, help="Take no more in one go.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def fetch(options: Options, name: str, branch: str, prune: bool, limit: int, as_json: bool) -> None:
    """Bring the branches of a workspace's clone into the host's repository, as refs/remotes/NAME/BRANCH, or one BRANCH.

    git checks all objects first. Nothing is checked out, and nothing of the workspace's is run."""
    fetched = Workspace(name).fetch(branch, prune=prune, limit=limit)
    for what in fetched.left_out:
        options.listen(name, "warning", f"left out: {what}")
    if as_json:
        print_json([vars(each) for each in fetched.branches])
    else:
        print_branches(fetched)
    for gone in fetched.gone:
        options.say(
            f"{name}: {gone} is gone inside, and {'was removed' if prune else 'stays here; --prune removes it'}"
        )


def print_branches(fetched: Fetched) -> None:
    rows = [(each.name, each.before[:SHORT] or "-", each.now[:SHORT], each.ref) for each in fetched.branches]
    print_table(("BRANCH", "BEFORE", "NOW", "REF"), rows)
