"""Who is not root: owners see and enter their own workspaces, members of the group `hutch` all, others none."""

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
from tests.support.world import World

EVERYBODY = {"known_hosts", "keys/0/id_ed25519.pub"}  # may read these
SEEN = {"root": ["his", "hers"], "alice": ["hers"], "bob": ["his"], "carol": ["hers", "his"]}


@pytest.fixture(scope="module")
def people(world: World, images: Path) -> Iterator[Instance]:
    """alice's workspace `hers` and bob's `his`, both running; carol is in the group. A machine is reached in the same
    way, by ssh, so these are containers."""
    with open_instance(world, images) as instance:
        instance.declare("container", hers='owner = "alice"\nenv = { SECRET = "hers" }', his='owner = "bob"')
        instance.up()
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
    assert json.loads(people.hutch("status", "hers", "--json", as_user="alice").stdout) == [roots]


@pytest.mark.parametrize("command", [("status",), ("logs",), ("exec", "--", "true")])
def test_another_s_is_refused(people: Instance, command: tuple[str, ...]) -> None:
    result = people.hutch(command[0], "hers", *command[1:], as_user="bob", check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "the workspace hers is not yours" in result.stderr


def test_another_s_is_not_entered_without_a_key(people: Instance) -> None:
    stolen = people.world.accounts["bob"].home / "stolen"
    for command in (["ssh", "hers", "true"], ["cp", "hers:.profile", str(stolen)], ["cp", "/etc/hostname", "hers:x"]):
        result = people.hutch(*command, as_user="bob", check=False)
        assert result.returncode != 0
        assert "Permission denied (publickey)" in result.stderr
    assert not stolen.exists()


@pytest.mark.parametrize("account", ["alice", "carol"])
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


def test_two_sessions_of_exec_share_a_connection_where_there_is_a_place_for_it(people: Instance) -> None:
    alice = people.world.accounts["alice"]
    own = alice.home / "run"
    own.mkdir(mode=0o700)
    os.chown(own, alice.uid, alice.uid)
    before = logins(people)
    people.hutch("exec", "hers", "--", "true", as_user="alice", env={"XDG_RUNTIME_DIR": str(own)})
    assert logins(people) == before + 1
    people.hutch("exec", "hers", "--", "true", as_user="alice")
    assert logins(people) == before + 3
    assert list(own.iterdir()) == []


@pytest.mark.parametrize("account", ["alice", "carol"])
def test_ssh_cp_and_logs(people: Instance, account: str) -> None:
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
    assert reached(people, "alice") - EVERYBODY == hers
    assert reached(people, "bob") - EVERYBODY == his
    assert reached(people, "carol") - EVERYBODY == hers | his | {"keys/hutch/id_ed25519"}


def test_without_the_group_nobody_has_its_rights(people: Instance) -> None:
    groups = Path("/etc/group")
    before = groups.read_text()
    groups.write_text("".join(line for line in before.splitlines(True) if not line.startswith("hutch:")))
    try:
        people.hutch("rm", "--force", "his")
        assert reached(people, "carol") <= EVERYBODY
        assert not (people.state / "keys" / "hutch").exists()
        assert "no workspace of this host is yours" in people.hutch("ls", as_user="carol").stderr
        assert people.hutch("exec", "hers", "--", "id", "-un", as_user="alice").stdout == "dev\n"
    finally:
        groups.write_text(before)


def test_rm_leaves_nothing_to_see(people: Instance) -> None:
    assert not (people.state / "shown" / "his.json").exists()
    result = people.hutch("status", "his", as_user="bob", check=False)
    assert (result.returncode, "there is no workspace his" in result.stderr) == (2, True)
    assert "no workspace of this host is yours" in people.hutch("ls", as_user="bob").stderr
    people.remove_all()
    assert not (people.state / "shown").exists()
