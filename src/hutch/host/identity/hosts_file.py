"""The managed block in /etc/hosts. Every other line stays byte for byte as it is."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import read_or_none, write_atomic
from hutch.host.services.lock import host_lock
from hutch.spec.names import Layout, hostname

HOSTS = Path("/etc/hosts")
OURS = re.compile(rb"[0-9.]+ workspace-[a-z0-9-]+\r?\n?")


def render_hosts(content: bytes, instance: str, addresses: Mapping[str, str]) -> bytes:
    """`content` with the block of this instance naming `addresses` (workspace name -> IPv4); no names, no block."""
    before, after = _without_block(content, instance)
    if not addresses:
        return before + after
    # A last line without an end gets one, and the block remembers to take it away again.
    joint = b"" if not before or before.endswith(b"\n") else b"\n"
    begin = _begin(instance) + (b" (line end added)" if joint else b"")
    lines = [f"{ip} {hostname(name)}".encode() for name, ip in sorted(addresses.items())]
    return before + joint + b"\n".join([begin, *lines, _end(instance)]) + b"\n" + after


def _begin(instance: str) -> bytes:
    return f"# BEGIN {instance}: written by hutch, do not edit".encode()


def _end(instance: str) -> bytes:
    return f"# END {instance}".encode()


def _without_block(content: bytes, instance: str) -> tuple[bytes, bytes]:
    """The content before and after the block. A block without its end reaches to its last line of ours; what somebody
    else wrote into one that has its end stays, behind it."""
    lines = content.splitlines(keepends=True)
    start = next((number for number, line in enumerate(lines) if line.startswith(_begin(instance))), None)
    if start is None:
        return content, b""
    first_other = start + 1
    while first_other < len(lines) and OURS.fullmatch(lines[first_other]):
        first_other += 1
    stop = first_other
    while stop < len(lines) and not lines[stop].startswith((b"# BEGIN ", _end(instance))):
        stop += 1
    if stop < len(lines) and lines[stop].rstrip(b"\r\n") == _end(instance):
        foreign = [line for line in lines[start + 1 : stop] if not OURS.fullmatch(line)] + lines[stop + 1 :]
    else:
        foreign = lines[first_other:]
    before = b"".join(lines[:start])
    if b"(line end added)" in lines[start] and not foreign:  # a line that has come behind it needs the line end
        before = before[:-1]
    return before, b"".join(foreign)


def ensure_hosts(layout: Layout, addresses: Mapping[str, str], path: Path = HOSTS) -> None:
    """Write the block if it differs from the file's."""
    if missing_hosts(layout, addresses, path) is None:
        return
    with host_lock():  # another hutch on this host writes its own block
        wanted = missing_hosts(layout, addresses, path)
        if wanted is not None:
            _replace(Path(os.path.realpath(path)), wanted)


def missing_hosts(layout: Layout, addresses: Mapping[str, str], path: Path = HOSTS) -> bytes | None:
    """The content that the file lacks; None when it has it."""
    content = read_or_none(Path(os.path.realpath(path))) or b""
    wanted = render_hosts(content, layout.instance, addresses)
    return wanted if wanted != content else None


def _replace(target: Path, content: bytes) -> None:
    try:
        write_atomic(target, content)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise HutchError(
                f"{target} cannot be written: {error.strerror}",
                resolution="hutch keeps the names of workspaces there; make it writable for root",
            ) from error
        with open(target, "r+b") as file:  # a bind mount: it cannot be renamed over, only written
            file.write(content)
            file.truncate()
            os.fsync(file.fileno())
