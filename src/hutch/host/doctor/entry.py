"""The entry point of members on this host, and the rule by which sudo, doas or polkit start it: as files, with what
speaks against them. Looks, and changes nothing; see repairs.

Whoever can change a file of the program that the rule starts is root. So there is a rule only where nobody but root
can: not for a hutch in somebody's home.
"""

from __future__ import annotations

import grp
import json
import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import open_to_others, read_or_none
from hutch.frozen import dataclass
from hutch.host.doctor.repairs import DropIn
from hutch.host.doctor.tools import find_program
from hutch.run import CommandFailed, run
from hutch.spec.member import ENTRY, GROUP, has_entry
from hutch.spec.names import DEFAULT_STATE_DIR, Layout

PROGRAM = """\
#!{python} -I
# Members of the group {group} have sudo, doas or polkit start this as root: `man hutch`, docs/people.md.
from hutch.cli.member import entry

entry()
"""
SUDO = """\
# Members of the group {group} bring up workspaces of their own, by this one program.
%{group} ALL=(root) NOPASSWD: {entry}
"""
DOAS = "permit nopass :{group} as root cmd {entry}\n"
POLKIT = """\
// Members of the group {group} bring up workspaces of their own, by this one program.
polkit.addRule(function (action, subject) {{
    if (action.id == "org.freedesktop.policykit.exec" && action.lookup("program") == "{entry}"
            && action.lookup("user") == "root" && subject.isInGroup("{group}")) {{
        return polkit.Result.YES;
    }}
}});
"""
LOADED = (
    "import json, sys, hutch.cli.member, hutch.cli.declare;"
    "print(json.dumps([*sys.path, *(m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None))]))"
)
"""Prints what the entry point loads, and from where it could."""


@dataclass(frozen=True)
class Way:
    """A program that starts the entry point; `needs` is a directory that is there where it reads rules. With `options`
    it asks nothing. `question` asks whether it would; where there is no such question, it starts it for its version."""

    name: str
    needs: str
    rule: DropIn
    options: tuple[str, ...] = ("-n", "--")
    question: tuple[str, ...] = ("-n", "--", ENTRY, "--version")


WAYS = (
    Way(
        "sudo",
        "/etc/sudoers.d",
        DropIn("/etc/sudoers.d/hutch", SUDO, mode=0o440, check=("visudo", "-c", "-q", "-f"), lasts=True),
        question=("-n", "-l", ENTRY),
    ),
    Way("doas", "/etc", DropIn("/etc/doas.conf", DOAS, mode=0o400, check=("doas", "-C"), lasts=True, is_part=True)),
    Way(
        "pkexec",
        "/etc/polkit-1/rules.d",
        DropIn("/etc/polkit-1/rules.d/60-hutch.rules", POLKIT, lasts=True),
        options=("--disable-internal-agent", "--keep-cwd"),
        question=("--disable-internal-agent", ENTRY, "--version"),
    ),
)
"""The ways, the preferred one first. `hutch` of a member takes the first that is open to them."""


@dataclass(frozen=True)
class Entrance:
    """The way in of members. `way` is the program that would start the entry point, "" for none; `is_there` says that
    the entry point is, and for root, who can see it, that its rule is; `wrong` is why there must be none, in words;
    `has_group` says that there is a group to use it."""

    way: str
    is_there: bool
    wrong: str
    has_group: bool


def observe_entrance(layout: Layout) -> Entrance | None:
    """The entrance of the host's own hutch; None for another one, whose workspaces are no member's."""
    if str(layout.state) != DEFAULT_STATE_DIR:
        return None
    way, has_group = find_way(), _has_group()
    wrong = why_not(sys.executable) if has_group and way is not None and os.geteuid() == 0 else ""
    is_there = has_entry() and (way is None or os.geteuid() != 0 or has_rule(way))
    return Entrance(way.name if way else "", is_there, wrong, has_group)


def has_rule(way: Way) -> bool:
    """Whether the file with the rule names the entry point."""
    if not ENTRY.startswith("/usr/"):  # a system that is made of its configuration
        return True
    return ENTRY.encode() in (read_or_none(Path(way.rule.path)) or b"")


def find_way() -> Way | None:
    """The first of the programs that this host has."""
    return next((way for way in WAYS if find_program(way.name) and os.path.isdir(way.needs)), None)


def open_way() -> list[str]:
    """The command that starts the entry point for the caller without a question; [] where no program does: its rule may
    be another one's, or root has emptied it."""
    for way in WAYS:
        if program := shutil.which(way.name):  # as the caller finds it: the one that may become root is not the host's
            with suppress(CommandFailed):
                run([program, *way.question])
                return [program, *way.options, ENTRY]
    return []


def _has_group() -> bool:
    try:
        return bool(grp.getgrnam(GROUP))
    except KeyError:
        return False


def why_not(python: str) -> str:
    """The reason why the entry point must not be started by a rule, in words; "" where it may: all that it loads is
    where only root changes anything."""
    if not re.fullmatch(r"[!-~]{1,120}", python, re.ASCII):
        return f"the path of {python!r} cannot stand in the first line of a program"
    try:
        loaded = json.loads(run([python, "-I", "-c", LOADED]).stdout)
    except (HutchError, ValueError):
        return f"{python} does not find hutch by itself"
    for path in dict.fromkeys((python, os.path.realpath(python), *loaded, *map(os.path.realpath, loaded))):
        if os.path.exists(path) and (loose := open_to_others(Path(path))) is not None:
            return f"{loose} can be changed by others than root, who would be root by it"
    return ""


def entry_files(python: str) -> tuple[DropIn, ...]:
    """The entry point and its rule, as they are to be here; none where they must not be, or nobody needs them."""
    way = find_way()
    if not ENTRY.startswith("/usr/"):  # a system that is made of its configuration has it from there
        return ()
    if way is None or not _has_group() or why_not(python):
        return ()
    rule = replace(way.rule, content=way.rule.content.format(group=GROUP, entry=ENTRY))
    return DropIn(ENTRY, render_entry(python), mode=0o755, lasts=True), rule


def render_entry(python: str) -> str:
    return PROGRAM.format(python=python, group=GROUP)


def render_rule() -> str:
    """The rule of sudo, for the Debian package."""
    return SUDO.format(group=GROUP, entry=ENTRY)
