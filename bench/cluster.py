"""One workspace more on a cluster of Incus servers, against `incus init` and `incus start` by hand.

The cluster is that of the tests: three members in namespaces of their own, all on this machine. One workspace runs on
each of them already, so the image is everywhere; making all that is not counted. Both sides take the same member, and
wait for the same: hutch's own question inside, which says when sshd answers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import incus
from bench.measure import BenchError, Samples, interleave, run, seconds
from bench.table import Row, Scenario, Setting
from tests.support.incus_cluster import MEMBERS, NEEDED, REMOTE, Cluster, find_server, start_cluster
from tests.support.world import World
from tests.support.world_zone import ZoneFile

INTERNET = "internet"  # the network namespace that the cluster's cables end in
SUBNET, GATEWAY, ADDRESS = "10.98.0.0/16", "10.98.0.1", "10.98.200.1"  # the last is the one by hand
FILE = f"""
[defaults]
engine = "incus"

[engines.incus]
remote = "{REMOTE}"
project = "bench"
subnet = "{SUBNET}"
"""
THERE = tuple(f"on-{member}" for member in MEMBERS)
READY = Path(__file__).resolve().parent.parent / "src/hutch/engines/incus/ready.sh"
PATIENCE = "60"  # seconds


def one_more(setting: Setting) -> Iterator[Row]:
    hutch = setting.hutch
    with _cluster(setting.work) as cluster:
        hutch.declare(*THERE, more=FILE)
        hutch("up")
        by_hand = ByHand(cluster, setting.tree, setting.work)
        for member in MEMBERS:
            by_hand.start(member)
        members: list[str] = []
        alone: list[float] = []

        def ours(number: int) -> float:
            name = f"more-{number}"
            hutch.declare(*THERE, name, more=FILE)
            took = seconds(hutch.argv("up", name))
            hutch.must_run(name)
            members.extend(row["member"] for row in hutch.status() if row["name"] == name)
            hutch.remove(name)
            return took

        def other(number: int) -> float:
            started, ready = by_hand.start(members[number])
            alone.append(started)
            return ready

        samples, reference = interleave(setting.rounds, ours, other)
        hutch.remove(*THERE)
    bare = Samples(tuple(alone)).median
    yield Row(
        "incus-up",
        "`hutch up` of one more workspace on a cluster of three Incus servers, to ready",
        "s",
        samples,
        reference,
        "`incus init` and `incus start` on the same member, to the same, same root tree",
        1.3,
        f"`incus init` and `incus start` alone take {bare:.2f} s, so hutch {samples.median / bare:.2f} times that",
    )


class ByHand:
    """Containers on the cluster, made and started with the client, each with the one address that their image has."""

    def __init__(self, cluster: Cluster, tree: Path, work: Path) -> None:
        folder = work / "by-hand"
        folder.mkdir()
        _, *files = incus.pack(tree, folder, f"{ADDRESS}/16", GATEWAY)
        run(["incus", "image", "import", *files, f"{REMOTE}:", "--alias", "by-hand"])
        networks = json.loads(cluster.incus("query", "/1.0/networks?recursion=1"))
        (self.network,) = (network["name"] for network in networks if network["managed"])  # hutch's

    def start(self, member: str) -> tuple[float, float]:
        """Seconds from `incus init` of a new container to the end of `incus start`, and to sshd's banner."""
        image, name = f"{REMOTE}:by-hand", f"{REMOTE}:one"
        inside = ["timeout", PATIENCE, "/bin/sh", "-c", READY.read_text(), "sh", ADDRESS, PATIENCE]
        begin = time.perf_counter()
        run(["incus", "init", image, name, "--target", member, "--network", self.network])
        run(["incus", "start", name])
        started = time.perf_counter() - begin
        run(["incus", "exec", name, "--force-noninteractive", "--disable-stdin", "--", *inside])
        ready = time.perf_counter() - begin
        run(["incus", "delete", "--force", name])
        return started, ready


@contextmanager
def _cluster(work: Path) -> Iterator[Cluster]:
    """A cluster that this host's client knows as the remote REMOTE."""
    server = find_server()
    if server is None:
        raise BenchError(f"an Incus server needs incusd, {', '.join(NEEDED)}: script/setup --bench installs them")
    directory = work / "cluster"
    directory.mkdir()
    _hand_controllers_down()
    run(["ip", "netns", "add", INTERNET])
    before = os.environ.get("INCUS_CONF")
    os.environ["INCUS_CONF"] = str(directory / "conf")
    try:
        with start_cluster(World(directory, {}, ZoneFile(directory)), server) as cluster:
            token = cluster.incus("config", "trust", "add", "bench", "-q").split()[-1]
            run(["incus", "remote", "add", REMOTE, token])
            yield cluster
    finally:
        run(["ip", "netns", "delete", INTERNET])
        del os.environ["INCUS_CONF"]
        if before is not None:
            os.environ["INCUS_CONF"] = before


def _hand_controllers_down() -> None:
    """Let the groups below this place's own have controllers, as on any host whose process 1 is systemd."""
    top = Path("/sys/fs/cgroup")
    offered = (top / "cgroup.controllers").read_text().split()
    (top / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in offered))


SCENARIOS = (Scenario(("incus-up",), one_more),)
