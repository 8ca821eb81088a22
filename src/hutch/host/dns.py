"""Two dnsmasq: one in the router namespace answers workspaces; one on the host's end of the uplink asks for them.

The second reads the host's /etc/resolv.conf and follows its changes, so VPN, split DNS and a stub resolver on
the loopback address work. Neither answers from /etc/hosts: the host's names are not the workspaces' business.
"""

from __future__ import annotations

import os
import pwd
import shlex
from contextlib import closing
from pathlib import Path

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.cgroup import Cgroup
from hutch.host.process import start_time, terminate
from hutch.run import run
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Places
from hutch.state import make_directory


@dataclass(frozen=True)
class Resolver:
    """One dnsmasq: its pid file names it, `namespace` is where it runs ("" for the host's own), `serves` is said to
    people."""

    pid_file: str
    namespace: str
    argv: tuple[str, ...]
    serves: str = ""


def wanted_resolvers(places: Places, network: Network, user: str) -> tuple[Resolver, ...]:
    """The two, as argument lists."""
    host_end, _ = names.uplink_addresses(network.uplink)
    common = (
        *("dnsmasq", "--conf-file=/dev/null", "--no-hosts", "--bind-interfaces", "--except-interface=lo"),
        *(f"--user={user}", "--filter-AAAA", "--dns-forward-max=1000"),
    )
    host_pid, router_pid = str(places.dns / "host.pid"), str(places.dns / "router.pid")
    return (
        Resolver(
            host_pid,
            "",
            (
                *common,
                f"--listen-address={host_end}",
                "--resolv-file=/etc/resolv.conf",
                "--cache-size=0",
                f"--pid-file={host_pid}",
            ),
            "the router",
        ),
        Resolver(
            router_pid,
            str(places.namespace_path),
            (
                *common,
                f"--listen-address={names.gateway(network.subnet)}",
                "--no-resolv",
                f"--server={host_end}",
                "--domain-needed",
                "--bogus-priv",
                f"--pid-file={router_pid}",
            ),
            "the workspaces",
        ),
    )


def observe_resolver(resolver: Resolver) -> int | None:
    """The pid of that very dnsmasq, None when it does not run. A pid file alone proves nothing; its arguments do, and
    where it runs: its namespace may have been made anew."""
    try:
        with open(resolver.pid_file, encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            found = tuple(file.read().decode("utf-8", "replace").split("\0")[:-1])
        is_there = os.path.samefile(f"/proc/{pid}/ns/net", resolver.namespace or "/proc/self/ns/net")
    except (OSError, ValueError):
        return None
    return pid if found == resolver.argv and is_there else None


def missing_resolvers(places: Places, network: Network) -> tuple[Resolver, ...]:
    """Whichever of the two does not run as wanted."""
    wanted = wanted_resolvers(places, network, service_user())
    return tuple(resolver for resolver in wanted if observe_resolver(resolver) is None)


def service_user() -> str:
    """dnsmasq's own account where the distribution has one."""
    try:
        pwd.getpwnam("dnsmasq")
        return "dnsmasq"
    except KeyError:
        return "nobody"


def ensure_resolvers(places: Places, network: Network) -> None:
    """Start whichever of the two does not run as wanted."""
    for resolver in missing_resolvers(places, network):
        _stop(places, resolver.pid_file)
        make_directory(places.dns)
        enter = ("nsenter", f"--net={resolver.namespace}", "--") if resolver.namespace else ()
        run([*enter, *resolver.argv])  # it goes into the background once it listens
        pid = observe_resolver(resolver)
        if pid is None:
            raise HutchError(
                "a resolver of the workspaces does not run although it was started",
                resolution=f"to replay it: {shlex.join((*enter, *resolver.argv, '--no-daemon'))}",
            )
        _move(places, pid)


def _move(places: Places, pid: int) -> None:
    """Out of the session that happened to start it."""
    cgroup = Cgroup(places.dns_cgroup)
    try:
        cgroup.make()
        cgroup.join("", pid)
    except OSError:
        pass  # it has just ended; the next `up` starts it again
    finally:
        cgroup.close()


def remove_resolvers(places: Places) -> None:
    """Stop both and remove their files."""
    for name in ("host.pid", "router.pid"):
        _stop(places, str(places.dns / name))
    cgroup = Cgroup(places.dns_cgroup)
    cgroup.kill()
    cgroup.remove()
    cgroup.close()
    for directory in (places.dns, places.run):
        try:
            directory.rmdir()
        except OSError:
            return


def _stop(places: Places, pid_file: str) -> None:
    """Stop the dnsmasq that wrote this pid file, whatever its other arguments were, and whatever became of the file."""
    with closing(Cgroup(places.dns_cgroup)) as cgroup:
        candidates = cgroup.processes()
    try:
        candidates.append(int(Path(pid_file).read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    for pid in dict.fromkeys(candidates):
        started = start_time(pid)
        if started is not None and _has_written(pid, pid_file):
            terminate(pid, started, patience=5)
    Path(pid_file).unlink(missing_ok=True)


def _has_written(pid: int, pid_file: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return f"--pid-file={pid_file}".encode() in file.read().split(b"\0")
    except OSError:
        return False
