"""Members: accounts in the group `hutch` that are not root. Root's process works for one by the entry point, for their
own workspaces and below root's ceiling.

Reads the user database, changes nothing. Who is a member is told by numbers, since names can be given anew.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.spec.names import BEHIND

GROUP = "hutch"
"""The group whose members bring up workspaces of their own."""
ENTRY = "/usr/lib/hutch/member"
"""The path of the entry point, which the package or `doctor --fix` has put there, and which a rule of sudo's names."""


@dataclass(frozen=True)
class Member:
    """An account in the group that is not root. `home` is None for one without."""

    uid: int
    gid: int
    name: str
    home: Path | None


acting: Member | None = None
"""The member for whom all of this process works, which is root's. The entry point alone sets it; None is everybody
else, root itself included."""


def member_of(uid: int) -> Member | None:
    """The member who has a uid; None for root, and for who is not in the group."""
    try:
        account, group = pwd.getpwuid(uid), grp.getgrnam(GROUP)
    except (KeyError, OverflowError):
        return None
    if uid == 0 or group.gr_gid not in os.getgrouplist(account.pw_name, account.pw_gid):
        return None
    home = Path(account.pw_dir) if account.pw_dir.startswith("/") and account.pw_dir != "/" else None
    return Member(uid=uid, gid=account.pw_gid, name=account.pw_name, home=home)


def concerned(euid: int) -> Member | None:
    """The member whom a process with this uid is bound by: for root's, the one it works for."""
    return acting if euid == 0 else member_of(euid)


def behind_entry(environ: Mapping[str, str]) -> Member:
    """The member who had sudo, doas or polkit start the entry point, as these tell in the environment. Raises
    HutchError for everybody else.

    Each of them sets a variable of its own over whatever the caller had. Where the configuration of one lets others
    through, these must not name anybody else.
    """
    said = {variable: environ[variable] for variable in BEHIND if variable in environ}
    uids = {_uid_of(variable, value) for variable, value in said.items()}
    uid = uids.pop() if len(uids) == 1 else None
    if uid is None:
        raise HutchError(
            "it is not known for whom this is",
            details=" ".join(f"{variable}={value[:32]!r}" for variable, value in said.items()),
            resolution="call `hutch`, which calls this by itself: sudo, doas or pkexec say who did",
        )
    member = member_of(uid)
    if member is None:
        raise HutchError(
            f"uid {uid} is not in the group {GROUP}, whose members have workspaces of their own without root",
            resolution=f"root adds an account: usermod --append --groups {GROUP} NAME",
        )
    return member


def _uid_of(variable: str, value: str) -> int | None:
    if variable == "DOAS_USER":
        try:
            return pwd.getpwnam(value).pw_uid
        except (KeyError, ValueError):
            return None
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 10 else None


def has_entry() -> bool:
    """Whether this host has the entry point."""
    return os.path.exists(ENTRY)
