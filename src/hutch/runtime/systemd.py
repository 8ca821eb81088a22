"""Services on a host whose process 1 is systemd: as its units, by its own commands. systemd starts them without us: at
boot, after a failure, or because somebody says so with systemctl."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from hutch.errors import HutchError
from hutch.host.services import units
from hutch.host.services.cgroup import Cgroup
from hutch.run import PIPE, Popen, run, start
from hutch.runtime.units import render_limits
from hutch.spec.names import Layout

if TYPE_CHECKING:
    from hutch.backends.launch import Launch, Limits

JOURNAL = ("journalctl", "--quiet", "--no-pager", "--output=cat")
GRACE = 15.0  # seconds beyond its own deadlines that systemd is given


class Systemd:
    """The service manager of systemd hosts: see Manager in runtime/control."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._starting: dict[int, Popen[bytes]] = {}

    def ensure(self, units_of: Mapping[str, Mapping[str, str]]) -> None:
        units.ensure_units({unit: text for texts in units_of.values() for unit, text in texts.items()})

    def remove(self, name: str) -> None:
        units.remove_units((self.layout.unit(name), self.layout.slice(name)))

    def prepare(self, name: str) -> None:
        """Do nothing: systemd has nothing to prepare."""

    def begin(self, launches: Iterable[Launch]) -> None:
        """Do nothing: systemd starts the network first."""

    def connect(self) -> None:
        """Do nothing: the units order the network first."""

    def start(self, launches: Iterable[Launch]) -> dict[int, str]:
        names = [launch.workspace for launch in launches]
        found = {}
        units.systemctl("reset-failed", *map(self.layout.unit, names), check=False)  # our start is no retry
        for name in names:
            process = start(("systemctl", "--no-ask-password", "start", self.layout.unit(name)), stderr=PIPE)
            descriptor = os.pidfd_open(process.pid)
            self._starting[descriptor] = process
            found[descriptor] = name
        return found

    def outcome(self, descriptor: int, name: str) -> str:
        process = self._starting.pop(descriptor)
        os.close(descriptor)
        said = process.communicate()[1].decode("utf-8", "replace").strip()
        if process.returncode == 0:
            return ""
        unit = self.layout.unit(name)
        result = units.properties(unit, "Result")["Result"]
        return f"systemd says {result!r} of {unit}" if result != "success" else said

    def give_up(self) -> None:
        while self._starting:
            descriptor, process = self._starting.popitem()
            os.close(descriptor)
            process.kill()
            process.communicate()

    def stop(self, names: Iterable[str], patience: float) -> None:
        found = {name: unit for name in names if (units.directory() / (unit := self.layout.unit(name))).is_file()}
        if not found:
            return
        try:
            units.systemctl("stop", *found.values(), timeout=patience + 2 * GRACE)
        except HutchError:  # a guest can take all the time that its service has, that of what ends it too
            for name in found:
                with closing(Cgroup(self.layout.cgroup(name))) as cgroup:
                    cgroup.kill()
            units.systemctl("stop", *found.values(), timeout=patience + 2 * GRACE)

    def limit(self, name: str, limits: Limits) -> None:
        units.set_properties(self.layout.slice(name), *render_limits(limits))

    def follow_command(self, name: str) -> tuple[str, ...]:
        return (*JOURNAL, "--follow", "--lines=0", f"--unit={self.layout.unit(name)}")

    def log(self, name: str, lines: int, *, last_start: bool = False) -> str:
        unit = self.layout.unit(name)
        what = f"--unit={unit}"
        if last_start and (invocation := units.properties(unit, "InvocationID")["InvocationID"]):
            what = f"_SYSTEMD_INVOCATION_ID={invocation}"
        return run((*JOURNAL, f"--lines={lines}", what), check=False).stdout
