"""The first moments of a supervisor: a boot, up to the point where the guest begins. Whatever is to be imported for
what comes after is imported while the guest boots. Whoever starts a workspace waits for this file's imports: each needs
a reason.
"""

from __future__ import annotations

import os
import select
import sys
import time

from hutch.host.services.cgroup import Cgroup
from hutch.runtime.gate import GO, MOVED, receive_launch
from hutch.runtime.limits import control_files
from hutch.runtime.main_process import Helper, Main
from hutch.runtime.steps import CalledOff, SideBySide, StartFailed, bind_held, prepare

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


PAYLOAD = "machine/payload"  # the cgroup that nspawn puts a guest into


class Boot:
    """One boot. It is begun when made; `failure` says why it went no further. `missing` are the limits that this host
    cannot enforce.

    The first boot has its Launch from the `gate`, where it also waits until it is in the guest's cgroup, and for the
    network. A later one gives up when `wake` can be read and `is_off` says that nobody wants it any more.
    """

    def __init__(
        self,
        runtime: str,
        cgroup: Cgroup,
        launch: dict[str, Any] | None = None,
        *,
        gate: int = -1,
        wake: int = -1,
        is_off: Callable[[], object] = lambda: False,
    ) -> None:
        self.cgroup, self.gate, self.wake, self.is_off = cgroup, gate, wake, is_off
        self.main: Main | None = None
        self.helpers: list[Helper] = []
        self.said = -1  # where what the helpers say is read
        self.missing: list[str] = []
        self.failure: StartFailed | OSError | None = None
        self.launch = launch or {}
        try:
            if launch is None:
                self.launch = self._receive()
            else:
                cgroup.enter_guest(os.getpid())
            self.begun = time.monotonic()
            self._start(runtime)
        except (StartFailed, OSError) as error:
            self.failure = error

    def _receive(self) -> dict[str, Any]:
        launch = receive_launch(self.gate)
        if launch is None:
            raise CalledOff
        return launch

    def _start(self, runtime: str) -> None:
        """Mount, limit, connect, and start the main process. What is held runs nothing of the guest's before it is let
        go, so it is connected while nspawn gets that far."""
        launch = self.launch
        try:
            steps = prepare(launch)
            if self.gate >= 0:  # once: filters add up, and stay
                self._confine(launch["forbidden"])
            self._finish(steps)
        finally:
            self._await(MOVED, "the supervisor was not moved")  # even after a failure: the command may just do it
        self.missing = self.cgroup.limit(control_files(launch["limits"]))
        self.cgroup.keep_reserve()
        if launch["held"]:
            self.cgroup.freeze(PAYLOAD)
        else:
            self._connect()
        if launch["helpers"]:
            self._start_helpers(launch["helpers"])
        self.main = Main(runtime, launch["argv"], launch["links"], launch["vsock"])
        if launch["held"]:
            self._connect()
            self._bind(self.main, launch["held"])

    def _connect(self) -> None:
        """Join the network, once that is in place."""
        self._await(GO, "the network was not in place")
        for stage in self.launch["connect"]:
            self._finish(SideBySide([[step] for step in stage]))

    def _confine(self, forbidden: dict[str, Any] | None) -> None:
        """While steps run, since what it imports takes its time."""
        from hutch.confine.install import forbid, leave_keyring

        leave_keyring()  # nspawn takes an empty one too, but may not any more; machines have whatever we have
        try:
            if forbidden:
                forbid(forbidden)
        except (OSError, ValueError) as error:
            raise StartFailed(f"system calls cannot be kept from the guest: {error}") from error

    def _bind(self, main: Main, held: list[dict[str, Any]]) -> None:
        import hutch.runtime.embedded  # noqa: F401 - nspawn takes longer, and then the guest has the processors

        seconds = self.launch["start_seconds"]
        bind_held(self.cgroup, PAYLOAD, held, main.pidfd, self.begun, seconds, self.wake, self.is_off)

    def _start_helpers(self, helpers: list[dict[str, Any]]) -> None:
        self.said, output = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.said, False)
        try:
            for helper in helpers:
                self.helpers.append(Helper(helper, output))
        finally:
            os.close(output)

    def _finish(self, steps: SideBySide) -> None:
        steps.finish(self.begun, self.launch["start_seconds"], self.wake, self.is_off)

    def _await(self, word: bytes, otherwise: str) -> None:
        """Wait until the command that started us says something, at the first boot."""
        if self.gate < 0:
            return
        poll = select.poll()
        poll.register(self.gate, select.POLLIN)
        left = self.begun + self.launch["start_seconds"] - time.monotonic()
        if not poll.poll(max(0.0, left) * 1000):
            raise StartFailed(f"{otherwise} after {self.launch['start_seconds']:g} s")
        if os.read(self.gate, 1) != word:
            raise CalledOff


def main(runtime: str, cgroup_path: str, report: str, gate: str, lock: str) -> NoReturn:
    """Entry: a workspace's runtime directory and cgroup, and three inherited descriptors: one to report to; the gate;
    and one that holds the workspace's lock for as long as it is open: in this process, and in no other one."""
    os.umask(0o022)  # others than root enter what is made here: machines' own users
    for descriptor in (report, gate, lock):
        os.set_inheritable(int(descriptor), False)
    cgroup = Cgroup(cgroup_path)
    boot = Boot(runtime, cgroup, gate=int(gate))
    os.close(int(gate))
    from hutch.runtime.embedded import Supervisor

    sys.exit(Supervisor(runtime, cgroup, int(report)).run(boot))
