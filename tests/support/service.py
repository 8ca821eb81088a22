"""A workspace's service, run by the product's own runner as on a host whose process 1 is not systemd, without the rest
of a hutch: a Launch of the test's own, below directories of the test's own, hence in a cgroup of its own."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import hutch
from hutch.backends.launch import REBOOT, Launch, Limits, Step, Surroundings
from hutch.host.services.cgroup import Cgroup
from hutch.host.services.process import is_alive
from hutch.runtime.control import provide
from hutch.runtime.runners import Runners
from hutch.runtime.status import Status, read_status
from hutch.spec.names import Layout
from tests.unit.facts import surroundings

NAME = "lab"
QUICK = 20.0  # seconds
OVER = ("stopped", "failed")


def own_surroundings(directory: Path) -> Surroundings:
    """Of a hutch below a directory, whose programs are this checkout's."""
    layout = Layout(directory / "state", directory / "run")
    return surroundings(layout=layout, python=sys.executable, package=str(Path(hutch.__file__).parent))


def make_launch(layout: Layout, dialect: str, script: str, **more: Any) -> Launch:
    """One whose main process, or what that starts, is a shell script."""
    runtime = str(layout.runtime(NAME))
    known: dict[str, Any] = {
        "workspace": NAME,
        "backend": "qemu",
        "unit": layout.unit(NAME),
        "network_namespace": "",
        "cgroup": layout.cgroup(NAME),
        "runtime": runtime,
        "dialect": dialect,
        "directories": (runtime,),
        "files": (),
        "prepare": (),
        "connect": (),
        "argv": ("sh", "-euc", script),
        "cleanup": (),
        "limits": Limits(),
        "restart_codes": (REBOOT,),
        "start_seconds": QUICK,
        "stop_seconds": QUICK,
    }
    return Launch(**{**known, **more})


class Service:
    """From its first start on. `change` may have the unit say something else than what is rendered. To be closed."""

    def __init__(self, launch: Launch, layout: Layout, change: Callable[[str], str] = str) -> None:
        self.layout, self.name = layout, launch.workspace
        self.runtime = layout.runtime(self.name)
        self.ends = layout.run / "ends"
        told = ("sh", "-c", 'echo "$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS" >>"$0"', str(self.ends))
        self.launch = replace(launch, cleanup=(*launch.cleanup, Step(told, "tell how it ended", may_fail=True)))
        self.manager = Runners(layout)
        layout.state.mkdir(exist_ok=True)
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # a runner outlives who started it
            self.manager.prepare(self.name)
        provide(layout, self.manager, [self.launch])
        unit = layout.unit_directory(self.name) / layout.unit(self.name)
        unit.write_text(change(unit.read_text()))
        self.manager.begin([self.launch])
        self.manager.connect()
        (self.report,) = self.manager.start([self.launch])

    def is_ready(self, seconds: float = QUICK) -> bool:
        """Whether it is before that time is over, and before it has ended."""
        if not select.select([self.report], [], [], seconds)[0]:
            return False
        return self.manager.outcome(self.report, self.name) == ""

    def stop(self, seconds: float = QUICK) -> str:
        """As `hutch stop`; how it ended."""
        self.manager.stop([self.name], seconds)
        return self.how[-1]

    def ended(self, seconds: float = QUICK) -> str:
        """Wait for the end of the first start, unless that is over; how it ended."""
        self.until(lambda: self.how and self.status.state in OVER, seconds)
        return self.how[0]

    def close(self) -> None:
        """End it, and see that nothing of it is left."""
        self.manager.give_up()
        self.manager.stop([self.name], 0.0)
        with closing(Cgroup(self.layout.slice_cgroup(self.name))) as cgroup:
            assert not cgroup.has("cgroup.procs")

    # What is seen of it.

    @property
    def status(self) -> Status:
        found = read_status(str(self.layout.status(self.name)))
        return found or Status("absent", 0, None, 0.0, None, None, "", "")

    @property
    def is_alive(self) -> bool:
        """Whether its main process is."""
        return is_alive(self.status.pid, self.status.started)

    @property
    def how(self) -> list[str]:
        """How each start ended: the result, and whether the main process exited or was killed, and with what."""
        return self.ends.read_text().splitlines() if self.ends.exists() else []

    @property
    def text(self) -> str:
        return self.manager.log(self.name, 1 << 20)

    @property
    def runner(self) -> int:
        """Its pid; 0 when there is none."""
        with closing(Cgroup(self.layout.slice_cgroup(self.name))) as cgroup:
            return next(iter(cgroup.processes("runner")), 0)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal for the main process."""
        os.kill(self.status.pid, number)

    def until(self, condition: Callable[[], object], seconds: float = QUICK) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.status, self.how, self.text)
            time.sleep(0.02)
