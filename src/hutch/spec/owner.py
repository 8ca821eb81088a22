"""The host user who owns a workspace, the public keys that may log in to it, and the place where others' servers are
asked for it.

Reads the user database and .pub files, changes nothing. Files are read as root on behalf of someone else,
so only regular files of moderate size are read, nothing can make the reader wait, and no error quotes what
is in a file: it may have been pointed at a secret.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import pwd
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import open_regular
from hutch.frozen import dataclass
from hutch.spec.entries import KEY_TYPES, parse_key_line
from hutch.spec.field_types import Invalid
from hutch.spec.model import Config, Incus
from hutch.spec.names import BEHIND, INCUS_CONF, UID_FIRST
from hutch.spec.record import Place, is_local
from hutch.spec.values import NOBODY

FIRST_USER = 1000
LARGEST_KEY_FILE = 64 * 1024
MOST_KEY_FILES = 100
MOST_LOOKED_AT = 10_000


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
    return behind(environ) or FIRST_USER


def behind(environ: Mapping[str, str]) -> int | None:
    """The uid of the user behind `sudo`, `doas` or `pkexec`, as root's environment tells it; None for nobody."""
    for variable in BEHIND:
        value = environ.get(variable, "")
        try:
            found = pwd.getpwnam(value).pw_uid if variable == "DOAS_USER" else int(value)
        except (KeyError, ValueError):
            continue
        if 0 < found < 2**32 - 1 and found != NOBODY:
            return found
    return None


def place_of(config: Config, environ: Mapping[str, str], euid: int) -> Place | None:
    """The place of the file's workspaces that this host does not run; None without any.

    The incus client is the caller's: that of the user behind `sudo` or `doas`, where there is one. Raises HutchError
    where that user has no home, so that nobody can tell where its configuration is.
    """
    if all(map(is_local, config.workspaces.values())):
        return None
    account = euid or behind(environ) or euid
    incus = config.incus or Incus()
    conf = environ.get(INCUS_CONF, "")
    if not conf.startswith("/"):
        conf = str(_home_of(account) / ".config" / "incus")
    return Place(incus.remote, incus.project, incus.target, incus.subnet, account, conf)


def _home_of(account: int) -> Path:
    """The home of a user, root included, by the user database."""
    try:
        home = pwd.getpwuid(account).pw_dir
    except (KeyError, OverflowError):
        home = ""
    if not home.startswith("/"):
        raise HutchError(
            f"uid {account} has no home on this host, so the configuration of its incus client cannot be found",
            resolution="call hutch from an account that uses incus, or set INCUS_CONF to an absolute path",
        )
    return Path(home)


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


def owner_of_path(path: str) -> int | None:
    """The uid of what is at a path, which is no symbolic link any more; where nothing is, that of the nearest directory
    above. None where nobody can tell."""
    for at in (Path(path), *Path(path).parents):
        try:
            return os.lstat(at).st_uid
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def expand(path: str, owner: Owner, directory: Path) -> str:
    """`path` made absolute: `~` is the owner's home, anything else is relative to `directory`."""
    if path == "~" or path.startswith("~/"):
        if owner.home is None:
            raise Invalid(f"needs a home, and user {owner.name} has none on this host", "an absolute path")
        path = str(owner.home) + path[1:]
    return os.path.abspath(directory / path)


class Search:
    """The paths that patterns mean, as glob's are, with one bound on all that is looked at for them: a pattern may lead
    through all of a host."""

    def __init__(self) -> None:
        self._left = MOST_LOOKED_AT

    def matching(self, pattern: str) -> list[str]:
        """The sorted paths that an absolute pattern means. Raises Invalid where the bound is met."""
        found = ["/"]
        for part in pattern.split("/")[1:]:
            if glob.has_magic(part):
                matches = re.compile(fnmatch.translate(part)).match
                found = [
                    os.path.join(directory, name)
                    for directory in found
                    for name in self._names(directory)
                    if matches(name) and (part[0] == "." or name[0] != ".")
                ]
            else:
                found = [os.path.join(directory, part) for directory in found]
        return sorted(filter(os.path.lexists, found))

    def _names(self, directory: str) -> Iterator[str]:
        """The names in a directory; none where there is no directory."""
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not self._left:
                        hint = "a narrower pattern, or the paths of the files"
                        raise Invalid(f"takes a look at more than {MOST_LOOKED_AT} files and directories", hint)
                    self._left -= 1
                    yield entry.name
        except OSError:
            return


def expand_keys(entry: str, owner: Owner, directory: Path, search: Search) -> tuple[str, ...]:
    """The key lines that one entry means: itself, or the lines of the .pub files that it names."""
    if entry.split(" ", 1)[0] in KEY_TYPES:
        return (entry,)
    pattern = expand(entry, owner, directory)
    files = [pattern] if os.path.lexists(pattern) else search.matching(pattern)
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
    """A regular file of at most 64 KiB."""
    with open(open_regular(file, follow=follow), "rb") as stream:
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
