"""The host's systemd, asked by its own command: units that hutch writes, and their states."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import read_or_none, remove_flat, write_atomic
from hutch.run import run
from hutch.spec.ejected import Note, parse_note

WRITTEN_BY = "# Written by hutch, which writes it anew; `hutch explain` shows the whole.\n"
LASTING, VOLATILE = Path("/etc/systemd/system"), Path("/run/systemd/system")
"""The directories of units. NixOS lets nobody write the first: there the host's own configuration starts units."""
SETTINGS = Path("/run/systemd/system.control")
"""The directory of properties that were set beside a unit's text while it ran."""
OWN_SETTINGS = (LASTING, Path("/etc/systemd/system.control"))
"""The directories of an administrator's own settings: `systemctl edit`, and `set-property`."""
STAMPS = Path("/var/lib/systemd/timers")
"""The directory in which systemd notes when a timer that makes up for lost time has fired."""
BOOTED = "/run/systemd/system"  # see sd_booted(3)
RELOAD_SECONDS = 90.0


def quoted(text: str) -> str:
    """A word of a command in a unit: systemd.service(5). $ begins a variable there."""
    return quoted_path(text).replace("$", "$$")


def quoted_path(text: str) -> str:
    """A word of any other setting: systemd.syntax(7). % begins a specifier there."""
    if re.fullmatch(r"[A-Za-z0-9/._=:,-]+", text, re.ASCII):
        return text
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("%", "%%")):
        text = text.replace(character, escaped)
    return f'"{text}"'


def has_systemd() -> bool:
    """Whether systemd is this host's process 1."""
    return os.path.isdir(BOOTED)


def has_machined() -> bool:
    """Whether machinectl can list workspaces: its service comes with systemd, which starts it when it is asked."""
    return has_systemd()


@cache
def directory() -> Path:
    """The directory of units on this host."""
    return LASTING if os.access(LASTING, os.W_OK) or os.geteuid() != 0 else VOLATILE


def different_units(units: Mapping[str, str]) -> list[str]:
    """The names of those units whose files differ from these texts."""
    return [name for name, text in units.items() if read_or_none(directory() / name) != text.encode()]


def ensure_units(units: Mapping[str, str]) -> None:
    """Have exactly these texts in these units, with nothing set beside them, and have systemd know."""
    changed, is_set = different_units(units), _forget_settings(units)
    for name in changed:
        if (directory() / name).is_symlink():
            raise HutchError(f"{directory() / name} is a link: it was masked", resolution=f"`systemctl unmask {name}`")
        write_atomic(directory() / name, units[name].encode())
    if changed or is_set or (units and _are_stale(units)):
        reload()


def _forget_settings(units: Iterable[str]) -> bool:
    found = [place for unit in units if (place := SETTINGS / f"{unit}.d").is_dir()]
    for place in found:
        remove_flat(place)
    return bool(found)


def set_properties(unit: str, *assignments: str) -> None:
    """Set properties of a running unit, until its text is written anew or the host reboots: reading units anew does
    nothing to the limits of one that runs."""
    systemctl("set-property", "--runtime", unit, *assignments)


def _are_stale(units: Iterable[str]) -> bool:
    """Whether systemd has read any of them before it was written: the command that wrote it was killed."""
    return "yes" in systemctl("show", "--property=NeedDaemonReload", "--value", "--", *units).split()


def remove_units(names: Iterable[str], *, timeout: float = 30.0) -> None:
    """Stop units within so many seconds, take them away, and forget how they ended. Without systemd there are none."""
    paths = [path for name in names for place in (LASTING, VOLATILE) if (path := place / name).is_file()]
    if not paths or not has_systemd():
        return
    found = list(dict.fromkeys(path.name for path in paths))
    systemctl("stop", *found, check=False, timeout=timeout)
    systemctl("disable", *scope(), *found, check=False)
    for path in paths:  # where nobody may write, not even what is not there can be unlinked
        path.unlink(missing_ok=True)
    for name in found:  # a timer that comes back later has nothing to make up for
        (STAMPS / f"stamp-{name}").unlink(missing_ok=True)
    _forget_settings(found)
    reload()
    systemctl("reset-failed", *found, check=False)


def written_units(pattern: str) -> list[str]:
    """The texts of the units whose names match, as far as hutch wrote them: any version of it, for any state."""
    paths = [path for place in (LASTING, VOLATILE) for path in place.glob(pattern)]
    texts = ((read_or_none(path) or b"").decode("utf-8", "replace") for path in paths if path.is_file())
    return [text for text in texts if text.startswith(WRITTEN_BY)]


def waiting_mounts(path: str) -> list[str]:
    """The units on the way to `path`, outermost first, by which systemd is to mount something, and has not."""
    if not has_systemd():
        return []
    ways = [str(way) for way in (*reversed(Path(path).parents), Path(path))]
    names = run(("systemd-escape", "--path", "--suffix=mount", "--", *ways)).stdout.split()
    found = _shown(names, "Id", "LoadState", "ActiveState")
    return [unit["Id"] for unit in found if unit.get("LoadState") == "loaded" and unit.get("ActiveState") != "active"]


def awaits_a_start(reconciled: Path) -> bool:
    """Whether the host stays bare until systemd starts the first workspace; `reconciled` is there when it does not."""
    return has_systemd() and not reconciled.exists()


def ensure_rooms(directories: Iterable[Path]) -> None:
    """Make the runtime directories of workspaces that systemd starts without us: access to them is given now."""
    if has_systemd():
        for room in directories:
            room.mkdir(mode=0o700, parents=True, exist_ok=True)


def own_settings(names: Iterable[str]) -> list[Path]:
    """The directories of an administrator's settings for these units. They are theirs, and stay."""
    return [path for name in names for place in OWN_SETTINGS if (path := place / f"{name}.d").is_dir()]


def enable_units(wanted: Mapping[str, bool]) -> None:
    """Have exactly the wanted units start with the target that wants them. Nothing is started or stopped now."""
    for command, is_wanted in (("enable", True), ("disable", False)):
        names = [name for name, enabled in wanted.items() if enabled is is_wanted and is_enabled(name) is not enabled]
        if names:
            systemctl(command, *scope(), *names)


def scope() -> tuple[str, ...]:
    """The option of systemctl that makes links where the units lie."""
    return ("--runtime",) if directory() == VOLATILE else ()


def is_enabled(name: str) -> bool:
    """Whether any target wants the unit: `systemctl enable` makes a link there, and nothing else does."""
    return any(os.path.lexists(wants / name) for wants in directory().glob("*.wants"))


def is_stopping() -> bool:
    """Whether the host is going down."""
    return systemctl("is-system-running", check=False).strip() == "stopping"


def resting_units(names: Iterable[str]) -> set[str]:
    """The units of these that neither run nor are about to: systemd starts what has failed again after a while."""
    found = _shown(names, "Id", "ActiveState")
    return {unit["Id"] for unit in found if unit.get("ActiveState") in ("inactive", "failed")}


def is_wanted_again(unit: str) -> bool:
    """Whether somebody waits for a unit to start that is just being stopped."""
    jobs = (line.split() for line in systemctl("list-jobs", "--no-legend", "--", unit, check=False).splitlines())
    return any(len(job) > 2 and job[2] in ("start", "restart") for job in jobs)


def observe_ejected() -> dict[str, Note]:
    """The workspaces that were ejected from any hutch of this host, by name, told by their units alone."""
    texts = (read_or_none(path) or b"" for path in sorted(LASTING.glob("workspace-*.service")))
    notes = (parse_note(text.decode("utf-8", "replace")) for text in texts)
    return {note.name: note for note in notes if note is not None}


def last_words(unit: str, lines: int) -> str:
    """The end of a unit's log."""
    options = ("--quiet", "--no-pager", "--output=cat", f"--lines={lines}")
    return run(("journalctl", *options, f"--unit={unit}"), check=False).stdout


def reload() -> None:
    """Have systemd read its units anew."""
    systemctl("daemon-reload", timeout=RELOAD_SECONDS)


def properties(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit by systemd; of one that it does not have, their initial values."""
    return next(iter(_shown([unit], *names)), {})


def _shown(units: Iterable[str], *names: str) -> list[dict[str, str]]:
    """Properties of each unit by systemd; asked for none, it would tell of all units."""
    wanted = [f"--property={name}" for name in names]
    shown = systemctl("show", *wanted, "--", *units) if (units := list(units)) else ""
    return [dict(line.partition("=")[::2] for line in block.splitlines()) for block in shown.split("\n\n") if block]


def systemctl(*words: str, check: bool = True, timeout: float = 30.0) -> str:
    """The output of systemctl: never a question, a pager or colours."""
    try:
        return run(("systemctl", "--no-ask-password", "--no-pager", *words), check=check, timeout=timeout).stdout
    except HutchError as error:
        raise HutchError(
            f"systemd does not do as it is told: {error.brief}", details=error.details, resolution=error.resolution
        ) from error
