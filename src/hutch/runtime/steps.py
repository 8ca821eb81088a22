"""Steps of a Launch: short commands, side by side, each with a deadline. Part of the supervisor: imports stay few."""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from hutch.host.services.cgroup import Cgroup

ENVIRONMENT = {  # as in hutch.run, which imports more
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin",
    "LC_ALL": "C.UTF-8",
}
REAPED_WITHIN = 2.0  # seconds; a killed step that the kernel does not let go of is not waited for any longer


class StartFailed(Exception):
    """The workspace did not come up; the text is for people."""


class CalledOff(StartFailed):
    """It was asked to stop before it was up."""

    def __init__(self) -> None:
        super().__init__("the start was called off")


class Running:
    """A step that runs, and what follows it in its chain."""

    def __init__(self, pid: int, output: int, step: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.output = output
        self.step = step
        self.rest = rest

    def fail(self, how: str) -> str:
        return f"cannot {self.step['why']}: {how}\n  replay: {' '.join(self.step['argv'])}"

    def reap(self) -> str:
        """Collect a step that has ended; what went wrong, "" when nothing did."""
        status = os.waitpid(self.pid, 0)[1]
        said = os.pread(self.output, 8192, 0).decode("utf-8", "replace").strip() if status else ""
        self.close()
        if not status or self.step["may_fail"]:
            return ""
        return self.fail(said or f"code {os.waitstatus_to_exitcode(status)}")

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.output)


def prepare(launch: dict[str, Any]) -> SideBySide:
    """Begin what comes before the main process: directories, small files, the chains of steps."""
    try:
        for path in launch["directories"]:
            os.makedirs(path, exist_ok=True)
        for file in launch["files"]:
            write_private(file["path"], file["content"], file["uid"])
    except OSError as error:
        return SideBySide((), str(error))
    return SideBySide(launch["prepare"])


def bind_held(
    cgroup: Cgroup,
    group: str,
    held: list[dict[str, Any]],
    pidfd: int,
    begun: float,
    seconds: float,
    wake: int = -1,
    is_off: Callable[[], object] = lambda: False,
) -> None:
    """Run the steps on what nspawn, which `pidfd` is of, makes PID 1 of. It puts that into a cgroup before it lets it
    go on, and there it is frozen: until it is let go, nothing of the guest's has run. Raises StartFailed where it runs
    and nothing came to be held: what it starts would not be bound. Where it has ended, it has said why."""
    if cgroup.await_process(group, max(0.0, begun + seconds - time.monotonic()), unless=pidfd):
        held_steps(cgroup, group, held).finish(begun, seconds, wake, is_off)
        cgroup.thaw(group)
    elif not select.select([pidfd], [], [], 0)[0]:
        raise StartFailed("nothing of the guest came to be held, so it was not let go")


def held_steps(cgroup: Cgroup, group: str, held: list[dict[str, Any]]) -> SideBySide:
    """Begin the steps that bind the one process which is held in a group: where they say PID, it is that one's."""
    found = cgroup.processes(group)
    if len(found) != 1:  # it may have been killed; whatever else is there would not be bound
        raise StartFailed(f"one process was to be held, and there are {len(found)}")
    pid = str(found[0])
    return SideBySide([[{**step, "argv": [pid if word == "PID" else word for word in step["argv"]]} for step in held]])


def write_private(path: str, content: str, uid: int) -> None:
    """Write a small file that nobody but `uid` can read."""
    with open(path, "w", encoding="utf-8", opener=_private) as target:
        target.write(content)
        if uid:
            os.fchown(target.fileno(), uid, uid)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class SideBySide:
    """Chains of steps: each chain in its order, the chains beside each other. The first of each begin at once."""

    def __init__(self, chains: Sequence[Sequence[dict[str, Any]]], failure: str = "") -> None:
        self.running: dict[int, Running] = {}
        self.poll = select.poll()
        self.failure = failure
        for chain in chains:
            self._begin(list(chain))

    def _begin(self, chain: list[dict[str, Any]]) -> None:
        """Start the first step of what is left of a chain."""
        if not chain or self.failure:
            return
        step, *rest = chain
        output = os.memfd_create("output")
        try:
            running = Running(_spawn_step(step["argv"], output), output, step, rest)
        except OSError as error:
            os.close(output)
            missing = isinstance(error, FileNotFoundError)
            self.failure = f"{step['argv'][0]} {'is not installed' if missing else f'cannot be started: {error}'}"
            return
        self.running[running.pidfd] = running
        self.poll.register(running.pidfd, select.POLLIN)

    def finish(
        self, begun: float, seconds: float, wake: int = -1, is_off: Callable[[], object] = lambda: False
    ) -> None:
        """Wait for all, until `seconds` after `begun`. Raises StartFailed for a step that fails, after all that had
        begun have ended, no more being begun then; or, after killing what runs, when the time is up, or when
        `wake` can be read and `is_off` says that nobody wants it any more. Steps that may fail are let be.
        """
        if wake >= 0:
            self.poll.register(wake, select.POLLIN)
        while self.running:
            left = begun + seconds - time.monotonic()
            if left <= 0:
                how = f"it had not ended when the {seconds:g} s for it were over"
                self.failure = "\n".join(running.fail(how) for running in self.running.values())
                self._kill()
            elif is_off():
                self._kill()
                raise CalledOff
            else:
                self._reap(left)
        if self.failure:
            raise StartFailed(self.failure)

    def _reap(self, patience: float) -> None:
        """Wait for some steps to end, at most, and let the next ones of their chains begin."""
        for descriptor, _ in self.poll.poll(max(0.0, patience) * 1000):
            running = self.running.pop(descriptor, None)
            if running is not None:
                self.poll.unregister(descriptor)
                self.failure = running.reap() or self.failure
                self._begin(running.rest)

    def _kill(self) -> None:
        """End what runs, with all that it started; what the kernel holds on to is left behind."""
        import signal  # it brings enum with it, and steps are killed rarely

        for running in self.running.values():
            os.killpg(running.pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own
        self.failure = self.failure or "killed"  # so that nothing follows
        failure = self.failure
        deadline = time.monotonic() + REAPED_WITHIN
        while self.running and time.monotonic() < deadline:
            self._reap(min(0.1, deadline - time.monotonic()))
        for running in self.running.values():
            running.close()
        self.running = {}
        self.failure = failure


def _spawn_step(argv: list[str], output: int) -> int:
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    return os.posix_spawnp(argv[0], argv, ENVIRONMENT, file_actions=streams, setpgroup=0)
