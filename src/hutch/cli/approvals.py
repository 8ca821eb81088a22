"""approvals, allow, deny: what workspaces were refused, and a person's answer. Names are chosen inside a workspace."""

from __future__ import annotations

import time

import click

from hutch.api import Hutch
from hutch.cli.common import Options, global_options, needs_root, print_json, print_table, printable
from hutch.cli.completing import existing_names
from hutch.egress.approvals import Refusal, shown
from hutch.errors import UsageError
from hutch.spec.decisions import words
from hutch.spec.field_types import Invalid
from hutch.spec.values import Duration

HEADER = ("LAST", "WORKSPACE", "NAME", "PORT", "COUNT", "TO OPEN IT")
LONGEST = 60


@click.command()
@click.argument("name", required=False, shell_complete=existing_names)
@click.option("--all", "shows_all", is_flag=True, help="All names, also denied ones.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def approvals(options: Options, name: str | None, shows_all: bool, as_json: bool) -> None:
    """List names that workspaces were refused and may want, most often asked for first. Nothing waits for it."""
    found = Hutch().approvals(name)
    told = found if shows_all else shown(found)
    if as_json:
        print_json([refusal.to_json() for refusal in told])
        return
    print_table(HEADER, [cells(refusal) for refusal in told])
    if rest := len(found) - len(told):
        options.say(f"{rest} more are not shown, being denied or too many: --all")


def cells(refusal: Refusal) -> tuple[str, ...]:
    """A row of the table."""
    host = refusal.host if len(refusal.host) <= LONGEST else f"{refusal.host[: LONGEST - 1]}…"
    row = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(refusal.time)),
        refusal.workspace,
        host if refusal.names == 1 else f"{host} ({refusal.names} names)",
        ",".join(map(str, refusal.ports)) or "-",
        str(refusal.count),
        way(refusal),
    )
    return tuple(map(printable, row))


def way(refusal: Refusal) -> str:
    """The way to open it, in words."""
    if refusal.is_denied:
        return "denied"
    if not refusal.is_name:
        return f'"{refusal.host}/32" in egress of hutch.toml'
    if refusal.names > 1:
        return f"look at them first: hutch egress {refusal.workspace}"
    port = f":{refusal.ports[0]}" if len(refusal.ports) == 1 else ""
    return f"hutch allow {refusal.workspace} {refusal.host}{port}"


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.argument("host", metavar="HOST[:PORT]")
@click.option(
    "--for", "duration", metavar="DURATION", help="Until then only, such as 30min or 1h; connections end with it."
)
@needs_root
def allow(options: Options, name: str, host: str, duration: str | None) -> None:
    """Open a name to a workspace at once, beside its list: for good, or for a while."""
    seconds = None
    if duration is not None:
        try:
            seconds = Duration().seconds(duration)
        except Invalid as error:
            raise UsageError(f"--for {duration[:40]!r} {error.message}", resolution=error.hint) from error
    hutch = Hutch(listen=options.listen)
    decision = hutch.allow(name, host, seconds)
    if decision is None:
        options.say(f"{name}: its egress lists {host} already")
        return
    options.say(f"{name}: open: {words(decision)}")
    if decision.until is None:
        file = hutch.record(name).file
        how = f'to declare it, add "{decision.host}" to egress in {file}'
        options.say(printable(f"{name}: it stays open until `hutch deny`; {how}"))


@click.command()
@click.argument("name", shell_complete=existing_names)
@click.argument("host")
@needs_root
def deny(options: Options, name: str, host: str) -> None:
    """Close what `allow` opened, cut its connections, and remember the no: `approvals` lists the name no more."""
    decision = Hutch(listen=options.listen).deny(name, host)
    options.say(f"{name}: closed: {decision.host}")
