"""`share_with` while a workspace runs: who is named sees and enters it at once, and who is taken out does so no more,
with a copy of the key neither."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.host.instance import SSH_OPTIONS, Instance
from tests.host.sharing import let_all_try

pytestmark = pytest.mark.vm(slow=True)

PEOPLE = ("alice", "bob", "carol", "dave")


def share(instance: Instance, workspace_type: str, *names: str) -> None:
    instance.declare(workspace_type, hers=f'owner = "alice"\nshare_with = {json.dumps(names)}')
    assert instance.plan()["hers"]["action"] == "live"
    instance.up()


def seeing(instance: Instance) -> set[str]:
    """The people who see it, and no others are told anything."""
    found = set()
    for account in PEOPLE:
        listed = {entry["name"] for entry in json.loads(instance.hutch("ls", "--json", as_user=account).stdout)}
        status = instance.hutch("status", "hers", as_user=account, check=False)
        assert (status.returncode == 0) == ("hers" in listed)
        found |= {account} if listed else set()
    return found


def entering(instance: Instance) -> set[str]:
    """The people who enter it by plain ssh."""
    said = {account: instance.ssh("hers", "hostname", as_user=account, check=False) for account in PEOPLE}
    for result in said.values():
        assert (result.returncode, result.stdout) == (0, "hers\n") or "Permission denied (publickey)" in result.stderr
    return {account for account, result in said.items() if result.returncode == 0}


def copy_key(instance: Instance, account: str, holder: str) -> Path:
    """What an account may always do with a key that it can read."""
    whose = instance.world.accounts[account]
    copy = whose.home / f"copy-of-{holder}"
    source = instance.state / "keys" / holder / "id_ed25519"
    subprocess.run(
        whose.command("cp", "--no-preserve=mode", str(source), str(copy)), check=True, timeout=10, umask=0o077
    )
    os.chown(copy, whose.uid, whose.uid)
    return copy


def opens(instance: Instance, account: str, key: Path) -> bool:
    whose = instance.world.accounts[account]
    options = (*SSH_OPTIONS, "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={instance.state}/known_hosts")
    return (
        subprocess.run(
            whose.command("ssh", "-F", "none", *options, "-i", str(key), "dev@workspace-hers", "true"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            cwd="/",
            env=whose.environment(),
        ).returncode
        == 0
    )


def stay(instance: Instance, account: str) -> subprocess.Popen[str]:
    """A session that goes on."""
    whose = instance.world.accounts[account]
    session = subprocess.Popen(
        whose.command("ssh", *SSH_OPTIONS, "workspace-hers", "echo there; exec sleep 600"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env=whose.environment(),
    )
    assert session.stdout is not None
    assert session.stdout.readline() == "there\n"
    return session


def has_ended(session: subprocess.Popen[str], seconds: float = 20) -> bool:
    with session:
        try:
            session.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            session.kill()
            return False


def test_sharing_changes_live(instance: Instance, workspace_type: str) -> None:
    instance.declare(workspace_type, hers='owner = "alice"\nshare_with = ["bob", "@devs"]')
    instance.up()
    let_all_try(instance, "hers")
    pid = instance.status("hers")["pid"]
    assert seeing(instance) == entering(instance) == {"alice", "bob", "dave"}
    bobs, daves = copy_key(instance, "bob", "1001"), copy_key(instance, "dave", "@1201")
    assert opens(instance, "bob", bobs)
    assert opens(instance, "dave", daves)
    sessions = {account: stay(instance, account) for account in ("alice", "bob", "dave")}

    share(instance, workspace_type)
    assert has_ended(sessions["bob"])
    assert has_ended(sessions["dave"])
    assert not has_ended(sessions["alice"], 0.5)
    assert seeing(instance) == entering(instance) == {"alice"}
    assert not opens(instance, "bob", bobs)
    assert not opens(instance, "dave", daves)
    refused = instance.hutch("exec", "hers", "--", "true", as_user="bob", check=False)
    assert (refused.returncode, "the workspace hers is not yours" in refused.stderr) == (1, True)

    share(instance, workspace_type, "@hutch", "@devs")
    assert seeing(instance) == entering(instance) == {"alice", "carol", "dave"}
    assert instance.hutch("exec", "hers", "--", "id", "-un", as_user="carol").stdout == "dev\n"
    assert not opens(instance, "dave", daves), "a group that was taken out gets another key"
    assert instance.status("hers")["pid"] == pid
    assert instance.plan()["hers"]["action"] == "no change"


def test_whoever_is_not_there_is_refused_by_key_and_line(instance: Instance) -> None:
    instance.declare("container", hers='owner = "alice"\nshare_with = ["mallory", "@nobodys", "root"]')
    result = instance.hutch("up", check=False)
    assert result.returncode == 2
    for index, what in enumerate(("is not a user of this host", "is not a group of this host", "is the user 0")):
        assert f"workspaces.hers.share_with[{index}]" in result.stderr
        assert what in result.stderr
    assert not (instance.state / "workspaces").exists()


@pytest.mark.slow
def test_who_leaves_a_group_has_its_key_in_vain(instance: Instance, workspace_type: str) -> None:
    instance.declare(workspace_type, hers='owner = "alice"\nshare_with = ["@devs"]')
    instance.up()
    let_all_try(instance, "hers")
    daves = copy_key(instance, "dave", "@1201")
    assert opens(instance, "dave", daves)
    groups = Path("/etc/group")
    before = groups.read_text()
    groups.write_text(before.replace("devs:x:1201:dave", "devs:x:1201:bob"))
    try:
        planned = instance.plan()["hers"]
        assert (planned["action"], [reason["key"] for reason in planned["reasons"]]) == ("live", ["share_with"])
        assert "share_with: @devs by an earlier key → @devs (live)" in instance.hutch("plan").stdout
        instance.up()
        assert not opens(instance, "dave", daves)
        assert instance.plan()["hers"]["action"] == "no change"
    finally:
        groups.write_text(before)


def test_the_group_of_an_older_hutch_loses_what_it_had(instance: Instance, workspace_type: str) -> None:
    """It had a copy of root's key, which opened every workspace: no copy of it opens one any more."""
    instance.declare(workspace_type, hers='owner = "alice"', other='owner = "alice"')
    instance.up()
    let_all_try(instance, "hers")
    instance.hutch("stop", "other")
    old = instance.state / "keys" / "hutch"
    old.mkdir(mode=0o710)
    os.chown(old, 0, 1200)
    copy = old / "id_ed25519"
    copy.write_bytes((instance.state / "keys" / "0" / "id_ed25519").read_bytes())
    copy.chmod(0o640)
    os.chown(copy, 0, 1200)
    carols = copy_key(instance, "carol", "hutch")
    assert opens(instance, "carol", carols)

    assert 'share_with = ["@hutch"]' in instance.hutch("plan", as_user="alice").stdout
    said = instance.hutch("plan").stdout
    assert "share_with: @hutch by root's key → none (live)" in said
    assert 'share_with = ["@hutch"]' in said
    instance.hutch("start", "other")
    assert not old.exists()
    for name in ("hers", "other"):
        assert instance.hutch("ssh", name, "hostname").stdout == f"{name}\n"
        assert instance.inside(name, "hostname").stdout == f"{name}\n"
    assert instance.plan()["hers"]["action"] == "live"
    instance.up()
    assert not opens(instance, "carol", carols)
    assert instance.hutch("ssh", "hers", "hostname").stdout == "hers\n"
    assert instance.inside("hers", "hostname").stdout == "hers\n"
    assert instance.plan()["hers"]["action"] == "no change"
    assert not (instance.state / "keys" / "retired").exists()


@pytest.mark.slow
def test_a_guest_that_keeps_a_key_is_told_of_and_asked_again(instance: Instance) -> None:
    """Root inside decides whom its sshd lets in. The view is the host's to take away."""
    instance.declare("container", hers='owner = "alice"\nshare_with = ["bob"]')
    instance.up()
    let_all_try(instance, "hers")
    tool = "/usr/bin/systemd-tmpfiles"
    instance.inside("hers", "sh", "-c", f"mv {tool} {tool}.kept && ln -s /bin/false {tool}", root=True)
    instance.declare("container", hers='owner = "alice"')
    failed = instance.hutch("up", check=False)
    assert failed.returncode == 1
    assert "hers: share_with: the guest does not take it" in failed.stderr
    assert seeing(instance) == {"alice"}
    planned = instance.plan()["hers"]
    assert (planned["action"], [reason["key"] for reason in planned["reasons"]]) == ("live", ["share_with"])
    instance.inside("hers", "mv", f"{tool}.kept", tool, root=True)
    instance.up()
    assert entering(instance) == {"alice"}
