"""Members of the group `hutch` share workspaces of their own. Whoever is let in changes nothing, member or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.members import HostsOwn, open_host
from tests.host.sharing import let_all_try
from tests.support.world import World


@pytest.fixture(scope="module")
def host(world: World, images: Path) -> Iterator[HostsOwn]:
    with open_host(world, images) as host:
        yield host


def seeing(host: HostsOwn) -> set[str]:
    accounts = ("alice", "bob", "carol", "dave")
    return {each for each in accounts if json.loads(host.hutch("ls", "--json", as_user=each).stdout)}


@pytest.mark.slow
def test_a_member_shares_and_takes_back(host: HostsOwn) -> None:
    project = host.declare_for("carol", "container", shared='share_with = ["bob", "@devs"]')
    host.hutch("up", as_user="carol", cwd=project)
    let_all_try(host, "shared")
    assert seeing(host) == {"bob", "carol", "dave"}
    for account in ("bob", "carol", "dave"):
        assert host.ssh("shared", "hostname", as_user=account).stdout == "shared\n"
    for account in ("bob", "dave"):  # bob is a member too
        for words in (("stop", "shared"), ("rm", "--force", "shared"), ("allow", "shared", "a.example")):
            assert host.hutch(*words, as_user=account, check=False).returncode != 0, words
    assert host.status("shared")["state"] == "running"

    host.declare_for("carol", "container", shared='share_with = ["@devs"]')
    assert "share_with: bob, @devs → @devs (live)" in host.hutch("plan", as_user="carol", cwd=project).stdout
    host.hutch("up", as_user="carol", cwd=project)
    assert seeing(host) == {"carol", "dave"}
    refused = host.ssh("shared", as_user="bob", check=False)
    assert (refused.returncode, "Permission denied (publickey)" in refused.stderr) == (255, True)


@pytest.mark.slow
def test_a_member_s_file_with_an_unknown_name_is_refused(host: HostsOwn) -> None:
    project = host.declare_for("bob", "container", "wrong", other='share_with = ["root", "nobody-here"]')
    result = host.hutch("up", as_user="bob", cwd=project, check=False)
    assert result.returncode == 2
    assert "workspaces.other.share_with[0]" in result.stderr
    assert "is not a user of this host" in result.stderr
    assert not (host.state / "workspaces" / "other").exists()
