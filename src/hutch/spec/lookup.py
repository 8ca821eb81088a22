"""The choice of the hutch.toml, a glance at it that neither validates nor complains, and the starter of `hutch init`.
Imports are few: `ls` uses it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hutch.errors import HutchError, UsageError
from hutch.files import open_regular
from hutch.spec.names import is_name

SYSTEM_FILE = Path("/etc/hutch/hutch.toml")
LOCAL_FILE = Path("hutch.toml")
STARTER = Path(__file__).with_name("starter.toml")
"""The file that `hutch init` writes: it works as it is, and shows the common keys."""
SCHEMA = Path(__file__).with_name("schema.json")
"""What `hutch schema` prints. The first line of a starter tells editors of it, in the form that taplo knows."""
OFFERED = '# mounts = [{ source = ".", target = "/src" }]   # this directory; `hutch run` begins there\n'
REFUSED = ("# authorized_keys", "# autostart")
"""Of a starter in a checkout: its mount, and the lines that it does not have."""
LARGEST_FILE = 1024 * 1024  # bytes
LONGEST_LINE = 16 * 1024  # characters: a key of many dots takes tomllib time that grows with its square


def look_for_file(explicit: Path | None) -> Path | None:
    """The hutch.toml to use: `explicit`, $HUTCH_FILE, ./hutch.toml or /etc/hutch/hutch.toml; None when none is there.

    One that is named and not there is a UsageError.
    """
    for said, source in ((explicit, "--file"), (os.environ.get("HUTCH_FILE") or None, "$HUTCH_FILE")):
        if said is not None:
            if not os.path.exists(said):
                raise UsageError(f"{said}: there is no such file", resolution=f"{source} must name a hutch.toml")
            return Path(said)
    # A directory of that name holds the place in a checkout that a workspace shares.
    return next((path for path in (LOCAL_FILE, SYSTEM_FILE) if os.path.lexists(path) and not os.path.isdir(path)), None)


def find_file(explicit: Path | None) -> Path:
    """The hutch.toml to use; UsageError when there is none."""
    found = look_for_file(explicit)
    if found is None:
        raise UsageError(
            f"there is no hutch.toml here, and no {SYSTEM_FILE}",
            resolution="write one with `hutch init`, or name one with --file or $HUTCH_FILE; "
            "that of a workspace of `hutch run` is -f ~/.config/hutch/run/NAME.toml",
        )
    return found


def resolved(found: Path) -> str:
    """The path of the file that `found` leads to, without links. What is judged by this path is read by it, too."""
    try:
        return os.path.realpath(found)
    except OSError as error:  # a link that is another thing by the time that it is read
        raise HutchError(f"{found} cannot be found: {error.strerror}", resolution="try again") from error


def believed_owners(explicit: Path | None, found: Path) -> frozenset[int] | None:
    """The uids whose hutch.toml is believed, since root acts on it: root and the caller, where the file that was found
    merely lies in the current directory; None, which is everybody, for one that was named or is the host's."""
    # Spares the start-up of `hutch ls` where there is no file.
    from hutch.spec.owner import default_owner

    if explicit is not None or os.environ.get("HUTCH_FILE") or found != LOCAL_FILE:
        return None
    return frozenset((0, os.getuid(), default_owner(os.environ, os.getuid())))


def is_unwieldy(text: str) -> int:
    """The number of the first line that is longer than a person's; 0 when there is none."""
    return next((number for number, line in enumerate(text.split("\n"), 1) if len(line) > LONGEST_LINE), 0)


def glance(path: Path) -> dict[str, Any]:
    """The workspaces that a file declares, each with its type as written, unvalidated. A broken file has none: it must
    not hide running workspaces."""
    # Spares the start-up of `hutch ls` where there is no file.
    import tomllib

    try:
        with open(open_regular(path, follow=True), encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        if len(text) > LARGEST_FILE or is_unwieldy(text):
            return {}
        tables = tomllib.loads(text)
        usual = tables.get("defaults", {}).get("type")
        declared = {name: table.get("type", usual) for name, table in tables.get("workspaces", {}).items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: type for name, type in declared.items() if is_name(name)}


def render_starter(name: str = "dev", *, is_judged: bool = False) -> str:
    """A commented hutch.toml with one workspace; the caller has checked its name. One that `is_judged`, as it is in a
    checkout, offers to share that, and nothing that `hutch trust` refuses there."""
    lines = STARTER.read_text(encoding="utf-8").replace("@NAME@", name).splitlines(keepends=True)
    if is_judged:
        lines = [OFFERED if line.startswith("# mounts") else line for line in lines if not line.startswith(REFUSED)]
    # A path of one installation is no business of a repository's.
    schema = f"#:schema {SCHEMA.as_uri()}\n" if not is_judged and SCHEMA.is_relative_to("/usr") else ""
    return schema + "".join(lines)
