"""The cluster itself: what the other tests of this folder take for granted."""

from __future__ import annotations

import json

from tests.support.incus_cluster import ADDRESS, MEMBERS, PORT, REMOTE, Cluster
from tests.support.world import PUBLIC_NAME, call


def test_the_host_reaches_the_cluster(cluster: Cluster) -> None:
    root = cluster.world.accounts["root"]
    environment = [f"{name}={value}" for name, value in root.environment().items()]
    said = json.loads(call(["env", "-i", *environment, "incus", "query", f"{REMOTE}:/1.0/cluster/members?recursion=1"]))
    assert [(member["server_name"], member["status"]) for member in said] == [(name, "Online") for name in MEMBERS]


def test_members_reach_the_internet(cluster: Cluster) -> None:
    result = cluster.inside("m3", "curl", "-sS", "--max-time", "10", f"http://{PUBLIC_NAME}/")
    assert result.stdout.split() == ["internet", ADDRESS["m3"]], result.stderr


def test_a_member_comes_back_from_a_power_cut_and_from_a_pulled_cable(cluster: Cluster) -> None:
    cluster.kill("m3")
    assert not answers(cluster, "m3")
    cluster.boot("m3")
    assert answers(cluster, "m3")
    cluster.cut("m2")
    assert not answers(cluster, "m2")
    cluster.mend()
    assert answers(cluster, "m2")


def answers(cluster: Cluster, member: str) -> bool:
    """Whether the server of a member answers another member."""
    url = f"https://{ADDRESS[member]}:{PORT}/1.0"
    return cluster.inside("m1", "curl", "-sk", "--max-time", "2", url).returncode == 0
