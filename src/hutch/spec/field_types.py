"""Field types: each parses one kind of value of hutch.toml, describes it, and offers it to pydantic.

A field type parses one value, purely: it returns the parsed value or raises Invalid, whose text says what is
wrong and what would be right. Matches are full and ASCII; no value may hold a control character, so none
can add a line, an option or a rule to a file that is rendered from it. Pydantic is imported only by the
hooks that it calls itself.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, ClassVar

LONGEST_TEXT = 4096

JsonSchema = dict[str, Any]


class Invalid(ValueError):
    """A value that is not allowed. `hint` says what would be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


def matches(pattern: str, value: str) -> re.Match[str] | None:
    return re.fullmatch(pattern, value, re.ASCII)


def text(value: object, hint: str, *, longest: int = LONGEST_TEXT) -> str:
    """`value` as a string that is safe on one line of any file."""
    if not isinstance(value, str):
        raise Invalid("must be a string", hint)
    if not value.isprintable():
        raise Invalid("holds a line break or another character that cannot be printed", hint)
    if len(value.encode()) > longest:
        raise Invalid(f"is longer than {longest} bytes", hint)
    return value


def word(value: object, pattern: str, message: str, hint: str) -> str:
    """`value` as a string that `pattern` matches from end to end."""
    string = text(value, hint)
    if not matches(pattern, string):
        raise Invalid(message, hint)
    return string


def whole_number(value: object, hint: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid("must be a whole number", hint)
    return value


def path_text(value: object, hint: str) -> str:
    """`value` as a path that mount options and systemd-nspawn's --bind take without quoting."""
    string = text(value, hint, longest=4095)
    if not string:
        raise Invalid("is empty", hint)
    if bad := sorted(set(string) & set(":,\\\"'")):
        raise Invalid(f"holds {' '.join(bad)}", "a shared path cannot hold colons, commas, backslashes or quotes")
    return string


def port_number(digits: str, hint: str) -> int:
    if not matches(r"[0-9]{1,5}", digits) or not 1 <= int(digits) <= 65535:
        raise Invalid(f"{digits[:20]!r} is not a port", f"ports are 1 to 65535; {hint}")
    return int(digits)


def ipv4_address(value: str, hint: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise Invalid("is not an IPv4 address", hint) from None


def ipv4_network(value: str, hint: str) -> ipaddress.IPv4Network:
    if not matches(r"[0-9.]{7,15}/[0-9]{1,2}", value):
        raise Invalid("is not an IPv4 network", hint)
    try:
        network = ipaddress.IPv4Network(value, strict=False)
    except ValueError:
        raise Invalid("is not an IPv4 network", hint) from None
    if str(network) != value:
        raise Invalid("has bits set behind its prefix", f'write "{network}"')
    return network


class FieldType:
    """The parser and the description of one kind of value. `pattern` goes to the JSON Schema; `form` says in words what
    would be right, to readers of the schema and the manual, and to those who have written something else; `wrong` the
    fault of a word that `pattern` does not match."""

    pattern: ClassVar[str] = ""
    form: ClassVar[str] = ""
    wrong: ClassVar[str] = ""

    def parse(self, value: object) -> Any:
        """The parsed value, a word that matches `pattern` unless a kind says more. Raises Invalid, a ValueError, and
        nothing else."""
        return word(value, self.pattern, self.wrong, self.form)

    def json_schema(self) -> JsonSchema:
        return {"type": "string", **({"pattern": f"^{self.pattern}$"} if self.pattern else {})}

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> Any:
        return plain(self.parse)

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> JsonSchema:
        return {**self.json_schema(), **({"description": self.form} if self.form else {})}


def plain(parse: Callable[[object], Any]) -> Any:
    # Spares the start-up of `hutch ls`.
    from pydantic_core import core_schema

    return core_schema.no_info_plain_validator_function(parse)
