"""The addresses of a cluster's members: whoever cannot be reached by the one of the user's remote is asked by another.

Each is a directory that the `incus` client takes for its configuration. It tells the remote with that address; in place
of certificates it has links, which lead to the user's own by a descriptor that the client inherits. So it holds nothing
of anybody's and serves all users, and the trust is theirs: the members of a cluster share the certificate that stands
in a user's servercerts/. That one alone counts there, since addresses are a server's word: the client itself would also
take what an authority vouches for by the address' name.

Nothing is asked twice that may have been done: another address is taken where nobody has let the client connect, or has
not shown the right certificate, before which nothing is said.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from hutch import engines
from hutch.files import entries, read_or_none, remove_flat, write_atomic
from hutch.run import CommandFailed, Completed, NotConnected, NotStarted
from hutch.state import make_directory

if TYPE_CHECKING:
    from hutch.engines.incus.server import Server

Results = list[Completed | CommandFailed]

MOST = 8
"""The addresses that are kept of a cluster: fewer than ten, so that their names are in order."""
CONNECT_SECONDS = 1.2
"""The time for a connection to be made: TCP asks a second time after one second. The client itself would try for 20."""
LEAST_SECONDS = 1.3
"""The time that a question has by another address, however long the one before has taken: more than for a connection,
so that it is known why there is no answer."""
URL = re.compile(r"https://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}", re.ASCII)
UNREACHED = re.compile(
    rb'^Error: .*": (Unable to connect to|lookup |(tls: failed to verify certificate: )?x509: )', re.MULTILINE
)
"""The client's words where a connection could not be made, or was made to a stranger: so nothing was asked."""
NOTHING = b"Error: EOF"
"""The client's words for an answer that is an empty text."""
CONFIG = "config.yml"
DESCRIPTOR = 9
"""The descriptor of the user's own configuration, as every shell can open one."""
LINKS = ("client.crt", "client.key", "clientcerts", "oidctokens", "servercerts")
"""The names of the links. The client would take a link that leads nowhere for a file: so a client.ca, which hardly
anybody has, is not among them."""
OPEN = f'exec {DESCRIPTOR}<"$0" && exec "$@"'
NO_AUTHORITY = {"SSL_CERT_FILE": "/dev/null", "SSL_CERT_DIR": "/dev/null"}


class _Known:
    """The way by which a cluster has answered this process last, and those that its user was told of."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.way: Path | None = None
        self.told: set[Path] = set()


@cache
def _known(directory: Path) -> _Known:
    return _Known()


class Route:
    """The way of one client to its server: by the user's own remote, where `way` is None, or by one of the others in
    `directory`. What a client of this process has found holds for the next ones."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self.way = _known(directory).way if directory is not None else None

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """The words before a command of the client, which has these variables and no others."""
        opening = []
        if self.way is not None:
            opening = ["sh", "-c", OPEN, variables["INCUS_CONF"]]
            variables = {**variables, "INCUS_CONF": str(self.way), **NO_AUTHORITY}
        return [*opening, "env", "-i", *(f"{name}={value}" for name, value in variables.items())]

    def ask(
        self,
        exchange: Callable[..., Results],
        render: Callable[[], Sequence[Sequence[str]]],
        *,
        seconds: float,
        may_be_killed: bool,
        **options: float,
    ) -> Results:
        """The results of commands, by the first way by which the server is reached; those of the first one that was
        tried where it is by none. `render` gives the commands for the present way. Only questions `may_be_killed` while
        they wait for a connection: of a change, the last look could come too late. Takes little more than `seconds`."""
        ways = self._ways()
        tries = ways if len(ways) == 1 else [*ways, ways[0]]  # a connection may only be slow: the last one has its time
        failures: list[Results] = []
        began, left = time.monotonic(), seconds
        while len(failures) < len(tries) and left > 0:
            self.way = tries[len(failures)]
            is_bound = may_be_killed and len(failures) + 1 < len(tries)
            bound = {"connect": CONNECT_SECONDS} if is_bound else {}
            results = exchange(render(), timeout=max(LEAST_SECONDS, left) if failures else seconds, **bound, **options)
            left = seconds - (time.monotonic() - began)
            if not is_nobody(results):
                if any(map(is_heard, results)):
                    self._take()
                if slow := [number for number, each in enumerate(results) if isinstance(each, NotConnected)]:
                    commands = render()
                    again = exchange([commands[n] for n in slow], timeout=max(LEAST_SECONDS, left), **options)
                    results = [again.pop(0) if number in slow else each for number, each in enumerate(results)]
                return results
            failures.append(results)
        self._leave(tries[len(failures) % len(tries)])
        return failures[0]

    def _ways(self) -> list[Path | None]:
        """All ways, from the one that answered last on."""
        if self.directory is None:
            return [None]
        ways = [None, *sorted(path.parent for path in self.directory.glob(f"*/{CONFIG}"))]
        last = _known(self.directory).way
        at = ways.index(last) if last in ways else 0
        return ways[at:] + ways[:at]

    def _take(self) -> None:
        """Note that the server is reached by this way. The user is told once."""
        if self.directory is None:
            return
        known = _known(self.directory)
        with known.lock:
            known.way = self.way
            is_told = self.way is None or self.way in known.told
            if self.way is not None:
                known.told.add(self.way)
        if self.way is not None and not is_told:
            member = self.way.name.partition("-")[2]
            engines.listener(
                f"the address of the remote {self.directory.name} cannot be reached; "
                f"another member of its cluster is asked: {member}"
            )

    def _leave(self, following: Path | None) -> None:
        """Note that the server is reached by no way that was tried; the next question begins with `following`."""
        self.way = following
        if self.directory is not None:
            _known(self.directory).way = following


def is_unreached(result: Completed | CommandFailed) -> bool:
    """Whether a client has not got as far as to ask anything."""
    if isinstance(result, CommandFailed):
        return isinstance(result, NotConnected)
    return result.returncode != 0 and UNREACHED.search(result.stderr) is not None


def is_nobody(results: Results) -> bool:
    """Whether clients were started, and none of them has got as far as to ask anything."""
    started = [result for result in results if not isinstance(result, NotStarted)]
    return bool(started) and all(map(is_unreached, started))


def is_heard(result: Completed | CommandFailed) -> bool:
    """Whether a client has heard the server: it prints a refusal, too."""
    if isinstance(result, CommandFailed):
        return False
    return result.returncode == 0 or result.stderr.rstrip().endswith(NOTHING)


def choose(server: Server) -> dict[str, str]:
    """Pure: the members by whose addresses a cluster is asked where the member that answers now does not, name ->
    address. None where the user is known to it by something else than a certificate."""
    if server.method != "tls":
        return {}
    others = {each.name: each.url for each in server.members if each.name != server.name and URL.fullmatch(each.url)}
    return dict(list(others.items())[:MOST])


def remember(route: Route, server: Server) -> None:
    """Keep the addresses of a cluster for when the user's own remote is not answered. May be called again."""
    if route.directory is None or route.way is not None:
        return
    members = choose(server)
    wanted = {route.directory / f"{number}-{name}": url for number, (name, url) in enumerate(members.items(), 1)}
    for path in entries(route.directory):
        if path not in wanted:
            remove_flat(path)
    for path, url in wanted.items():
        make_directory(path)
        for link in LINKS:
            with suppress(FileExistsError):
                (path / link).symlink_to(f"/proc/self/fd/{DESCRIPTOR}/{link}")
        content = render_config(route.directory.name, url)
        if read_or_none(path / CONFIG) != content:
            write_atomic(path / CONFIG, content)


def render_config(remote: str, url: str) -> bytes:
    """Pure: the client's configuration, in YAML: JSON is that, too."""
    return json.dumps({"remotes": {remote: {"addr": url, "protocol": "incus", "public": False}}}).encode() + b"\n"
