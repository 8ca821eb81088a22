"""Run a command inside a running workspace by ssh, as `enter` does it in a container: argv, streams, exit code and
signals intact. The words that are exchanged with the guest are remote_script's.

Two sessions share one connection. The command runs in the first; the second passes signals on, and tells the command
by SIGHUP when we are gone. The command starts only once the second one watches, so none is left behind. Everything
that the guest says is its own affair: it can end its command, lie about its end, and be silent, and no more.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from hutch.access.relay import CHUNK, Channel, is_ready
from hutch.access.remote_script import (
    DONE,
    GO,
    KILL,
    SIGNALS,
    WAIT,
    Command,
    Ear,
    render_first,
    render_line,
    render_pid,
    render_root,
    render_second,
    render_signal,
)
from hutch.access.session import GRACE, Session, Spoken, sink_of
from hutch.access.streams import BY_FORCE, Streams, fill_gaps
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.identity.ssh import Peer, render_argv, render_own_argv
from hutch.host.services.process import open_process
from hutch.run import TimeoutExpired
from hutch.spec.names import SUN_PATH, Layout

PATIENCE = 60.0  # seconds that a guest may take to get as far as the command
SILENCE = 1.0  # seconds without output after which a command that ended has said all; what it left behind may not
UNDERWAY = 16 << 20  # bytes; less than that is on its way when a command ends
LOOKS = 0.005  # seconds between looks for the socket by which a second session shares the connection
PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_.+-]+)+", re.ASCII)  # ssh reads more into others
SSH_SUFFIX = 17  # bytes that ssh adds to the name of a socket while it makes it
JOB_CONTROL = (signal.SIGTSTP, signal.SIGCONT)
CAUGHT = (*SIGNALS, BY_FORCE)


@dataclass(frozen=True)
class RemoteTarget:
    """A workspace to reach. `leader` is (pid, start time) of a process that lives as long as it runs. `by_own_key` is
    for callers other than root: with the caller's configuration and environment, since an agent may hold the key."""

    layout: Layout
    peer: Peer
    leader: tuple[int, int] | None = None
    by_own_key: bool = False

    @contextmanager
    def socket(self, nonce: str) -> Iterator[str]:
        """The path of a socket by which an ssh shares its connection, in a directory that only the caller writes in; it
        is made where there is none. "" where it cannot be made."""
        directory = str(self.layout.runtime(self.peer.name) if self.peer.ip else self.layout.run)
        if self.by_own_key:
            directory = os.environ.get("XDG_RUNTIME_DIR", "")
        path = socket_in(directory, f"exec-{nonce[:12]}")
        if path and os.access(directory, os.W_OK):
            yield path
            return
        made = f"{os.environ.get('TMPDIR') or '/tmp'}/hutch-{nonce[:12]}"
        path = socket_in(made, "ssh")
        try:
            if path:
                os.mkdir(made, 0o700)
        except OSError:
            path = ""
        try:
            yield path
        finally:
            if path:
                with suppress(OSError):  # whoever tidies up there was first
                    os.rmdir(made)


def socket_in(directory: str, name: str) -> str:
    """The path of a socket of ssh's; "" for one that ssh would read something into, or that is too long for it."""
    path = f"{directory}/{name}"
    return path if PLAIN_PATH.fullmatch(path) and len(path) + SSH_SUFFIX <= SUN_PATH else ""


def run_remotely(target: RemoteTarget, command: Command, *, root: bool = False, capture: int | None = None) -> int:
    """Run a command inside as the login user, or as root, and return its exit code, 128 + n when signal n ended it.

    On a terminal the command gets one of its own. `capture` is a descriptor that takes the command's output instead of
    the caller's own streams; what interrupts us then ends the command at once, as BY_FORCE always does. It owns the
    signals of this process until then, so it needs the main thread.
    """
    fill_gaps()
    sys.stdout.flush()
    sys.stderr.flush()
    with ExitStack() as stack:
        caught = stack.enter_context(_catching())
        nonce = os.urandom(16).hex()
        control = stack.enter_context(target.socket(nonce))
        remote = stack.enter_context(closing(_Remote(target, capture, nonce, control)))
        if not remote.prepare(command, root, caught):
            return 128 + caught.seen[0]
        with _blocked():  # no signal may come between the last look and the moment from which on it is passed on
            if caught.seen:
                return 128 + caught.seen[0]
            os.write(remote.first.input, GO)
            caught.forward = remote.forward
        remote.carry(caught.wake)
        return 128 + caught.seen[0] if caught.seen and capture is not None else remote.result()


# Signals.


class _Caught:
    """Signals are noted, and passed on to `forward` once that is set. `wake` can be read when one has come: Python
    calls handlers between its own steps only, and a system call is not ended by a signal that came just before it."""

    def __init__(self, wake: int) -> None:
        self.wake = wake
        self.seen: list[int] = []
        self.forward: Callable[[int], None] | None = None

    def handle(self, number: int, frame: object) -> None:
        if number not in JOB_CONTROL:
            self.seen.append(number)
        if self.forward is not None:
            self.forward(number)
        elif number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)


@contextmanager
def _catching() -> Iterator[_Caught]:
    wake, waking = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    caught = _Caught(wake)
    woken = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in (*CAUGHT, signal.SIGWINCH, signal.SIGALRM)}
    try:
        for number in CAUGHT:
            signal.signal(number, caught.handle)
        yield caught
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(wake)
        os.close(waking)


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Remote:
    """The command's session, and the session that watches it. `nonce` marks what they say, and `socket` is the path by
    which they share a connection, "" for a connection each."""

    def __init__(self, target: RemoteTarget, capture: int | None, nonce: str, socket: str) -> None:
        self.target, self.name, self.nonce, self.socket = target, target.peer.name, nonce, socket
        self.capture = capture
        self.terminal = capture is None and os.isatty(0) and os.isatty(1)
        self.heard = Ear(self.nonce, has_end=self.terminal)
        self.errors_heard = Ear(self.nonce, has_end=True)
        self.watch_heard = Ear(self.nonce, has_end=False)
        self.is_stopping = False
        self.spoken: list[Spoken] = []
        self.size_at_end: int | None = None
        self.is_asked = self.is_over = False
        self.done = os.eventfd(0, os.EFD_CLOEXEC)
        self.watch: Session | None = None
        self.leader = open_process(*target.leader) if target.leader is not None else None
        if target.leader is not None and self.leader is None:
            raise self._ended()
        self.first = self._start([self.heard] if self.terminal else [self.heard, self.errors_heard], is_first=True)

    def _start(self, ears: list[Ear], *, is_first: bool) -> Session:
        terminal = is_first and self.terminal
        layout, peer, line = self.target.layout, self.target.peer, render_line(self.nonce)
        render = render_own_argv if self.target.by_own_key else render_argv
        argv = render(layout, peer, line, terminal=terminal, control=self.socket, is_first=is_first)
        return Session(argv, ears, terminal=terminal, env=os.environ if self.target.by_own_key else {})

    def prepare(self, command: Command, root: bool, caught: _Caught) -> bool:
        """Bring both sessions to where the command can go; False when a signal came first."""
        become = render_root(self.nonce) if root else b""
        program: bytes | None = become + render_first(command, self.nonce, terminal=self.terminal)
        pid, deadline = None, time.monotonic() + PATIENCE
        while not self.watch_heard.hears("watching"):
            self._wait(deadline, caught.wake)
            if caught.seen:
                return False
            if self.leader is not None and is_ready(self.leader):
                raise self._failure()
            for session in filter(None, (self.first, self.watch)):
                if not session.exchange():
                    raise self._failure()
            has_begun = self.heard.hears("hello")
            if self.watch is None and (has_begun or os.path.exists(self.socket)):
                self.watch = self._start([self.watch_heard], is_first=False)
                self.watch.unsent = become + render_second(self.nonce, by_force=self.capture is not None)
            if program and has_begun:
                self.first.unsent, program = program, None
            if self.watch is not None and pid is None and (pid := self.heard.pid()) is not None:
                self.watch.unsent += render_pid(pid)
        return True

    def _wait(self, deadline: float, wake: int) -> None:
        poll = select.poll()
        for session in filter(None, (self.first, self.watch)):
            for descriptor, events in session.interests().items():
                poll.register(descriptor, events)
        for descriptor in filter(None, (wake, self.leader)):
            poll.register(descriptor, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0:
            raise HutchError(f"{self.name} did not answer by ssh within {PATIENCE:g} s", details=self._explain())
        if wake in dict(poll.poll(1000 * (LOOKS if self.watch is None and self.socket else left))):
            os.read(wake, CHUNK)

    def forward(self, number: int) -> None:
        """Pass a signal of ours on to the command. One that nobody is there to pass on ends the connection."""
        if self.capture is not None:
            if number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
            elif number != signal.SIGCONT:
                self.first.process.terminate()
            return
        if number == BY_FORCE:
            self._tell_watch(KILL)
            return
        self.is_stopping = number == signal.SIGTSTP or (self.is_stopping and number != signal.SIGCONT)
        if not self._tell_watch(render_signal(number)) and number not in JOB_CONTROL:
            self.first.process.terminate()

    def _tell_watch(self, word: bytes) -> bool:
        assert self.watch is not None
        try:
            return os.write(self.watch.input, word) == len(word)
        except OSError:
            return False

    def carry(self, wake: int) -> None:
        """Carry the streams until the command has ended, or the connection has."""
        assert self.watch is not None
        watching = next(iter(self.watch.give_away()))
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        channels = [
            Channel(watching, null, owned=(watching, null), take=self._hear_watch),
            Channel(wake, null, take=lambda data: (b"", False)),
        ]
        sinks = (1, 2) if self.capture is None else (self.capture, self.capture)
        input, streams = self.first.input, self.first.give_away()
        self.first.input = -1
        for number, (source, ear) in zip(sinks, streams.items(), strict=False):
            needed = bool(ear.end) and not self.terminal
            spoken = Spoken(source, sink_of(number), ear, self._look, needed=needed, terminal=self.terminal)
            self.spoken.append(spoken)
        if self.terminal:
            channels.append(Channel(0, input))
        elif self.capture is None:
            channels.append(Channel(0, input, owned=(input,)))
        else:
            os.close(input)
        signal.signal(signal.SIGALRM, self._look_again)
        with closing(select.epoll()) as ending:
            for descriptor in filter(None, (self.done, self.leader)):
                ending.register(descriptor, select.EPOLLIN)
            terminal = input if self.terminal else None
            Streams((0, 1, 2), [*channels, *self.spoken], terminal).relay(ending.fileno())

    def _hear_watch(self, data: bytes) -> tuple[bytes, bool]:
        """Stop when the command has been stopped, unless it goes on by now: whoever stopped us sees a stopped job."""
        self.watch_heard.take(data)
        if self.watch_heard.hears("over"):
            self.is_over = True
            os.eventfd_write(self.done, 1)
        if self.watch_heard.hears("stopped"):
            self.watch_heard.early = b""
            if self.is_stopping and not self.terminal:
                os.kill(os.getpid(), signal.SIGSTOP)
        return b"", False

    def _look(self) -> None:
        """Tell `carry` once all output has come. Processes left behind may hold it open, and sshd waits for those."""
        output, has_code = self.spoken[0], self.code is not None
        if has_code and self.size_at_end is None:
            self.size_at_end = output.size
        if not output.is_open and (has_code or not self.spoken[-1].is_open):
            os.eventfd_write(self.done, 1)
        elif output.is_refused and not self.is_asked:
            # ssh may lose the end of the other stream then; its own exit code is all there is.
            self.is_asked = True
            self._tell_watch(WAIT)
        elif self.size_at_end is not None:
            signal.setitimer(signal.ITIMER_REAL, SILENCE / 4, SILENCE / 4)
            if output.size - self.size_at_end > UNDERWAY:
                os.eventfd_write(self.done, 1)

    def _look_again(self, number: int, frame: object) -> None:
        output = self.spoken[0]
        if not output.pending and time.monotonic() - output.heard_at > SILENCE:
            os.eventfd_write(self.done, 1)

    @property
    def code(self) -> int | None:
        return self.heard.code if self.terminal else self.errors_heard.code

    def result(self) -> int:
        if self.code is not None:
            return self.code
        if not self.is_over or self.watch is None:
            raise self._failure()
        self._tell_watch(DONE)
        self.watch.end(GRACE)
        try:
            code = self.first.process.wait(GRACE)
        except TimeoutExpired:  # it says that it is over, and holds on to the connection
            raise self._failure() from None
        return code if code >= 0 else 128 - code

    def _failure(self) -> HutchError:
        if self.leader is not None and is_ready(self.leader):
            return self._ended()
        if self.heard.has_started:
            return HutchError(f"the connection to {self.name} was lost before the command ended")
        self.first.exchange()
        return HutchError(
            f"{self.name} cannot be reached by ssh",
            details=self._explain(),
            resolution=f"`hutch logs {self.name}` and `hutch console {self.name}` show its output",
        )

    def _ended(self) -> HutchError:
        return HutchError(f"{self.name} has just ended", resolution=f"`hutch start {self.name}`")

    def _explain(self) -> str:
        return "\n".join(filter(None, (ear.explain() for ear in (self.errors_heard, self.heard, self.watch_heard))))

    def close(self) -> None:
        """End both sessions. The second one is told first when there is nothing left to watch."""
        is_over = self.is_over or self.code is not None
        if self.watch is not None:
            if is_over:
                self._tell_watch(DONE)
            self.watch.close_streams()
            self.watch.end(GRACE if is_over else 0)
        self.first.close_streams()
        self.first.end(0)
        if self.socket:
            with suppress(FileNotFoundError):
                os.unlink(self.socket)
        for descriptor in filter(None, (self.done, self.leader)):
            os.close(descriptor)
