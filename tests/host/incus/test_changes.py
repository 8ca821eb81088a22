"""Guarded changes on the real cluster: of two at the same time none is lost, and what has become another's is left
alone. What is changed is on a member that the remote does not name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hutch.backends.incus import ID
from hutch.engines.incus import turning
from hutch.engines.incus.client import Client, path_to
from hutch.engines.incus.failures import Foreign, Refused
from hutch.engines.incus.homes import Volume, note_in_home, remove_home
from hutch.engines.incus.observing import Found
from hutch.spec.model import WorkspaceSpec
from hutch.spec.record import Place, Record
from tests.host.processes import processes
from tests.support.incus_cluster import POOL, REMOTE, Cluster

PROJECT, NETWORK, ACL = "changes", "changes0", "changes"
OURS, THEIRS = "1" * 32, "2" * 32
THINGS = {
    "instance": (path_to("instances", "web"), True),
    "volume": (path_to("storage-pools", POOL, "volumes", "custom", "home-web", target="m2"), True),
    "project": (path_to("projects", PROJECT), False),
    "network": (path_to("networks", NETWORK), False),
    "ACL": (path_to("network-acls", ACL), False),
}


@pytest.fixture(scope="module")
def things(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with one of each, that has nothing in it."""
    cluster.incus("project", "create", PROJECT)
    root = {"type": "disk", "path": "/", "pool": POOL}
    body = {"name": "web", "source": {"type": "none"}, "profiles": [], "devices": {"root": root}}
    cluster.change("POST", f"/1.0/instances?project={PROJECT}&target=m2", {**body, "config": {ID: OURS}})
    volume = {"name": "home-web", "type": "custom", "config": {ID: OURS}}
    cluster.change("POST", f"/1.0/storage-pools/{POOL}/volumes/custom?project={PROJECT}&target=m2", volume)
    for member in ("m1", "m2", "m3"):
        cluster.incus("network", "create", NETWORK, f"--target={member}")
    cluster.incus("network", "create", NETWORK, "ipv4.address=none", "ipv6.address=none")
    cluster.incus("network", "acl", "create", ACL)
    yield cluster
    cluster.wipe(PROJECT)


@pytest.fixture
def ann(things: Cluster) -> Client:
    return client_of(things, "root")


@pytest.fixture
def alice(things: Cluster) -> Client:
    return client_of(things, "alice")


def client_of(cluster: Cluster, name: str) -> Client:
    """A client that runs as that user of the host under test."""
    account = cluster.world.accounts[name]
    cluster.ensure_remote(account)
    return Client(Place(REMOTE, PROJECT, "auto", "10.99.0.0/16", account.uid, str(account.home / ".config/incus")))


def noted(seen: Any, **keys: str) -> dict[str, Any]:
    """What stands there, with other keys; as Incus takes it."""
    kept = ("architecture", "config", "description", "devices", "egress", "ephemeral", "ingress", "profiles")
    return {**{key: seen[key] for key in kept if key in seen}, "config": {**seen["config"], **keys}}


@pytest.mark.parametrize("thing", THINGS)
def test_of_two_changes_at_once_none_is_lost(ann: Client, alice: Client, thing: str) -> None:
    path, is_inside = THINGS[thing]
    seen: list[dict[str, str]] = []

    def make(now: Any) -> dict[str, Any]:
        if not seen:
            alice.update(path, lambda now: noted(now, **{"user.two": "2"}), project=is_inside)
        seen.append(now["config"])
        return noted(now, **{"user.one": "1"})

    ann.update(path, make, project=is_inside)
    found = ann.get(path, project=is_inside)["config"]
    assert (found["user.one"], found["user.two"]) == ("1", "2")
    assert ["user.two" in config for config in seen] == [False, True]


def test_many_changes_at_once_count_each(ann: Client, alice: Client) -> None:
    """Three of each: an update loses to another's at most three times then, and gives up after more."""
    path, _ = THINGS["instance"]

    def count(client: Client) -> None:
        for _ in range(3):
            client.update(
                path, lambda now: noted(now, **{"user.count": f"{int(now['config'].get('user.count', 0)) + 1}"})
            )

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(count, client) for client in (ann, alice)]:
            each.result()
    assert ann.get(path)["config"]["user.count"] == "6"


def test_what_becomes_anothers_meanwhile_is_left_alone(things: Cluster, ann: Client) -> None:
    record = Record("web", "/srv/hutch.toml", WorkspaceSpec(type="container", engine="incus"), "", 0, OURS)
    home = Volume(POOL, "home-web", "m2", {ID: OURS})
    turning.note(ann, record, {"user.mine": "1"})
    assert note_in_home(ann, home, {"user.mine": "1"}).config["user.mine"] == "1"

    def steal(found: Found) -> turning.Parts:
        things.incus("config", "set", "web", f"{ID}={THEIRS}", "--project", PROJECT)
        return {ID: OURS}, {}

    with pytest.raises(Foreign):
        turning.edit(ann, record, steal)
    found = ann.get(THINGS["instance"][0])
    assert (found["config"][ID], found["config"]["user.mine"], [*found["devices"]]) == (THEIRS, "1", ["root"])
    things.incus("storage", "volume", "set", POOL, "home-web", f"{ID}={THEIRS}", "--target=m2", "--project", PROJECT)
    with pytest.raises(Foreign):
        note_in_home(ann, home, {"user.mine": None})
    with pytest.raises(Foreign):
        remove_home(ann, home)
    assert ann.get(THINGS["volume"][0])["config"]["user.mine"] == "1"


def test_a_refusal_is_the_servers_own_and_no_client_stays(ann: Client) -> None:
    with pytest.raises(Refused) as caught:
        ann.update(THINGS["instance"][0], lambda now: noted(now, **{"limits.cpu": "many"}))
    assert "Invalid CPU limit" in caught.value.text
    with pytest.raises(Refused) as caught:
        ann.update("/1.0/instances/nobody", lambda now: {})
    assert caught.value.code == 404
    assert not [each for each in processes() if "proxy" in each.command and "remote" in each.command]
