"""The ceiling of members: what root's /etc/hutch/policy.toml says holds for carol, who is in the group `hutch`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hutch.spec.ceiling import POLICY_FILE
from tests.host.instance import Completed
from tests.host.members import HostsOwn, open_host
from tests.support.world import World

BELOW = """
[members]
workspaces = 2
memory = "512MiB"
total_memory = "768MiB"
"""


@pytest.fixture(scope="module")
def host(world: World, images: Path) -> Iterator[HostsOwn]:
    """A hutch whose network root has set up, by a workspace of alice's, who is no member."""
    with open_host(world, images) as host:
        host.declare("container", roots='owner = "alice"')
        host.hutch("up", "--no-start")
        yield host


@pytest.fixture
def policy(host: HostsOwn) -> Iterator[Path]:
    """The host's file; it and all that carol has made are gone after the test."""
    is_new = not POLICY_FILE.parent.exists()
    POLICY_FILE.parent.mkdir(exist_ok=True, mode=0o755)
    POLICY_FILE.write_text(BELOW)
    POLICY_FILE.chmod(0o644)
    try:
        yield POLICY_FILE
    finally:
        POLICY_FILE.unlink()
        if is_new:
            POLICY_FILE.parent.rmdir()
        kept = {entry["name"] for entry in json.loads(host.hutch("ls", "--kept", "--json").stdout)}
        for name in {*host.names(), *kept} - {"roots"}:
            host.hutch("rm", "--purge", "--force", name)


def carols(host: HostsOwn, project: Path, *words: str) -> Completed:
    """A command of carol's, in a directory of hers."""
    return host.hutch(*words, as_user="carol", cwd=project, check=False)


@pytest.mark.vm(slow=True)
def test_what_is_not_said_stays_below_and_what_is_said_above_is_refused(
    host: HostsOwn, policy: Path, workspace_type: str
) -> None:
    project = host.declare_for("carol", workspace_type, own="")
    said = carols(host, project, "plan")
    assert said.returncode == 0, said.stderr
    assert f"memory is the ceiling's: members.memory is 512MiB, as {POLICY_FILE} says" in said.stdout
    said = carols(host, project, "up")
    assert said.returncode == 0, said.stderr
    assert host.status("own")["state"] == "running"
    seen = json.loads(carols(host, project, "plan", "--json").stdout)["actions"]
    assert [action["action"] for action in seen] == ["no change"]
    project = host.declare_for("carol", workspace_type, own='memory = "1GiB"')
    file = project / "hutch.toml"
    line = file.read_text().splitlines().index('memory = "1GiB"') + 1
    ends = [carols(host, project, command) for command in ("plan", "up")]
    assert [(end.returncode, end.stdout) for end in ends] == [(2, ""), (2, "")]
    assert ends[0].stderr == ends[1].stderr
    assert f'{file}:{line}: workspaces.own.memory = "1GiB": is above the ceiling of members' in ends[0].stderr
    assert f"members.memory is 512MiB, as {POLICY_FILE} says" in ends[0].stderr
    assert str(512 << 20) in (host.state / "workspaces/own/workspace.json").read_text()


@pytest.mark.slow
def test_sums_hold_for_two_commands_at_once(host: HostsOwn, policy: Path) -> None:
    """Both plans are below the ceiling until one is carried out."""
    projects = [host.declare_for("carol", "container", each, **{each: 'memory = "500MiB"'}) for each in ("one", "two")]
    with ThreadPoolExecutor() as pool:
        ends = list(pool.map(lambda project: carols(host, project, "up", "--no-start"), projects))
    assert sorted(end.returncode for end in ends) == [0, 2]
    (refused,) = [end.stderr for end in ends if end.returncode]
    assert "brings the memory of carol's workspaces to 1000MiB" in refused
    assert "members.total_memory is 768MiB" in refused
    # A kept home keeps its place.
    (name,) = set(host.names()) & {"one", "two"}
    more = host.declare_for("carol", "container", "more", more='memory = "64MiB"')
    assert carols(host, more, "up", "--no-start").returncode == 0
    assert carols(host, more, "rm", name).returncode == 0
    again = host.declare_for("carol", "container", "again", again='memory = "64MiB"')
    end = carols(host, again, "up", "--no-start")
    assert end.returncode == 2
    assert "brings carol's workspaces to 3, above the ceiling of members: members.workspaces is 2" in end.stderr
    assert f"`hutch rm --purge NAME` of more, {name}" in end.stderr
    assert carols(host, again, "rm", "--purge", name).returncode == 0
    assert carols(host, again, "up", "--no-start").returncode == 0


@pytest.mark.slow
def test_those_of_all_members_count_together(host: HostsOwn, policy: Path) -> None:
    """Whoever declared them: root has made one for carol, who is a member, and one for alice, who is none."""
    policy.write_text(BELOW + 'all_memory = "600MiB"\n')
    host.declare("container", roots='owner = "alice"\nmemory = "4GiB"', hers='owner = "carol"\nmemory = "550MiB"')
    host.hutch("up", "--no-start")
    end = carols(host, host.declare_for("carol", "container", own='memory = "100MiB"'), "up", "--no-start")
    assert end.returncode == 2
    assert "members.all_memory is 600MiB" in end.stderr
    assert "all members' workspaces to 650MiB" in end.stderr


def test_shares_are_the_members_own(host: HostsOwn, policy: Path) -> None:
    """Wherever they lie, and wherever links lead."""
    carol = host.world.accounts["carol"]
    for directory, uid in (("own", carol.uid), ("foreign", 0)):
        (carol.home / directory).mkdir()
        os.chown(carol.home / directory, uid, uid)
    (carol.home / "link").symlink_to("/etc")
    for source, is_fine in (("~/own", True), ("~/foreign", False), ("~/link", False), ("/etc", False)):
        mount = f'mounts = [{{ source = "{source}", target = "/x", readonly = true }}]'
        project = host.declare_for("carol", "container", own=mount)
        for command in (("plan",), ("up", "--no-start")):
            said = carols(host, project, *command)
            assert said.returncode == (0 if is_fine else 2), said.stderr
            assert is_fine or "workspaces.own.mounts[0].source" in said.stderr


@pytest.mark.slow
def test_allow_opens_nothing_beyond_it(host: HostsOwn, policy: Path) -> None:
    policy.write_text(f'{BELOW}egress = ["*.example"]\n')
    project = host.declare_for("carol", "container", own='egress = ["public.example"]')
    assert carols(host, project, "up", "--no-start").returncode == 0
    assert carols(host, project, "allow", "own", "other.example").returncode == 0
    end = carols(host, project, "allow", "own", "elsewhere.test")
    assert (end.returncode, "members.egress is *.example" in end.stderr) == (2, True)


def test_a_broken_file_allows_members_nothing_and_root_all(host: HostsOwn, policy: Path) -> None:
    project = host.declare_for("carol", "container", own="")
    carol = host.world.accounts["carol"].uid
    policy.write_text('[members]\nmemory = "2GB"\n')
    for command in ("plan", "up"):
        said = carols(host, project, command)
        assert (said.returncode, said.stdout) == (2, "")
        assert f'{policy}:2: members.memory = "2GB": is not a size' in said.stderr
    (found,) = (f for f in json.loads(host.hutch("doctor", "--json", check=False).stdout) if f["name"] == "policy")
    assert found["state"] == "conflict"
    policy.write_text(BELOW)
    for mode, uid, words in (
        (0o666, 0, "could be written by others than root"),
        (0o600, 0, "is closed to members"),
        (0o644, carol, "could be written by others than root"),
    ):
        policy.chmod(mode)
        os.chown(policy, uid, 0)
        said = carols(host, project, "plan")
        assert (said.returncode, words in said.stderr) == (2, True)
    assert host.hutch("plan").returncode == 0
    assert host.names() == ["roots"]
