"""A cluster of three Incus servers for tests: machines m1, m2 and m3 on a network between the internet of the tests'
world and the host under test, which has an `incus` remote for them.

Each machine is an incusd in network, mount, process and cgroup namespaces of its own, and its containers are real
ones. It can lose power (`kill`) or its cable (`cut`), and come back. All that runs in it is in its cgroup, by which it
ends; this module waits for events of cgroups, for `incusd waitready`, and for what the cluster says of its members.
"""

from __future__ import annotations

import glob
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.world import World, WorldError, call
from tests.support.world_files import Account, remove_directory

MEMBERS = ("m1", "m2", "m3")
REMOTE = "lab"
NETWORK = "10.99.0.0/24"
ADDRESS = {member: f"10.99.0.{number}" for number, member in enumerate(MEMBERS, 1)}
INTERNET, HOST = "10.99.0.254", "10.99.0.250"  # the world's internet, and the host under test, on that network
HOST_LINK = "incus0"
PORT = 8443
POOL = "default"
ASK_AGAIN = 0.1  # seconds between two questions to the cluster
PATIENCE = 90.0  # seconds; a member that comes back waits for the others' next heartbeat, 10 s

NEEDED = ("incus", "dnsmasq", "unsquashfs", "setfattr", "newuidmap")

# A member's boot, in three steps, each of which gets the next and then the command. The first joins the member's
# cgroup, $1, to be the root of what the member sees. `ip netns exec` has given a new /sys, which hides the cgroups. LXC
# makes those of containers beside that of process 1, if it is called as with systemd: a cgroup with processes hands no
# controllers down. A shell stays process 1, because it must reap what others leave.
BOOT = (
    'echo 0 >"$1/cgroup.procs"; shift; exec unshare --cgroup -- sh -euc "$@"',
    """
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir /sys/fs/cgroup/init.scope
    echo 0 >/sys/fs/cgroup/init.scope/cgroup.procs
    exec unshare --pid --fork --kill-child --mount-proc -- sh -euc "$0" sh "$@"
    """,
    '"$@"; exit $?',
)


def find_server() -> str | None:
    """The server's program, where all is there that the cluster needs."""
    found = sorted(glob.glob("/usr/lib*/incus/incusd"))
    return found[0] if found and all(map(shutil.which, NEEDED)) else None


@dataclass
class Cluster:
    """The running cluster. Made by `start_cluster`, which also ends it."""

    world: World
    server: str
    accounts: set[str] = field(default_factory=set)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _cut: set[str] = field(default_factory=set)

    @property
    def directory(self) -> Path:
        return self.world.directory / "incus"

    @property
    def _groups(self) -> Path:
        """The cgroup of all members. Its name tells whose it is, should something stay of it."""
        return self.directory / "cgroup" / f"{self.world.directory.name}-incus"

    def home(self, member: str) -> Path:
        return self.directory / member

    # What tests ask.

    def incus(self, *words: str, member: str = "m1", stdin: str = "", timeout: float = 60.0) -> str:
        """Run the client on a member, as its root."""
        return self._run("incus", *words, member=member, stdin=stdin, timeout=timeout)

    def ask(self, path: str, member: str = "m1") -> Any:
        """The metadata of an answer of the API, such as "/1.0/instances?recursion=1&project=x"."""
        return json.loads(self.incus("query", path, member=member))

    def change(self, method: str, path: str, body: Mapping[str, Any], member: str = "m1") -> None:
        self.incus("query", "-X", method, "--wait", "-d", json.dumps(body), path, member=member)

    def instances(self, project: str) -> dict[str, dict[str, Any]]:
        """The instances of a project by their names."""
        return {each["name"]: each for each in self.ask(f"/1.0/instances?recursion=1&project={project}")}

    def remains(self) -> dict[str, list[str]]:
        """All that users of the cluster can leave on it: paths by their kind."""
        kinds = ("projects", "networks", "network-acls", "images", "instances", "profiles")
        found = {kind: sorted(self.ask(f"/1.0/{kind}?all-projects=true")) for kind in kinds}
        # A member's own interfaces are listed as networks, too.
        found["networks"] = sorted(n["name"] for n in self.ask("/1.0/networks?recursion=1") if n["managed"])
        found["volumes"] = sorted(self.ask(f"/1.0/storage-pools/{POOL}/volumes?all-projects=true"))
        return found

    def inside(self, member: str, *argv: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run a command on a member's network."""
        return self.world.inside(_namespace(member), *argv, timeout=timeout)

    # What happens to a member.

    def kill(self, member: str) -> None:
        """A power cut: all that runs on the member is gone at once.

        At its next boot, Incus kills the dnsmasq of each network by the number that it had, whoever has that by now.
        Numbers begin anew with each boot of a member, so it may be a thread of Incus's own.
        """
        _remove_group(self._groups / member)
        self._processes.pop(member).wait(10)
        for noted in self.home(member).glob("networks/*/*.pid"):
            noted.unlink()

    def cut(self, member: str) -> None:
        """Pull the member's cable. Nobody is told."""
        call(["ip", "-n", "internet", "link", "set", _port(member), "down"])
        self._cut.add(member)

    def boot(self, member: str) -> None:
        """Start a member that was killed; it has settled when its instances are what they were to be at boot."""
        self._spawn(member)
        self._await_ready(member)
        self._await_heartbeats("m1")
        self.settle()

    def mend(self) -> None:
        """Plug in all cables, boot all that was killed, and wait until the cluster has settled. Costs nothing where
        nothing is amiss."""
        dead = [member for member in MEMBERS if member not in self._processes]
        if not dead and not self._cut:
            return
        for member in self._cut:
            call(["ip", "-n", "internet", "link", "set", _port(member), "up"])
        self._cut.clear()
        for member in dead:
            self._spawn(member)
        for member in dead:
            self._await_ready(member)
        self._await_heartbeats("m1")
        self.settle()

    def settle(self) -> None:
        """Wait until all members are online, reach each other, and answer for their instances."""
        self._until("all members are online", self._is_online)
        self._until("all members reach each other", self._is_connected)
        self._until("all instances have a state", self._has_settled)

    def await_leader(self, member: str) -> None:
        """Wait until the cluster has another leader, by the word of a member: where the leader of its database has
        died, none of them answers for some seconds."""
        self._await_heartbeats(member)

    def _await_heartbeats(self, member: str) -> None:
        """Wait until all that are alive had a heartbeat from now on, by the word of a member. One whose last heartbeat
        is old is taken for dead: who was away for less than that is online at first, and then away for a moment."""
        since = time.time()
        self._until(f"{member} hears of all that are alive", lambda: self._all_are_heard(member, since))

    def _all_are_heard(self, member: str, since: float) -> bool:
        """Whether each member that is alive had a heartbeat after that time, in seconds since 1970."""
        alive = ", ".join(f"'{each}'" for each in MEMBERS if each in self._processes and each not in self._cut)
        late = f"strftime('%s', heartbeat) < '{since:.0f}'"
        try:
            said = self.incus(
                "admin",
                "sql",
                "global",
                f"SELECT 'late:' || count(*) FROM nodes WHERE name IN ({alive}) AND {late}",
                member=member,
            )
        except WorldError:
            return False
        return "late:0" in said

    def _is_online(self) -> bool:
        return self._states("m1") == ["Online"] * len(MEMBERS)

    def _states(self, member: str) -> list[str]:
        """The states of all members, by the word of one; none where it does not know."""
        try:
            return [each["status"] for each in self.ask("/1.0/cluster/members?recursion=1", member)]
        except WorldError:
            return []

    def _is_connected(self) -> bool:
        """A member passes questions on only once it hears the other's events, which comes with a heartbeat."""
        try:
            for member in MEMBERS:
                for other in MEMBERS:
                    self.ask(f"/1.0?target={other}", member)
        except WorldError:
            return False
        return True

    def _has_settled(self) -> bool:
        return not any(map(_is_in_between, self.ask("/1.0/instances?recursion=1&all-projects=true")))

    def _until(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            if time.monotonic() > deadline:
                raise WorldError(f"not after {PATIENCE:.0f} s: {what}\n{self.last_words()}")
            time.sleep(ASK_AGAIN)

    # What tests leave.

    def wipe(self, project: str) -> None:
        """Remove a project by force, with all that is in it, and the networks and ACLs that nobody uses then."""
        if f"/1.0/projects/{project}" in self.ask("/1.0/projects"):
            self.incus("project", "delete", "--force", project, stdin="yes\n", timeout=120.0)
        for network in self.ask("/1.0/networks?recursion=1"):
            if network["managed"] and not network["used_by"]:
                self.incus("network", "delete", network["name"])
        for acl in self.ask("/1.0/network-acls?recursion=1"):
            if not acl["used_by"]:
                self.incus("network", "acl", "delete", acl["name"])

    def ensure_remote(self, account: Account) -> None:
        """Give an account of the host under test the remote `lab`, which is m1, and a certificate that it trusts."""
        if account.name in self.accounts:
            return
        token = self.incus("config", "trust", "add", account.name, "-q").split()[-1]
        call(
            account.command("env", "-i", *(f"{k}={v}" for k, v in account.environment().items()), *_add(token)),
            timeout=60.0,
        )
        self.accounts.add(account.name)

    # How it is made.

    def build(self) -> None:
        self.directory.mkdir(mode=0o711)
        for name in ("subuid", "subgid"):  # of this world's private /etc
            Path("/etc", name).write_text("root:1000000:1000000000\n")
        for path in ("/run/incus", "/run/lxc"):  # servers make them, and leave them
            Path(path).mkdir(exist_ok=True)
        self._build_network()
        self._build_groups()
        for member in MEMBERS:
            self.home(member).mkdir()
            self._spawn(member)
        for member in MEMBERS:
            self._await_ready(member)
        self._form()

    def _build_network(self) -> None:
        ports = "".join(
            f"""
            link add {_port(member)} type veth peer name eth0 netns {_namespace(member)}
            link set {_port(member)} master incus up
            """
            for member in MEMBERS
        )
        call(["ip", "-batch", "-"], stdin="".join(f"netns add {_namespace(member)}\n" for member in MEMBERS))
        call(["ip", "-n", "internet", "-batch", "-"], stdin=f"link add incus type bridge\n{ports}")
        call(["ip", "link", "add", HOST_LINK, "type", "veth", "peer", "name", "incus-host", "netns", "internet"])
        call(
            ["ip", "-n", "internet", "-batch", "-"],
            stdin=f"""
            link set incus-host master incus up
            address add {INTERNET}/24 dev incus
            link set incus up
            """,
        )
        call(["ip", "-batch", "-"], stdin=f"address add {HOST}/24 dev {HOST_LINK}\nlink set {HOST_LINK} up\n")
        for member in MEMBERS:
            lines = f"""
            link set lo up
            address add {ADDRESS[member]}/24 dev eth0
            link set eth0 up
            route add default via {INTERNET}
            """
            call(["ip", "-n", _namespace(member), "-batch", "-"], stdin=lines)

    def _build_groups(self) -> None:
        mount = self.directory / "cgroup"
        mount.mkdir()
        call(["mount", "-t", "cgroup2", "cgroup2", str(mount)])
        self._groups.mkdir()
        offered = (self._groups / "cgroup.controllers").read_text().split()
        (self._groups / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in offered))

    def _spawn(self, member: str) -> None:
        (self._groups / member).mkdir()
        join, *boot = BOOT
        entry = ["sh", "-euc", join, "sh", str(self._groups / member), *boot, self.server, "--group", "root"]
        with open(self.home(member).with_suffix(".log"), "ab") as log:
            self._processes[member] = subprocess.Popen(
                ["ip", "netns", "exec", _namespace(member), *entry],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(member),
                cwd="/",
                start_new_session=True,
            )

    def _await_ready(self, member: str) -> None:
        self._run(self.server, "waitready", f"--timeout={PATIENCE:.0f}", member=member, timeout=PATIENCE + 10)

    def _form(self) -> None:
        first, *others = MEMBERS
        disk = {"path": "/", "pool": POOL, "type": "disk"}
        self._preseed(
            first,
            {
                "config": {"core.https_address": f"{ADDRESS[first]}:{PORT}", "images.auto_update_interval": "0"},
                "cluster": {"server_name": first, "enabled": True},
                "storage_pools": [{"name": POOL, "driver": "dir"}],
                "profiles": [{"name": "default", "devices": {"root": disk}}],
            },
        )
        for member in others:
            token = self.incus("cluster", "add", member, "-q").split()[-1]
            source = {"entity": "storage-pool", "name": POOL, "key": "source", "value": ""}
            joining = {"server_address": f"{ADDRESS[member]}:{PORT}", "cluster_token": token, "member_config": [source]}
            self._preseed(member, {"cluster": {"enabled": True, **joining}})
        self.settle()

    def _preseed(self, member: str, values: Mapping[str, Any]) -> None:
        self._run("incus", "admin", "init", "--preseed", member=member, stdin=json.dumps(values), timeout=PATIENCE)

    def close(self) -> None:
        """End everything that runs on the members, and remove what the kernel has of them."""
        if self._groups.exists():
            _remove_group(self._groups)
        for process in self._processes.values():
            process.wait(10)
        mount = self.directory / "cgroup"
        if os.path.ismount(mount):
            call(["umount", str(mount)])
        for member in MEMBERS:
            if Path("/run/netns", _namespace(member)).exists():
                call(["ip", "netns", "delete", _namespace(member)])
        for link in (["link", "delete", HOST_LINK], ["-n", "internet", "link", "delete", "incus"]):
            subprocess.run(["ip", *link], capture_output=True, timeout=10)  # it may not have come to it
        remove_directory(self.directory)

    def last_words(self) -> str:
        """The ends of the members' logs."""
        logs = [self.home(member).with_suffix(".log") for member in MEMBERS]
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs if log.exists())

    def _environment(self, member: str) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        client = str(self.directory / "client")
        return {"PATH": path, "HOME": "/root", "INCUS_DIR": str(self.home(member)), "INCUS_CONF": client}

    def _run(self, *argv: str, member: str, stdin: str = "", timeout: float) -> str:
        result = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._environment(member),
            cwd="/",
        )
        if result.returncode != 0:
            said = f"{' '.join(argv)} on {member}: code {result.returncode}\n{result.stdout}\n{result.stderr}"
            raise WorldError(f"{said}\n{self.last_words()}")
        return result.stdout


@contextmanager
def start_cluster(world: World, server: str) -> Iterator[Cluster]:
    """The cluster for a while."""
    cluster = Cluster(world, server)
    try:
        cluster.build()
        yield cluster
    finally:
        cluster.close()


def is_of_a_member(pid: int) -> bool:
    """Whether a process runs on a member of a cluster, and so is none of the host under test."""
    try:
        return "-incus/" in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:  # it has ended
        return False


def _is_in_between(instance: Mapping[str, Any]) -> bool:
    """Whether an instance has no state yet, or ran when its member lost power and is still to be started."""
    if (config := instance["config"]) is None:  # its member does not answer yet
        return True
    is_to_run = config.get("volatile.last_state.power") == "RUNNING" and config.get("boot.autostart") != "false"
    return instance["status"] not in ("Running", "Stopped") or (instance["status"] == "Stopped" and is_to_run)


def _namespace(member: str) -> str:
    return f"incus-{member}"


def _port(member: str) -> str:
    return f"incus-{member}"


def _add(token: str) -> list[str]:
    return ["incus", "remote", "add", REMOTE, token]


def _remove_group(group: Path, *, seconds: float = 20.0) -> None:
    """Kill all that runs in a cgroup, wait until the kernel says that it is empty, and remove it."""
    deadline = time.monotonic() + seconds
    with open(group / "cgroup.events") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        (group / "cgroup.kill").write_text("1")
        while "populated 1" in events.read():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise WorldError(f"something lives on in {group}")
            events.seek(0)
    for directory, _, _ in os.walk(group, topdown=False):
        os.rmdir(directory)
