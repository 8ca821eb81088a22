"""Fills the sets of addresses that watched workspaces may reach, through nft's own library."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

SLACK = 1
"""Seconds that an address stays open beyond its answer, which takes a while to be used."""


class SetsFailed(Exception):
    """The kernel, or nft, does not take an element; the text is nft's."""


class Sets:
    """The sets `allowed` and `allowed_ports` of a table of the family inet. See libnftables(3)."""

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
        commands = render_allow(self._table, source, epoch, addresses, ports)
        if commands and self._library.nft_run_cmd_from_buffer(self._context, commands.encode()) != 0:
            raise SetsFailed(self._library.nft_ctx_get_error_buffer(self._context).decode("utf-8", "replace"))


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
