"""Services on a host whose process 1 is not systemd: each has a runner (runtime/runner) of its own, which ends with it.

A runner holds its workspace's lock from before it is started until it has ended. A command that was killed may leave
one behind that has not begun yet: the next command waits for that lock before it does anything.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hutch import run
from hutch.errors import HutchError
from hutch.files import kept_open, read_or_none, write_atomic
from hutch.host.services.cgroup import Cgroup, control_files
from hutch.host.services.process import open_process, start_time
from hutch.runtime.status import read_status
from hutch.spec.names import Layout
from hutch.spec.programs import own_program
from hutch.spec.record import has_processes

if TYPE_CHECKING:
    from hutch.backends.launch import Launch, Limits

LOCK_SECONDS = 15.0  # that an earlier runner has to clean up and end
GRACE = 5.0  # seconds that a runner has to end after its own deadlines
TAIL_BYTES = 4096


class Prepared:
    """A runner that has not begun. At `report` it tells the first start's result, at `gate` it waits to begin."""

    def __init__(self, report: int, gate: int) -> None:
        self.report, self.gate, self.pid = report, gate, 0

    def close(self) -> None:
        for descriptor in (self.report, self.gate):
            os.close(descriptor)


class Runners:
    """The service manager that starts runners: see Manager in runtime/control."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._prepared: dict[str, Prepared] = {}

    def ensure(self, units: Mapping[str, Mapping[str, str]]) -> None:
        for name, texts in units.items():
            for unit, text in texts.items():
                path = self.layout.unit_directory(name) / unit
                if read_or_none(path) != text.encode():
                    write_atomic(path, text.encode())

    def remove(self, name: str) -> None:
        for unit in (self.layout.unit(name), self.layout.slice(name)):
            (self.layout.unit_directory(name) / unit).unlink(missing_ok=True)

    def prepare(self, name: str) -> None:
        layout = self.layout
        layout.runtime(name).mkdir(mode=0o700, parents=True, exist_ok=True)
        unit = layout.unit_directory(name) / layout.unit(name)
        program = own_program("hutch.runtime.runner", sys.executable)
        with ExitStack() as ours:  # descriptors that the runner has by then
            lock = ours.enter_context(kept_open(self._take_lock(name)))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            log = ours.enter_context(kept_open(os.open(layout.log(name), flags, 0o644)))
            report, their_report = os.pipe2(os.O_CLOEXEC)
            their_gate, gate = os.pipe2(os.O_CLOEXEC)
            self._prepared[name] = runner = Prepared(report, gate)
            handed = (ours.enter_context(kept_open(their_report)), ours.enter_context(kept_open(their_gate)), lock)
            words = (str(unit), layout.cgroup(name), str(layout.runtime(name)), *map(str, handed))
            process = run.start((*program, *words), stderr=log, cwd="/", pass_fds=handed, new_session=True)
            runner.pid = process.pid

    def begin(self, launches: Iterable[Launch]) -> None:
        for launch in launches:
            name, runner = launch.workspace, self._prepared[launch.workspace]
            self.limit(name, launch.limits)
            self._unreconciled(name).touch(mode=0o600)
            # The runner begins in the cgroup of its guest: to move a process takes the kernel ten milliseconds, and
            # this one loads itself meanwhile.
            with closing(Cgroup(self.layout.cgroup(name))) as cgroup, suppress(ProcessLookupError):
                cgroup.make("machine")
                cgroup.join("machine", runner.pid)
            with suppress(BrokenPipeError):  # it has ended, which is seen at its report
                os.write(runner.gate, b"1")

    def connect(self) -> None:
        for name in self._prepared:
            self._unreconciled(name).unlink(missing_ok=True)

    def start(self, launches: Iterable[Launch]) -> dict[int, str]:
        return {self._prepared[launch.workspace].report: launch.workspace for launch in launches}

    def outcome(self, descriptor: int, name: str) -> str:
        said = os.read(descriptor, 64)
        self._prepared.pop(name).close()
        return "" if said == b"ready" else f"{self.layout.unit(name)} failed"

    def give_up(self) -> None:
        while self._prepared:
            self._prepared.popitem()[1].close()  # one that has not begun does not any more

    def stop(self, names: Iterable[str], patience: float) -> None:
        names = list(names)
        waiting = [found for name in names if (found := self._open_runner(name)) is not None]
        try:
            for number, seconds in ((signal.SIGTERM, patience + GRACE), (signal.SIGKILL, GRACE)):
                _signal_all(waiting, number)
                _await_ends(waiting, seconds)
        finally:
            for descriptor in waiting:
                os.close(descriptor)
        for name in names:
            if self.layout.runtime(name).is_dir():
                os.close(self._take_lock(name))
            with closing(Cgroup(self.layout.cgroup(name))) as cgroup:
                cgroup.kill()
            with closing(Cgroup(self.layout.slice_cgroup(name))) as cgroup:
                cgroup.remove()

    def limit(self, name: str, limits: Limits) -> None:
        path = self.layout.slice_cgroup(name)
        with closing(Cgroup(path)) as cgroup, closing(Cgroup(os.path.dirname(path))) as all_of_them:
            cgroup.make("runner")
            cgroup.limit(control_files(limits.cpus, limits.memory, limits.tasks))
            all_of_them.keep_reserve()

    def follow_command(self, name: str) -> tuple[str, ...]:
        return ("tail", "--quiet", "--lines=0", "--follow=name", "--retry", str(self.layout.log(name)))

    def log(self, name: str, lines: int, *, last_start: bool = False) -> str:
        path = self.layout.log(name)
        older = path.with_name(f"{path.name}.1")
        text = b"".join(read_or_none(each) or b"" for each in (older, path)).decode("utf-8", "replace")
        if last_start:
            text = text[-TAIL_BYTES:]
        kept = [line for line in text.replace("\r", "").split("\n") if line.strip() or not last_start]
        return "\n".join(kept[-lines:]) if lines else ""

    def _unreconciled(self, name: str) -> Path:
        """The path of a file; while it exists, a start does not go on to join the network."""
        return self.layout.runtime(name) / "unreconciled"

    def _take_lock(self, name: str) -> int:
        """Hold the lock of a workspace's runner, after the end of an earlier one that is still on its way out."""
        path = self.layout.runner_lock(name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                pass
            left = deadline - time.monotonic()
            if left <= 0:
                os.close(descriptor)
                raise HutchError(
                    f"{name}: the runner of an earlier start has not ended",
                    details=f"it did not let go of {path} within {LOCK_SECONDS:g} s",
                    resolution=f"`fuser -v {path}` shows it",
                )
            if (holder := self._open_runner(name)) is not None:
                _signal_all([holder], signal.SIGTERM if left > GRACE else signal.SIGKILL)
                _await_ends([holder], min(left, GRACE))
                os.close(holder)
            time.sleep(0.01)

    def _open_runner(self, name: str) -> int | None:
        """A pidfd of the runner, found by its cgroup; or of the process that an older hutch has in its stead."""
        with closing(Cgroup(self.layout.slice_cgroup(name))) as cgroup:
            found = cgroup.processes("runner")
        for pid in found:
            if (descriptor := open_process(pid, start_time(pid))) is not None:
                return descriptor
        status = read_status(str(self.layout.status(name)))
        if status is not None and has_processes(status.state) and not status.cgroup:
            return open_process(status.pid, status.started)
        return None


def _signal_all(descriptors: Iterable[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            signal.pidfd_send_signal(descriptor, number)


def _await_ends(descriptors: Iterable[int], patience: float) -> None:
    """Wait for processes, given as pidfds, to end."""
    waiting = {*descriptors}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + patience
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            waiting.discard(descriptor)
