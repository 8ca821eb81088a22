"""Many workspaces at once, and two hutches on one host."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from tests.host.conftest import MakeInstance
from tests.host.instance import Instance, Target
from tests.support.world import PUBLIC

FIVE = ("one", "two", "three", "four", "five")


def test_five_start_side_by_side(instance: Instance, workspace_type: str) -> None:
    instance.declare(workspace_type, **dict.fromkeys(FIVE, ""))
    instance.up()
    states = {item["name"]: item for item in json.loads(instance.hutch("status", "--json").stdout)}
    assert {name: states[name]["state"] for name in FIVE} == dict.fromkeys(FIVE, "running")
    assert len({states[name]["ip"] for name in FIVE}) == 5
    with ThreadPoolExecutor() as pool:
        names = list(pool.map(lambda name: instance.ssh(name, "hostname").stdout.strip(), FIVE))
    assert tuple(names) == FIVE
    instance.hutch("down")
    assert {item["state"] for item in json.loads(instance.hutch("status", "--json").stdout)} == {"stopped"}


def test_one_that_cannot_be_does_not_leave_the_others_half_made(instance: Instance, workspace_type: str) -> None:
    """A mount whose source is missing: the file is refused before anything is made, or the others start."""
    missing = instance.directory / "gone"
    instance.declare(workspace_type, good="", bad=f'mounts = [{{ source = "{missing}", target = "/srv/x" }}]')
    result = instance.hutch("up", check=False)
    assert result.returncode != 0
    assert str(missing) in result.stderr
    if instance.names():
        instance.ssh("good")
    missing.mkdir()
    instance.up()
    instance.ssh("bad")


def test_long_names_that_differ_at_the_end(instance: Instance, workspace_type: str) -> None:
    """Names that are nearly the same have interfaces of their own."""
    names = ["a" * 31 + digit for digit in "12"]
    instance.declare(workspace_type, **dict.fromkeys(names, ""))
    instance.up()
    for name in names:
        assert instance.ssh(name, "hostname").stdout.strip() == name


def test_two_hutches_know_nothing_of_each_other(make_instance: MakeInstance, workspace_type: str) -> None:
    first, second = make_instance(), make_instance()
    first.declare(workspace_type, left="")
    second.declare(workspace_type, right="")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda instance: instance.up(), (first, second)))
    assert (first.names(), second.names()) == (["left"], ["right"])
    assert first.ssh("left", "hostname").stdout == "left\n"
    assert second.ssh("right", "hostname").stdout == "right\n"
    ranges = [i.inside(name, "cat", "/proc/self/uid_map").stdout for i, name in ((first, "left"), (second, "right"))]
    assert len({int(line.split()[1]) // 65536 for line in ranges}) == 2
    targets = [
        Target("internet", PUBLIC, 80),
        Target("other", second.status("right")["ip"], 22),
        Target("other-gateway", second.gateway, 53, "udp"),
    ]
    answers = first.probe("left", targets)
    assert answers["internet"].startswith("internet ")
    assert (answers["other"], answers["other-gateway"]) == ("", "")

    first.hutch("rm", "--purge", "left")
    assert second.ssh("right", f"curl --silent --max-time 10 http://{PUBLIC}/").stdout.startswith("internet ")
    assert second.plan()["right"]["action"] == "no change"
