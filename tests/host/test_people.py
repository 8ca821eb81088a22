"""Who is not root: owners see and enter their own workspaces, others those that are shared with them, by name or with a
group that they are in. The group `hutch` gives none of this by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.ports import fetch, forwarding, listening
from tests.host.sharing import let_all_try
from tests.support.world import World

PUBLIC = {f"keys/{holder}/id_ed25519.pub" for holder in ("0", "1001", "@1201")}
EVERYBODY = {"known_hosts", "keys/@1201/members", *PUBLIC}  # may read these
SEEN = {"root": ["his", "hers"], "alice": ["hers"], "bob": ["his", "hers"], "dave": ["hers"]}
HERS = 'owner = "alice"\nshare_with = ["bob", "@devs"]\negress = ["public.example"]\nenv = { SECRET = "hers" }'
OTHERS = [("carol", "hers"), ("alice", "his"), ("carol", "his"), ("dave", "his")]
"""Accounts and workspaces that are neither theirs nor shared with them. carol is in the group `hutch`."""


@pytest.fixture(scope="module")
def people(world: World, images: Path) -> Iterator[Instance]:
    """alice's workspace `hers`, which is shared with bob and the group devs, and bob's `his`, both running. A machine
    is reached in the same way, by ssh, so these are containers; test_sharing has both."""
    with open_instance(world, images) as instance:
        instance.declare("container", hers=HERS, his='owner = "bob"')
        instance.up()
        instance.inside("hers", "getent", "hosts", "secret.example", check=False)
        for name in ("hers", "his"):
            let_all_try(instance, name)
        instance.file.unlink()
        yield instance


@pytest.mark.parametrize("account", SEEN)
def test_ls_and_status_show_what_is_ones_own(people: Instance, account: str) -> None:
    for command in ("ls", "status"):
        found = json.loads(people.hutch(command, "--json", as_user=account).stdout)
        assert sorted(entry["name"] for entry in found) == sorted(SEEN[account])
        assert {entry["state"] for entry in found} == {"running"}


def test_they_are_told_what_root_is_told(people: Instance) -> None:
    roots = people.status("hers")
    assert roots["share_with"] == ["bob", "@devs"]
    assert json.loads(people.hutch("status", "hers", "--json", as_user="alice").stdout) == [roots]


def test_images_are_listed_to_who_uses_them(people: Instance) -> None:
    """As root is told of them, and by nobody's names but those that one may see."""
    (roots,) = json.loads(people.hutch("image", "ls", "--json").stdout)
    assert sorted(roots["workspaces"]) == ["hers", "his"]
    assert roots["size"] > 0 and roots["digest"] and roots["packages"]
    for account, names in SEEN.items():
        (found,) = json.loads(people.hutch("image", "ls", "--json", as_user=account).stdout)
        assert found == {**roots, "workspaces": sorted(names)}
    assert json.loads(people.hutch("image", "ls", "--json", as_user="carol").stdout) == []
    assert roots["id"] in people.hutch("image", "ls", as_user="alice").stdout


def test_rules_are_explained_to_whose_they_are(people: Instance) -> None:
    """As root is told of them, and with nobody else in them."""
    his = people.status("his")["ip"]
    roots = people.hutch("explain", "hers").stdout
    assert his in roots
    for account in ("alice", "bob"):
        told = people.hutch("explain", "hers", as_user=account).stdout
        rules = [line for line in told.splitlines() if "comment" in line]
        assert len(rules) > 60 and {*rules} <= {*roots.splitlines()}
        assert "public.example" in told and people.status("hers")["ip"] in told
        assert his not in told and "SECRET" not in told
        assert "`sudo hutch explain hers` has the rest" in told


@pytest.mark.parametrize(("account", "name"), OTHERS)
def test_another_s_is_refused(people: Instance, account: str, name: str) -> None:
    commands = ("status", "logs", "egress", "approvals", "ports", "forward", "explain")
    for command in (*((each, name) for each in commands), ("exec", name, "--", "true")):
        result = people.hutch(*command, as_user=account, check=False)
        assert (result.returncode, result.stdout) == (1, ""), command
        assert f"the workspace {name} is not yours" in result.stderr


@pytest.mark.parametrize(("account", "name"), OTHERS)
def test_another_s_is_not_entered_without_a_key(people: Instance, account: str, name: str) -> None:
    stolen = people.world.accounts[account].home / "stolen"
    away, back = (f"{name}:.profile", str(stolen)), ("/etc/hostname", f"{name}:x")
    for command in (["ssh", name, "true"], ["cp", *away], ["cp", *back]):
        result = people.hutch(*command, as_user=account, check=False)
        assert result.returncode != 0
        assert "Permission denied (publickey)" in result.stderr
    assert not stolen.exists()


def test_owners_and_those_they_share_with_plan_it(people: Instance) -> None:
    people.declare("container", hers=f"{HERS}\nnesting = true", his='owner = "bob"')
    try:
        roots = json.loads(people.hutch("plan", "--json", "hers").stdout)
        for account in ("alice", "bob", "dave"):
            found = json.loads(people.hutch("plan", "--json", "hers", as_user=account).stdout)
            assert found["actions"] == roots["actions"]
            assert found["notes"][-1].startswith("root's plan also looks at")
        (action,) = roots["actions"]
        assert (action["action"], [reason["key"] for reason in action["reasons"]]) == ("restart", ["nesting"])
        own = json.loads(people.hutch("plan", "--json", as_user="alice").stdout)
        assert [action["workspace"] for action in own["actions"]] == ["hers"]
        for account, name in OTHERS:
            refused = people.hutch("plan", name, as_user=account, check=False)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert f"the workspace {name} is not yours" in refused.stderr
    finally:
        people.file.unlink()


def test_run_in_one_that_runs_as_its_file_says(people: Instance) -> None:
    people.declare("container", hers=HERS)
    try:
        for account in ("alice", "bob", "dave"):
            assert people.hutch("run", "--name", "hers", "--", "hostname", as_user=account).stdout == "hers\n"
        refused = people.hutch("run", "--name", "hers", "--", "hostname", as_user="carol", check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "the workspace hers is not yours" in refused.stderr
    finally:
        people.file.unlink()


@pytest.mark.parametrize("account", ["alice", "bob", "dave"])
def test_exec_keeps_arguments_streams_codes_and_root(people: Instance, account: str) -> None:
    words = ["a b", "", "*", "$HOME", "'\"\\"]
    said = people.hutch("exec", "hers", "--", "printf", "<%s>", *words, as_user=account).stdout
    assert said == "".join(f"<{word}>" for word in words)
    script = 'cat; echo "$SECRET" >&2; exit 7'
    result = people.hutch("exec", "hers", "--", "sh", "-c", script, as_user=account, stdin="given\n", check=False)
    assert (result.returncode, result.stdout, result.stderr) == (7, "given\n", "hers\n")
    assert people.hutch("exec", "--root", "hers", "--", "id", "-u", as_user=account).stdout == "0\n"


def logins(people: Instance) -> int:
    script = "journalctl --sync; journalctl -t sshd-session -t sshd | grep -c 'Accepted publickey' || true"
    return int(people.inside("hers", "sh", "-c", script, root=True).stdout)


def test_two_sessions_of_exec_share_a_connection(people: Instance) -> None:
    alice = people.world.accounts["alice"]
    own = alice.home / "run"
    own.mkdir(mode=0o700)
    os.chown(own, alice.uid, alice.uid)
    before = logins(people)
    for number, variable in enumerate(("XDG_RUNTIME_DIR", "TMPDIR"), 1):
        people.hutch("exec", "hers", "--", "true", as_user="alice", env={variable: str(own)})
        assert logins(people) == before + number
        assert list(own.iterdir()) == []


@pytest.mark.parametrize("account", ["alice", "bob", "dave"])
def test_ssh_cp_and_logs(people: Instance, account: str) -> None:
    assert people.ssh("hers", "hostname", as_user=account).stdout == "hers\n"
    assert people.hutch("ssh", "hers", "hostname", as_user=account).stdout == "hers\n"
    own = people.world.accounts[account].home / "sent"
    own.write_text("a letter")
    back = own.with_name("back")
    people.hutch("cp", str(own), "hers:letter", as_user=account)
    people.hutch("cp", "hers:letter", str(back), as_user=account)
    assert back.read_text() == "a letter"
    people.inside("hers", "systemd-cat", "-t", "hutch-test", "echo", f"a line for {account}", root=True)
    said = people.hutch("logs", "hers", as_user=account).stdout
    assert f"a line for {account}" in said
    assert said.splitlines()[0] == people.hutch("logs", "hers").stdout.splitlines()[0]  # the machine log's


@pytest.mark.parametrize("account", ["alice", "bob", "dave"])
def test_egress_approvals_ports_and_forward(people: Instance, account: str) -> None:
    asked = json.loads(people.hutch("egress", "hers", "--json", as_user=account).stdout)
    assert "secret.example" in {event["name"] for event in asked}
    assert "secret.example" in people.hutch("approvals", "hers", as_user=account).stdout
    with listening(people, 3000, name="hers"):
        assert 3000 in [
            item["port"] for item in json.loads(people.hutch("ports", "hers", "--json", as_user=account).stdout)
        ]
        with forwarding(people, "3000", as_user=account, name="hers") as forward:
            forward.says(r"127\.0\.0\.1:3000 -> hers:3000")
            assert fetch(3000) == "inside"


def test_what_changes_something_needs_root(people: Instance) -> None:
    for command in (["stop", "hers"], ["rm", "hers"], ["up"], ["console", "hers"]):
        result = people.hutch(*command, as_user="alice", check=False)
        assert result.returncode == 1
        assert "this needs root" in result.stderr
    assert people.status("hers")["state"] == "running"


def test_names_complete_without_root(people: Instance) -> None:
    for account, names in SEEN.items():
        words = {"_HUTCH_COMPLETE": "bash_complete", "COMP_WORDS": "hutch ssh ", "COMP_CWORD": "2"}
        said = people.hutch(as_user=account, env=words).stdout
        assert [line.split(",")[1] for line in said.split()] == sorted(names)


def reached(people: Instance, account: str) -> set[str]:
    """What of hutch's own, homes and images aside, an account can read, write or connect to, if it knows its name."""
    paths = []
    for top in (people.state, people.run / "workspaces"):
        for where, directories, files in os.walk(top):
            directories[:] = [name for name in directories if name not in ("images", "home")]
            paths += [os.path.join(where, name) for name in files]
    can = "os.access(path, os.W_OK) or os.path.isfile(path) and os.access(path, os.R_OK)"
    script = f"import os, sys\nprint(*(path for path in sys.argv[1:] if {can}), sep='\\n')"
    command = people.world.accounts[account].command(sys.executable, "-c", script, *paths)
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return {path.removeprefix(f"{people.state}/").removeprefix(f"{people.run}/workspaces/") for path in said.split()}


def test_nobody_reaches_more_than_is_shown_to_them(people: Instance) -> None:
    hers, his = ({f"shown/{name}.json", f"{name}/status.json", f"{name}/machine.log"} for name in ("hers", "his"))
    hers |= {"egress/hers/records.jsonl"}
    hers |= {"log/hers.jsonl"}
    assert reached(people, "alice") - EVERYBODY == hers | {"log/inbox/hers/1000"}
    bobs = {"keys/1001/id_ed25519", "log/his.jsonl", "log/inbox/his/1001", "log/inbox/hers/1001"}
    assert reached(people, "bob") - EVERYBODY == hers | his | bobs
    assert reached(people, "carol") - EVERYBODY == set()
    assert reached(people, "dave") - EVERYBODY == hers | {"keys/@1201/id_ed25519", "log/inbox/hers/1003"}


def test_rm_leaves_nothing_to_see(people: Instance) -> None:
    people.hutch("rm", "--force", "his")
    assert not (people.state / "shown" / "his.json").exists()
    result = people.hutch("status", "his", as_user="bob", check=False)
    assert (result.returncode, "there is no workspace his" in result.stderr) == (2, True)
    assert [entry["name"] for entry in json.loads(people.hutch("ls", "--json", as_user="bob").stdout)] == ["hers"]
    assert "no workspace of this host is yours" in people.hutch("ls", as_user="carol").stderr
    people.remove_all()
    assert not (people.state / "shown").exists()
