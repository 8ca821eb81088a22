"""The only importer of subprocess: every command that hutch runs passes here.

Commands are argument lists, never shell text. The environment is built, not inherited; standard input
is closed unless given; every call has a deadline; a failure carries a line that a person can replay.
"""

from __future__ import annotations

import math
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import IO, NoReturn

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.search_path import SEARCH_PATH

BASE_ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}

Popen = subprocess.Popen  # for annotations elsewhere; only this module creates one
PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
TimeoutExpired = subprocess.TimeoutExpired


def nobody(argv: Sequence[str]) -> None:
    """A listener that does not care."""


listener: Callable[[Sequence[str]], None] = nobody
"""A callback that gets each command before it runs; the command line's -v sets it."""


class CommandFailed(HutchError):
    """A command ended with a non-zero code, by a signal, or past its deadline."""

    def __init__(self, argv: Sequence[str], reason: str, stderr: str, returncode: int | None) -> None:
        self.argv = tuple(argv)
        self.reason = reason
        self.returncode = returncode
        self.stderr = stderr
        tail = "\n".join(stderr.strip().splitlines()[-15:])
        super().__init__(f"{argv[0]} {reason}", details=tail, resolution=f"to replay it: {shlex.join(argv)}")


class NotConnected(CommandFailed):
    """A command that nobody had let connect yet when it was killed."""


class NotStarted(CommandFailed):
    """A command whose turn did not come in time."""


class ProgramMissing(CommandFailed):
    """A command that this host does not have. The command line tells the package, see hutch.host.doctor.tools."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(argv, "is not installed", "", None)
        self.resolution = "`hutch doctor` names the packages of all that hutch needs"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: fixed, plus `extra`."""
    return {**BASE_ENVIRONMENT, **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float = 30.0,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end and return its output as text.

    `timeout` is in seconds. Raises CommandFailed when the program is missing, overruns, or (with `check`)
    returns non-zero.
    """
    listener(argv)
    try:
        result = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            env=environment(),
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise ProgramMissing(argv) from None
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(argv, f"did not end within {timeout:g} s", "", None) from error
    if check and result.returncode != 0:
        raise CommandFailed(argv, describe(result.returncode), result.stderr or result.stdout, result.returncode)
    return result


class Gathering:
    """Several short commands that run side by side, from now on. To be closed; `outputs` waits for them."""

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self.commands = commands
        self.running: list[subprocess.Popen[bytes]] = []
        self.gathered: list[str] = []
        try:
            for argv in commands:  # one that is missing leaves none of those before it behind
                self.running.append(start(argv, stdout=PIPE, stderr=PIPE))
        except BaseException:
            self.close()
            raise

    def outputs(self, timeout: float = 30.0) -> list[str]:
        """The standard output of each command, again when it is asked for again. Raises CommandFailed for one that
        fails or overruns."""
        for argv, process in zip(self.commands[len(self.gathered) :], self.running[len(self.gathered) :], strict=True):
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                raise CommandFailed(argv, f"did not end within {timeout:g} s", "", None) from error
            if process.returncode != 0:
                reason = describe(process.returncode)
                raise CommandFailed(argv, reason, errors.decode("utf-8", "replace"), process.returncode)
            self.gathered.append(output.decode("utf-8", "replace"))
        return self.gathered

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


def gather(commands: Sequence[Sequence[str]], *, timeout: float = 30.0) -> list[str]:
    """Run several short commands side by side, each to its end; returns the standard output of each."""
    with closing(Gathering(commands)) as gathering:
        return gathering.outputs(timeout)


AT_ONCE = 16
CHUNK = 64 * 1024
MOST_ERRORS = 64 * 1024
SYN_SENT = "02"  # a TCP socket's state in /proc/PID/net: it has asked for a connection, and nobody has answered


def is_connecting(pid: int) -> bool:
    """Whether a process waits for one of its TCP connections to be made; False where the kernel does not tell us."""
    sockets: set[str] = set()
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # it has just closed it
                sockets.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        for family in ("tcp", "tcp6"):
            with suppress(FileNotFoundError), open(f"/proc/{pid}/net/{family}", encoding="ascii") as table:
                for fields in map(str.split, table):
                    if fields[3] == SYN_SENT and f"socket:[{fields[9]}]" in sockets:
                        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class Completed:
    """The end of a command whose output is bytes: `stdout` whole, and the last MOST_ERRORS bytes of `stderr`."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Exchange:
    """A command that is told `stdin`, and that is to end within `timeout` seconds and to say at most `most` bytes. One
    that is seen waiting for a connection, each time that `connect` seconds have passed, is to end as well.

    Whatever may become ready is registered with the selector, with the method to call then. To be closed.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        argv: Sequence[str],
        stdin: bytes,
        timeout: float,
        most: int,
        connect: float,
    ) -> None:
        self.selector = selector
        self.argv = argv
        self.timeout = timeout
        self.most = most
        self.connect = connect
        self.deadline = time.monotonic() + timeout
        self.look = time.monotonic() + connect
        self.untold = memoryview(stdin)
        self.output, self.errors = bytearray(), bytearray()
        self.process = start(argv, stdin=PIPE if stdin else None, stdout=PIPE, stderr=PIPE)
        self.end = -1
        try:
            # The end of a command is its own, not that of its pipes: what it left behind may hold them open.
            self.end = os.pidfd_open(self.process.pid)
            selector.register(self.end, selectors.EVENT_READ, self.drain)
            self._watch(self.process.stdin, selectors.EVENT_WRITE, self._tell)
            self._watch(self.process.stdout, selectors.EVENT_READ, self._hear_output)
            self._watch(self.process.stderr, selectors.EVENT_READ, self._hear_errors)
        except BaseException:
            self.close()
            raise

    def _watch(self, pipe: IO[bytes] | None, event: int, ready: Callable[[IO[bytes]], bool]) -> None:
        """Call `ready` as often as the pipe is, until it returns that there is no more."""
        if pipe is None:
            return
        os.set_blocking(pipe.fileno(), False)

        def go_on() -> bool:
            try:
                more = ready(pipe)
            except BlockingIOError:
                return False
            except BrokenPipeError:  # a command need not read to the end
                more = False
            if not more:
                self.selector.unregister(pipe)
                pipe.close()
            return more

        self.selector.register(pipe, event, go_on)

    def _tell(self, pipe: IO[bytes]) -> bool:
        self.untold = self.untold[os.write(pipe.fileno(), self.untold[:CHUNK]) :]
        return bool(self.untold)

    def _hear_output(self, pipe: IO[bytes]) -> bool:
        data = os.read(pipe.fileno(), CHUNK)
        self.output += data
        return bool(data) and len(self.output) <= self.most

    def _hear_errors(self, pipe: IO[bytes]) -> bool:
        data = os.read(pipe.fileno(), CHUNK)
        self.errors += data
        del self.errors[:-MOST_ERRORS]
        return bool(data)

    def drain(self) -> None:
        """Hear what a command has said before it ended."""
        for pipe in (self.process.stdout, self.process.stderr):
            while pipe is not None and not pipe.closed and self.selector.get_key(pipe).data():
                pass
        self.process.wait()

    def result(self) -> Completed | CommandFailed | None:
        """How it ended, or why it may not go on; None while it may."""
        if len(self.output) > self.most:
            reason = f"said more than {self.most} bytes"
        elif self.process.returncode is not None:
            return Completed(self.process.returncode, bytes(self.output), bytes(self.errors))
        elif time.monotonic() >= self.deadline:
            reason = f"did not end within {self.timeout:g} s"
        elif time.monotonic() >= self.look and self._is_connecting():
            reason = f"found nobody to connect to within {self.connect:g} s"
            return NotConnected(self.argv, reason, self.errors.decode("utf-8", "replace"), None)
        else:
            return None
        return CommandFailed(self.argv, reason, self.errors.decode("utf-8", "replace"), None)

    def _is_connecting(self) -> bool:
        self.look = time.monotonic() + self.connect
        return is_connecting(self.process.pid)

    def close(self) -> None:
        """Kill it where it has not ended."""
        for key in list(self.selector.get_map().values()):
            if key.fd == self.end or key.fileobj in (self.process.stdin, self.process.stdout, self.process.stderr):
                self.selector.unregister(key.fileobj)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self.end >= 0:
            os.close(self.end)
            self.end = -1
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def exchange(
    commands: Sequence[Sequence[str]],
    *,
    stdin: Sequence[bytes] = (),
    timeout: float = 30.0,
    most: int,
    within: float | None = None,
    connect: float = math.inf,
) -> list[Completed | CommandFailed]:
    """Run commands side by side, at most AT_ONCE at a time, and return how each of them ended, in their order.

    Each is told its item of `stdin`, if there are any. One that does not end within `timeout` seconds, or says more
    than `most` bytes, is killed, and its result is a CommandFailed; a code other than 0 is none. One that waits for a
    connection when `connect` seconds have passed is killed as well, and NotConnected. After `within` seconds no other
    is started, and those whose turn has not come are NotStarted. Raises ProgramMissing.
    """
    last = None if within is None else time.monotonic() + within
    results: dict[int, Completed | CommandFailed] = {}
    waiting = list(enumerate(commands))[::-1]
    running: dict[int, Exchange] = {}
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        while waiting or running:
            if last is not None and time.monotonic() >= last:
                for number, argv in waiting:
                    results[number] = NotStarted(argv, f"was not started within {within:g} s", "", None)
                waiting = []
            while waiting and len(running) < AT_ONCE:
                number, argv = waiting.pop()
                told = stdin[number] if stdin else b""
                running[number] = stack.enter_context(closing(Exchange(selector, argv, told, timeout, most, connect)))
            soonest = min((min(each.deadline, each.look) for each in running.values()), default=0.0)
            for key, _ in selector.select(max(0.0, soonest - time.monotonic())):
                if key.fd in selector.get_map():  # whose turn came before may have closed it
                    key.data()
            for number, each in list(running.items()):
                result = each.result()
                if result is not None:
                    results[number] = result
                    running.pop(number).close()
    return [results[number] for number in range(len(commands))]


def start(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `argv` and return at once. Streams that are not given are /dev/null."""
    listener(argv)
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            argv,
            stdin=null if stdin is None else stdin,
            stdout=null if stdout is None else stdout,
            stderr=null if stderr is None else stderr,
            env=environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=new_session,
        )
    except FileNotFoundError:
        raise ProgramMissing(argv) from None


def replace(argv: Sequence[str]) -> NoReturn:
    """Become `argv`, with the caller's own environment and streams: for ssh, sudo and doas."""
    listener(argv)
    try:
        os.execvp(argv[0], list(argv))
    except FileNotFoundError:
        raise ProgramMissing(argv) from None


def describe(returncode: int) -> str:
    """ "failed with code 3" or "was killed by SIGKILL"."""
    if returncode >= 0:
        return f"failed with code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:  # a real-time signal: all but the first and the last have no name
        return f"was killed by signal {-returncode}"
