"""What a server can do, whose the project is, and which pool is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hutch.backends.incus import API_PORT
from hutch.engines.incus.answers import NOT_FOUND
from hutch.engines.incus.client import Client
from hutch.engines.incus.server import (
    BEFORE,
    FEATURES,
    NEEDED,
    WORD,
    Member,
    Server,
    check_floor,
    check_target,
    choose_pool,
    ensure_project,
    find_project,
    look,
    remove_project,
    render_project,
)
from hutch.errors import HutchError
from tests.unit.engines.incus.fake import PLACE, Fake, refused

OWNER = "0f0e0d0c"
PROJECT = "/1.0/projects/hutch"
PROFILE = "/1.0/profiles/default?project=hutch"
ENVIRONMENT = {
    "server": "incus",
    "server_name": "m1",
    "server_version": "6.0.4",
    "server_clustered": False,
    "architectures": ["x86_64", "i686"],
    "addresses": ["10.99.0.1:8443", "[fd00::1]:8443", "tower:8443", "300.1.1.1:8443"],
}
SAID = {"auth": "trusted", "api_extensions": [*NEEDED, "other"], "environment": ENVIRONMENT}
MEMBERS = [
    {
        "server_name": f"m{number}",
        "url": f"https://198.51.100.{number}:8443",
        "status": "Offline" if number == 3 else "Online",
        "architecture": "x86_64",
        "groups": ["default", *(["fast"] if number == 3 else [])],
    }
    for number in (1, 2, 3)
]
SERVER = Server("m1", "incus", "6.0.4", frozenset(NEEDED), ("x86_64",))
CLUSTER = Server(
    "m1",
    "incus",
    "6.0.4",
    frozenset(NEEDED),
    ("x86_64",),
    tuple(Member(f"m{n}", "Offline" if n == 3 else "Online", "x86_64", ("default", f"g{n}")) for n in (1, 2, 3)),
    is_clustered=True,
)


def test_a_server_takes_one_question() -> None:
    client = Fake({"/1.0": SAID})
    found = look(client)
    assert client.asked == ["/1.0"]
    assert (found.name, found.version, found.is_clustered, found.members) == ("m1", "6.0.4", False, ())
    assert found.addresses == ("10.99.0.1",)
    assert found.extensions >= NEEDED.keys()


def test_a_cluster_takes_two() -> None:
    said = {**SAID, "environment": {**ENVIRONMENT, "server_clustered": True}}
    client = Fake({"/1.0": said, "/1.0/cluster/members?recursion=1": MEMBERS})
    found = look(client)
    assert len(client.asked) == 2
    assert [(member.name, member.answers) for member in found.members] == [("m1", True), ("m2", True), ("m3", False)]
    assert found.members[2].groups == ("default", "fast")
    assert found.addresses == ("10.99.0.1", "198.51.100.1", "198.51.100.2", "198.51.100.3")


def test_where_it_listens_is_its_own_word() -> None:
    hosts = ["10.99.0.1:9443", "10.99.0.1:8443", "10.99.0.2", "10.99.0.3:0", "10.99.0.4:65536", "10.99.0.256:1"]
    members = [{**member, "url": str(member["url"]).replace("8443", "10443")} for member in MEMBERS]
    said = {**SAID, "environment": {**ENVIRONMENT, "server_clustered": True, "addresses": hosts}}
    found = look(Fake({"/1.0": said, "/1.0/cluster/members?recursion=1": members}))
    assert found.listeners == (
        ("10.99.0.1", 8443),
        ("10.99.0.1", 9443),
        *((f"10.99.0.{number}", API_PORT) for number in (2, 3, 4)),
        *((f"198.51.100.{number}", 10443) for number in (1, 2, 3)),
    )
    assert found.addresses.count("10.99.0.1") == 1


@pytest.mark.parametrize("answer", [[], "x", None, {"auth": "trusted", "environment": []}])
def test_an_answer_of_another_shape_is_an_error(answer: Any) -> None:
    with pytest.raises(HutchError, match="does not understand"):
        look(Fake({"/1.0": answer}))


def test_a_member_whose_name_could_be_part_of_a_path_otherwise_is_refused() -> None:
    said = {**SAID, "environment": {**ENVIRONMENT, "server_clustered": True}}
    hostile = [{**MEMBERS[0], "server_name": "../../x\x1b[2J"}]
    with pytest.raises(HutchError) as caught:
        look(Fake({"/1.0": said, "/1.0/cluster/members?recursion=1": hostile}))
    assert "\x1b" not in caught.value.brief


def test_a_server_that_does_not_trust_the_client() -> None:
    with pytest.raises(HutchError, match="lab does not trust") as caught:
        look(Fake({"/1.0": {**SAID, "auth": "untrusted", "environment": {}}}))
    assert "incus config trust add" in caught.value.resolution


def test_a_server_that_has_all() -> None:
    check_floor(SERVER, PLACE, "x86_64")
    check_floor(replace(SERVER, version="7"), PLACE, "x86_64")
    check_floor(CLUSTER, PLACE, "x86_64")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "5.21.1"}, "it is version 5.21.1, and hutch needs 6.0"),
        ({"version": "x"}, "version x"),
        ({"kind": "lxd"}, "it is lxd, not Incus"),
        ({"architectures": ("aarch64",)}, "it runs aarch64, and images that are built here are for x86_64"),
        (
            {"extensions": frozenset(NEEDED) - {"instances_rebuild"}},
            "no API extension instances_rebuild, which makes a workspace's root anew",
        ),
    ],
)
def test_what_a_server_lacks_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(HutchError) as caught:
        check_floor(replace(SERVER, **change), PLACE, "x86_64")
    assert says in caught.value.details
    assert len(caught.value.details.splitlines()) == 1


def test_all_that_is_lacking_is_told_at_once() -> None:
    with pytest.raises(HutchError) as caught:
        check_floor(replace(SERVER, version="5.0", extensions=frozenset()), PLACE, "x86_64")
    assert len(caught.value.details.splitlines()) == 1 + len(NEEDED)


def test_targets() -> None:
    check_target(SERVER, PLACE)
    for target in ("auto", "m1", "@default"):
        check_target(CLUSTER, replace(PLACE, target=target))
    for target, says in (("m4", "no such member"), ("@g4", "no such group"), ("m3", "m3 is Offline")):
        with pytest.raises(HutchError, match=says):
            check_target(CLUSTER, replace(PLACE, target=target))
    with pytest.raises(HutchError, match="is no cluster"):
        check_target(SERVER, replace(PLACE, target="m1"))


# The project.


def project(*used_by: str, **config: str) -> dict[str, Any]:
    return {"name": "hutch", "config": {**FEATURES, **config}, "used_by": [PROFILE, *used_by]}


def ensure(client: Client) -> str:
    return ensure_project(client, OWNER, find_project(client))


def test_a_project_is_made_once() -> None:
    client = Fake()
    ensure(client)
    ensure(client)
    [(method, path, body)] = client.changes
    assert (method, path, body) == ("POST", "/1.0/projects", render_project(PLACE, OWNER, body["config"][WORD]))
    assert client.changes[0][2]["config"]["features.networks"] == "false"


def test_a_project_that_somebody_makes_meanwhile() -> None:
    client = Fake()
    client.failing["POST", "/1.0/projects"] = refused(409)
    with pytest.raises(HutchError, match="refuses"):
        ensure(client)

    class Late(Fake):
        def change(self, method: str, path: str, *rest: Any, **options: Any) -> Any:
            if method == "POST":
                self.objects[PROJECT] = project(**{"user.hutch.id": "another"})
                raise refused(409)
            return super().change(method, path, *rest, **options)

    late = Late()
    ensure(late)
    assert late.changes == []


def test_an_empty_project_is_taken() -> None:
    some = {"features.images": "false", "features.networks": "true", "user.note": "x"}
    bare = {"config": some, "used_by": [PROFILE]}
    client = Fake({PROJECT: bare})
    ensure(client)
    config = client.objects[PROJECT]["config"]
    assert config == {**FEATURES, "user.note": "x", "user.hutch.id": OWNER, WORD: config[WORD], BEFORE: config[BEFORE]}
    assert remove_project(client, OWNER)  # and given back, not removed
    assert client.objects[PROJECT]["config"] == some


def test_an_empty_project_that_another_takes_meanwhile_is_shared() -> None:
    client = Fake({PROJECT: {"config": {"features.images": "true"}, "used_by": [PROFILE]}})
    another = {**FEATURES, "user.hutch.id": "another", WORD: "theirs"}
    client.meanwhile = lambda: client.objects[PROJECT].update(config=dict(another))
    assert ensure(client) == "theirs"
    assert (client.changes, client.objects[PROJECT]["config"]) == ([], another)


def test_an_empty_project_that_is_filled_meanwhile_is_neither_taken_nor_given_back() -> None:
    client = Fake({PROJECT: {"config": {"features.images": "true"}, "used_by": [PROFILE]}})
    client.meanwhile = lambda: client.objects[PROJECT]["used_by"].append("/1.0/instances/x?project=hutch")
    with pytest.raises(HutchError, match="is not hutch's"):
        ensure(client)
    client.objects[PROJECT]["used_by"] = [PROFILE]
    ensure(client)
    client.meanwhile = lambda: client.objects[PROJECT]["used_by"].append("/1.0/instances/x?project=hutch")
    assert not remove_project(client, OWNER)
    assert client.objects[PROJECT]["config"]["user.hutch.id"] == OWNER


@pytest.mark.parametrize("before", ["", "[]", '{"user.note": "y", "features.images": 1}', "[" * 100_000])
def test_what_a_server_says_a_project_was_is_not_believed(before: str) -> None:
    mine = {"user.note": "x", "user.hutch.id": OWNER, "user.hutch.before": before}
    client = Fake({PROJECT: {"config": {**FEATURES, **mine}, "used_by": [PROFILE]}})
    assert remove_project(client, OWNER)
    config = client.objects[PROJECT]["config"]
    assert config["user.note"] == "x" and not any("hutch" in key for key in config)


def test_another_ones_project_is_refused_by_name() -> None:
    client = Fake({PROJECT: project("/1.0/instances/web?project=hutch")})
    with pytest.raises(HutchError, match="project hutch of lab is not hutch's") as caught:
        ensure(client)
    assert caught.value.details == "/1.0/instances/web?project=hutch"
    assert client.changes == []


def test_the_default_project_is_never_taken() -> None:
    place = replace(PLACE, project="default")
    with pytest.raises(HutchError, match="default of lab is not hutch's"):
        ensure(Fake({"/1.0/projects/default": project()}, place))


def test_another_hutchs_project_is_shared() -> None:
    client = Fake({PROJECT: project("/1.0/instances/web?project=hutch", **{"user.hutch.id": "another"})})
    ensure(client)
    assert client.changes == []


def test_features_that_cannot_be_changed_any_more_are_named() -> None:
    changed = project("/1.0/instances/web?project=hutch", **{"user.hutch.id": OWNER, "features.images": "false"})
    with pytest.raises(HutchError) as caught:
        ensure(Fake({PROJECT: changed}))
    assert caught.value.details == "features.images is false"


def test_a_project_is_removed_by_its_owner_when_it_is_empty() -> None:
    for there, gone in (
        (project(**{"user.hutch.id": OWNER}), True),
        (project(**{"user.hutch.id": "another"}), False),
        (project(), False),
        (project("/1.0/storage-pools/p/volumes/custom/home-web", **{"user.hutch.id": OWNER}), False),
    ):
        client = Fake({PROJECT: there})
        assert remove_project(client, OWNER) is gone
        assert (PROJECT not in client.objects) is gone
    assert remove_project(Fake(), OWNER)


def test_a_project_that_fills_meanwhile_stays() -> None:
    client = Fake({PROJECT: project(**{"user.hutch.id": OWNER})})
    client.failing["DELETE", PROJECT] = refused(400)
    assert not remove_project(client, OWNER)


# The pool.


def test_the_pool_of_the_default_profile_comes_first() -> None:
    devices = {"eth0": {"type": "nic"}, "root": {"type": "disk", "path": "/", "pool": "fast"}}
    client = Fake({"/1.0/profiles/default": {"devices": devices}})
    assert choose_pool(client) == "fast"


@pytest.mark.parametrize("profile", [{}, {"devices": {}}, {"devices": {"root": {"type": "disk", "path": "/srv"}}}])
def test_else_the_only_pool(profile: Any) -> None:
    client = Fake({"/1.0/profiles/default": profile, "/1.0/storage-pools": ["/1.0/storage-pools/only"]})
    assert choose_pool(client) == "only"


def test_a_choice_of_pools_is_the_users() -> None:
    pools = ["/1.0/storage-pools/b", "/1.0/storage-pools/a"]
    with pytest.raises(HutchError, match="several storage pools") as caught:
        choose_pool(Fake({"/1.0/storage-pools": pools}))
    assert caught.value.details == "a, b"
    with pytest.raises(HutchError, match="no storage pool"):
        choose_pool(Fake({"/1.0/storage-pools": []}))


def test_an_error_that_is_no_absence_is_told() -> None:
    client = Fake({PROJECT: refused(403)})
    with pytest.raises(HutchError) as caught:
        ensure(client)
    assert getattr(caught.value, "code", NOT_FOUND) == 403
