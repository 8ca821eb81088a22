"""The entries of hutch.toml's lists and tables: ports, destinations, variables and public keys.

These have a grammar of their own; the single words are in spec/values. A list reports each wrong entry.
"""

from __future__ import annotations

import binascii
from typing import Any, ClassVar, Literal

from hutch.frozen import dataclass
from hutch.spec.field_types import (
    FieldType,
    Invalid,
    JsonSchema,
    ipv4_address,
    ipv4_network,
    matches,
    path_text,
    plain,
    port_number,
    text,
    word,
)
from hutch.spec.ranges import is_never

KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


@dataclass(frozen=True)
class Publish:
    """A port of the host that leads to a port of a workspace. `host_ip` is "" for every address."""

    host_ip: str
    host_port: int
    guest_port: int
    protocol: Literal["tcp", "udp"]

    @property
    def is_local(self) -> bool:
        """Whether the port is for programs of the host alone."""
        return self.host_ip.startswith("127.")

    def __str__(self) -> str:
        ip = f"{self.host_ip}:" if self.host_ip else ""
        return f"{ip}{self.host_port}:{self.guest_port}{'/udp' if self.protocol == 'udp' else ''}"


class Published(FieldType):
    pattern = r"([0-9.]+:)?[0-9]{1,5}:[0-9]{1,5}(/(tcp|udp))?"
    form = '"[host_ip:]host_port:guest_port[/udp]", such as "8080:80" or "127.0.0.1:5353:53/udp"'

    def parse(self, value: object) -> Publish:
        match = matches(r"(?:([^:/]*):)?([0-9]+):([0-9]+)(?:/(tcp|udp))?", text(value, self.form))
        if not match:
            raise Invalid("is not a published port", self.form)
        ip = ipv4_address(match[1], f"an address of the host; {self.form}") if match[1] is not None else ""
        return Publish(
            host_ip="" if ip == "0.0.0.0" else ip,
            host_port=port_number(match[2], self.form),
            guest_port=port_number(match[3], self.form),
            protocol="udp" if match[4] == "udp" else "tcp",
        )


MISTAKEN = (
    (r"[a-z]+://.*", "is a URL", 'a name and a port, such as "example.org:443"'),
    (r"[a-z0-9.-]*[a-z][a-z0-9.-]*/.*", "holds a path", "paths below a name cannot be told apart; only the name"),
    (r"\[.*|[0-9a-f]*:[0-9a-f]*:.*", "is IPv6, which is closed to all workspaces", "names, and networks of IPv4"),
    (r"\*(:.*)?", "is every name", 'without a list: egress = "internet"'),
    (r"\..*", "begins with a dot", '"*." stands for all names below one'),
    (r".+\*.*", "has a * in the middle", '"*." stands in front only, as in "*.example.org"'),
    (
        r"[^:]+:[0-9]+[-/].*",
        "names more than a port",
        "one port, by TCP and UDP; an entry for each, or none for all ports",
    ),
    (r"[a-z0-9-]+(:.*)?", "has no dot", "names of the host's own network are not public"),
    (r"\s.*|.*\s", "has a space at its end", "no space"),
)
"""Likely mistakes: the pattern of each, what is wrong with it, and what would be right."""


DESTINATION = 'a domain such as "api.example.com:443" or "*.example.org", or a network such as "198.51.100.0/24"'


class Egress(FieldType):
    """One of three words, or a list of destinations."""

    words = ("internet", "none", "all")
    form = '"internet", "none", "all", or a list such as ["*.example.org", "api.example.com:443", "198.51.100.0/24"]'
    label = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"

    def parse(self, value: object) -> str | tuple[str, ...]:
        if isinstance(value, (list, tuple)):
            return tuple(self.parse_destination(entry) for entry in value)
        return self.parse_word(value)

    def parse_word(self, value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("must be a string or a list", self.form)
        if value not in self.words:
            raise Invalid("is not one of the known words", self.form)
        return value

    def parse_destination(self, value: object) -> str:
        hint = DESTINATION
        entry = text(value, hint, longest=260).lower()
        if entry in self.words:
            raise Invalid("is not a destination", f'without a list: egress = "{entry}"')
        for looks_like, message, better in MISTAKEN:
            if matches(looks_like, entry):
                raise Invalid(message, better)
        host, colon, digits = entry.partition(":")
        port = f":{port_number(digits, hint)}" if colon else ""
        if "/" in host:
            return f"{self.parse_network(host, hint)}{port}"
        if matches(r"[0-9.]+", host):
            raise Invalid("is neither a domain nor a network", f'a single address is written "{host}/32"')
        return f"{self.parse_domain(host, hint)}{port}"

    def parse_network(self, host: str, hint: str) -> str:
        network = ipv4_network(host, hint)
        if is_never(str(network)):
            raise Invalid("cannot be reached by any workspace", "loopback, link-local and multicast stay closed")
        return str(network)

    def parse_domain(self, host: str, hint: str) -> str:
        """The one form of a name: ASCII, in lower case, without the dot of the root."""
        host = host.removesuffix(".")
        if not host.isascii():
            # Spares the start-up of `hutch up` for files of plain names.
            import idna

            star, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
            try:
                host = f"{star}{idna.encode(name, uts46=True).decode()}"
            except idna.IDNAError:
                raise Invalid("is not an internationalised domain name", hint) from None
        if not matches(rf"(\*\.)?({self.label}\.)*{self.label}", host) or "." not in host or len(host) > 253:
            raise Invalid("is not a destination", hint)
        return host

    def json_schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "string", "enum": list(self.words)},
                {"type": "array", "items": {"type": "string", "maxLength": 260}},
            ]
        }

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> Any:
        # Spares the start-up of `hutch ls`.
        from pydantic_core import core_schema

        def choose(value: object, entries: Any) -> object:
            return entries(value) if isinstance(value, (list, tuple)) else self.parse_word(value)

        entries = core_schema.tuple_schema([plain(self.parse_destination)], variadic_item_index=0, strict=False)
        return core_schema.no_info_wrap_validator_function(choose, entries)


class Destination(FieldType):
    """A destination of a kit, which has no word for all of them: that is the workspace's to say."""

    form = DESTINATION

    def parse(self, value: object) -> str:
        if value in Egress.words:
            raise Invalid("is not a destination", "a kit lists destinations; the workspace says such a word")
        return Egress().parse_destination(value)

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "maxLength": 260}


class EnvironmentTable(FieldType):
    """Variables of login sessions, as pairs in the order of their names."""

    name = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
    form = 'a table of strings such as { EDITOR = "vim" }'

    def parse(self, value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise Invalid("must be a table", self.form)
        return self.pairs({self.parse_name(name): self.parse_value(entry) for name, entry in value.items()})

    def parse_name(self, value: object) -> str:
        return word(value, self.name, "cannot name a variable", "letters, digits and _, no digit first")

    def parse_value(self, value: object) -> str:
        return text(value, "printable text on one line, in quotes")

    def pairs(self, table: dict[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(table.items()))

    def json_schema(self) -> JsonSchema:
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{self.name}$"},
            "additionalProperties": {"type": "string"},
        }

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> Any:
        # Spares the start-up of `hutch ls`.
        from pydantic_core import core_schema

        table = core_schema.dict_schema(plain(self.parse_name), plain(self.parse_value), strict=False)
        return core_schema.no_info_after_validator_function(self.pairs, table)


class PublicKey(FieldType):
    """A public key as a line, or a path or glob of .pub files, which loading reads."""

    pattern: ClassVar[str] = r"(((ssh|ecdsa|sk)-[^ ]+ [A-Za-z0-9+/=]+( .*)?)|(.+\.pub))"
    form = 'a line such as "ssh-ed25519 AAAA... name", or a path or glob such as "~/.ssh/*.pub"'

    def parse(self, value: object) -> str:
        entry = text(value, self.form, longest=2**14)
        first = entry.split(" ", 1)[0]
        if first in KEY_TYPES:
            return parse_key_line(entry)
        if any(f" {known} " in entry for known in KEY_TYPES):
            raise Invalid("holds options or other words before the key", "only the type, the key and a comment")
        if "PRIVATE KEY" in entry:
            raise Invalid("is a private key", self.form)
        if not entry.endswith(".pub"):
            raise Invalid("is neither a public key nor a path of .pub files", self.form)
        return path_text(entry, self.form)


def parse_key_line(line: str) -> str:
    """A public key as `TYPE BASE64[ COMMENT]`, checked down to the fields inside. Never quotes the line."""
    hint = f"TYPE BASE64 COMMENT, the type one of {', '.join(KEY_TYPES)}"
    kind, _, rest = text(line, hint, longest=2**14).strip().partition(" ")
    blob, _, comment = rest.strip().partition(" ")
    if kind not in KEY_TYPES:
        raise Invalid("is not a public key", hint)
    try:
        fields = key_fields(binascii.a2b_base64(blob.encode("ascii"), strict_mode=True))
    except ValueError:  # the encoding, or the encoded key, is wrong
        raise Invalid("is a damaged public key", "copy the whole line of the .pub file") from None
    if fields[0] != kind.encode() or (kind == "ssh-ed25519" and [len(field) for field in fields[1:]] != [32]):
        raise Invalid("is a damaged public key", f"the encoded key is not of type {kind}")
    return f"{kind} {blob} {comment.strip()}".rstrip()


def key_fields(blob: bytes) -> list[bytes]:
    """The length-prefixed strings that a public key is made of. Raises ValueError when they do not fit."""
    fields = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length:
            raise ValueError("truncated")
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    if len(fields) < 2:
        raise ValueError("too few fields")
    return fields
