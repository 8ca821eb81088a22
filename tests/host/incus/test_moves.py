"""Moves of a workspace with ten thousand files between the host, a member of the cluster and another one, and what is
left of it when hutch is killed on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.faults import count, strike
from tests.host.incus.conftest import Elsewhere, open_elsewhere
from tests.support.incus_cluster import MEMBERS, Cluster
from tests.support.world import World

pytestmark = pytest.mark.slow

KILLS, LAST = 10, 20
SECONDS = 240.0  # for a move
FILL = r"""
import os, random
random.seed(1)
home = os.path.expanduser("~")
for folder in range(100):
    os.makedirs(f"{home}/tree/{folder}")
    for number in range(100):
        with open(f"{home}/tree/{folder}/{number}", "wb") as file:
            file.write(random.randbytes(random.randrange(3000)))
odd = os.fsencode(home) + b"/odd"
os.mkdir(odd)
open(odd + b"/\xff\n name", "w").close()
open(odd + b"/" + b"n" * 250, "w").close()
os.makedirs(odd + b"/" + b"/".join([b"d" * 100] * 4))
os.link(odd + b"/\xff\n name", odd + b"/again")
os.symlink("/etc/passwd", odd + b"/out")
os.mkfifo(odd + b"/pipe")
with open(odd + b"/holes", "wb") as file:
    file.truncate(5_000_000)
    file.seek(1_000_000)
    file.write(b"within")
os.chmod(odd + b"/holes", 0o640)
os.mkdir(odd + b"/shared", 0o777)
os.chmod(odd + b"/shared", 0o3777)
"""
ROOTS = "cd /home/dev/odd; echo root >of-root; chmod 600 of-root; touch of-7; chown 7:8 of-7"
LOOK = r"""
cd /home/dev
find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
find . -mindepth 1 -printf '%P %y %m %U %G %T@ %l\n' | sort | sha256sum
find . -mindepth 1 -printf '%P %n\n' | sort | sha256sum
find . | wc -l
"""


def write(hutch: Elsewhere, engine: str, keys: str = "") -> None:
    hutch.write(f'[workspaces.web]\ntype = "container"\nengine = "{engine}" # where it is\n{keys}')


def fill(hutch: Elsewhere) -> None:
    hutch.inside("web", "python3", "-c", FILL)
    hutch.inside("web", "sh", "-c", ROOTS, root=True)


def digest(hutch: Elsewhere, *, links: bool = True) -> list[str]:
    """Digests of content; of names, owners, modes, times and links; and of the number of names that files have: of all
    that is in the home, as its guest sees it. The last is the number of all of them."""
    found = hutch.inside("web", "sh", "-c", LOOK, root=True).stdout.replace("  -", "").split()
    return found if links else [*found[:2], *found[3:]]


def instances(hutch: Elsewhere, cluster: Cluster) -> dict[str, str]:
    return {name: each["status"] for name, each in cluster.instances(hutch.project).items()}


def check_at(hutch: Elsewhere, cluster: Cluster, engine: str) -> None:
    """It runs there and nowhere else, nothing is left at the other place, and nothing is to do."""
    said = hutch.status("web")
    assert (said["engine"], said["state"], said["warnings"]) == (engine, "running", []), said
    assert instances(hutch, cluster) == ({"web": "Running"} if engine == "incus" else {})
    assert home_of(hutch).exists() == (engine == "local")
    assert not home_of(hutch).with_name("arriving").exists()
    assert hutch.ssh("web", "hostname; cat odd/of-root; stat -c %U ~", check=False).stdout.split() == ["web", "dev"]
    assert json.loads(hutch.hutch("plan", "--json").stdout)["actions"][0]["action"] == "no change"
    assert "nothing to do" in hutch.up().stderr


def home_of(hutch: Elsewhere) -> Path:
    return hutch.state / "workspaces" / "web" / "home"


@pytest.fixture
def web(world: World, images: Path, cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    """A workspace of the host with ten thousand files."""
    with open_elsewhere(world, images, cluster, request.node.name) as instance:
        write(instance, "local")
        instance.up()
        fill(instance)
        yield instance


def test_there_and_back(web: Elsewhere, cluster: Cluster) -> None:
    home, key = digest(web), web.ssh("web", "cat /etc/machine-id").stdout
    assert int(home[-1]) > 10_000
    refused = web.hutch("move", "web", "--engine", "incus:m2", check=False)
    assert refused.returncode == 2
    assert "the file decides" in refused.stderr
    before = web.file.read_text()

    moved = web.hutch("move", "web", "--engine", "incus:m2", "--write")
    assert "web: moved to the Incus server lab" in moved.stderr
    assert web.file.read_text() == before.replace('"local" #', '"incus" #')
    check_at(web, cluster, "incus")
    assert cluster.instances(web.project)["web"]["location"] == "m2"
    assert digest(web) == home
    assert web.ssh("web", "cat /etc/machine-id").stdout == key

    web.hutch("move", "web", "--engine", "incus:m3")
    check_at(web, cluster, "incus")
    there = cluster.instances(web.project)["web"]
    assert (there["location"], there["config"]["user.hutch.member"]) == ("m3", "m3")
    # Incus's own migration of a directory makes files of hard links.
    assert digest(web, links=False) == [*home[:2], *home[3:]]
    assert "is there already" in web.hutch("move", "web", "--engine", "incus:m3").stderr

    write(web, "local")
    assert web.plan()["web"]["action"] == "move"
    web.up()
    check_at(web, cluster, "local")
    assert digest(web, links=False) == [*home[:2], *home[3:]]


def test_what_cannot_be_is_said_before_it_is_stopped(web: Elsewhere, cluster: Cluster) -> None:
    before = web.status("web")["pid"]
    text = web.file.read_text()
    for place, told in (
        ("incus:m9", "has no member 'm9'"),
        ("elsewhere", "is no place for a workspace"),
        ("local:m1", "is no place for a workspace"),
    ):
        refused = web.hutch("move", "web", "--engine", place, "--write", check=False)
        assert refused.returncode in (1, 2)
        assert told in refused.stderr, refused.stderr
        web.file.write_text(text)
    write(web, "incus", 'mounts = [{ source = "/srv", target = "/srv" }]\n')
    assert "directories of this host are not there" in web.hutch("up", check=False).stderr
    write(web, "local")
    assert "nothing to do" in web.up().stderr
    assert web.status("web")["pid"] == before
    assert instances(web, cluster) == {}


def test_one_that_does_not_come_up_goes_back(web: Elsewhere, cluster: Cluster) -> None:
    home = digest(web)
    write(web, "incus", 'publish = ["8443:22"]\n')  # the members' own port
    failed = web.hutch("up", check=False)
    assert failed.returncode == 1
    assert "web was not moved" in failed.stderr, failed.stderr
    assert instances(web, cluster) == {}
    assert digest(web) == home
    write(web, "local")
    assert web.hutch("up").returncode == 0
    check_at(web, cluster, "local")


def points(effects: list[str]) -> list[int]:
    """The effects at which a move is killed: one in the midst of all, most of which are about files of the home, and
    the others spread over those of a kind that came for the first time then."""
    kinds: dict[str, int] = {}
    for number, line in enumerate(effects, 1):
        kinds.setdefault(re.sub(r"(/item/).*|[0-9]+", r"\1", line), number)
    # Not at the very last: their number differs a little from time to time.
    firsts, left = [number for number in kinds.values() if number <= len(effects) - LAST], KILLS - 1
    return sorted({len(effects) // 2, *(firsts[number * (len(firsts) - 1) // (left - 1)] for number in range(left))})


@pytest.mark.long
@pytest.mark.parametrize("away", [True, False], ids=["to-a-member", "to-the-host"])
def test_kills_on_the_way(web: Elsewhere, cluster: Cluster, away: bool) -> None:
    home = digest(web)
    source, target = ("local", "incus") if away else ("incus", "local")

    def begin() -> None:
        write(web, source)
        web.up()
        check_at(web, cluster, source)
        write(web, target)

    begin()
    effects = count(web, "up", timeout=SECONDS)
    check_at(web, cluster, target)
    assert digest(web) == home
    for point in points(effects):
        begin()
        struck = strike(web, "kill", point, "up", timeout=SECONDS)
        assert struck.is_struck, point
        there = instances(web, cluster)
        assert there.get("web") != "Running" or not runs_here(web), (struck.last, there)
        moving = json.loads(home_of(web).with_name("workspace.json").read_text())["body"]["moving"]
        print(f"struck at {struck.last} of {len(effects)}: {there}, {moving and moving['step']}")
        web.up()
        check_at(web, cluster, target)
        assert digest(web) == home, struck.last


def runs_here(hutch: Elsewhere) -> bool:
    status = hutch.run / "workspaces" / "web" / "status.json"
    return status.exists() and json.loads(status.read_text())["state"] in ("running", "starting")


@pytest.mark.long
def test_kills_between_members(web: Elsewhere, cluster: Cluster) -> None:
    home = digest(web)
    web.hutch("move", "web", "--engine", "incus:m1", "--write")
    effects = count(web, "move", "web", "--engine", "incus:m2", timeout=SECONDS)
    for number, point in enumerate(points(effects)):
        target = MEMBERS[number % 2]
        struck = strike(web, "kill", point, "move", "web", "--engine", f"incus:{target}", timeout=SECONDS)
        assert struck.is_struck, point
        web.up()
        check_at(web, cluster, "incus")
        assert digest(web, links=False) == [*home[:2], *home[3:]], struck.last
        web.hutch("move", "web", "--engine", f"incus:{target}")
        assert cluster.instances(web.project)["web"]["location"] == target
