"""The host's systemd, asked by its own command: units that hutch writes, and what becomes of them."""

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
"""Where units go. NixOS lets nobody write the first: what is to start with such a host, its own configuration says."""
SETTINGS = Path("/run/systemd/system.control")
"""What was set beside a unit's text while it ran."""
OWN_SETTINGS = (LASTING, Path("/etc/systemd/system.control"))
"""Where an administrator's own are: `systemctl edit`, and `set-property`."""
BOOTED = "/run/systemd/system"  # see sd_booted(3)
RELOAD_SECONDS = 90.0


def quoted(text: str) -> str:
    """A word of a command in a unit: systemd.service(5). What begins with $ there stands for something else."""
    return quoted_path(text).replace("$", "$$")


def quoted_path(text: str) -> str:
    """A word of any other setting: systemd.syntax(7). What begins with % there stands for something else."""
    if re.fullmatch(r"[A-Za-z0-9/._=:,-]+", text, re.ASCII):
        return text
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("%", "%%")):
        text = text.replace(character, escaped)
    return f'"{text}"'


def has_systemd() -> bool:
    """Whether systemd is this host's process 1."""
    return os.path.isdir(BOOTED)


def has_machined() -> bool:
    """Whether machinectl can be told of what runs: its service comes with systemd, which starts it when it is asked."""
    return has_systemd()


@cache
def directory() -> Path:
    """Where units go on this host."""
    return LASTING if os.access(LASTING, os.W_OK) or os.geteuid() != 0 else VOLATILE


def different_units(units: Mapping[str, str]) -> list[str]:
    """Of these, by name, the ones that are not there word for word."""
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
    """Have a unit that runs be like that from now on, until its text is written anew or the host reboots: reading units
    anew does nothing to the limits of one that runs."""
    systemctl("set-property", "--runtime", unit, *assignments)


def _are_stale(units: Iterable[str]) -> bool:
    """Whether systemd has read any of them before it was written: whoever wrote it was killed."""
    return "yes" in systemctl("show", "--property=NeedDaemonReload", "--value", "--", *units).split()


def remove_units(names: Iterable[str]) -> None:
    """Stop them, take them away, and forget how they ended. Without systemd there are none."""
    paths = [path for name in names for place in (LASTING, VOLATILE) if (path := place / name).is_file()]
    if not paths or not has_systemd():
        return
    found = list(dict.fromkeys(path.name for path in paths))
    systemctl("stop", *found, check=False)
    systemctl("disable", *scope(), *found, check=False)
    for path in paths:  # where nobody may write, not even what is not there can be unlinked
        path.unlink(missing_ok=True)
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
    """Make the runtime directories of workspaces that systemd starts without us: who may look into them is said now."""
    if has_systemd():
        for room in directories:
            room.mkdir(mode=0o700, parents=True, exist_ok=True)


def own_settings(names: Iterable[str]) -> list[Path]:
    """What an administrator has set beside these units. It is theirs, and stays."""
    return [path for name in names for place in OWN_SETTINGS if (path := place / f"{name}.d").is_dir()]


def enable_units(wanted: Mapping[str, bool]) -> None:
    """Have exactly those of them start with the target that wants them. Nothing is started or stopped now."""
    for command, is_wanted in (("enable", True), ("disable", False)):
        names = [name for name, wish in wanted.items() if wish is is_wanted and is_enabled(name) is not wish]
        if names:
            systemctl(command, *scope(), *names)


def scope() -> tuple[str, ...]:
    """Links lie where the units do."""
    return ("--runtime",) if directory() == VOLATILE else ()


def is_enabled(name: str) -> bool:
    """Whether any target wants it: `systemctl enable` makes a link there, and nothing else does."""
    return any(os.path.lexists(wants / name) for wants in directory().glob("*.wants"))


def is_stopping() -> bool:
    """Whether the host is going down."""
    return systemctl("is-system-running", check=False).strip() == "stopping"


def resting_units(names: Iterable[str]) -> set[str]:
    """Of these, the ones that neither run nor are about to: systemd starts what has failed again after a while."""
    found = _shown(names, "Id", "ActiveState")
    return {unit["Id"] for unit in found if unit.get("ActiveState") in ("inactive", "failed")}


def is_wanted_again(unit: str) -> bool:
    """Whether somebody waits for a unit to start that is just being stopped."""
    jobs = (line.split() for line in systemctl("list-jobs", "--no-legend", "--", unit, check=False).splitlines())
    return any(len(job) > 2 and job[2] in ("start", "restart") for job in jobs)


def observe_ejected() -> dict[str, Note]:
    """What has been ejected from any hutch of this host, by name, as its units tell: no hutch need remember it."""
    texts = (read_or_none(path) or b"" for path in sorted(LASTING.glob("workspace-*.service")))
    notes = (parse_note(text.decode("utf-8", "replace")) for text in texts)
    return {note.name: note for note in notes if note is not None}


def last_words(unit: str, lines: int) -> str:
    """The end of what a unit has said."""
    options = ("--quiet", "--no-pager", "--output=cat", f"--lines={lines}")
    return run(("journalctl", *options, f"--unit={unit}"), check=False).stdout


def reload() -> None:
    """Have systemd read its units anew."""
    systemctl("daemon-reload", timeout=RELOAD_SECONDS)


def properties(unit: str, *names: str) -> dict[str, str]:
    """What systemd knows of a unit; of one that it does not have, what all units begin with."""
    return next(iter(_shown([unit], *names)), {})


def _shown(units: Iterable[str], *names: str) -> list[dict[str, str]]:
    """What systemd knows of each unit; of all units, if there is none, it would tell unasked."""
    wanted = [f"--property={name}" for name in names]
    shown = systemctl("show", *wanted, "--", *units) if (units := list(units)) else ""
    return [dict(line.partition("=")[::2] for line in block.splitlines()) for block in shown.split("\n\n") if block]


def systemctl(*words: str, check: bool = True, timeout: float = 30.0) -> str:
    """What the command says. Never a question, a pager or colours."""
    try:
        return run(("systemctl", "--no-ask-password", "--no-pager", *words), check=check, timeout=timeout).stdout
    except HutchError as error:
        raise HutchError(
            f"systemd does not do as it is told: {error.brief}", details=error.details, resolution=error.resolution
        ) from error
