"""What tests of clones share: a person's repository on the host, and a git inside that lies."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.world_files import Account

WHO = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_NOSYSTEM": "1",
}

# A git for the guest that answers two questions with files, and leaves the rest to the real one.
LIAR = """#!/bin/sh
case "$*" in
  *for-each-ref*) exec cat /tmp/refs ;;
  *pack-objects*) cat >/dev/null; exec cat /tmp/pack ;;
esac
exec /usr/bin/git "$@"
"""


@dataclass(frozen=True)
class Checkout:
    """A repository of an account's."""

    account: Account
    top: Path

    def git(self, *words: str, check: bool = True, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> str:
        result = subprocess.run(
            self.account.command("git", "-C", str(self.top), *words),
            input=stdin,
            capture_output=True,
            timeout=60,
            cwd="/",
            env={**self.account.environment(), **WHO, **(env or {})},
        )
        assert not check or result.returncode == 0, f"git {words}: {result.stderr.decode()}"
        return result.stdout.decode(errors="replace").rstrip("\n")

    def write(self, name: str, content: str, mode: int = 0o644) -> Path:
        path = self.top / name
        for above in reversed(path.relative_to(self.top).parents):
            (self.top / above).mkdir(exist_ok=True)
            os.chown(self.top / above, self.account.uid, self.account.uid)
        path.write_text(content)
        path.chmod(mode)
        os.chown(path, self.account.uid, self.account.uid)
        return path

    def refs(self, below: str = "") -> dict[str, str]:
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)", *([below] if below else [])).splitlines()
        return dict(line.split(" ") for line in lines)

    def state(self) -> tuple[dict[str, str], set[str]]:
        """Its refs, and the files of its objects."""
        objects = self.top / ".git" / "objects"
        return self.refs(), {str(path.relative_to(objects)) for path in objects.rglob("*")}


def bomb(size: int) -> bytes:
    """A pack of some hundred bytes, with an object that is `size` bytes large once it is put together."""
    block = 1 << 16

    def number(value: int, bits: int, first: int = 0) -> bytes:
        found = bytearray()
        while True:
            value, low = value >> bits, first | value & (1 << bits) - 1
            found.append(low | 0x80 if value else low)
            if not value:
                return bytes(found)
            bits, first = 7, 0

    def head(kind: int, length: int) -> bytes:
        return number(length, 4, kind << 4)

    base = head(3, block) + zlib.compress(bytes(block))
    delta = number(block, 7) + number(size, 7) + b"\x80" * (size // block)  # each copies all of the base
    body = b"PACK\0\0\0\2\0\0\0\2" + base + head(6, len(delta)) + _offset(len(base)) + zlib.compress(delta)
    return body + hashlib.sha1(body).digest()


def _offset(distance: int) -> bytes:
    """The place of a delta's base, as a pack has it."""
    found = [distance & 0x7F]
    while distance := distance >> 7:
        distance -= 1
        found.append(0x80 | distance & 0x7F)
    return bytes(reversed(found))


def make_checkout(account: Account, name: str, *, empty: bool = False, format: str = "sha1") -> Checkout:
    """A repository with a commit on main."""
    top = account.home / name
    top.mkdir()
    os.chown(top, account.uid, account.uid)
    checkout = Checkout(account, top)
    checkout.git("init", "-q", "-b", "main", f"--object-format={format}")
    if not empty:
        for file in ("README", "src/tool", "old"):
            checkout.write(file, f"{file}\n")
        checkout.git("add", ".")
        checkout.git("commit", "-q", "-m", "first")
    return checkout
