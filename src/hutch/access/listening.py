"""The TCP ports that listen inside a workspace: the program that tells them, and what is made of its answers. Computes;
starts nothing.

The program answers each line that it reads, so it lasts no longer than who asks. An answer is the guest's word: what
is no port or no address in it is dropped, what is left has bounds, and can be printed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from hutch.access.remote_script import SEARCH_PATH, encode
from hutch.frozen import dataclass
from hutch.texts import printable

HOST_NAME = "host.internal"
"""The name inside by which a port of the host is reached: sshd listens for it on the guest's own loopback address."""
LOOPBACK = "127.0.0.1"
PRIVILEGED = (
    1024  # ports below are root's: inside they are not the login user's, and here nobody expects a guest at one
)
SSH_PORT = 22
MOST_LISTENERS = 1000
MOST_FORWARDS = 64  # at a time, of those that nobody named
AT_ONCE = 8  # that begin or end at one look, however fast a guest changes its mind

# /proc/net is read rather than ss asked, since not every image has ss. Which process holds a socket is root's to see.
PROGRAM = """
PATH={path}
LC_ALL=C
exec 2>/dev/null
{before}
printf '%s:start;' {nonce}
while IFS= read -r _; do
  grep -hE '^ *[0-9]+: [0-9A-F]+:[0-9A-F]+ 0+:0000 0A ' /proc/net/tcp /proc/net/tcp6
  {then}
  echo {nonce}
done
"""
TELL_PROGRAMS = "ls -ln /proc/[0-9]*/fd | grep -E '^/proc/|socket:'; grep -H . /proc/[0-9]*/comm"
# The name stays in a root that stays; it leads to the guest's own loopback address, and nowhere else.
NAME_HOST = r"""
named() { grep -qE '^127\.0\.0\.1[[:space:]](.*[[:space:]])?host\.internal([[:space:]]|$)' /etc/hosts; }
known() { grep -qE '^[^#]*[[:space:]]host\.internal([[:space:]]|$)' /etc/hosts; }
known || doas -n -- /bin/sh -c 'printf "\n127.0.0.1 host.internal\n" >>/etc/hosts' </dev/null
"""


@dataclass(frozen=True)
class Listener:
    """A TCP port that listens in a workspace; `program` is the name of who listens, as the guest tells it."""

    port: int
    address: str
    program: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"address": self.address, "port": self.port, "program": self.program}


@dataclass(frozen=True)
class Forward:
    """A way to a port inside from one of this host's loopback; with `is_reverse`, to that from the port inside."""

    port: int
    host_port: int
    target: str = "localhost"
    is_reverse: bool = False

    def words(self) -> tuple[str, str]:
        """The option by which ssh is told. No address but the loopback's listens, whatever ssh is configured to do."""
        if self.is_reverse:
            return "-R", f"{LOOPBACK}:{self.port}:{LOOPBACK}:{self.host_port}"
        return "-L", f"{LOOPBACK}:{self.host_port}:{self.target}:{self.port}"


@dataclass(frozen=True)
class ForwardEvent:
    """What became of a port: it is reachable now ("open") or no longer ("closed"), or no port of this host could be had
    for it ("left"). Without a port: more listen than are forwarded ("crowded"), or HOST_NAME leads elsewhere inside
    ("unnamed")."""

    event: Literal["open", "closed", "left", "crowded", "unnamed"]
    forward: Forward | None = None


def render_program(nonce: str, *, tells_programs: bool = False, names_host: bool = False) -> bytes:
    """The program, as READ_PROGRAM reads it. With `names_host`, it has HOST_NAME known inside, and says so by the word
    "named"."""
    before = f"{NAME_HOST}named && printf '%s:named;' {nonce}" if names_host else ""
    then = TELL_PROGRAMS if tells_programs else ""
    return encode(PROGRAM.format(path=SEARCH_PATH, nonce=nonce, before=before, then=then))


def parse_listeners(said: str) -> tuple[Listener, ...]:
    """The listeners of an answer, by port."""
    sockets: dict[tuple[int, str], str] = {}
    holders: dict[str, int] = {}
    names: dict[int, str] = {}
    pid = 0
    for line in said.splitlines():
        if head := re.fullmatch(r"/proc/([0-9]{1,9})/fd:", line, re.ASCII):
            pid = int(head[1])
        elif named := re.fullmatch(r"/proc/([0-9]{1,9})/comm:(.{1,60})", line, re.ASCII):
            names.setdefault(int(named[1]), printable(named[2]))
        elif held := re.search(r"-> socket:\[([0-9]{1,20})\]$", line, re.ASCII):
            holders[held[1]] = min(pid, holders.get(held[1], pid))  # the first of those that share it
        elif (found := _socket(line)) is not None and len(sockets) < MOST_LISTENERS:
            sockets.setdefault(*found)
    return tuple(
        Listener(port, address, names.get(holders.get(inode, 0))) for (port, address), inode in sorted(sockets.items())
    )


def _socket(line: str) -> tuple[tuple[int, str], str] | None:
    """((port, address), inode) of a line of /proc/net/tcp or tcp6; None for any other."""
    words = line.split()
    match = re.fullmatch(r"([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})", words[1], re.ASCII) if len(words) > 9 else None
    if match is None or int(match[2], 16) == 0:
        return None
    # Words of four bytes, each as the processor has it; nothing that hutch runs on begins with the greatest one.
    data = bytes.fromhex(match[1])
    address = ipaddress.ip_address(b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4)))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (int(match[2], 16), str(mapped or address)), words[9]


def targets(listeners: Sequence[Listener]) -> dict[int, str]:
    """The ports that can be reached from inside, and the host to name there. Those on the further loopback addresses
    are the guest's own affair (resolved's, for one), and ssh is how all this goes."""
    found: dict[int, str] = {}
    for listener in listeners:
        address = ipaddress.ip_address(listener.address)
        if listener.port == SSH_PORT:
            continue
        if address.is_unspecified or listener.address in (LOOPBACK, "::1"):
            found[listener.port] = "localhost"
        elif not address.is_loopback and not address.is_link_local:
            found.setdefault(listener.port, f"[{address}]" if address.version == 6 else str(address))
    return found


def choose(found: Mapping[int, str], have: Collection[int], left: Collection[int]) -> tuple[list[int], list[int], bool]:
    """(the ports to forward from now on, those to forward no longer, whether there is no place for others). `left` are
    those that are not to be tried."""
    end = [port for port in sorted(have) if port not in found][:AT_ONCE]
    wanted = [port for port in sorted(found) if port not in have and port not in left]
    places = max(0, MOST_FORWARDS - len(have) + len(end))
    return wanted[: min(AT_ONCE, places)], end, len(wanted) > places
