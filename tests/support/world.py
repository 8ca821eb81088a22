"""A small world for a host under test: an internet, a LAN, resolvers, a private /etc and /run, accounts.

The host under test is this process's own network, mount and pid namespace, which `script/test` made; nothing
here touches the machine outside of them, apart from one directory under /var/tmp that `close` removes. This
module knows nothing of hutch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import world_files
from tests.support.enclosure import OUTER_NETWORK
from tests.support.world_zone import ZoneFile

HERE = Path(__file__).parent

HOST = "198.51.100.2"  # the host under test, on the internet's side
HOST_EXTRA = "203.0.113.77"  # an address that the host may take while workspaces run
HOST6 = "2001:db8:51::2"
HOST_LAN = "192.168.77.1"
HOST_PORT = 8000  # of a service on every address of the host

ROUTER = "198.51.100.1"
ROUTER6 = "2001:db8:51::1"
PUBLIC = "203.0.113.10"
PUBLIC_NAME = "public.example"
METADATA = "169.254.169.254"
CGNAT = "100.64.0.1"
BENCHMARK = "198.18.0.1"
RESOLVERS = ("10.53.0.1", "10.53.0.2")
SECOND_NAME = "second.example"  # only the second resolver knows it
RELAYS = "203.0.113.{}"  # mirrors get addresses from .100 on

# A public network where each address says which one it is, and keeps connections open on ECHO_PORT.
FAR_NETWORK = "203.0.113.128/25"
FAR = tuple(f"203.0.113.{number}" for number in range(129, 250))
FAR_PORTS = (8001, 8002)
FAR_UDP = 7001  # only the first few of them
ECHO_PORT = 8007
ZONE_RESOLVER = "10.53.0.3"  # knows what tests tell it, see `World.zone`
ZONE_PUBLIC = "203.0.113.53"  # the same server at an address that workspaces could reach

LAN = "192.168.77.2"


class WorldError(Exception):
    """The world cannot be built here; the message says what to run instead."""


def call(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 20.0) -> str:
    """Run a command of the test's own and return what it printed."""
    result = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout)
    if result.returncode != 0:
        raise WorldError(f"{' '.join(argv)}: code {result.returncode}: {result.stderr.strip()}")
    return result.stdout


@dataclass
class World:
    """What tests may use of the world. Made by `build`, ended by `close`."""

    directory: Path
    accounts: Mapping[str, world_files.Account]
    zone: ZoneFile
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def build(cls, *, with_mirrors: bool) -> World:
        """Build everything, with a way to this machine's package mirrors or without. Only inside namespaces that are
        not the machine's own."""
        outer = outer_network()
        mirrors = resolve_mirrors(outer) if with_mirrors else {}
        world_files.ensure_private_directories()
        world = cls._build(outer, mirrors)
        world.use_resolver(RESOLVERS[0])
        return world

    @classmethod
    def build_around_a_host(cls) -> World:
        """The same around a whole machine, which is there for the tests only: its /etc and /run are its own, what it
        asks for names is its own business, and no mirror is within reach."""
        return cls._build(-1, {})

    @classmethod
    def _build(cls, outer: int, mirrors: Mapping[str, str]) -> World:
        directory = Path(tempfile.mkdtemp(prefix="hutch-test-", dir="/var/tmp"))
        directory.chmod(0o755)
        world = cls(directory, world_files.ensure_accounts(directory), ZoneFile(directory))
        try:
            world._build_networks()
            world._start_services(outer, mirrors)
        except BaseException:
            world.close()
            raise
        return world

    def close(self) -> None:
        """End the services and remove the directory; the rest goes with the namespaces."""
        for process in self._processes:
            process.kill()
            process.wait(10)
        world_files.remove_directory(self.directory)

    # What tests change while they run.

    def use_resolver(self, address: str) -> None:
        """Point the host at a resolver the way DHCP clients do: a new file in the place of the old one."""
        new = Path("/etc/resolv.conf.new")
        new.write_text(f"# the resolver of this network\nnameserver {address}\n")
        new.replace("/etc/resolv.conf")

    @contextmanager
    def serving(self, *services: str) -> Iterator[None]:
        """More servers on the internet for a while; `world_services` says how they are written."""
        self._serve("internet", services)
        process = self._processes[-1]
        try:
            yield
        finally:
            process.kill()
            process.wait(10)

    def inside(self, place: str, *argv: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run a command on another machine of the world: "internet" or "lan"."""
        command = ["ip", "netns", "exec", place, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)

    # How it is made.

    def _build_networks(self) -> None:
        script = f"""
            link set lo up
            netns add internet
            netns add lan
            link add eth0 type veth peer name host netns internet
            link add eth1 type veth peer name host netns lan
            address add {HOST}/24 dev eth0
            address add {HOST6}/64 dev eth0 nodad
            address add {HOST_LAN}/24 dev eth1
            link set eth0 up
            link set eth1 up
        """
        call(["ip", "-batch", "-"], stdin=script)
        public = [PUBLIC, METADATA, CGNAT, BENCHMARK, *RESOLVERS, ZONE_RESOLVER, ZONE_PUBLIC]
        public += [RELAYS.format(n) for n in range(100, 120)]
        # The internet and the LAN both know a way to the workspaces' addresses, as a neighbour who tries would.
        script = f"""
            link set lo up
            address add {ROUTER}/24 dev host
            address add {ROUTER6}/64 dev host nodad
            link set host up
            route add {HOST_EXTRA}/32 via {HOST}
            route add 192.168.0.0/16 via {HOST}
            route add local {FAR_NETWORK} dev lo
        """ + "".join(f"address add {address}/32 dev lo\n" for address in public)
        call(["ip", "-n", "internet", "-batch", "-"], stdin=script)
        script = f"""
            link set lo up
            address add {LAN}/24 dev host
            link set host up
            route add default via {HOST_LAN}
        """
        call(["ip", "-n", "lan", "-batch", "-"], stdin=script)
        call(["ip", "-batch", "-"], stdin=f"route add default via {ROUTER}\nroute add default via {ROUTER6}\n")

    def _start_services(self, outer: int, mirrors: Mapping[str, str]) -> None:
        relays = {name: RELAYS.format(100 + index) for index, name in enumerate(sorted(mirrors))}
        self._start_dns("internet", {PUBLIC_NAME: PUBLIC, **relays})
        internet = [f"tcp:{PUBLIC}:80:internet", f"udp:{PUBLIC}:7000:internet"]
        internet += [f"tcp:{METADATA}:80:metadata", f"tcp:{CGNAT}:80:cgnat", f"tcp:{BENCHMARK}:80:benchmark"]
        internet += [f"tcp6:{ROUTER6}:80:internet6"]
        internet += [f"tcp:0.0.0.0:{port}:@" for port in FAR_PORTS] + [f"echo:0.0.0.0:{ECHO_PORT}:@"]
        internet += [f"udp:{address}:{FAR_UDP}:@" for address in FAR[:4]]
        self._serve("internet", internet)
        server = [sys.executable, str(HERE / "world_dns.py"), str(self.zone.path), str(self.zone.log)]
        self._start(["ip", "netns", "exec", "internet", *server, ZONE_RESOLVER, ZONE_PUBLIC])
        self._serve("lan", [f"tcp:{LAN}:80:lan", f"udp:{LAN}:7000:lan"])
        self._serve(
            None, [f"tcp:0.0.0.0:{HOST_PORT}:host", f"udp:0.0.0.0:{HOST_PORT}:host", f"tcp6::::{HOST_PORT}:host6"]
        )
        if mirrors:
            routes = [f"{relays[name]}:{port}={mirrors[name]}:{port}" for name in mirrors for port in (80, 443)]
            relay = [sys.executable, str(HERE / "world_relay.py"), str(outer), *routes]
            self._start(["ip", "netns", "exec", "internet", *relay], pass_fds=(outer,))

    def _serve(self, place: str | None, services: Iterable[str]) -> None:
        prefix = ["ip", "netns", "exec", place] if place else []
        self._start([*prefix, sys.executable, str(HERE / "world_services.py"), *services])

    def _start(self, argv: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        """Start a helper of ours; it prints "ready" once all of its sockets listen."""
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds, cwd="/"
        )
        self._processes.append(process)
        assert process.stdout is not None
        with process.stdout:
            said = process.stdout.readline()
        if said != "ready\n":
            raise WorldError(f"{' '.join(argv)}: did not become ready")

    def _start_dns(self, place: str, names: Mapping[str, str]) -> None:
        for resolver in RESOLVERS:
            known = dict(names)
            if resolver != RESOLVERS[0]:
                known[SECOND_NAME] = PUBLIC
            # One that goes to the background itself returns when its sockets listen: nothing to poll.
            pid_file = self.directory / f"dns-{resolver}.pid"
            command = [
                "dnsmasq",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
                "--user=root",
            ]
            command += [f"--listen-address={resolver}", "--except-interface=lo", f"--pid-file={pid_file}"]
            command += ["--local-ttl=1", *(f"--address=/{name}/{address}" for name, address in known.items())]
            call(["ip", "netns", "exec", place, *command])


def outer_network() -> int:
    """A descriptor of the machine's own network namespace; refuses to go on when that is where we are."""
    path = os.environ.get(OUTER_NETWORK)
    if not path:
        raise WorldError(f"{OUTER_NETWORK} is not set: these tests run by script/test, in namespaces of their own")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(descriptor).st_ino == os.stat("/proc/self/ns/net").st_ino:
        raise WorldError("these tests run by script/test, in namespaces of their own")
    return descriptor


def resolve_mirrors(outer: int) -> dict[str, str]:
    """Addresses of the package mirrors that this machine uses: images are built from them, through a relay."""
    found = {}
    for name in sorted(world_files.mirror_names()):
        command = ["nsenter", f"--net=/proc/self/fd/{outer}", "getent", "ahostsv4", name]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, pass_fds=(outer,))
        if result.stdout:
            found[name] = result.stdout.split()[0]
    return found
