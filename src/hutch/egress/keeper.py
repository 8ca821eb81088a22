"""Keeps the one right that the egress proxy needs away from what guests and name servers say: CAP_NET_ADMIN.

The proxy, which reads what they send, is the keeper's child: without capabilities, and in a PID namespace of its own.
It asks for elements by a socket. The keeper puts those of a few sets into the kernel, and does nothing else for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import socket
from collections.abc import Mapping
from itertools import islice
from typing import Any, NoReturn

from hutch.egress.sets import Element, Place, Sets, SetsFailed
from hutch.libc import call

CLONE_NEWPID, PR_SET_DUMPABLE, CAPABILITY_VERSION = 0x2000_0000, 4, 0x2008_0522  # see capset(2)
CAP_NET_ADMIN = 12
LONGEST = 1 << 16  # bytes of a request, and of an answer
AT_ONCE = 256  # elements of one request
END_SECONDS = 3.0
"""The time that the proxy has to write down what it has counted: less than the service's own."""
LONGEST_TIME = 1 << 31  # seconds of an element
ADDRESS, NUMBER = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}", r"[0-9]{1,10}"
KEYS = {
    "allowed": rf"{ADDRESS} \. {ADDRESS} \. {NUMBER}",
    "allowed_ports": rf"{ADDRESS} \. {ADDRESS} \. {NUMBER} \. {NUMBER}",
    "allowed_lent": rf"{ADDRESS} \. {ADDRESS}",
    "allowed_lent_ports": rf"{ADDRESS} \. {ADDRESS} \. {NUMBER}",
}
"""The sets and maps that the proxy fills, and what a key of each looks like. nft reads a key as a piece of its
language: whoever may write anything there may write rules."""


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
        self._ask("add_term", source, mark, seconds)

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


class Ended(Exception):
    """Raised where the service is told to end."""


def keep(sets: Sets, channel: socket.socket, proxy: int) -> NoReturn:
    """Serve the proxy, a child of ours, until one of both ends; then end as it does."""
    signal.signal(signal.SIGTERM, _end)
    try:
        while request := channel.recv(LONGEST):
            channel.send(answer_of(sets, request))
    except (Ended, OSError):
        pass
    except (ValueError, RecursionError) as error:
        os.write(2, f"the egress proxy asks for what it may not have: {error}\n".encode())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.close()  # the proxy is told so by this, and ends
    ended = os.pidfd_open(proxy)
    if not select.select([ended], [], [], END_SECONDS)[0]:
        os.kill(proxy, signal.SIGKILL)  # and with it all that it may have started
    _, status = os.waitpid(proxy, 0)
    os._exit(0 if status == 0 else 1)


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Ended


def answer_of(sets: Sets, request: bytes) -> bytes:
    """Do what a request says: b"done", or nft's own words why not. Raises ValueError for what no proxy of hutch's asks;
    nothing has been done then."""
    verb, *arguments = _checked_list(json.loads(request) if len(request) < LONGEST else None)
    try:
        match verb, arguments:
            case "put", [elements]:
                sets.put(dict(map(_checked_element, _checked_list(elements))))
            case "forget_terms", []:
                sets.forget_terms()
            case "add_term", [source, mark, seconds]:
                ends = None if seconds is None else _checked_number(seconds, LONGEST_TIME)
                sets.add_term(_checked_text(ADDRESS, source), _checked_number(mark), ends)
            case "end_term", [source, mark]:
                sets.end_term(_checked_text(ADDRESS, source), _checked_number(mark))
            case _:
                raise ValueError(f"{str(verb)[:20]!r}")
    except SetsFailed as error:
        return str(error).encode()[:LONGEST] or b"nft does not say why"
    return b"done"


def _checked_list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("no list")
    return value


def _checked_element(value: Any) -> tuple[Element, Place]:
    match value:
        case [str(where), key, int(left) | float(left), mark, there] if where in KEYS and 0 < left < LONGEST_TIME:
            place = float(left), _checked_mark(mark), _checked_mark(there)
            return (where, _checked_text(KEYS[where], key)), place
    raise ValueError("an element that is none")


def _checked_mark(value: Any) -> int | None:
    return None if value is None else _checked_number(value)


def _checked_text(pattern: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError("a key that is none")
    return value


def _checked_number(value: Any, most: int = 1 << 32) -> int:
    if type(value) is not int or not -most < value < most:
        raise ValueError("a number that is none")
    return value


def begin_proxy() -> int:
    """Fork the proxy as fork(2) does, once its keeper has left all capabilities but one: 0 in the proxy, its pid in the
    keeper. It needs CAP_SYS_ADMIN for the PID namespace."""
    call("unshare", CLONE_NEWPID)
    set_capabilities(CAP_NET_ADMIN)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # an account's other processes may look into what has no more rights
    if proxy := os.fork():
        return proxy
    set_capabilities()
    return 0


def set_capabilities(*numbers: int) -> None:
    """Have these capabilities and no others, from now on: with no_new_privs set, no program gives any back."""
    mask = sum(1 << number for number in numbers)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))  # effective, permitted, inheritable
