"""Text that somebody else has chosen, as a terminal may have it: a guest, a server, who wrote a file."""

from __future__ import annotations


def printable(text: str, longest: int | None = None, *, kept: str = "") -> str:
    """`text` without what a terminal would take as a command, but for the characters `kept`, and at the `longest` so
    long."""
    plain = "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text[:longest])
    return plain if longest is None or len(text) <= longest else f"{plain[:-1]}…"
