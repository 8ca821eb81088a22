"""The programs that hutch runs, and what to install where one is missing. Looks, and changes nothing."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from hutch.errors import HutchError
from hutch.search_path import SEARCH_PATH

if TYPE_CHECKING:
    from hutch.host.doctor.packages import Manager

QEMU = "qemu-system-x86_64"
VIRTIOFSD = "/usr/lib*/virtiofsd"  # no distribution has it on anybody's PATH
OLDEST_VIRTIOFSD = (1, 13)
TOO_OLD = f"{{}} is older than {'.'.join(map(str, OLDEST_VIRTIOFSD))}, which virtual machines need"
MACHINE_TOOLS = (QEMU, VIRTIOFSD, "bwrap", "setpriv", "systemd-notify", "mkfs.erofs", "mkfs.ext4")
"""The tools that virtual machines need on the host, by the names in hutch.host.doctor.packages."""


def find_program(name: str) -> str | None:
    """The path of a command, where hutch's own commands look for it; or of the file that a glob finds."""
    if name.startswith("/"):
        return next(iter(sorted(glob.glob(name))), None)
    paths = (f"{directory}/{name}" for directory in SEARCH_PATH.split(":"))
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def old_virtiofsd() -> str:
    """The path and version of a virtiofsd that is older than machines need, since it translates no ids; "" otherwise,
    and for one that does not run."""
    # Spares the start-up of `hutch start` for containers.
    from hutch.run import run

    program, said = find_program(VIRTIOFSD), ""
    with suppress(HutchError, OSError):
        said = run([program, "--version"], check=False).stdout if program else ""
    found = re.search(r"([0-9]+)\.([0-9]+)", said)
    is_old = found and (int(found[1]), int(found[2])) < OLDEST_VIRTIOFSD
    return f"{program} {found[0]}" if found and is_old else ""


def find_manager() -> Manager | None:
    """The package manager of this host's distribution."""
    from hutch.host.doctor.packages import INSTALL  # argparse and more, which a start does without

    return next((name for name, command in INSTALL.items() if find_program(command.split()[0])), None)


def check_tools(names: Collection[str], brief: str) -> None:
    """Raise one HutchError that says `brief` and what to install, when any of `names` is missing."""
    missing = [name for name in names if find_program(name) is None]
    if not missing:
        return
    from hutch.host.doctor.packages import INSTALL, REQUIREMENTS  # as above

    manager = find_manager()
    purposes = {name: item.purpose for item in REQUIREMENTS for name in item.proof}
    items = [item for item in REQUIREMENTS if set(missing).intersection(item.proof)]
    packages = dict.fromkeys(name for item in items if manager for name in item.names(manager))
    raise HutchError(
        brief,
        details="\n".join(f"missing: {name}, which {purposes.get(name, 'hutch runs')}" for name in missing),
        resolution=f"`{INSTALL[manager]} {' '.join(packages)}`" if manager and packages else "install these programs",
    )
