"""The embedded supervisor: one small process that runs one Launch, for hosts without systemd.

It is started in the mount and network namespaces that the Launch needs, by supervise/control, and ends
with its workspace. It keeps nothing in memory that matters: what others must know stands in the status
file; if it is killed, the kernel kills what it started (the parent-death signal) and drops its mounts.

Imports stay few, since every workspace pays for them in start-up time and memory; hence no subprocess.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

from hutch.host.cgroup import Cgroup
from hutch.host.process import start_time
from hutch.supervise.console import Console, Log
from hutch.supervise.status import write_status

TYPE_CHECKING = False  # see supervise/status
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from hutch.supervise.status import Status

ENVIRONMENT = {"PATH": os.defpath + ":/usr/sbin:/sbin:/run/current-system/sw/bin", "LC_ALL": "C.UTF-8"}
# A terminal that can be asked things is asked for its colours by nspawn and systemd, and they wait for the answer.
MAIN_ENVIRONMENT = {"TERM": "dumb", "SYSTEMD_LOG_COLOR": "0"}
CPU_PERIOD = 100_000  # microseconds, for cpu.max


class StartFailed(Exception):
    """The workspace did not come up; the text is for people."""


class Supervisor:
    """Runs one Launch to its end."""

    def __init__(self, launch: dict[str, Any], report: int, gate: int) -> None:
        self.launch = launch
        self.gate = gate
        self.runtime: str = launch["runtime"]
        self.report = report
        self.log = Log(f"{self.runtime}/machine.log", launch["log_bytes"])
        self.cgroup = Cgroup(launch["cgroup"])
        self.stop_requests = 0
        self.overran = False
        self.status: Status = {
            "state": "starting",
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
            "ready_seconds": None,
            "leader": None,
            "reason": "",
            "warnings": [],
        }

    # What others see.

    def enter(self, state: str, reason: str = "") -> None:
        self.status |= {"state": state, "reason": reason, "since": time.time()}
        write_status(f"{self.runtime}/status.json", self.status)

    def tell(self, event: str, text: str = "") -> None:
        """One line to the command that started us, if it still listens."""
        if self.report < 0:
            return
        try:
            os.write(self.report, (json.dumps({"event": event, "text": text}) + "\n").encode())
        except OSError:
            pass
        if event in ("ready", "failed"):
            os.close(self.report)
            self.report = -1

    # The whole life.

    def run(self) -> int:
        wake, self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.wake = wake
        reason, code = "", 0
        try:
            self.enter("starting")
            again = True
            while again:
                again = self._run_once()
        except (StartFailed, OSError) as error:
            reason, code = str(error), 1
        self.cgroup.leave()
        self.cgroup.remove()
        self.enter("failed" if reason else "stopped", reason)
        self.log.close()
        if reason:
            self.tell("failed", reason)
        return code

    def _on_stop(self, number: int, frame: object) -> None:
        self.stop_requests += 1

    def _make_cgroup(self) -> None:
        self.cgroup.make("supervisor", "exec", "machine")
        wanted = self.launch["limits"]
        files = {}
        if wanted["cpus"]:
            files["cpu.max"] = f"{wanted['cpus'] * CPU_PERIOD} {CPU_PERIOD}"
        if wanted["memory"]:
            files["memory.max"] = str(wanted["memory"])
        if wanted["tasks"]:
            files["pids.max"] = str(wanted["tasks"])
        missing = self.cgroup.limit(files)
        keys = {"cpu.max": "vcpus", "memory.max": "memory"}
        unenforced = [keys[name] for name in missing if name in keys]
        if unenforced:
            text = f"this host's cgroups cannot limit {' and '.join(unenforced)}: the workspace may use all of it"
            self.status["warnings"] = [text]
            self.tell("warning", text)

    def _run_once(self) -> bool:
        """Mount, connect, run, clean up. True when the guest asked for a reboot."""
        begun = time.monotonic()
        main = None
        try:
            for path in self.launch["directories"]:
                os.makedirs(path, exist_ok=True)
            for file in self.launch["files"]:
                with open(file["path"], "w", encoding="utf-8", opener=_private) as target:
                    target.write(file["content"])
            mounts = SideBySide(self.launch["mounts"])
            try:
                self._make_cgroup()
                main = Main(self)
            finally:
                mounts.finish()
            self._await_network()
            for stage in self.launch["connect"]:
                SideBySide([[step] for step in stage]).finish()
            main.go()
            self.cgroup.join("supervisor")
            self._serve(main, begun)
            returncode = main.wait()
        finally:
            self.cgroup.kill("machine")
            if main is not None:
                main.close()
            self.cgroup.kill("exec")
            self.cgroup.remove("machine")
            SideBySide([self.launch["cleanup"]]).finish()
        return self._judge(returncode)

    def _judge(self, returncode: int) -> bool:
        """What the end of the main process means. True for a reboot; StartFailed for what nobody asked for."""
        if self.overran:
            raise StartFailed(f"not ready after {self.launch['start_seconds']:g} s{self._last_words()}")
        if returncode in self.launch["restart_codes"] and not self.stop_requests:
            self.log.note("the guest asked for a reboot")
            self.enter("starting", "rebooting")
            return True
        if returncode and not self.stop_requests:
            how = f"ended with code {returncode}" if returncode > 0 else f"was killed by {_signal_name(-returncode)}"
            raise StartFailed(f"{os.path.basename(self.launch['argv'][0])} {how}{self._last_words()}")
        if self.status["state"] == "starting":
            raise StartFailed(f"the guest ended before it was ready{self._last_words()}")
        return False

    def _await_network(self) -> None:
        """Wait until the command that started us says that the network is in place; once is enough."""
        if self.gate < 0:
            return
        poll = select.poll()
        poll.register(self.gate, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        poll.poll()
        is_open = not self.stop_requests and os.read(self.gate, 1) != b""
        os.close(self.gate)
        self.gate = -1
        if not is_open:
            raise StartFailed("the start was called off before the network was in place")

    def _last_words(self) -> str:
        tail = self.log.tail(12)
        return f"; the end of its log:\n{tail}" if tail else ""

    def _serve(self, main: Main, begun: float) -> None:
        """Wait for whatever comes first, until the main process has ended."""
        console, notify = main.console, main.notify
        poll = select.poll()
        for descriptor in (main.pidfd, notify.fileno(), self.wake):
            poll.register(descriptor, select.POLLIN)
        console.register(poll)
        deadline: float | None = begun + self.launch["start_seconds"]
        asked = 0
        while True:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            for descriptor, _ in poll.poll(timeout):
                if descriptor == main.pidfd:
                    console.drain()
                    return
                if descriptor == notify.fileno():
                    if self._hear(notify, begun):
                        deadline = None
                elif descriptor == self.wake:
                    os.read(self.wake, 64)
                else:
                    console.handle(descriptor, poll)
            if self.stop_requests > asked:
                asked = self.stop_requests
                self.enter("stopping")
                os.kill(main.pid, signal.SIGTERM)  # orderly; nspawn takes a second one as "at once"
                deadline = time.monotonic() + self.launch["stop_seconds"]
            elif deadline is not None and time.monotonic() >= deadline:
                self.overran = not asked
                self.cgroup.kill("machine")
                deadline = None

    def _hear(self, notify: socket.socket, begun: float) -> bool:
        """Take one notification. True when it says that the workspace is ready."""
        for line in notify.recv(4096).decode("utf-8", "replace").splitlines():
            key, _, value = line.partition("=")
            if key == "X_NSPAWN_LEADER_PID" and value.isascii() and value.isdigit():
                leader = int(value)
                self.status["leader"] = [leader, start_time(leader)]
            elif line == "READY=1" and self.status["state"] == "starting":
                self.status["ready_seconds"] = round(time.monotonic() - begun, 3)
                self.enter("running")
                self.tell("ready")
                return True
        return False


class Main:
    """The main process, with what it talks through. It is forked at once and waits for `go`: joining a cgroup takes
    the kernel some milliseconds, which pass while the mounts are made.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        runtime, cgroup, argv = supervisor.runtime, supervisor.cgroup, supervisor.launch["argv"]
        path = f"{runtime}/notify"
        if os.path.lexists(path):
            os.unlink(path)
        self.console = Console(f"{runtime}/console", supervisor.log)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.bind(path)
        self.notify.setblocking(False)
        gate, self.gate = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.gate)
            self._become(cgroup, gate, argv, {**ENVIRONMENT, "NOTIFY_SOCKET": path, **MAIN_ENVIRONMENT})
        os.close(gate)
        self.console.release_guest_end()
        self.pidfd = os.pidfd_open(self.pid)
        self.is_waited_for = False

    def _become(self, cgroup: Cgroup, gate: int, argv: list[str], environment: dict[str, str]) -> NoReturn:
        """The child; it never returns into its parent's code."""
        try:
            cgroup.join("machine")
            os.setsid()
            for descriptor in (0, 1, 2):
                os.dup2(self.console.guest_end, descriptor)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            if os.read(gate, 1):
                os.execvpe("setpriv", ["setpriv", "--pdeathsig", "TERM", "--", *argv], environment)
        except BaseException as error:  # noqa: BLE001 - a forked child must not run its parent's code
            os.write(2, f"{argv[0]} cannot be started: {error}\n".encode())
        os._exit(127)

    def go(self) -> None:
        os.write(self.gate, b"1")

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        self.is_waited_for = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """The process has been killed, or has ended by itself."""
        os.close(self.gate)
        os.close(self.pidfd)
        if not self.is_waited_for:
            self.wait()
        self.notify.close()
        self.console.close()


class SideBySide:
    """Chains of steps: each chain in its order, the chains beside each other. The first of each begin at once."""

    def __init__(self, chains: Sequence[Sequence[dict[str, Any]]]) -> None:
        self.running: dict[int, tuple[int, list[dict[str, Any]]]] = {}
        self.failure = ""
        for chain in chains:
            self._begin(list(chain))

    def _begin(self, chain: list[dict[str, Any]]) -> None:
        """Start the first step of what is left of a chain."""
        if chain and not self.failure:
            output = os.memfd_create("output")
            try:
                self.running[_spawn_step(chain[0]["argv"], output)] = (output, chain)
            except FileNotFoundError:
                self.failure = f"{chain[0]['argv'][0]} is not installed"

    def finish(self) -> None:
        """Wait for all. Raises StartFailed for a step that fails, after all that had begun have ended; no more are
        begun then. Steps that may fail are let be."""
        while self.running:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            if ended is None or ended.si_pid not in self.running:
                raise StartFailed("the main process ended before it was started")
            status = os.waitpid(ended.si_pid, 0)[1]
            output, (step, *rest) = self.running.pop(ended.si_pid)
            if status and not step["may_fail"]:
                said = os.pread(output, 8192, 0).decode("utf-8", "replace").strip()
                code = os.waitstatus_to_exitcode(status)
                replay = " ".join(step["argv"])
                self.failure = f"cannot {step['why']}: {said or f'code {code}'}\n  replay: {replay}"
            os.close(output)
            self._begin(rest)
        if self.failure:
            raise StartFailed(self.failure)


def _spawn_step(argv: list[str], output: int) -> int:
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    return os.posix_spawnp(argv[0], argv, ENVIRONMENT, file_actions=streams)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal: all but the first and the last have no name
        return f"signal {number}"


def main(launch_path: str, report: str, gate: str) -> NoReturn:
    """Entry: the path of a launch.json, and two inherited descriptors: one to report to, one that says "go on"."""
    with open(launch_path, encoding="utf-8") as file:
        launch = json.load(file)
    for descriptor in (report, gate):
        os.set_inheritable(int(descriptor), False)
    sys.exit(Supervisor(launch, int(report), int(gate)).run())
