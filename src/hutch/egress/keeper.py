"""Keeps the one right that the egress proxy needs away from what guests and name servers say: CAP_NET_ADMIN.

The proxy, which reads what they send, is the keeper's child: without capabilities, and in a PID namespace of its own.
It asks for elements by a socket. The keeper puts those of a few sets into the kernel, takes them out again, and does
nothing else for it.
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
from collections.abc import Mapping
from itertools import islice
from typing import Any, NoReturn

from hutch.egress.answers import LONGEST_VALID
from hutch.egress.sets import LONGEST_TIMEOUT, SLACK, Element, Place, Sets, SetsFailed
from hutch.libc import call

CLONE_NEWPID, CAPABILITY_VERSION = 0x2000_0000, 0x2008_0522  # see capset(2)
CAP_NET_ADMIN = 12
LONGEST = 1 << 16  # bytes of a request, and of an answer
AT_ONCE = 64
"""The most elements of one request: the keeper hears nothing else until it has tried each of them by itself."""
LARGEST_FILE = 8 << 20  # bytes, that the proxy writes to any file: its journals are smaller
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


class KeptSets:
    """The sets as the proxy has them: by asking the keeper. Each request and each answer is one packet of JSON."""

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

    def _ask(self, verb: str, *arguments: object) -> None:
        try:
            self._channel.send(json.dumps([verb, *arguments]).encode())
            answer = self._channel.recv(LONGEST)
        except OSError as error:
            raise SetsFailed(str(error)) from error
        if answer != b"done":
            raise SetsFailed(answer.decode("utf-8", "replace") or "nobody keeps the sets any more")


def keep(sets: Sets, channel: socket.socket, proxy: int) -> NoReturn:
    """Serve the proxy, a child of ours, until one of both ends; then end as it does."""
    signal.signal(signal.SIGTERM, lambda *_: channel.shutdown(socket.SHUT_RDWR))
    is_well, ended = True, os.pidfd_open(proxy)
    try:
        while request := _next_request(channel, ended):
            channel.send(answer_of(sets, request), socket.MSG_DONTWAIT)  # who reads no answers asks no more
    except OSError:
        pass  # it has ended, or this process is told to
    except (ValueError, RecursionError) as error:
        os.write(2, f"the egress proxy asks for what it may not have: {error}\n".encode())
        is_well = False
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.close()  # which tells the proxy to end
    if not select.select([ended], [], [], END_SECONDS)[0]:
        os.kill(proxy, signal.SIGKILL)  # and with it all that it may have started
    _, status = os.waitpid(proxy, 0)
    os._exit(0 if is_well and status == 0 else 1)


def _next_request(channel: socket.socket, ended: int) -> bytes:
    """What the proxy asks next, b"" once it has ended: somebody else may hold its end of the channel by then."""
    ready, _, _ = select.select([channel.fileno(), ended], [], [])
    return b"" if ended in ready else channel.recv(LONGEST)


def answer_of(sets: Sets, request: bytes) -> bytes:
    """Do what a request says: b"done", or nft's own words why not. Raises ValueError for what no proxy of hutch's asks;
    nothing has been done then."""
    verb, *arguments = _checked_list(json.loads(request) if len(request) < LONGEST else None)
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
            case _:
                raise ValueError(f"{str(verb)[:20]!r}")
    except SetsFailed as error:
        return str(error).encode()[:LONGEST] or b"nft does not say why"
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


def _checked_number(value: Any, most: int = 0xFFFF_FFFF) -> int:
    if type(value) is not int or not 0 < value <= most:
        raise ValueError("a number that is none")
    return value


def begin_proxy() -> int:
    """Fork the proxy as fork(2) does, once its keeper has left all capabilities but one: 0 in the proxy, its pid in the
    keeper. It needs CAP_SYS_ADMIN for the PID namespace. The proxy writes no file that is larger than LARGEST_FILE."""
    call("unshare", CLONE_NEWPID)
    set_capabilities(CAP_NET_ADMIN)
    if proxy := os.fork():
        return proxy
    os.setpgid(0, 0)  # a signal to one's own group reaches out of a PID namespace
    set_capabilities()
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    return 0


def set_capabilities(*numbers: int) -> None:
    """Have these capabilities and no others, from now on: with no_new_privs set, no program gives any back."""
    mask = sum(1 << number for number in numbers)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))  # effective, permitted, inheritable
