"""The layout of an ejected workspace, and its names on the host: it goes on without hutch, and beside one that goes on.

A name of a workspace has no dot: so its services have a dot in theirs where another workspace could have a dash.
"""

from __future__ import annotations

import re
from pathlib import Path

from hutch.errors import UsageError
from hutch.frozen import dataclass
from hutch.spec.names import Derived, Layout, interface

SECTION = "[X-Hutch]"
"""The section of its unit that holds the note; systemd skips it."""


@dataclass(frozen=True)
class Note:
    """The note in its unit, for a hutch that knows nothing of it: its name, its directory, its address, and the first
    of its user ids."""

    name: str
    directory: str
    ip: str
    uid_base: int


def render_note(note: Note) -> str:
    """The end of the unit."""
    found = {"Name": note.name, "Directory": note.directory, "Address": note.ip, "UserIds": note.uid_base}
    return f"\n{SECTION}\n" + "".join(f"{key}={value}\n" for key, value in found.items())


def parse_note(unit: str) -> Note | None:
    """The note in a unit; None for a unit without one."""
    lines = unit.partition(f"\n{SECTION}\n")[2].splitlines()
    found = dict(line.partition("=")[::2] for line in lines)
    try:
        return Note(found["Name"], found["Directory"], found["Address"], int(found["UserIds"]))
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True)
class Ejected(Layout):
    """The layout of one workspace. `state` is the directory that has all of it, apart from a home of the owner's."""

    name: str

    @classmethod
    def beside(cls, layout: Layout, name: str, directory: Path | None = None) -> Ejected:
        """The layout for a workspace of that hutch: in `directory`, or beside the hutch's own state. The path is used
        in mount options, in units and in ssh's configuration."""
        state = directory or Path(f"{layout.state}-ejected") / name
        if not re.fullmatch(r"(/[A-Za-z0-9_.+-]+)+", str(state), re.ASCII) or ".." in state.parts:
            raise UsageError(f"{str(state)!r} cannot be used", resolution="letters, digits and _.+-/ only")
        return cls(state, Path(f"{layout.run}-ejected") / name, name)

    @property
    def instance(self) -> str:
        return f"workspace-{self.name}"

    @property
    def uplink_host(self) -> str:
        return interface("wu", self.name)

    readme = Derived(lambda layout: layout.state / "README")
    removal = Derived(lambda layout: layout.state / "remove")
    """The script that takes everything away."""
    programs = Derived(lambda layout: layout.state / "programs" / "hutch")
    """The copy of hutch's package, as far as its steps run it."""
    boot = Derived(lambda layout: layout.state / "image" / "boot")
    """The files that a machine boots from."""
    network = Derived(lambda layout: layout.state / "network")
    """The files that the network is made from."""
    uplink_file = Derived(lambda layout: layout.state / "network" / "uplink")
    """The file with the /30 that joins it to the host; read when another workspace's /30 is chosen."""

    def workspace(self, name: str) -> Path:
        return self.state / "workspace"

    def image_root(self, id: str) -> Path:
        """Its own copy of the image's tree. Files in it may be setuid, so nobody but root gets there."""
        return self.state / "image" / "root"

    def machine(self, name: str) -> str:
        return self.instance

    def unit(self, name: str) -> str:
        return f"{self.instance}.service"

    def slice(self, name: str) -> str:
        escaped = name.replace("-", "\\x2d")
        return f"workspace-{escaped}.slice"

    @property
    def slice_of_all(self) -> str:
        return "workspace.slice"

    @property
    def network_unit(self) -> str:
        return f"{self.instance}.network.service"

    @property
    def target(self) -> str:
        """The target that wants its unit, if it is to start when the host boots."""
        return "multi-user.target"

    @property
    def stopped_by(self) -> tuple[str, ...]:
        """No unit: `target` is everybody's, and may be restarted for reasons of their own."""
        return ()

    def service_unit(self, pid_file: str) -> str:
        return super().service_unit(pid_file).replace(f"{self.instance}-", f"{self.instance}.", 1)
