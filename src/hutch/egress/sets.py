"""Fills the sets of addresses that watched workspaces may reach, through nft's own library."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

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

    def allow(
        self, source: str, epoch: int, addresses: Iterable[tuple[str, int]], ports: tuple[int, ...] | None
    ) -> None:
        """Let `source` reach addresses, each for its seconds, at `ports` (None for all), under the policy `epoch`.
        Raises SetsFailed when it may not after all."""
        self._run(render_allow(self._table, source, epoch, addresses, ports))

    def lend(self, source: str, addresses: Iterable[tuple[str, int]], port: int | None, mark: int) -> None:
        """Let `source` reach addresses, each for its seconds, by the decision that has this mark, for as long as that
        is among the terms. Raises SetsFailed."""
        places = [(*render_key(self._table, source, address, port), seconds) for address, seconds in addresses]
        try:
            self._run("\n".join(render_lend(where, key, seconds, mark) for where, key, seconds in places))
        except SetsFailed:
            for where, key, seconds in places:
                self._lend_anew(where, key, seconds, mark)

    def _lend_anew(self, where: str, key: str, seconds: int, mark: int) -> None:
        """Open one address. It may be there with the mark of another decision, which the kernel keeps."""
        lent = render_lend(where, key, seconds, mark)
        try:
            self._run(lent)
        except SetsFailed:
            self._run(f"delete element {where} {{ {key} }}")
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


def render_key(table: str, source: str, address: str, port: int | None) -> tuple[str, str]:
    """(map, key) of an address that a decision opens, at one port or at all."""
    where = f"{source} . {address}"
    if port is None:
        return f"inet {table} allowed_lent", where
    return f"inet {table} allowed_lent_ports", f"{where} . {port}"


def render_lend(where: str, key: str, seconds: int, mark: int) -> str:
    """One transaction, as that of render_allow."""
    return (
        f"add element {where} {{ {key} : {mark} }}\n"
        f"delete element {where} {{ {key} : {mark} }}\n"
        f"add element {where} {{ {key} timeout {max(seconds, 1) + SLACK}s : {mark} }}"
    )


def render_allow(
    table: str, source: str, epoch: int, addresses: Iterable[tuple[str, int]], ports: tuple[int, ...] | None
) -> str:
    """One transaction. An element that is there already keeps its time, so it is taken out and put in anew."""
    lines = []
    for address, seconds in addresses:
        where = f"{source} . {address}"
        keys = [f"{where} . {epoch}"] if ports is None else [f"{where} . {port} . {epoch}" for port in ports]
        target = f"element inet {table} {'allowed' if ports is None else 'allowed_ports'}"
        for key in keys:
            lines += [
                f"add {target} {{ {key} }}",
                f"delete {target} {{ {key} }}",
                f"add {target} {{ {key} timeout {max(seconds, 1) + SLACK}s }}",
            ]
    return "\n".join(lines)
