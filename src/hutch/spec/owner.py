"""The host user who owns a workspace, and the public keys that may log in to it.

Reads the user database and .pub files, changes nothing. Files are read as root on behalf of someone else,
so only regular files of moderate size are read, nothing can make the reader wait, and no error quotes what
is in a file: it may have been pointed at a secret.
"""

from __future__ import annotations

import glob
import os
import pwd
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from hutch.frozen import dataclass
from hutch.spec.entries import KEY_TYPES, parse_key_line
from hutch.spec.field_types import Invalid
from hutch.spec.names import BEHIND, UID_FIRST
from hutch.spec.values import NOBODY

FIRST_USER = 1000
LARGEST_KEY_FILE = 64 * 1024
MOST_KEY_FILES = 100


@dataclass(frozen=True)
class Owner:
    """A user of the host. One that the user database does not know has no home and its number for a name."""

    uid: int
    gid: int
    home: Path | None
    name: str


def default_owner(environ: Mapping[str, str], uid: int) -> int:
    """The uid of the user behind `sudo`, `doas` or `pkexec`; for root itself (and nobody) 1000; else `uid`.

    Only root's environment is believed: anybody else could claim to be someone.
    """
    if uid != 0:
        return FIRST_USER if uid == NOBODY else uid
    for variable in BEHIND:
        value = environ.get(variable, "")
        try:
            found = pwd.getpwnam(value).pw_uid if variable == "DOAS_USER" else int(value)
        except (KeyError, ValueError):
            continue
        if 0 < found < 2**32 - 1 and found != NOBODY:
            return found
    return FIRST_USER


def find_owner(said: int | str) -> Owner:
    """The owner that a uid or a user name means.

    Raises Invalid for an unknown name, for root and nobody, and for ids that are hutch's own or beyond.
    """
    try:
        entry = pwd.getpwnam(said) if isinstance(said, str) else pwd.getpwuid(said)
    except (KeyError, OverflowError, ValueError):
        if isinstance(said, str):
            raise Invalid("is not a user of this host", "a user name that `getent passwd` lists, or a uid") from None
        check_ids(said, said)
        return Owner(uid=said, gid=said, home=None, name=str(said))
    if entry.pw_uid in (0, NOBODY):
        raise Invalid(f"is uid {entry.pw_uid}", "a workspace's home belongs to an ordinary user")
    check_ids(entry.pw_uid, entry.pw_gid)
    home = Path(entry.pw_dir) if entry.pw_dir.startswith("/") and entry.pw_dir != "/" else None
    return Owner(uid=entry.pw_uid, gid=entry.pw_gid, home=home, name=entry.pw_name)


def check_ids(uid: int, gid: int) -> None:
    """Refuse ids from UID_FIRST on: those are workspaces', or beyond the sign bit, which not every tool takes."""
    for kind, number in (("uid", uid), ("group", gid)):
        if number >= UID_FIRST:
            why = "which hutch keeps for workspaces" if number < 2**31 else "which is too large"
            raise Invalid(f"has {kind} {number}, {why}", f"an account whose uid and group are below {UID_FIRST}")


def expand(path: str, owner: Owner, directory: Path) -> str:
    """`path` made absolute: `~` is the owner's home, anything else is relative to `directory`."""
    if path == "~" or path.startswith("~/"):
        if owner.home is None:
            raise Invalid(f"needs a home, and user {owner.name} has none on this host", "an absolute path")
        path = str(owner.home) + path[1:]
    return os.path.abspath(directory / path)


def expand_keys(entry: str, owner: Owner, directory: Path) -> tuple[str, ...]:
    """The key lines that one entry means: itself, or the lines of the .pub files that it names."""
    if entry.split(" ", 1)[0] in KEY_TYPES:
        return (entry,)
    pattern = expand(entry, owner, directory)
    files = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern))
    if not files:
        raise Invalid("matches no file", f"looked for {pattern}; a key can also be given as its line")
    if len(files) > MOST_KEY_FILES:
        raise Invalid(f"matches more than {MOST_KEY_FILES} files", "a narrower pattern")
    return unique(line for file in files for line in read_keys(file))


def owner_keys(owner: Owner) -> tuple[str, ...]:
    """Every readable key in the owner's ~/.ssh; files that hold none are passed over."""
    if owner.home is None:
        return ()
    lines: list[str] = []
    for file in sorted(glob.glob(os.path.join(glob.escape(str(owner.home)), ".ssh", "*.pub")))[:MOST_KEY_FILES]:
        try:
            lines += read_keys(file, follow=False)
        except Invalid:
            continue
    return unique(lines)


def read_keys(file: str, *, follow: bool = True) -> tuple[str, ...]:
    """The key lines of a .pub file; every line must be one, blank lines and comments aside."""
    hint = f"{file} must be a .pub file as ssh-keygen writes it"
    try:
        lines = read_small(file, follow=follow).decode("utf-8").splitlines()
    except OSError as error:
        raise Invalid(f"cannot be read: {error.strerror}", file) from None
    except UnicodeDecodeError:
        raise Invalid("holds no public key", hint) from None
    keys = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                keys.append(parse_key_line(line.replace("\t", " ")))
            except Invalid:
                raise Invalid(f"leads to a file whose line {number} is not a public key", hint) from None
    if not keys:
        raise Invalid("holds no public key", hint)
    return tuple(keys)


def read_small(file: str, *, follow: bool) -> bytes:
    """A regular file of at most 64 KiB. Does not wait for a fifo, nor take a terminal."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(file, flags)
    with open(descriptor, "rb", closefd=True) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Invalid("is not a regular file", file)
        content = stream.read(LARGEST_KEY_FILE + 1)
    if len(content) > LARGEST_KEY_FILE:
        raise Invalid("leads to a file of more than 64 KiB", file)
    return content


def unique(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines in their order, each key once, whatever its comment."""
    first: dict[str, str] = {}
    for line in lines:
        first.setdefault(" ".join(line.split(" ", 2)[:2]), line)
    return tuple(first.values())
