"""The files of the world: a private /run and /etc over the machine's own, and accounts with ssh keys.

Everything is mounted in the caller's mount namespace and vanishes with it; the accounts' homes lie in the
directory of the world.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HUTCH_GROUP, DEVS_GROUP = 1200, 1201


@dataclass(frozen=True)
class Account:
    """An account of the host under test, with an ssh key of its own, and the further groups that it is in."""

    name: str
    uid: int
    home: Path
    groups: tuple[int, ...] = ()

    @property
    def public_key(self) -> Path:
        return self.home / ".ssh" / "id_ed25519.pub"

    def command(self, *argv: str) -> list[str]:
        """`argv` as this account would run it."""
        if self.uid == 0:
            return list(argv)
        groups = f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups"
        identity = [f"--reuid={self.uid}", f"--regid={self.uid}", groups, "--inh-caps=-all"]
        return ["setpriv", *identity, "--", *argv]

    def environment(self) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "PATH": path, "LC_ALL": "C.UTF-8"}


def ensure_private_directories() -> None:
    """A /run of our own, and a copy of /etc: what happens to the machine's meanwhile must not be seen here."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=10)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True, timeout=10)
    subprocess.run(["cp", "--archive", "/etc", "/run/etc"], check=True, timeout=60)
    subprocess.run(["mount", "--bind", "/run/etc", "/etc"], check=True, timeout=10)
    Path("/etc/hosts").write_text("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n")
    for drop_in in Path("/etc/ssh/ssh_config.d").glob("*hutch*"):
        drop_in.unlink()


def ensure_accounts(directory: Path) -> dict[str, Account]:
    """root, with a home that is not the machine's; alice, uid 1000; bob, uid 1001; carol, uid 1002, in the group
    `hutch`; dave, uid 1003, in the group `devs`."""
    homes = directory / "accounts"
    homes.mkdir()
    people = [
        Account("root", 0, homes / "root"),
        Account("alice", 1000, homes / "alice"),
        Account("bob", 1001, homes / "bob"),
        Account("carol", 1002, homes / "carol", (HUTCH_GROUP,)),
        Account("dave", 1003, homes / "dave", (DEVS_GROUP,)),
    ]
    taken = {account.name for account in people} | {str(account.uid) for account in people}
    taken |= {"hutch", str(HUTCH_GROUP), "devs", str(DEVS_GROUP)}
    _rewrite("/etc/passwd", taken, (f"{a.name}:x:{a.uid}:{a.uid}::{a.home}:/bin/bash" for a in people))
    groups = [*(f"{a.name}:x:{a.uid}:" for a in people), f"hutch:x:{HUTCH_GROUP}:carol", f"devs:x:{DEVS_GROUP}:dave"]
    _rewrite("/etc/group", taken, groups)
    _rewrite("/etc/shadow", taken, (f"{a.name}:*:19000:0:99999:7:::" for a in people))
    for account in people:
        account.home.mkdir(mode=0o750)
        os.chown(account.home, account.uid, account.uid)
        if account.uid:
            _make_key(account)
    return {account.name: account for account in people}


def _rewrite(path: str, taken: Iterable[str], lines: Iterable[str]) -> None:
    """Give `path` these lines, and drop those that have the same name or number."""
    kept = []
    for line in Path(path).read_text().splitlines():
        fields = line.split(":")
        number = fields[2] if len(fields) > 2 and not path.endswith("shadow") else ""
        if fields[0] not in taken and number not in taken:
            kept.append(line)
    Path(path).write_text("\n".join([*lines, *kept]) + "\n")


def _make_key(account: Account) -> None:
    directory = account.home / ".ssh"
    directory.mkdir(mode=0o700)
    key = directory / "id_ed25519"
    comment = f"{account.name}@host"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key], check=True, timeout=10)
    for path in (directory, key, account.public_key):
        os.chown(path, account.uid, account.uid)


def remove_directory(directory: Path) -> None:
    """Delete a directory and what is in it, never what is mounted there: that may be somebody else's."""
    for target in reversed(mounts_below(directory)):
        subprocess.run(["umount", "--lazy", target], check=True, timeout=10)
    if mounts_below(directory):
        raise OSError(f"something is still mounted below {directory}")
    shutil.rmtree(directory)


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below a directory, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [target for target in targets if Path(target).is_relative_to(directory)]


def mirror_names() -> set[str]:
    """The hosts named in this machine's apt sources, the default ones, and the registries that kits install from."""
    names = {"deb.debian.org", "security.debian.org", "archive.ubuntu.com", "security.ubuntu.com"}
    names |= {"registry.npmjs.org", "pypi.org", "files.pythonhosted.org"}
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for source in sources:
        if source.is_file():
            for line in source.read_text().splitlines():
                if not line.lstrip().startswith("#"):
                    names.update(re.findall(r"https?://([A-Za-z0-9.-]+)", line))
    return names
