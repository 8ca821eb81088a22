"""Fills the sets of addresses that watched workspaces may reach, through nft's own library."""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Mapping

Element = tuple[str, str]
"""The name of a set or map, and a key in it."""
Place = tuple[float, int | None, int | None]
"""What becomes of an element: the seconds that are left of it, the mark that it gets in a map (None in a set), and the
one that it is there with (None for none)."""
LONGEST_TIMEOUT = 99_999_999
"""The most seconds that nft takes for an element's time: three years."""
SLACK = 1
"""Seconds that an address stays open beyond its answer, which takes a while to be used."""


class SetsFailed(Exception):
    """The kernel, or nft, does not take an element; the text is nft's."""


class Sets:
    """The sets of a table of the family inet that this program fills: see host/network/firewall, and libnftables(3)."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._library = library = ctypes.CDLL("libnftables.so.1")
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_ctx_buffer_error.argtypes = library.nft_ctx_get_error_buffer.argtypes = (ctypes.c_void_p,)
        library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        self._context = library.nft_ctx_new(0)
        library.nft_ctx_buffer_error(self._context)

    def put(self, places: Mapping[Element, Place]) -> None:
        """Open elements. Raises SetsFailed for those that may not be after all."""
        try:
            self._run(render_put(self._table, places))
        except SetsFailed:
            for element, place in places.items():
                self._put_anew(element, place)

    def _put_anew(self, element: Element, place: Place) -> None:
        """Open one element. It may be there with a mark that nobody knows of here: an earlier one of these put it
        there."""
        put = render_put(self._table, {element: place})
        try:
            self._run(put)
        except SetsFailed:
            self._run(f"delete element inet {self._table} {element[0]} {{ {element[1]} }}")
            self._run(put)

    def forget_terms(self) -> None:
        """Take all terms away: connections that decisions of people let out are judged anew."""
        self._run(f"flush set inet {self._table} allowed_terms")

    def add_term(self, source: str, mark: int, seconds: int | None) -> None:
        """Put what has this mark in force: for so many seconds, or for good. Raises SetsFailed."""
        ends = "" if seconds is None else f" timeout {seconds}s"
        self._run(f"add element inet {self._table} allowed_terms {{ {source} . {mark}{ends} }}")

    def end_term(self, source: str, mark: int) -> None:
        """End what has this mark: its connections are cut, and no others begin. Raises SetsFailed."""
        element = f"element inet {self._table} allowed_terms {{ {source} . {mark} }}"
        self._run(f"add {element}\ndelete {element}")

    def _run(self, commands: str) -> None:
        if commands and self._library.nft_run_cmd_from_buffer(self._context, commands.encode()) != 0:
            raise SetsFailed(self._library.nft_ctx_get_error_buffer(self._context).decode("utf-8", "replace"))


def listed_elements(source: str, epoch: int, address: str, ports: tuple[int, ...] | None) -> list[Element]:
    """The elements that open an address to `source` at `ports` (None for all), under the policy `epoch`."""
    where = f"{source} . {address}"
    if ports is None:
        return [("allowed", f"{where} . {epoch}")]
    return [("allowed_ports", f"{where} . {port} . {epoch}") for port in ports]


def lent_element(source: str, address: str, port: int | None) -> Element:
    """The element of an address that a decision opens, at one port or at all."""
    where = f"{source} . {address}"
    return ("allowed_lent", where) if port is None else ("allowed_lent_ports", f"{where} . {port}")


def render_put(table: str, places: Mapping[Element, Place]) -> str:
    """One transaction. An element that is there already keeps its time and its mark, so it is taken out and put in
    anew; what is added first is taken out again where it was not there."""
    sets: defaultdict[str, dict[str, Place]] = defaultdict(dict)
    for (where, key), place in places.items():
        sets[where][key] = place
    lines = []
    for where, found in sets.items():
        target = f"element inet {table} {where}"
        before = ", ".join(key + _value(mark if there is None else there) for key, (_, mark, there) in found.items())
        after = (f"{key} timeout {math.ceil(left)}s{_value(mark)}" for key, (left, mark, _) in found.items())
        lines += [f"add {target} {{ {before} }}", f"delete {target} {{ {before} }}"]
        lines += [f"add {target} {{ {', '.join(after)} }}"]
    return "\n".join(lines)


def _value(mark: int | None) -> str:
    return "" if mark is None else f" : {mark}"
