"""A program of its own: runs one service as systemd does, on hosts where that is not process 1.

    main(UNIT, CGROUP, RUNTIME, REPORT, GATE, LOCK)

UNIT is the path of a service as runtime/units renders it, and nothing is done for it that systemd would not do: see
systemd.service(5) and systemd.exec(5). It leaves out ExecStartPre, which only systemd's own units are for, and what a
unit says of devices, address families and privileges. CGROUP is the service's; the process itself goes beside it.
RUNTIME is a directory for the log and the socket of sd_notify. Of three inherited descriptors, REPORT is told "ready"
at the first start, and closed when that is decided; at GATE it waits for a byte before it begins; LOCK is held for as
long as it is open. SIGTERM stops the service.

It stays beside each workspace, so its imports are few: a MiB of them is a MiB for each.
"""

from __future__ import annotations

import os
import select
import sys
import time
from _signal import SIG_DFL, set_wakeup_fd, signal  # type: ignore[import-not-found] # the module signal brings enum with it
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    socket,
)

from hutch.host.services.cgroup import Cgroup
from hutch.libc import call, library
from hutch.search_path import SEARCH_PATH
from hutch.seccomp.install import leave_keyring

TYPE_CHECKING = False  # see runtime/steps
if TYPE_CHECKING:
    from typing import NoReturn

CLONE_NEWNS, MS_REC, MS_SLAVE, PR_SET_PDEATHSIG = 0x20000, 0x4000, 0x80000, 1
SIGKILL, SIGPIPE, SIGTERM, SIGXFSZ = 9, 13, 15, 25
CLEAN = (0, -1, -2, -13, -15)  # HUP, INT, PIPE and TERM are how a service may end
SIGNALS = {1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL", 11: "SEGV", 15: "TERM"}
CANNOT_BEGIN = 226  # the exit code of systemd's for namespaces that cannot be had
LOG_BYTES, CHUNK = 1 << 20, 1 << 16
ENDS_WITHIN = 10.0  # seconds, after it was killed
VERB_SECONDS = 60.0  # that a command around the main process may take
ENVIRONMENT = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8"}


class Unit:
    """The settings of a unit's text: all values of each, in their order."""

    def __init__(self, path: str) -> None:
        self._found: dict[str, list[str]] = {}
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                key, is_setting, value = line.rstrip("\n").partition("=")
                if is_setting and not line.startswith("#"):
                    self._found.setdefault(key, []).append(value)

    def text(self, key: str, otherwise: str = "") -> str:
        return self._found.get(key, [otherwise])[-1]

    def number(self, key: str, otherwise: float = 0.0) -> float:
        return float(self.text(key) or otherwise)

    def codes(self, key: str) -> set[int]:
        return {int(word) for word in self.text(key).split()}

    def commands(self, key: str) -> list[list[str]]:
        return [split(value.removeprefix("-")) for value in self._found.get(key, [])]


def split(command: str) -> list[str]:
    """Split a command into its words, as `quoted` in host/services/units writes them."""
    words, rest = [], command
    while rest := rest.lstrip(" "):
        if rest[0] != '"':
            word, _, rest = rest.partition(" ")
        else:
            end = 1
            while rest[end] != '"':
                end += 2 if rest[end] == "\\" else 1
            word, rest = rest[1:end], rest[end + 1 :]
            pieces = word.split("\\\\")
            word = "\\".join(piece.replace("\\n", "\n").replace('\\"', '"') for piece in pieces)
        words.append(word.replace("%%", "%").replace("$$", "$"))
    return words


class Log:
    """A file that keeps between `limit`/2 and `limit` bytes: the older half makes way as a second file."""

    def __init__(self, path: str, limit: int = LOG_BYTES) -> None:
        self.path, self.limit = path, limit
        self._file = self._open(path)

    @staticmethod
    def _open(path: str, more: int = 0) -> int:
        """Open a file of the log. Everybody who may pass into its directory may read it."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | more, 0o644)

    def write(self, data: bytes) -> None:
        """Write output; on a full or failing file system it is dropped, and the workspace runs on."""
        try:
            if os.fstat(self._file).st_size + len(data) > self.limit // 2:
                self._turn()
            os.write(self._file, data)
        except OSError:
            pass

    def _turn(self) -> None:
        """Begin a new file. It is opened first, so that nothing has changed when there is no room for one."""
        new = f"{self.path}.new"
        turned = self._open(new, os.O_TRUNC)
        os.replace(self.path, f"{self.path}.1")
        os.replace(new, self.path)
        os.close(self._file)
        self._file = turned

    def note(self, text: str) -> None:
        """Log a line of our own, told apart from the guest's by its prefix."""
        self.write(f"hutch {time.strftime('%Y-%m-%d %H:%M:%S')}: {text}\n".encode())


class Runner:
    """One service, from its first start to its end."""

    def __init__(self, unit: Unit, cgroup: Cgroup, runtime: str, report: int) -> None:
        self.unit, self.cgroup, self.runtime, self.report = unit, cgroup, runtime, report
        self.log = Log(f"{runtime}/machine.log")
        self.said, self.output = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.said, False)
        self.wake, self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stops = 0
        self.cgroup.make("machine", "supervisor")
        signal(SIGTERM, self._on_stop)
        set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)

    def _on_stop(self, number: int, frame: object) -> None:
        self.stops += 1

    def run(self, group: str | None) -> None:
        """Start the service, and start it again for as long as the unit says. The first main process is made in this
        group of cgroups, None for the one of this process."""
        patience, burst = self.unit.number("StartLimitIntervalSec"), self.unit.number("StartLimitBurst")
        starts: list[float] = []
        failures = 0
        while not self.stops:
            begun = time.monotonic()
            starts = [*(start for start in starts if start > begun - patience), begun]
            if len(starts) > burst:
                self.log.note(f"{len(starts)} starts within {patience:g} s are too many: it is not started again")
                return
            if not self.run_once(group):
                return
            group = "machine"
            failures = 1 if time.monotonic() - begun > patience else failures + 1
            until = time.monotonic() + self.delay(failures)
            while time.monotonic() < until and not self.stops:
                self.await_any(until)

    def delay(self, failures: int) -> float:
        """Seconds to the next start, after so many failures in a row."""
        first, most = self.unit.number("RestartSec"), self.unit.number("RestartMaxDelaySec")
        steps = self.unit.number("RestartSteps")
        return float(first * (most / first) ** (min(failures - 1, steps) / steps))

    def run_once(self, group: str | None) -> bool:
        """Run one start to its end. Returns whether the service is to be started again."""
        (command,) = self.unit.commands("ExecStart")
        notify = self._listen()
        told = {"NOTIFY_SOCKET": f"{self.runtime}/notify", "TERM": "dumb"}
        pid = self.spawn(command, group, told, dies=True)
        if group is None:
            slice_of_it = Cgroup(os.path.dirname(self.cgroup.path))
            slice_of_it.join("runner")
            slice_of_it.close()
        pidfd = os.pidfd_open(pid)
        is_ready, result = self.serve(pid, pidfd, notify)
        notify.close()
        if not self.cgroup.kill(patience=ENDS_WITHIN):
            self.log.note("some of its processes cannot be ended")
            self.stops += 1  # beside those, nothing is started again
        # The kernel counts how often a cgroup was killed, and kills whoever moves from one to another of another count.
        for each in ("machine", "exec", "supervisor"):
            self.cgroup.remove(each)
        self.cgroup.make("machine", "supervisor")
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
        self.hear_output()
        result = result or self.judge(ended, is_ready)
        how = ("exited", str(ended)) if ended >= 0 else ("killed", SIGNALS.get(-ended, str(-ended)))
        self.verb("ExecStopPost", {"SERVICE_RESULT": result, "EXIT_CODE": how[0], "EXIT_STATUS": how[1]})
        self.tell("")
        return result != "success" or ended in self.unit.codes("RestartForceExitStatus")

    def judge(self, ended: int, is_ready: bool) -> str:
        """The result of a main process that ended in time."""
        if ended in CLEAN or ended in self.unit.codes("SuccessExitStatus"):
            return "success" if is_ready or self.stops else "protocol"
        return "exit-code" if ended > 0 else "signal"

    def serve(self, pid: int, pidfd: int, notify: socket) -> tuple[bool, str]:
        """Wait for the end of the main process, until a deadline. Returns (whether it was ready, the result or "")."""
        main = {"MAINPID": str(pid)}
        deadline: float | None = time.monotonic() + self.unit.number("TimeoutStartSec")
        is_ready = is_told = False
        result = ""
        while pidfd not in (found := self.await_any(deadline, pidfd, notify.fileno())):
            says_ready = notify.fileno() in found and self._says_ready(notify, pid)
            if says_ready and not is_ready and not is_told:
                is_ready = self.verb("ExecStartPost", main, deadline, pidfd)
                if is_ready:
                    deadline = None
                    self.tell("ready")
                elif not self.stops and pidfd not in self.await_any(time.monotonic(), pidfd):
                    result = "exit-code"
            is_over = deadline is not None and time.monotonic() >= deadline
            if is_over and is_told:
                return is_ready, "timeout"
            if is_over or ((self.stops or result) and not is_told):
                result = "timeout" if is_over else result
                if is_ready:
                    self.verb("ExecStop", main, time.monotonic() + self.unit.number("TimeoutStopSec"))
                os.kill(pid, SIGTERM)  # it is not reaped yet, so the number is still its own
                is_told, deadline = True, time.monotonic() + self.unit.number("TimeoutStopSec")
        return is_ready, result

    def tell(self, word: str) -> None:
        """Report to the command that started us: once, if it still listens."""
        if self.report >= 0:
            try:
                os.write(self.report, word.encode())
            except OSError:
                pass
            os.close(self.report)
            self.report = -1

    # Hearing: sd_notify, output, signals.

    def _listen(self) -> socket:
        path = f"{self.runtime}/notify"
        if os.path.lexists(path):
            os.unlink(path)
        notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
        notify.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        notify.bind(path)
        return notify

    def _says_ready(self, notify: socket, pid: int) -> bool:
        """Whether the next message is the main process's READY=1; messages of others do not count."""
        try:
            text, ancillary, _, _ = notify.recvmsg(4096, 256, MSG_CMSG_CLOEXEC)
        except OSError:
            return False
        caller = 0
        for _, kind, data in ancillary:
            numbers = [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]
            if kind == SCM_CREDENTIALS:
                caller = numbers[0]
            elif kind == SCM_RIGHTS:  # the sender waits for it to be closed
                for descriptor in numbers:
                    os.close(descriptor)
        return caller == pid and b"READY=1" in text.split(b"\n")

    def await_any(self, deadline: float | None, *descriptors: int) -> set[int]:
        """Wait until the deadline for descriptors to read; none of them when something was logged or a signal came."""
        poll = select.poll()
        for descriptor in (self.said, self.wake, *descriptors):
            poll.register(descriptor, select.POLLIN)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        found = {descriptor for descriptor, _ in poll.poll(left)}
        if self.said in found:
            self.hear_output()
        if self.wake in found:
            os.read(self.wake, 64)
        return found & {*descriptors}

    def hear_output(self) -> None:
        try:
            self.log.write(os.read(self.said, CHUNK))
        except BlockingIOError:
            pass

    # Starting processes.

    def verb(self, key: str, told: dict[str, str], deadline: float | None = None, unless: int = -1) -> bool:
        """Run the commands around the main process, each to its end. Those that belong to its start are ended with the
        process that `unless` is of, and when the service is to stop. Returns whether all succeeded."""
        deadline = deadline or time.monotonic() + VERB_SECONDS
        for argv in self.unit.commands(key):
            try:
                pid = self.spawn(argv, "supervisor", told, dies=False)
            except OSError as error:  # the guest has taken all processes or all memory that there is
                self.log.note(f"{argv[0]} cannot be run: {error.strerror}")
                return False
            pidfd = os.pidfd_open(pid)
            others = [unless] if unless >= 0 else []
            while pidfd not in (found := self.await_any(deadline, pidfd, *others)):
                if unless in found or (others and self.stops) or time.monotonic() >= deadline:
                    os.kill(pid, SIGKILL)  # it is not reaped yet, so the number is still its own
            os.close(pidfd)
            if os.waitpid(pid, 0)[1]:
                return False
        return True

    def spawn(self, argv: list[str], group: str | None, told: dict[str, str], *, dies: bool) -> int:
        """Start a process in the router's network namespace and in a mount namespace of its own. With `dies`, it gets
        SIGTERM when this process is killed. Returns its pid."""
        runner = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            signal(SIGTERM, SIG_DFL)
            os.setsid()
            if dies:
                call("prctl", PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0)
                if os.getppid() != runner:
                    raise ProcessLookupError("its runner was killed")
            if group is not None:
                self.cgroup.join(group)
            spare_from_memory("0")
            for number in (SIGPIPE, SIGXFSZ):  # which Python ignores
                library().signal(number, None)
            self._enter_namespaces()
            null = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((null, 0), (self.output, 1), (self.output, 2)):
                os.dup2(source, target)
            os.execve(argv[0], argv, {**ENVIRONMENT, **told})
        except OSError as error:
            os.write(self.output, f"{argv[0]} cannot be run: {error}\n".encode())
        finally:
            os._exit(CANNOT_BEGIN)

    def _enter_namespaces(self) -> None:
        if path := self.unit.text("NetworkNamespacePath"):
            call("setns", os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0)
        call("unshare", CLONE_NEWNS)
        call("mount", None, b"/", None, MS_REC | MS_SLAVE, None)


def spare_from_memory(score: str) -> None:
    """Set the score by which the kernel chooses what to kill when the workspace has no memory left: this process may
    well be larger than each of a guest's thousand."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(score)
    except OSError:
        pass  # root in a container of somebody's may lack the capability


def main(unit: str, group: str, runtime: str, report: str, gate: str, lock: str) -> NoReturn:
    os.umask(0o022)
    for descriptor in (report, gate, lock):
        os.set_inheritable(int(descriptor), False)
    leave_keyring()
    spare_from_memory("-900")
    cgroup = Cgroup(group)
    if os.read(int(gate), 1):
        os.close(int(gate))
        Runner(Unit(unit), cgroup, runtime, int(report)).run(None)
    cgroup.remove()
    own = Cgroup(os.path.dirname(group))
    own.leave()
    own.remove()
    sys.exit(0)
