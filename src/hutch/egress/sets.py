"""Fills the sets of addresses that watched workspaces may reach, through nft's own library."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

Element = tuple[str, str]
"""The name of a set or map, and a key in it."""
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

    def allow(self, elements: Mapping[Element, int]) -> None:
        """Open what a policy lists, each element for its seconds. Raises SetsFailed when it may not after all."""
        self._run("\n".join(render_add(self._table, element, seconds) for element, seconds in elements.items()))

    def lend(self, elements: Mapping[Element, int], mark: int) -> None:
        """Open elements, each for its seconds, by the decision that has this mark, for as long as that is among the
        terms. Raises SetsFailed."""
        lent = {element: render_add(self._table, element, seconds, mark) for element, seconds in elements.items()}
        try:
            self._run("\n".join(lent.values()))
        except SetsFailed:
            for (where, key), text in lent.items():
                self._lend_anew(where, key, text)

    def _lend_anew(self, where: str, key: str, lent: str) -> None:
        """Open one element. It may be there with the mark of another decision, which the kernel keeps."""
        try:
            self._run(lent)
        except SetsFailed:
            self._run(f"delete element inet {self._table} {where} {{ {key} }}")
            self._run(lent)

    def forget_terms(self) -> None:
        """Take all terms away: connections that decisions of people let out are judged anew."""
        self._run(f"flush set inet {self._table} allowed_terms")

    def add_term(self, source: str, mark: int, seconds: int | None) -> None:
        """Put what has this mark in force: for so many seconds, or for good. Raises SetsFailed."""
        ends = "" if seconds is None else f" timeout {max(seconds, 1)}s"
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


def render_add(table: str, element: Element, seconds: int, mark: int | None = None) -> str:
    """Commands of one transaction. An element that is there already keeps its time, so it is taken out and put in
    anew."""
    where, key = element
    target, value = f"element inet {table} {where}", "" if mark is None else f" : {mark}"
    return (
        f"add {target} {{ {key}{value} }}\n"
        f"delete {target} {{ {key}{value} }}\n"
        f"add {target} {{ {key} timeout {seconds}s{value} }}"
    )
