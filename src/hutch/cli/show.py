"""ls, status and explain: views of workspaces. They read the records and the services' words, and start in a blink."""

from __future__ import annotations

import os
import time
from collections.abc import Container
from typing import Any

import click

from hutch.api import Hutch
from hutch.cli.common import Options, become_root, global_options, needs_root, print_json, print_table, printable
from hutch.cli.completing import existing_names
from hutch.errors import UsageError


def gather(options: Options, names: tuple[str, ...], *, looks: bool = False) -> list[dict[str, Any]]:
    """The named workspaces, or all: those on the host, then those that the file declares and nobody made yet. With
    damage, where it `looks` at the host."""
    hutch = Hutch()
    records = hutch.records()
    found = {name: hutch.describe(record) for name, record in records.items()}
    file, declared = hutch.declared(options.path)
    others = set() if os.geteuid() == 0 else names_of_others(hutch, found)
    for name, type in declared.items():
        if name not in found and name not in others:
            # Nobody has validated this file, and its text goes to a terminal.
            found[name] = absent(name, None if type is None else printable(str(type)), file)
    unknown = [name for name in names if name not in found]
    for name in unknown:
        if name in others:
            hutch.record(name)  # raises the reason
    if unknown:
        raise UsageError(f"there is no workspace {', '.join(unknown)}", resolution="`hutch ls` lists them")
    if others and not found:
        options.say("hutch: no workspace of this host is yours; root sees them all")
    damages = hutch.damages() if looks else {}
    return [
        {**(entry := found[name]), "warnings": [*entry["warnings"], *damages.get(name, ())]} for name in names or found
    ]


def names_of_others(hutch: Hutch, own: Container[str]) -> set[str]:
    """The workspaces of this host that the caller may not see. Their names are no secret: they stand in /etc/hosts."""
    try:
        found = {name.removesuffix(".json") for name in os.listdir(hutch.layout.user_views)}
    except OSError:
        return set()
    return {name for name in found if name not in own}


def absent(name: str, kind: str | None, file: str) -> dict[str, Any]:
    """The entry of a workspace that is declared and not there."""
    keys = ("engine", "ip", "mac", "cid", "image", "home", "hypervisor", "accelerator", "pid", "ready_seconds")
    nothing = dict.fromkeys((*keys, "image_id", "user", "since", "start_kind"))
    return {
        "name": name,
        "type": kind,
        "state": "absent",
        **nothing,
        "autostart": False,
        "egress": None,
        "learn": False,
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


def show_egress(entry: dict[str, Any]) -> str:
    """A policy that is not enforced is not to be missed."""
    policy = "list" if isinstance(entry["egress"], list) else entry["egress"] or "-"
    return f"{policy} (LEARNING)" if entry["learn"] else policy


def show_mount(mount: dict[str, Any]) -> str:
    return f"{mount['source']} on {mount['target']}{', read-only' if mount['readonly'] else ''}"


def warn_of_learning(options: Options, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        if entry["learn"]:
            # Spares the start-up of `hutch ls`.
            from hutch.plan.planner import LEARNS

            options.listen(entry["name"], "warning", LEARNS)


@click.command()
@click.option("--kept", is_flag=True, help="List the homes that removed workspaces have left instead. Needs root.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def ls(options: Options, kept: bool, as_json: bool) -> None:
    """List the workspaces of this host; for who is not root, their own."""
    if kept:
        list_kept(as_json)
        return
    entries = gather(options, ())
    warn_of_learning(options, entries)
    if as_json:
        print_json(entries)
        return
    rows = [
        (
            entry["name"],
            show_type(entry),
            entry["state"] + ("" if entry["pending"] == "none" else f" (pending {entry['pending']})"),
            entry["ip"] or "-",
            show_egress(entry),
            entry["image"] or "-",
            f"{entry['ready_seconds']:.2f} s" if entry["ready_seconds"] else "-",
        )
        for entry in entries
    ]
    print_table(("NAME", "TYPE", "STATE", "ADDRESS", "EGRESS", "IMAGE", "READY IN"), rows)


def list_kept(as_json: bool) -> None:
    """Print the homes that `rm` without --purge left: brought up again, a workspace has its home and address again."""
    if os.geteuid() != 0:
        become_root()
    entries = Hutch().kept()
    if as_json:
        print_json(entries)
    else:
        print_table(("NAME", "ADDRESS", "HOME", "FILE"), [tuple(map(printable, entry.values())) for entry in entries])


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=existing_names)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def status(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Show workspaces in detail."""
    entries = gather(options, names, looks=True)
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
                    text = show_mount(line) if isinstance(line, dict) else str(line)
                    click.echo(f"{key:>14}  {printable(text)}")


@click.command()
@click.argument("name", shell_complete=existing_names)
@needs_root
def explain(options: Options, name: str) -> None:
    """Print the exact commands, firewall rules and files behind a workspace's next start."""
    for number, section in enumerate(Hutch().explain(name)):
        click.echo(printable(f"{chr(10) if number else ''}# {section.title}\n{section.text}"))
