"""/etc/hosts, the ssh drop-in and the known-hosts file: whose lines are whose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance

HOSTS = Path("/etc/hosts")


@pytest.fixture
def hosts(instance: Instance) -> Iterator[None]:
    """/etc/hosts as it was, whatever a test writes there; before the instance ends, which compares."""
    before, mode = HOSTS.read_bytes(), HOSTS.stat().st_mode
    yield
    HOSTS.write_bytes(before)
    HOSTS.chmod(mode & 0o7777)


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(
    "content",
    [
        b"127.0.0.1 localhost\n",
        b"127.0.0.1 localhost",
        b"127.0.0.1 localhost\r\n10.0.0.1 printer\r\n",
        b"# caf\xe9\n\n\n127.0.0.1\tlocalhost   # spaces \n10.1.1.1 workspace-mine\n\n",
        b"",
    ],
    ids=["plain", "no final newline", "crlf", "latin-1 and blanks", "empty"],
)
def test_other_lines_of_the_hosts_file_stay_as_they_are(instance: Instance, content: bytes) -> None:
    HOSTS.write_bytes(content)
    HOSTS.chmod(0o640)
    instance.declare("container", one="", two="")
    instance.hutch("up", "--no-start")
    managed = HOSTS.read_bytes()
    assert b"workspace-one" in managed
    assert instance.status("two")["ip"].encode() in managed
    assert managed.startswith(content)
    assert HOSTS.stat().st_mode & 0o7777 == 0o640
    HOSTS.write_bytes(managed + b"10.2.2.2 added-later\n")
    instance.hutch("rm", "--purge", "one")
    assert b"workspace-one" not in HOSTS.read_bytes()
    assert b"workspace-two" in HOSTS.read_bytes()
    instance.hutch("rm", "--purge", "two")
    # What was written behind the block needs the line end that the block had brought.
    joint = b"" if not content or content.endswith(b"\n") else b"\n"
    assert HOSTS.read_bytes() == content + joint + b"10.2.2.2 added-later\n"
    HOSTS.write_bytes(content)


@pytest.mark.usefixtures("hosts")
def test_the_hosts_file_is_restored_to_the_byte(instance: Instance) -> None:
    HOSTS.write_bytes(b"127.0.0.1 localhost")
    instance.declare("container", one="")
    instance.hutch("up", "--no-start")
    assert b"workspace-one" in HOSTS.read_bytes()
    instance.hutch("rm", "--purge", "one")
    assert HOSTS.read_bytes() == b"127.0.0.1 localhost"


@pytest.mark.usefixtures("hosts")
def test_a_block_that_somebody_broke_is_not_guessed_at(instance: Instance) -> None:
    instance.declare("container", one="")
    instance.hutch("up", "--no-start")
    managed = HOSTS.read_bytes()
    lines = managed.splitlines(keepends=True)
    own = [number for number, line in enumerate(lines) if b"hutch" in line.lower()]
    broken = b"".join(line for number, line in enumerate(lines) if number != own[-1]) + b"10.9.9.9 mine\n"
    HOSTS.write_bytes(broken)
    instance.hutch("rm", "--purge", "one", check=False)
    assert b"10.9.9.9 mine\n" in HOSTS.read_bytes()
    HOSTS.write_bytes(managed)
    instance.hutch("rm", "--purge", "--force", "one", check=False)


def test_ssh_is_wired_up_and_the_wire_goes_with_the_last_workspace(instance: Instance) -> None:
    directory = Path("/etc/ssh/ssh_config.d")
    before = set(os.listdir(directory))
    instance.declare("container", one="")
    instance.hutch("up", "--no-start")
    (drop_in,) = set(os.listdir(directory)) - before
    assert (directory / drop_in).stat().st_mode & 0o777 == 0o644
    known = instance.state / "known_hosts"
    assert str(known) in (directory / drop_in).read_text()
    assert known.stat().st_mode & 0o777 == 0o644
    name, kind, _ = known.read_text().split(" ", 2)
    assert "workspace-one" in name.split(",")
    assert kind == "ssh-ed25519"
    instance.hutch("rm", "--purge", "one")
    assert set(os.listdir(directory)) == before
    assert not known.exists() or known.read_text() == ""


def test_an_owner_without_a_key_gets_one(instance: Instance) -> None:
    account = instance.world.accounts["bob"]
    hidden = account.home / "hidden"
    (account.home / ".ssh").rename(hidden)
    try:
        instance.declare("container", one='owner = "bob"')
        instance.up()
        assert instance.ssh("one", "id -u", as_user="bob").stdout == "1001\n"
        assert instance.ssh("one", as_user="root").returncode == 0
        assert instance.ssh("one", as_user="alice", check=False).returncode == 255
    finally:
        hidden.rename(account.home / ".ssh")


def test_the_owner_is_who_is_behind_sudo(instance: Instance) -> None:
    instance.declare("container", one="")
    behind = {"SUDO_UID": "1001", "SUDO_GID": "1001", "SUDO_USER": "bob"}
    instance.hutch("up", env=behind)
    assert instance.ssh("one", "id -u", as_user="bob").stdout == "1001\n"


def test_a_host_key_that_is_not_its_own_is_refused_without_a_prompt(instance: Instance) -> None:
    """A workspace that answers with another one's address, or a machine in its place, is not believed."""
    instance.declare("container", one="")
    instance.up()
    instance.ssh("one")
    serve = "set -e; ssh-keygen -q -t ed25519 -N '' -f /run/other; systemctl stop ssh.socket ssh; mkdir -p /run/sshd; "
    serve += "/usr/sbin/sshd -o HostKey=/run/other -f /dev/null -o PidFile=none"
    instance.inside("one", "sh", "-c", serve, root=True)
    result = instance.ssh("one", check=False)
    assert result.returncode == 255
    assert "verification failed" in result.stderr
