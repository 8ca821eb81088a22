"""Members of the group `hutch`: they have workspaces of their own without root and without a password. What they try to
get beyond that is in test_member_attacks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.spec.ceiling import POLICY_FILE
from tests.host.members import ENTRY, RULE, HostsOwn, open_host
from tests.support.world import World

AGENT = """\
#!/bin/sh
# Plays an agent: it reads its task, works on the checkout, and says what it did.
set -eu
read -r task < task
echo "$task by $(id -un) in $(hostname)" >> work.txt
test -r "$HUTCH_CONTEXT"
echo "done: $task"
"""


@pytest.fixture(scope="module")
def host(world: World, images: Path) -> Iterator[HostsOwn]:
    with open_host(world, images) as host:
        yield host


def test_the_rule_is_as_sudo_wants_it_and_doctor_knows(host: HostsOwn) -> None:
    assert (ENTRY.stat().st_mode & 0o777, RULE.stat().st_mode & 0o777) == (0o755, 0o440)
    subprocess.run(["visudo", "-c", "-f", RULE], check=True, capture_output=True, timeout=10)
    found = {item["name"]: item for item in json.loads(host.hutch("doctor", "--json", check=False).stdout)}
    assert found["members"]["state"] == "ok"
    assert "by sudo" in found["members"]["means"]
    assert host.hutch("doctor", "--fix", check=False).stderr.count("write") == 0


def test_who_is_not_in_the_group_is_refused(host: HostsOwn) -> None:
    refused = host.enter("alice", "ls", "--kept")
    assert refused.returncode != 0
    assert "a password is required" in refused.stderr
    # As if another rule let them through.
    result = host.as_root("ls", env={"SUDO_UID": "1000"})
    assert (result.returncode, result.stdout) == (1, "")
    assert "uid 1000 is not in the group hutch" in result.stderr
    plain = host.hutch("up", as_user="alice", cwd=host.project("alice"), check=False)
    assert (plain.returncode, plain.stderr.splitlines()[0]) == (1, "hutch: this needs root: run it with sudo or doas")
    assert not (host.state / "workspaces").exists() or host.names() == []


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SUDO_UID": "0"},
        {"SUDO_UID": "1002", "PKEXEC_UID": "1001"},
        {"SUDO_UID": "-1"},
        {"DOAS_USER": "nobody-here"},
    ],
    ids=str,
)
def test_a_caller_who_is_not_known_is_refused(host: HostsOwn, environment: dict[str, str]) -> None:
    result = host.as_root("ls", env=environment)
    assert result.returncode == 1
    assert "it is not known for whom this is" in result.stderr or "uid 0 is not in the group" in result.stderr


def test_the_entry_point_is_of_no_use_without_root(host: HostsOwn) -> None:
    result = host.as_user("carol", str(ENTRY), "ls", check=False, env={"SUDO_UID": "1001", "PATH": "/usr/bin:/bin"})
    assert result.returncode != 0


@pytest.mark.vm(slow=True)
def test_a_daily_round(host: HostsOwn, workspace_type: str) -> None:
    host.declare_for("carol", workspace_type, mine='egress = ["public.example"]')
    project = host.home("carol") / "project"

    def hutch(*words: str) -> str:
        return host.hutch(*words, as_user="carol", cwd=project).stdout

    assert [action["action"] for action in json.loads(hutch("up", "--json"))["actions"]] == ["create"]
    (status,) = json.loads(hutch("status", "--json"))
    assert (status["name"], status["state"], status["file"]) == ("mine", "running", str(project / "hutch.toml"))
    assert hutch("exec", "mine", "--", "sh", "-c", "id -u; pwd") == "1002\n/home/dev\n"
    assert [action["action"] for action in json.loads(hutch("plan", "--json"))["actions"]] == ["no change"]
    hutch("allow", "mine", "second.example", "--for", "1h")
    hutch("deny", "mine", "second.example")
    hutch("stop", "mine")
    hutch("start", "mine")
    hutch("restart", "mine")
    hutch("down")
    assert json.loads(hutch("ls", "--json"))[0]["state"] == "stopped"
    hutch("rm", "--force", "mine")
    assert [kept["name"] for kept in json.loads(hutch("ls", "--kept", "--json"))] == ["mine"]
    hutch("undelete", "mine")
    hutch("rm", "--purge", "--force", "mine")
    assert not (host.state / "workspaces" / "mine").exists()
    assert ENTRY.exists()  # also after the last workspace


@pytest.mark.vm(slow=True)
def test_from_an_empty_account_two_commands_to_an_agent_at_work(host: HostsOwn, workspace_type: str) -> None:
    """The second one is typed in a directory that the account has just made."""
    host.template_for("carol", workspace_type)
    account, options = host.world.accounts["carol"], ["--vm"] if workspace_type == "vm" else []
    shop = host.project("carol", directory=f"shop-{workspace_type}")
    host.as_user("carol", "tee", str(shop / "task"), stdin="sweep the floor\n")
    host.as_user("carol", "tee", str(shop / "agent"), stdin=AGENT)
    host.as_user("carol", "chmod", "+x", str(shop / "agent"))
    for time in (1, 2):  # the second time finds it running
        result = host.hutch("run", *options, "--", "./agent", as_user="carol", cwd=shop)
        assert result.stdout == "done: sweep the floor\n"
        assert (shop / "work.txt").read_text() == f"sweep the floor by dev in shop-{workspace_type}\n" * time
    assert (shop / "work.txt").stat().st_uid == account.uid
    host.as_user("carol", "git", "init", "-q", str(shop))
    report = ("report", f"shop-{workspace_type}", "--format", "json")
    told = json.loads(host.hutch(*report, as_user="carol").stdout)
    (changes,) = told["changes"]["repositories"]
    assert "work.txt" in {each["path"] for each in changes["files"]}
    assert ["./agent"] in [session["argv"] for session in told["sessions"]]
    assert host.hutch(*report, as_user="bob", check=False).returncode == 1
    refused = host.as_root(*report, env={"SUDO_UID": str(host.world.accounts["bob"].uid)})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is somebody else's workspace" in refused.stderr
    host.hutch("rm", "--purge", "--force", f"shop-{workspace_type}", as_user="carol")


@pytest.mark.parametrize(
    "words",
    [["uninstall"], ["withdraw"], ["doctor", "--fix"], ["move", "x", "--engine", "incus"], ["exec", "x", "--", "id"]],
    ids=" ".join,
)
def test_what_is_not_for_members_is_refused_by_its_name(host: HostsOwn, words: list[str]) -> None:
    result = host.as_root(*words, env={"SUDO_UID": "1002"})
    assert (result.returncode, result.stdout) == (2, "")
    assert "is not for members of the group hutch" in result.stderr


def test_root_s_own_workspaces_are_theirs_to_start_and_stop_but_not_to_declare(host: HostsOwn) -> None:
    host.write('[workspaces.lent]\ntype = "container"\nowner = "carol"\nmemory = "64GiB"\n')
    host.hutch("up", "--no-start")
    try:
        host.hutch("start", "lent", as_user="carol")
        host.hutch("stop", "lent", as_user="carol")
        host.declare_for("carol", "container", lent="")
        result = host.hutch("up", "--adopt", as_user="carol", cwd=host.home("carol") / "project", check=False)
        assert result.returncode == 2
        assert "lent is declared by root" in result.stderr
    finally:
        host.hutch("rm", "--purge", "lent")
        host.file.unlink()


def test_without_the_rule_it_is_as_without_the_entry_point(host: HostsOwn) -> None:
    """Root has emptied it, as docs/install.md says: commands ask as before, and a report is the owner's own view."""
    project = host.declare_for("carol", "container", "bare", bare="")
    host.hutch("up", "--no-start", as_user="carol", cwd=project)
    report = ("report", "bare", "--format", "json")
    rule = RULE.read_text()
    RULE.write_text("# nobody\n")
    try:
        refused = host.hutch("up", as_user="carol", cwd=project, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("hutch: this needs root: run it with sudo or doas\n")
        told = json.loads(host.hutch(*report, as_user="carol").stdout)
        assert (told["changes"], "root alone looks" in told["unseen"]) == (None, True)
    finally:
        RULE.write_text(rule)
    host.hutch("rm", "--purge", "bare", as_user="carol")


def test_the_ceiling_is_told_by_plan_and_a_broken_one_allows_nothing_at_all(host: HostsOwn) -> None:
    is_new = not POLICY_FILE.parent.exists()
    POLICY_FILE.parent.mkdir(exist_ok=True, mode=0o755)
    project = host.declare_for("carol", "container", "ceiling", mine='memory = "2GiB"')
    try:
        POLICY_FILE.write_text('[members]\nmemory = "1GiB"\n')
        ends = [host.hutch(command, as_user="carol", cwd=project, check=False) for command in ("plan", "up")]
        assert [(end.returncode, end.stdout) for end in ends] == [(2, ""), (2, "")]
        assert ends[0].stderr == ends[1].stderr
        assert f"members.memory is 1GiB, as {POLICY_FILE} says" in ends[0].stderr
        POLICY_FILE.write_text('[members]\nworkspaces = "many"\n')
        for words in (("up",), ("ls", "--kept"), ("stop", "mine"), ("rm", "mine"), ("allow", "mine", "a.example")):
            said = host.enter("carol", *words)
            assert (said.returncode, said.stdout) == (2, "")
            assert f'{POLICY_FILE}:2: members.workspaces = "many": must be a whole number' in said.stderr
    finally:
        POLICY_FILE.unlink()
        if is_new:
            POLICY_FILE.parent.rmdir()
