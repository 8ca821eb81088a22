"""SSH trust: host keys made once, a known-hosts file of hutch's own, and the drop-in that wires both up."""

from __future__ import annotations

import base64
import os
import pwd
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hutch.errors import HutchError, explained
from hutch.files import open_regular, read_or_none, sync_directory, write_atomic
from hutch.frozen import dataclass
from hutch.host.doctor.tools import find_program
from hutch.run import run
from hutch.spec.names import Layout, hostname
from hutch.spec.sharing import RETIRED, is_group
from hutch.state import make_directory
from hutch.trees.removing import remove_tree

BEGIN, END = (b"-----%s OPENSSH PRIVATE KEY-----" % word for word in (b"BEGIN", b"END"))
LARGEST_KEY = 1 << 14  # bytes of a file
BLOB = 51  # bytes of an Ed25519 public key with its name
HELD = b"held"  # instead of a private key that cannot be read now
WORD = b"\0\0\0\4none"
PLAIN_KEY = b"openssh-key-v1\0" + 2 * WORD + b"\0\0\0\0" + b"\0\0\0\1" + BLOB.to_bytes(4)
"""The bytes before the public key in a private one that is not encrypted: no cipher, no key derivation, one key."""
SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
# An IdentityFile in a configuration replaces OpenSSH's own defaults, so they are named again after ours.
DEFAULT_IDENTITIES = ("id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa")
CONNECT_SECONDS = 10
DISTANT_CONNECT_SECONDS = 30  # through a server of others, whose member starts a program for each connection
SILENCE = (15, 8)  # ask a peer that says nothing after so many seconds, and give up after so many questions
TEST_SECONDS = 2
PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]+", re.ASCII)
UNQUOTABLE = frozenset("'\"\\!")
VSOCK_PROXY = "/usr/lib/systemd/systemd-ssh-proxy"  # from version 256 on


@dataclass(frozen=True)
class Peer:
    """A workspace as the ssh client sees it. `proxy` is the command that connects to it, "" to connect by TCP; `ip` is
    "" where this host has no route to it, and the proxy is the only way. `program` is what a proxy runs that hutch has
    to bring along, kept at Layout.ssh_proxy; b"" for one of the host's own."""

    name: str
    ip: str
    user: str
    host_key: str = ""
    proxy: str = ""
    program: bytes = b""

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which its host key is known."""
        return (hostname(self.name), self.ip) if self.ip else (hostname(self.name),)

    @property
    def seconds(self) -> int:
        """The time that a connection to it may take to be made."""
        return CONNECT_SECONDS if self.ip else DISTANT_CONNECT_SECONDS


def ensure_key(
    path: Path, comment: str, *, uid: int = 0, gid: int = 0, mode: int = 0o600, published: bool = False
) -> str:
    """Make an Ed25519 key pair unless there is one; returns the public key's line. The private key is `uid`'s alone,
    unless its `mode` says more.

    A damaged pair is made anew, unless it is `published`: who trusts it would refuse another one. The public half of a
    private key that is whole is written again.
    """
    public = path.with_name(path.name + ".pub")
    line = read_key(path)
    if not line:
        if whole := public_of(read_private(path)):
            write_atomic(public, f"{whole} {comment}\n".encode())
            return f"{whole} {comment}"
        if published:
            raise HutchError(
                f"{path} is not the key that the workspace is known by: it is damaged or gone",
                resolution=f"restore it and {public.name} from a backup; or, for a new identity, stop the workspace, "
                f"remove both files and its line in known_hosts, and run `hutch up`",
            )
        _make_pair(path, public, comment, (uid, gid, mode))
    return line or public.read_text(encoding="ascii").strip()


def public_of(private: bytes | None) -> str:
    """The public key, without a comment, in the text of an OpenSSH private one (PROTOCOL.key); "" for anything else."""
    try:
        content = base64.b64decode(b"".join((private or b"").strip().splitlines()[1:-1]), validate=True)
    except ValueError:
        return ""
    blob = content[len(PLAIN_KEY) : len(PLAIN_KEY) + BLOB]
    line = f"ssh-ed25519 {base64.b64encode(blob).decode()}"
    return line if content.startswith(PLAIN_KEY) and is_pair(private, line.encode()) else ""


def read_key(path: Path) -> str:
    """The public line of a key pair; "" unless both of its files are there and whole."""
    private, public = read_private(path), read_or_none(path.with_name(path.name + ".pub"))
    is_whole = bool(blob_of(public)) if private is HELD else is_pair(private, public)
    return public.decode("ascii").strip() if public and is_whole else ""


def read_private(path: Path) -> bytes | None:
    """A private key. It may be its holder's file: who makes it as large as a disk has none (b""), and what it holds is
    not waited for while they have a lease on it (HELD)."""
    try:
        with open(open_regular(path, follow=False), "rb") as file:
            content = file.read(LARGEST_KEY + 1)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return HELD
    return content if len(content) <= LARGEST_KEY else b""


def is_pair(private: bytes | None, public: bytes | None) -> bool:
    """Whether these are the files of one Ed25519 key. An OpenSSH private key holds the public one, not encrypted."""
    blob, lines = blob_of(public), (private or b"").strip().splitlines()
    if not blob or lines[:1] != [BEGIN] or lines[-1:] != [END]:
        return False
    try:
        return blob in base64.b64decode(b"".join(lines[1:-1]), validate=True)
    except ValueError:
        return False


def blob_of(public: bytes | None) -> bytes:
    """What a public Ed25519 key's line encodes; b"" for anything else."""
    words = (public or b"").split()
    try:
        blob = base64.b64decode(words[1], validate=True) if words[:1] == [b"ssh-ed25519"] and len(words) > 1 else b""
    except ValueError:
        return b""
    return blob if len(blob) == BLOB else b""


def _make_pair(path: Path, public: Path, comment: str, access: tuple[int, int, int]) -> None:
    """Make a pair, which appears whole or not at all, even if the power fails. `access` are the uid, the gid and the
    mode of the private key."""
    uid, gid, mode = access
    make_directory(path.parent, 0o700 if access == (0, 0, 0o600) else 0o755)
    temporary = path.with_name(f".{path.name}.new")
    temporary_public = temporary.with_name(temporary.name + ".pub")
    for leftover in (temporary, temporary_public):
        leftover.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(temporary)])
    os.chown(temporary, uid, gid)
    os.chmod(temporary, mode)
    for made in (temporary, temporary_public):
        with open(made, "rb") as file:
            os.fsync(file.fileno())
    os.rename(temporary_public, public)
    os.rename(temporary, path)
    sync_directory(path.parent)


def is_published(layout: Layout, name: str) -> bool:
    """Whether the known hosts tell of a workspace's host key."""
    return hostname(name) in published_names(layout)


def published_names(layout: Layout) -> set[str]:
    """The host names of the workspaces whose host keys the known hosts tell of."""
    known = (read_or_none(layout.known_hosts) or b"").splitlines()
    return {re.split(rb"[, ]", line, maxsplit=1)[0].decode("utf-8", "replace") for line in known if b" " in line}


def owner_of(uid: int) -> tuple[int, str]:
    """(primary group, name) of a host user; a uid without an account has a group of the same number."""
    try:
        entry = pwd.getpwuid(uid)
        return entry.pw_gid, entry.pw_name
    except KeyError:
        return uid, str(uid)


def render_known_hosts(peers: tuple[Peer, ...]) -> bytes:
    lines = [f"{','.join(peer.names)} {' '.join(peer.host_key.split()[:2])}\n" for peer in peers]
    return "".join(lines).encode()


def render_config(layout: Layout, peers: tuple[Peer, ...], keys: Mapping[str, Collection[str]]) -> bytes:
    """The drop-in. `keys` are holder -> the workspaces that the key opens: it is offered to no others, and only by who
    can read it."""
    lines = ["# Written by hutch, do not edit."]
    for peer in peers:
        lines += [
            f"Host {hostname(peer.name)}",
            f"    HostName {peer.ip or hostname(peer.name)}",
            f"    HostKeyAlias {hostname(peer.name)}",
            f"    User {peer.user}",
        ]
        if not peer.ip:
            lines += [f"    {key} {value}" for key, value in distant_options(peer).items()]
    if peers:
        hosts = ",".join(hostname(peer.name) for peer in peers)
        lines += [
            f"Match originalhost {hosts}",
            f'    UserKnownHostsFile "{layout.known_hosts}"',
            "    GlobalKnownHostsFile /dev/null",
            "    StrictHostKeyChecking yes",
            "    UpdateHostKeys no",
            "    CheckHostIP no",
            "    ForwardAgent no",
            "    ForwardX11 no",
            f"    ConnectTimeout {CONNECT_SECONDS}",
        ]
        for holder, opened in keys.items():
            path, theirs = layout.key(holder), [hostname(peer.name) for peer in peers if peer.name in opened]
            # A group's is root's file: root has a key of its own, and would be warned of the mode of this one.
            test = f"test -r '{path}'" + (f" -a ! -O '{path}'" if is_group(holder) else "")
            if theirs:
                lines += [f'Match originalhost {",".join(theirs)} exec "{test}"', f'    IdentityFile "{path}"']
        lines.append(f"Match originalhost {hosts}")
        lines += [f"    IdentityFile ~/.ssh/{name}" for name in DEFAULT_IDENTITIES]
    lines += ["Match all", ""]
    return "\n".join(lines).encode()


def answers(ip: str) -> bool:
    """Whether sshd answers at an address."""
    import socket  # a start does without

    try:
        socket.create_connection((ip, 22), TEST_SECONDS).close()
        return True
    except OSError:
        return False


def proxy_of(cid: str) -> str:
    """The command that connects to the sshd of a machine by vsock, with what this host has; "" to connect by TCP."""
    return choose_proxy(cid, [name for name in (VSOCK_PROXY, "socat") if find_program(name) is not None])


def choose_proxy(cid: str, programs: Collection[str]) -> str:
    """The command that connects to a machine's sshd by vsock, which does not need the machine's network. `cid` is ""
    for what has no vsock, and `programs` are the paths and names of what this host has; "" to connect by TCP."""
    if not cid:
        return ""
    if VSOCK_PROXY in programs:
        return f"{VSOCK_PROXY} vsock/{cid} 22"
    return f"socat - VSOCK-CONNECT:{cid}:22" if "socat" in programs else ""


def proxy_options(proxy: str) -> dict[str, str]:
    """Options for a proxy: systemd's program hands the socket over and is gone; the other one carries the bytes."""
    if not proxy:
        return {}
    return {"ProxyCommand": proxy, "ProxyUseFdpass": "yes" if proxy.startswith(VSOCK_PROXY) else "no"}


def distant_options(peer: Peer) -> dict[str, str]:
    """Options for a peer that the proxy alone reaches. A connection that is dead on its way ends."""
    interval, questions = SILENCE
    alive = {"ServerAliveInterval": str(interval), "ServerAliveCountMax": str(questions)}
    return {**proxy_options(peer.proxy), "ConnectTimeout": str(peer.seconds), **alive}


def render_proxy(words: Sequence[str]) -> str:
    """A command for ProxyCommand: ssh expands the percent signs in it, and the shell of whoever runs ssh reads it.

    HutchError for a word with a character that shells, or versions of ssh, read in ways of their own.
    """
    for word in words:
        if not word.isprintable() or UNQUOTABLE & set(word):
            raise HutchError(
                f"ssh cannot be told of {word!a}",
                resolution=f"a path without control characters, and without any of {' '.join(sorted(UNQUOTABLE))}",
            )
    return " ".join(word if PLAIN.fullmatch(word) else f"'{word}'" for word in words).replace("%", "%%")


def render_own_argv(
    layout: Layout, peer: Peer, command: str, *, terminal: bool, control: str, is_first: bool
) -> list[str]:
    """An ssh of a user other than root, by the user's own configuration and the drop-in. There is no terminal to ask
    for a passphrase on. One that shares a connection makes none, and so reads neither: each key in the drop-in costs a
    shell."""
    options = {"RemoteCommand": "none", **_session_options(terminal=terminal, control=control, is_first=is_first)}
    alone = ["-F", "none", "-o", "ProxyCommand=false"] if control and not is_first else []
    return ["ssh", *alone, *_words(options), "--", hostname(peer.name), command]


def _words(options: Mapping[str, str]) -> list[str]:
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def _session_options(*, terminal: bool, control: str, is_first: bool) -> dict[str, str]:
    """Options of a session: nothing of the caller's goes along, and ssh asks and says nothing by itself."""
    return {
        "BatchMode": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "EscapeChar": "none",
        "LogLevel": "ERROR",
        "ControlMaster": "yes" if control and is_first else "no",
        "ControlPath": control or "none",
        "ControlPersist": "no",
        "RequestTTY": "force" if terminal else "no",
    }


def render_argv(layout: Layout, peer: Peer, command: str, *, terminal: bool, control: str, is_first: bool) -> list[str]:
    """An ssh of hutch's own, with hutch's own key: nobody's configuration, and nothing of the caller's goes along.

    `control` is the socket by which a second session shares the connection of the first, "" for one of its own.
    """
    interval, questions = SILENCE
    options = {
        "HostName": peer.ip or hostname(peer.name),
        "HostKeyAlias": hostname(peer.name),
        "User": peer.user,
        **proxy_options(peer.proxy),
        "IdentityFile": str(layout.key(0)),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "UserKnownHostsFile": str(layout.known_hosts),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "CheckHostIP": "no",
        "Tunnel": "no",
        "ConnectTimeout": str(peer.seconds),
        "ServerAliveInterval": str(interval),
        "ServerAliveCountMax": str(questions),
        **_session_options(terminal=terminal, control=control, is_first=is_first),
    }
    # Where it is there, it is tried where the first one is refused.
    retired = _words({"IdentityFile": str(layout.key(RETIRED))})
    return ["ssh", "-F", "none", *_words(options), *retired, "--", hostname(peer.name), command]


def ensure_trust(layout: Layout, peers: tuple[Peer, ...], keys: Mapping[str, Collection[str]]) -> None:
    """Write known hosts, drop-in and the program of its proxies as wanted; without peers, remove them."""
    if not peers:
        remove_trust(layout)
        return
    if not any(peer.program for peer in peers):
        _remove_proxy(layout)
    for path, content in missing_trust(layout, peers, keys).items():
        with explained(f"{path} cannot be written"):
            make_directory(path.parent)
            write_atomic(path, content)


def missing_trust(layout: Layout, peers: tuple[Peer, ...], keys: Mapping[str, Collection[str]]) -> dict[Path, bytes]:
    """The known hosts, the drop-in and the program of its proxies, path -> content, as far as the files differ from
    that."""
    wanted = {layout.known_hosts: render_known_hosts(peers), layout.ssh_config: render_config(layout, peers, keys)}
    if program := next((peer.program for peer in peers if peer.program), b""):
        wanted[layout.ssh_proxy] = program
    return {path: content for path, content in wanted.items() if read_or_none(path) != content}


def remove_trust(layout: Layout) -> None:
    layout.known_hosts.unlink(missing_ok=True)
    layout.ssh_config.unlink(missing_ok=True)
    _remove_proxy(layout)


def _remove_proxy(layout: Layout) -> None:
    """Remove the program, and the addresses that it goes by."""
    layout.ssh_proxy.unlink(missing_ok=True)
    remove_tree(layout.addresses)


def check_include() -> str:
    """A warning when the system's ssh configuration does not read drop-ins; "" when it does."""
    text = (read_or_none(SYSTEM_CONFIG) or b"").decode("utf-8", "replace")
    reads = any(
        line.lower().split()[:1] == ["include"]
        and any(word.strip('"').startswith(("/etc/ssh/ssh_config.d/", "ssh_config.d/")) for word in line.split()[1:])
        for line in text.splitlines()
    )
    if reads:
        return ""
    return (
        f"{SYSTEM_CONFIG} does not include /etc/ssh/ssh_config.d/*.conf, so plain `ssh workspace-NAME` does not know "
        'the workspaces: put "Include /etc/ssh/ssh_config.d/*.conf" at its top'
    )
