"""The limits and restrictions of a project that new workspaces would meet."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.backends.incus import Instance, render
from hutch.engines.incus.limits import check_limits
from hutch.errors import HutchError
from hutch.spec.entries import Publish
from tests.unit.backends.test_incus import GROUND, declared
from tests.unit.engines.incus.fake import Fake

PROJECT = "/1.0/projects/hutch"
NONE: frozenset[str] = frozenset()


def instances(**keys: Any) -> dict[str, Instance]:
    return {"web": render("web", declared(**keys), GROUND)}


def server(config: dict[str, str], **usage: int) -> Fake:
    resources = {name: {"limit": -1, "usage": used} for name, used in usage.items()}
    return Fake({PROJECT: {"config": config}, f"{PROJECT}/state": {"resources": resources}})


def allow(client: Fake, found: dict[str, Instance], present: frozenset[str] = NONE) -> None:
    check_limits(client, client.objects[PROJECT], found, present)


def problems(client: Fake, found: dict[str, Instance], present: frozenset[str] = NONE) -> list[str]:
    with pytest.raises(HutchError, match="project hutch of lab does not allow") as caught:
        allow(client, found, present)
    return caught.value.details.splitlines()


def test_a_project_without_limits_takes_no_question() -> None:
    client = server({"features.images": "true"})
    allow(client, instances())
    assert client.asked == []
    check_limits(Fake(), {}, instances(), NONE)


def test_a_restricted_project_allows_a_usual_workspace() -> None:
    allow(server({"restricted": "true"}), instances())


@pytest.mark.parametrize(
    ("keys", "config", "says"),
    [
        ({"nesting": True}, {}, "web: restricted.containers.nesting forbids `nesting`"),
        ({"publish": (Publish("", 80, 80, "tcp"),)}, {}, "web: restricted.devices.proxy forbids `publish`"),
        ({}, {"restricted.devices.nic": "block"}, "web: restricted.devices.nic forbids its network"),
        (
            {},
            {"restricted.networks.access": "incusbr0, other"},
            f"web: restricted.networks.access does not have its network, {GROUND.network}",
        ),
        (
            {},
            {"restricted.devices.disk": "block"},
            "web: restricted.devices.disk forbids its home, which is a volume",
        ),
    ],
)
def test_each_restriction_is_named(keys: dict[str, Any], config: dict[str, str], says: str) -> None:
    allow(server(config), instances(**keys))
    assert problems(server({"restricted": "true", **config}), instances(**keys)) == [says]


@pytest.mark.parametrize(
    ("config", "usage", "keys", "says"),
    [
        ({"limits.instances": "2"}, {"instances": 2}, {}, "limits.instances is 2: 2 are there, and 1 would come"),
        ({"limits.containers": "0"}, {}, {}, "limits.containers is 0: 0 are there, and 1 would come"),
        (
            {"limits.memory": "4GiB"},
            {},
            {},
            "limits.memory is 4GiB, so each needs a limit of its own: say `memory` in hutch.toml: web",
        ),
        (
            {"limits.memory": "4GiB"},
            {"memory": 4 << 30},
            {"memory": 1 << 30},
            f"limits.memory is {4 << 30}: {4 << 30} are in use, and {1 << 30} would come",
        ),
        ({"limits.cpu": "3"}, {"cpu": 2}, {"vcpus": 2}, "limits.cpu is 3: 2 are in use, and 2 would come"),
        (
            {"limits.processes": "1000"},
            {"processes": 0},
            {},
            "limits.processes is 1000: 0 are in use, and 16384 would come",
        ),
        ({"limits.disk": "20GB"}, {}, {}, "limits.disk is 20GB, so each workspace needs `disk`: web"),
    ],
)
def test_each_limit_is_named(config: dict[str, str], usage: dict[str, int], keys: dict[str, Any], says: str) -> None:
    assert problems(server(config, **usage), instances(**keys)) == [says]
    allow(server(config, **usage), instances(**keys), frozenset({"web"}))


def test_limits_that_are_wide_enough() -> None:
    config = {"limits.instances": "3", "limits.memory": "4 GiB", "limits.cpu": "4", "limits.disk": "20GB"}
    found = instances(memory=1 << 30, vcpus=2, disk=8 << 30)
    allow(server(config, instances=2, memory=3 << 30, cpu=2), found)
    allow(server({"limits.instances": "a lot"}), found)


def test_members_of_a_restricted_project_cannot_be_chosen() -> None:
    config = {"restricted": "true"}
    with pytest.raises(HutchError) as caught:
        check_limits(Fake(), {"config": config}, instances(), NONE, is_clustered=True)
    assert caught.value.details == "restricted.cluster.target forbids to choose their members"
    check_limits(Fake(), {"config": config}, instances(), frozenset({"web"}), is_clustered=True)
    allowed = {**config, "restricted.cluster.target": "allow"}
    check_limits(Fake(), {"config": allowed}, instances(), NONE, is_clustered=True)
