"""Values of hutch.toml as a plan shows them: on one line, in the words of the file, and safe for a terminal."""

from __future__ import annotations

import json
from typing import Any

from hutch.cli.common import printable

SIZES = ("memory", "disk")
LONGEST = 70


def shown_pair(key: str, old: Any, new: Any) -> tuple[str, str]:
    """Two values of a key, shortened unless they would look the same."""
    short = shown(old, key), shown(new, key)
    return short if short[0] != short[1] else (words(old, key), words(new, key))


def shown(value: Any, key: str = "") -> str:
    """A value of a key, shortened."""
    text = words(value, key)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "…"


def words(value: Any, key: str = "") -> str:
    """All of a value, as JSON has it, in the words of the file."""
    if value is None:
        text = "unset"
    elif key in SIZES and isinstance(value, int):
        text = size(value)
    elif isinstance(value, list):
        text = ", ".join(entry(item, key) for item in value) or "none"
    elif isinstance(value, dict):
        text = entry(value, key)
    else:
        text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return printable(text.replace("\n", "⏎"))


def size(value: int) -> str:
    """Bytes, in the largest unit that divides them."""
    units = [unit for unit in range(4) if value % (1 << 10 * (unit + 1)) == 0]
    return f"{value >> 10 * (units[-1] + 1)}{'KMGT'[units[-1]]}iB" if value and units else str(value)


def entry(value: Any, key: str) -> str:
    """An entry of a list, or a small table."""
    if key == "publish":
        ip = f"{value['host_ip']}:" if value["host_ip"] else ""
        return f"{ip}{value['host_port']}:{value['guest_port']}{'/udp' if value['protocol'] == 'udp' else ''}"
    if key == "mounts":
        return f"{value['source']} on {value['target']}{', readonly' if value['readonly'] else ''}"
    if key == "env":
        return "=".join(value)
    if key == "idle":
        return f"{value['then']} after {value['after']}"
    if key == "authorized_keys":
        kind, _, rest = value.partition(" ")
        blob, _, comment = rest.partition(" ")
        return f"{kind} …{blob[-8:]} {comment}".rstrip()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
