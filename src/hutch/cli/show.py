"""ls, status and explain: views of workspaces. They read the records and the services' words, and start in a blink."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from hutch.api import Hutch
from hutch.cli.common import Options, become_root, global_options, print_json, print_table, printable
from hutch.cli.completing import existing_names
from hutch.errors import UsageError
from hutch.spec.record import update_words

if TYPE_CHECKING:
    from collections.abc import Callable


def gather(options: Options, names: tuple[str, ...], *, looks: bool = False) -> list[dict[str, Any]]:
    """The named workspaces, or all: those on the host, then those that the file declares and nobody made yet. With
    damage, where it `looks` at the host."""
    hutch = Hutch()
    found = hutch.describe()
    file, declared = hutch.declared(options.path)
    others = set() if os.geteuid() == 0 else hutch.hidden()
    for name, type in declared.items():
        if name not in found and name not in others:
            # Nobody has validated this file, and its text goes to a terminal.
            found[name] = absent(name, None if type is None else printable(str(type)), file)
    unknown = [name for name in names if name not in found]
    for name in unknown:
        if name in others:
            hutch.record(name)  # raises the reason
    if unknown:
        raise UsageError(
            f"there is no workspace {', '.join(unknown)}",
            resolution="`hutch ls` lists them; `hutch ls --all` also those that `hutch undelete` brings back",
        )
    if others and not found:
        options.say("hutch: no workspace of this host is yours; root sees them all")
    chosen = [found[name] for name in names or found]
    return hutch.look(chosen) if looks else chosen


def absent(name: str, kind: str | None, file: str) -> dict[str, Any]:
    """The entry of a workspace that is declared and not there."""
    keys = (
        "engine",
        "ip",
        "mac",
        "cid",
        "image",
        "home",
        "member",
        "hypervisor",
        "accelerator",
        "pid",
        "ready_seconds",
    )
    image = ("image_id", "image_created", "updates", "updates_asked")
    nothing = dict.fromkeys((*keys, *image, "user", "since", "start_kind"))
    return {
        "name": name,
        "type": kind,
        "state": "absent",
        **nothing,
        "share_with": [],
        "autostart": False,
        "egress": None,
        "learn": False,
        "allowed": [],
        "publish": [],
        "mounts": [],
        "pending": "none",
        "reason": "",
        "warnings": [],
        "file": file,
    }


def show_type(entry: dict[str, Any]) -> str:
    """A machine that is emulated is slow, so it is told apart."""
    emulated = " (tcg)" if entry["accelerator"] == "tcg" else ""
    return f"{entry['type'] or '-'}{emulated}"


def show_image(entry: dict[str, Any]) -> str:
    """The image, with the number of security updates that wait for it."""
    waiting = f" ({update_words(entry['updates'])})" if entry["updates"] else ""
    return f"{entry['image'] or '-'}{waiting}"


def show_egress(entry: dict[str, Any]) -> str:
    """A policy that is not enforced is not to be missed."""
    policy = "list" if isinstance(entry["egress"], list) else entry["egress"] or "-"
    return f"{policy} (LEARNING)" if entry["learn"] else policy


def show_mount(mount: dict[str, Any]) -> str:
    mode = {"readonly": ", read-only", "private": ", private"}.get(mount["mode"], "")
    return f"{mount['source']} on {mount['target']}{mode}"


def show_value(value: Any) -> str:
    """A value of a key, its truth as the file has it."""
    return (
        show_mount(value) if isinstance(value, dict) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def warn_of_learning(options: Options, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        if entry["learn"]:
            # Spares the start-up of `hutch ls`.
            from hutch.plan.planner import LEARNS

            options.listen(entry["name"], "warning", LEARNS)


@click.command()
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also those of which `rm` has kept the home. Needs root, or the group hutch.",
)
@click.option(
    "--kept",
    is_flag=True,
    help="List the homes that removed workspaces have left instead. Needs root, or the group hutch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def ls(options: Options, everything: bool, kept: bool, as_json: bool) -> None:
    """List the workspaces of this host; for who is not root, their own."""
    if (kept or everything) and os.geteuid() != 0:
        become_root()
    if kept:
        list_kept(as_json)
        return
    entries = with_kept(gather(options, ()), Hutch().kept()) if everything else gather(options, ())
    warn_of_learning(options, entries)
    if as_json:
        print_json(entries)
        return
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "NAME": lambda entry: entry["name"],
        "TYPE": show_type,
        "STATE": show_state,
        "MEMBER": lambda entry: entry["member"] or "-",
        "ADDRESS": lambda entry: entry["ip"] or "-",
        "EGRESS": show_egress,
        "IMAGE": show_image,
        "READY IN": lambda entry: f"{entry['ready_seconds']:.2f} s" if entry["ready_seconds"] else "-",
    }
    if not any(entry["member"] for entry in entries):  # nobody is on a cluster
        del columns["MEMBER"]
    print_table(tuple(columns), [tuple(show(entry) for show in columns.values()) for entry in entries])


def with_kept(entries: list[dict[str, Any]], kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Workspaces, and those of which a home is kept: also where the file declares one, so that `up` would bring it
    back. Each has the keys `removed` and `size`, see `Hutch.kept`."""
    gone = {each["name"]: {**absent(each["name"], each["type"], each["file"]), **each} for each in kept}
    there = [{**entry, "removed": None, "size": None} for entry in entries if entry["name"] not in gone]
    return [*there, *gone.values()]


def show_state(entry: dict[str, Any]) -> str:
    """The state, with what is pending; of one whose home is kept, since when, and the size of that."""
    if "removed" in entry and entry["home"] is not None and entry["state"] == "absent":
        return f"removed{show_kept(entry)}"
    return f"{entry['state']}" + ("" if entry["pending"] == "none" else f" (pending {entry['pending']})")


def show_kept(entry: dict[str, Any]) -> str:
    since = "" if entry["removed"] is None else f" {entry['removed'][:10]}"
    return since + ("" if entry["size"] is None else f" ({entry['size'] / 2**20:.0f} MiB kept)")


def list_kept(as_json: bool) -> None:
    """Print the homes that `rm` without --purge left: `undelete`, or `up` of a file that declares the workspace, brings
    it back."""
    entries = Hutch().kept()
    if as_json:
        print_json(entries)
        return
    rows = [(e["name"], e["ip"], show_kept(e).strip() or "-", e["home"], e["file"]) for e in entries]
    print_table(("NAME", "ADDRESS", "REMOVED", "HOME", "FILE"), [tuple(map(printable, row)) for row in rows])


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=existing_names)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--openmetrics", "as_metrics", is_flag=True, help="Print a page of metrics, for a collector.")
@global_options
def status(options: Options, names: tuple[str, ...], as_json: bool, as_metrics: bool) -> None:
    """Show workspaces in detail."""
    if as_json and as_metrics:
        raise UsageError("--json and --openmetrics are two forms", resolution="leave one of them out")
    entries = gather(options, names, looks=True)
    if as_metrics:
        click.echo(Hutch().metrics(entries), nl=False)
        return
    warn_of_learning(options, entries)
    if as_json:
        print_json(entries)
        return
    for number, entry in enumerate(entries):
        if number:
            click.echo()
        since = {} if entry["since"] is None else {"since": time.ctime(entry["since"])}
        for key, value in {**entry, **since}.items():
            for line in value if isinstance(value, list) else [value]:
                if line not in (None, ""):
                    text = show_value(line)
                    click.echo(f"{key:>14}  {printable(text)}")


@click.command()
@click.argument("name", shell_complete=existing_names)
@global_options
def explain(options: Options, name: str) -> None:
    """Print the exact commands, firewall rules and files behind a workspace's next start.

    Without root, its addresses, names and rules.
    """
    for number, section in enumerate(Hutch().explain(name)):
        click.echo(printable(f"{chr(10) if number else ''}# {section.title}\n{section.text}"))
