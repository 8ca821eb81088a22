"""The locks under which hutch changes a host, and their holders.

The kernel tells who holds a lock, by the locks of every open file (/proc/PID/fdinfo/N): a holder's note about itself
would outlive it, and a full disk would not take it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from hutch.errors import HutchError, lacks_root
from hutch.frozen import dataclass
from hutch.host.services.process import arguments, start_time
from hutch.spec import member
from hutch.spec.names import Layout
from hutch.state import make_directory
from hutch.texts import printable

HOST_LOCK = "/root"  # is there on every host, and nobody else can open it: a lock on /run could be held by anyone
UNSEEN = "another hutch"
TRY_AGAIN, TRY_AGAIN_FOR_MEMBERS = 0.02, 0.2  # seconds; root's own commands come first
POLITE = 1.0  # seconds that a wait may last before it is worth a word
COMMANDS, LOOKS = range(4), range(4, 5)
"""The places of one member: for commands that root carries out, and for looks into what guests wrote."""
RANGE = "hhqqi4x"  # struct flock

_held_here: set[str] = set()


class Busy(HutchError):
    """Somebody else has held a lock for as long as one was willing to wait."""


def nobody(holder: str) -> None:
    """A listener that ignores what it is told."""


listener: Callable[[str], None] = nobody
"""A callback, called once with the holder of a lock that is waited for, in words; the command line prints it."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock. `since` is when it was started, in Unix time."""

    pid: int
    command: tuple[str, ...]
    since: float

    def __str__(self) -> str:
        is_today = time.time() - self.since < 86400
        since = time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"`{spoken(self.command)}` (pid {self.pid}, since {since})"


@contextmanager
def lock(layout: Layout, *, patience: float = 600.0) -> Iterator[None]:
    """Hold the one lock under which this hutch changes the host. Children do not inherit it.

    Waits at most `patience` seconds for another hutch.
    """
    make_directory(layout.state)
    descriptor = os.open(layout.lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with _locked(descriptor, patience):
        yield


@contextmanager
def lock_if_free(layout: Layout) -> Iterator[bool]:
    """Hold that lock where nobody else does; whether it is held."""
    make_directory(layout.state)
    descriptor = os.open(layout.lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        is_held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


@contextmanager
def host_lock(*, patience: float = 600.0) -> Iterator[None]:
    """Hold the one lock of all hutches of this host. Whoever holds another one takes this one last; whoever holds it
    already may take it again."""
    if HOST_LOCK in _held_here:
        yield
        return
    try:
        descriptor = os.open(HOST_LOCK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise lacks_root() from error
    with _locked(descriptor, patience):
        _held_here.add(HOST_LOCK)
        try:
            yield
        finally:
            _held_here.discard(HOST_LOCK)


@contextmanager
def _locked(descriptor: int, patience: float) -> Iterator[None]:
    """Lock the file, and close it in the end."""
    try:
        take(descriptor, patience)
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int, patience: float) -> None:
    """Lock a file; raises Busy, which names the holder, where another has it for as long as one is willing to wait."""
    began = time.monotonic()
    is_said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited > patience:
                raise Busy(
                    f"{find_holder(descriptor) or UNSEEN} has been changing this host for more than {patience:g} s",
                    resolution="let it come to its end, or end it; then try again",
                ) from None
            if waited > POLITE and not is_said:
                listener(str(find_holder(descriptor) or UNSEEN))
                is_said = True
            # flock has no deadline of its own, and a signal handler would need a main thread.
            time.sleep(TRY_AGAIN if member.acting is None else TRY_AGAIN_FOR_MEMBERS)


def take_place(layout: Layout, uid: int, places: range, what: str, *, patience: float) -> int:
    """Take one of the places that a member has, until the descriptor is closed here and in all children: so many things
    root does for one person at a time. Raises Busy where none gets free for as long as one is willing to wait.

    A place is a byte of the lock's file, under a lock of its own, and no file is left of it.
    """
    make_directory(layout.state)
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + patience
    while True:
        for place in places:
            with suppress(BlockingIOError):
                wanted = struct.pack(RANGE, fcntl.F_WRLCK, os.SEEK_SET, uid * 8 + place, 1, 0)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
                return descriptor
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise Busy(
                f"root is at work on {what} of yours already", resolution="let one come to its end; then try again"
            )
        time.sleep(0.2)


# The holder.


def find_holder(descriptor: int) -> Holder | None:
    """The holder of a lock on the same file; None where it cannot be seen, from another process namespace say."""
    wanted = os.fstat(descriptor)
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if any(_is_lock_on(wanted, pid, number) for number in _descriptors(pid)):
            with suppress(OSError):
                if (started := start_time(pid)) is not None:
                    return Holder(pid, arguments(pid), _boot_time() + started / os.sysconf("SC_CLK_TCK"))
    return None


def _descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:  # it has ended, or is not ours to look at
        return []


def _is_lock_on(wanted: os.stat_result, pid: int, number: str) -> bool:
    """Whether an open file of a process holds a lock, on that very file. Its inode is compared first: to look at a file
    may take forever, on a network file system say."""
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
            locks = [line.split() for line in file if line.startswith("lock:") and " FLOCK " in line]
        inodes = {word.rpartition(":")[2] for words in locks for word in words if word.count(":") == 2}
        return str(wanted.st_ino) in inodes and os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted)
    except OSError:
        return False


def _boot_time() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        return next(float(line.split()[1]) for line in file if line.startswith("btime "))


def spoken(command: tuple[str, ...]) -> str:
    """A command line as its user typed it: without the interpreter, on one line, and harmless on a terminal."""
    names = [os.path.basename(word) for word in command[:4]]
    start = next((index for index, name in enumerate(names) if name in ("hutch", "__main__.py")), None)
    words = command if start is None else ("hutch", *command[start + 1 :])
    return printable(" ".join(words), 80)
