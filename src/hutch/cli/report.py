"""report and events: what workspaces did, by their records."""

from __future__ import annotations

import os
import resource
import time
from contextlib import closing, suppress

import click

from hutch.api import Hutch
from hutch.audit.since import since_of
from hutch.cli.common import Options, by_entry, global_options, options_before, print_json
from hutch.cli.completing import existing_names
from hutch.errors import HutchError
from hutch.spec.record import stamp

STDOUT = 1
LOOKING = 600.0  # seconds, for many repositories
SINCE = click.option(
    "--since", metavar="TIME", help="From then on: 2h, 3d, a date, or a time; in local time, where it names no zone."
)


@click.command()
@click.argument("name", shell_complete=existing_names)
@SINCE
@click.option("--verify", is_flag=True, help="Check every line of the record; exit code 1 where it is damaged.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json", "html")),
    default="text",
    show_default=True,
    help="HTML is one file, to be kept or sent.",
)
@click.option("--no-files", is_flag=True, help="Do not look for changed files, which takes seconds.")
@global_options
def report(options: Options, name: str, since: str | None, verify: bool, form: str, no_files: bool) -> int:
    """Show a workspace's activity: starts and stops, plans, commands, names, approvals, ports, changed files.

    Its owner reads that without root, but for changed files, for which root looks in a sealed container; members of the
    group `hutch` have it look."""
    begin = _moment(since)
    if os.geteuid() != 0 and not no_files:
        code = have_root_look(options, name, begin, verify=verify, form=form)
        if code is not None:
            return code
    found = Hutch(listen=options.listen).report(name, begin, verify=verify, files=not no_files)
    if form == "json":
        print_json(found.to_json())
    else:
        # Spares the start-up of `hutch events`.
        from hutch.cli.report_page import render_html, render_text

        click.echo(render_text(found) if form == "text" else render_html(found), nl=False)
    if found.damages:
        options.say(f"hutch: the record of {name} is damaged in {len(found.damages)} places; docs/record.md says why")
    return 1 if verify and found.damages else 0


def have_root_look(options: Options, name: str, begin: float | None, *, verify: bool, form: str) -> int | None:
    """Have root run this command, where the caller is a member whose own workspace it is: nobody is asked then. The
    beginning is told with its zone, since root does not know the caller's. Returns the exit code; None where root made
    no report, and the caller's own view is left."""
    words = ["report", name, "--format", form, *(["--since", stamp(begin)] if begin is not None else [])]
    words += [
        word for word, is_said in (("--verify", verify), ("-q", options.quiet), ("-v", options.verbose)) if is_said
    ]
    with suppress(HutchError):
        if Hutch().record(name).is_of(os.getuid()) and (entry := by_entry(words)):
            # Spares the start-up of `hutch events`.
            from hutch.run import run

            done = run(entry, timeout=LOOKING, check=False)
            click.echo(done.stderr, err=True, nl=False)
            if done.stdout:
                click.echo(done.stdout, nl=False)
                return done.returncode
    return None


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=existing_names)
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Only events from now on, or since --since, as they happen. (A file goes first: hutch -f FILE events.)",
)
@SINCE
@options_before
def events(options: Options, names: tuple[str, ...], follow: bool, since: str | None) -> None:
    """Print workspaces' events, all that one may see, as lines of JSON; -f goes on until Ctrl-C."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each record is a file that stays open
    told = Hutch().events(names, _moment(since), follow=follow, until=[STDOUT] if follow else ())
    try:
        with closing(told):
            for event in told:
                print_json(event, indent=None)
    except KeyboardInterrupt:
        return


def _moment(since: str | None) -> float | None:
    return None if since is None else since_of(since, time.time())
