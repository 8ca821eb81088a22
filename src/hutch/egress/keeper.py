"""Keeps what the egress proxy needs away from what guests and name servers say: CAP_NET_ADMIN, and directories.

The proxy, which reads what they send, is the keeper's child: without capabilities, in a PID namespace of its own, and
where it sees no directory that it could write in. So it has no place where an account of the host could meet it, to be
given what it holds, and none to fill. It asks by a socket. The keeper puts elements of a few sets into the kernel,
takes them out again, adds lines to the files of records, each within its bound, and does nothing else for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import select
import signal
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from hutch.egress import journal
from hutch.egress.answers import LONGEST_VALID
from hutch.egress.sets import LONGEST_TIMEOUT, SLACK, Element, Place, Sets, SetsFailed
from hutch.egress.telling import LAST, tell_last
from hutch.files import kept_open
from hutch.frozen import dataclass
from hutch.inboxes import MOST_LEFT_OUT, append
from hutch.libc import call
from hutch.seccomp.filters import render_own_filter
from hutch.seccomp.install import install_filters
from hutch.spec.names import is_name

CLONE_NEWNS, CLONE_NEWPID, CAPABILITY_VERSION = 0x0002_0000, 0x2000_0000, 0x2008_0522  # see capset(2)
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x4_0000, 2
CAP_NET_ADMIN = 12
FORBIDDEN = (
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "request_key", "keyctl", "bpf"),
    *("perf_event_open", "ptrace", "process_vm_readv", "process_vm_writev", "setns", "unshare", "clone3", "bind"),
    *("execve", "execveat", "userfaultfd"),
)
"""The system calls that the proxy cannot make. It needs none of them: most lead to much of the kernel, and by an
address of its own it could leave a connection that keeps the next proxy from its port. (clone3 has its flags where a
filter does not see them.)"""
FAMILIES = ("AF_INET", "AF_UNIX")  # of sockets that it may make
LONGEST = 1 << 16  # bytes of a request, and of an answer
AT_ONCE = 64
"""The most elements of one request: the keeper hears nothing else until it has tried each of them by itself."""
LARGEST_LOG = 1 << 16  # bytes that are kept of what the proxy says of its errors
END_SECONDS = 3.0
"""The time that the proxy has to write down what it has counted: less than the service's own."""
LONGEST_OPEN = LONGEST_VALID + SLACK + 1  # seconds of an address, which no answer keeps open for longer
OCTET, NUMBER = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])", "(?:0|[1-9][0-9]{0,9})"
ADDRESS = rf"(?:{OCTET}\.){{3}}{OCTET}"
KEYS = {
    "allowed": rf"{ADDRESS} \. {ADDRESS} \. {NUMBER}",
    "allowed_ports": rf"{ADDRESS} \. {ADDRESS} \. {NUMBER} \. {NUMBER}",
    "allowed_lent": rf"{ADDRESS} \. {ADDRESS}",
    "allowed_lent_ports": rf"{ADDRESS} \. {ADDRESS} \. {NUMBER}",
}
"""The sets and maps in which addresses are open, and what a key of each looks like. nft reads a key as a piece of its
language: whoever may write anything there may write rules."""
MAPS = ("allowed_lent", "allowed_lent_ports")
"""Those of them in which an element has a mark."""


class Kept:
    """What the keeper has, as the proxy has it: by asking. Each request and each answer is one packet of JSON."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def put(self, places: Mapping[Element, Place]) -> None:
        """Open elements. Raises SetsFailed for those that may not be after all."""
        items = iter(places.items())
        while batch := [[*element, *place] for element, place in islice(items, AT_ONCE)]:
            self._ask("put", batch)

    def forget_terms(self) -> None:
        """Take all terms away: connections that decisions of people let out are judged anew."""
        self._ask("forget_terms")

    def add_term(self, source: str, mark: int, seconds: int | None) -> None:
        """Put what has this mark in force: for so many seconds, or for good. Raises SetsFailed."""
        ends = None if seconds is None else min(max(seconds, 1), LONGEST_TIMEOUT)
        self._ask("add_term", source, mark, ends)

    def end_term(self, source: str, mark: int) -> None:
        """End what has this mark: its connections are cut, and no others begin. Raises SetsFailed."""
        self._ask("end_term", source, mark)

    def record(self, workspace: str, lines: str) -> None:
        """Add a few lines to the journal of a workspace. OSError where they are not there."""
        self._write("record", workspace, lines)

    def tell(self, workspace: str, lines: str) -> None:
        """Add a few lines to the inbox of a workspace's record. OSError where they are not there."""
        self._write("tell", workspace, lines)

    def tell_last(self, workspace: str, lines: str, count: int, seconds: float) -> None:
        """The same of the last words about it, see telling.tell_last."""
        self._write("tell_last", workspace, lines, count, seconds)

    def serve(self) -> None:
        """Have it said that the proxy serves."""
        self._ask("serve")

    def _write(self, verb: str, *arguments: object) -> None:
        try:
            self._ask(verb, *arguments)
        except SetsFailed as error:
            raise OSError(str(error)) from error

    def _ask(self, verb: str, *arguments: object) -> None:
        try:
            self._channel.send(json.dumps([verb, *arguments]).encode())
            answer = self._channel.recv(LONGEST)
        except OSError as error:
            raise SetsFailed(str(error)) from error
        if answer != b"done":
            raise SetsFailed(answer.decode("utf-8", "replace") or "nobody keeps the sets any more")


@dataclass(frozen=True)
class Keeper:
    """What there is to keep: the sets, and the directories with workspaces' journals, and with their inboxes."""

    sets: Sets
    journal: Path
    inboxes: Path

    def inbox(self, workspace: str) -> Path:
        return self.inboxes / workspace / str(os.geteuid())


class Errors:
    """What the proxy says of its errors. It comes by a pipe, since what both have open is the other's to spoil; its end
    never comes, so that a proxy that closes it is no reason to look."""

    def __init__(self) -> None:
        self.near, self.far = os.pipe()
        os.set_blocking(self.near, False)
        self._left = LARGEST_LOG

    def relay(self) -> None:
        """Say it for the proxy, as much as fits into a log."""
        with suppress(OSError):
            said = os.read(self.near, LARGEST_LOG)[: self._left]
            self._left -= len(said)
            os.write(2, said)


def keep(keeper: Keeper, channel: socket.socket, errors: Errors, proxy: int) -> NoReturn:
    """Serve the proxy, a child of ours, until one of both ends; then end as it does. Told to end, it tells the proxy,
    which may have something to write down, and has END_SECONDS for it. One that asks for what it may not have has
    none."""
    ended = os.pidfd_open(proxy)

    def send(number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(ended, number)

    def tell_to_end(*_: object) -> None:
        send(signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)

    signal.signal(signal.SIGTERM, tell_to_end)
    signal.signal(signal.SIGALRM, lambda *_: send(signal.SIGKILL))  # and with it all that it may have started
    code = 0
    try:
        while request := _next_request(channel, errors, ended):
            channel.send(answer_of(keeper, request), socket.MSG_DONTWAIT)  # who reads no answers asks no more
    except (ValueError, RecursionError) as error:
        send(signal.SIGKILL)
        code = 1
        with suppress(OSError):
            os.write(2, f"the egress proxy makes a forbidden request: {error}\n".encode())
    except OSError:
        pass  # it has ended
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError):  # it has closed its end
        channel.shutdown(socket.SHUT_RDWR)  # which tells the proxy to end
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
    _, status = os.waitpid(proxy, 0)
    # What it sent to itself and never received, such as the port of the next proxy, the kernel looks for when a socket
    # of the Unix domain closes.
    channel.close()
    errors.relay()
    os._exit(code or (status != 0))


def _next_request(channel: socket.socket, errors: Errors, ended: int) -> bytes:
    """What the proxy asks next, b"" once it has ended: somebody else may hold its end of the channel by then."""
    while True:
        ready, _, _ = select.select([channel.fileno(), errors.near, ended], [], [])
        if ended in ready:
            return b""
        if errors.near in ready:
            errors.relay()
        if channel.fileno() in ready:
            return channel.recv(LONGEST)


def answer_of(keeper: Keeper, request: bytes) -> bytes:
    """Do what a request says: b"done", or nft's or the system's own words why not. Raises ValueError for what no proxy
    of hutch's asks; nothing has been done then."""
    verb, *arguments = _checked_list(json.loads(request) if len(request) < LONGEST else None)
    sets = keeper.sets
    try:
        match verb, arguments:
            case "put", [elements]:
                sets.put(dict(map(_checked_element, _checked_list(elements, AT_ONCE))))
            case "forget_terms", []:
                sets.forget_terms()
            case "add_term", [source, mark, seconds]:
                ends = None if seconds is None else _checked_number(seconds, LONGEST_TIMEOUT)
                sets.add_term(_checked_text(ADDRESS, source), _checked_number(mark), ends)
            case "end_term", [source, mark]:
                sets.end_term(_checked_text(ADDRESS, source), _checked_number(mark))
            case "record", [workspace, lines]:
                journal.append(keeper.journal, _checked_workspace(workspace), _checked_lines(lines))
            case "tell", [workspace, lines]:
                append(keeper.inbox(_checked_workspace(workspace)), _checked_lines(lines))
            case "tell_last", [workspace, lines, count, int(seconds) | float(seconds)] if 0 <= seconds <= LAST:
                inbox = keeper.inbox(_checked_workspace(workspace))
                tell_last(inbox, _checked_lines(lines), _checked_number(count, MOST_LEFT_OUT), seconds)
            case "serve", []:
                say_who_serves()
            case _:
                raise ValueError(f"{str(verb)[:20]!r}")
    except (SetsFailed, OSError) as error:
        return str(error).encode("utf-8", "replace")[:LONGEST] or b"nft does not say why"
    return b"done"


def _checked_list(value: Any, most: int = LONGEST) -> list[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise ValueError("no list")
    return value


def _checked_element(value: Any) -> tuple[Element, Place]:
    match value:
        case [str(where), key, int(left) | float(left), mark, there] if where in KEYS:
            if not 0 < left < LONGEST_OPEN or (mark is not None) is not (where in MAPS):
                raise ValueError("a place that is none")
            place = float(left), _checked_mark(mark), _checked_mark(there)
            return (where, _checked_text(KEYS[where], key)), place
    raise ValueError("an element that is none")


def _checked_mark(value: Any) -> int | None:
    return None if value is None else _checked_number(value)


def _checked_text(pattern: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError("a key that is none")
    return value


def _checked_workspace(value: Any) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise ValueError("a workspace that is none")
    return value


def _checked_lines(value: Any) -> bytes:
    if not isinstance(value, str) or not value.isascii():
        raise ValueError("lines that are none")
    return value.encode()


def _checked_number(value: Any, most: int = 0xFFFF_FFFF) -> int:
    if type(value) is not int or not 0 < value <= most:
        raise ValueError("a number that is none")
    return value


def say_who_serves() -> None:
    """Print the pid of this process, which is the one that is known, for who has started it; once."""
    os.write(1, f"{os.getpid()}\n".encode())
    close_output()


def close_output() -> None:
    """Print nothing from now on."""
    with kept_open(os.open("/dev/null", os.O_WRONLY)) as nowhere:
        os.dup2(nowhere, 1)


def begin_proxy(written: Iterable[Path], errors: Errors) -> int:
    """Fork the proxy as fork(2) does: 0 in the proxy, its pid in the keeper, which has left all capabilities but one.
    CAP_SYS_ADMIN is for the namespaces: the proxy does not see the `written` directories, each a mount, and writes no
    other file. It starts no process and makes no namespace. OSError or ValueError, in the proxy, where a kernel cannot
    have it so."""
    call("unshare", CLONE_NEWPID)
    if proxy := os.fork():
        set_capabilities(CAP_NET_ADMIN)
        return proxy
    os.setpgid(0, 0)  # a signal to one's own group reaches out of a PID namespace
    close_output()
    os.dup2(errors.far, 2)
    os.close(errors.near)  # whoever has it says for both whether a read waits
    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    for directory in written:
        call("umount2", bytes(directory), MNT_DETACH)
    set_capabilities()
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):  # a namespace of users comes with a process, too
        resource.setrlimit(kind, (0, 0))
    install_filters([render_own_filter(os.uname().machine, FORBIDDEN, FAMILIES)])
    return 0


def set_capabilities(*numbers: int) -> None:
    """Have these capabilities and no others, from now on: with no_new_privs set, no program gives any back."""
    mask = sum(1 << number for number in numbers)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))  # effective, permitted, inheritable
