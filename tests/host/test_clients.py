"""Programs that run OpenSSH reach a workspace by its name alone, as docs/ssh.md says; others by what it names there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.faults import layout_of
from tests.host.instance import Completed, Instance
from tests.host.opening import open_instance
from tests.support.world import World

QUIET_GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}


@pytest.fixture(scope="module")
def web(world: World, images: Path) -> Iterator[Instance]:
    """A running workspace `web` of alice's."""
    with open_instance(world, images) as instance:
        instance.declare("container", web='owner = "alice"')
        instance.up()
        yield instance


@pytest.fixture
def desk(web: Instance) -> Iterator[Path]:
    """A directory of alice's on the host."""
    account = web.world.accounts["alice"]
    directory = account.home / "desk"
    directory.mkdir()
    shutil.chown(directory, account.uid, account.uid)
    yield directory
    shutil.rmtree(directory)


def run(instance: Instance, desk: Path, *argv: str, stdin: str = "") -> Completed:
    """A program of alice's, who has been told nothing but the workspace's name."""
    account = instance.world.accounts["alice"]
    result = subprocess.run(
        account.command(*argv),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=desk,
        env={**account.environment(), **QUIET_GIT},
    )
    assert result.returncode == 0, (argv, result.stdout, result.stderr)
    return result


def write(web: Instance, desk: Path, text: str) -> None:
    path = desk / "note"
    path.write_text(text)
    account = web.world.accounts["alice"]
    shutil.chown(path, account.uid, account.uid)


def test_scp(web: Instance, desk: Path) -> None:
    write(web, desk, "by scp\n")
    run(web, desk, "scp", "-q", "-B", "note", "workspace-web:scp-note")
    run(web, desk, "scp", "-q", "-B", "workspace-web:scp-note", "back")
    assert (desk / "back").read_text() == web.ssh("web", "cat scp-note").stdout == "by scp\n"


def test_sftp(web: Instance, desk: Path) -> None:
    write(web, desk, "by sftp\n")
    run(web, desk, "sftp", "-q", "-b", "-", "workspace-web", stdin="put note sftp-note\nget sftp-note back\n")
    assert (desk / "back").read_text() == web.ssh("web", "cat sftp-note").stdout == "by sftp\n"


def test_git(web: Instance, desk: Path) -> None:
    """A repository inside is a remote like any other, both ways."""
    commit = "git -C shop -c user.name=dev -c user.email=dev@localhost commit --quiet --allow-empty --message"
    web.ssh("web", f"git init --quiet --initial-branch=main shop && {commit} inside")
    run(web, desk, "git", "clone", "--quiet", "workspace-web:shop", "shop")
    identity = ("-c", "user.name=alice", "-c", "user.email=alice@localhost")
    run(web, desk, "git", "-C", "shop", *identity, "commit", "--quiet", "--allow-empty", "--message", "outside")
    run(web, desk, "git", "-C", "shop", "push", "--quiet", "origin", "main:outside")
    assert web.ssh("web", "git -C shop log --format=%s outside").stdout == "outside\ninside\n"


def test_rsync(web: Instance, desk: Path) -> None:
    write(web, desk, "by rsync\n")
    run(web, desk, "rsync", "--archive", "note", "workspace-web:rsync-note")
    run(web, desk, "rsync", "--archive", "workspace-web:rsync-note", "back")
    assert (desk / "back").read_text() == "by rsync\n"


def test_a_client_that_reads_no_configuration(web: Instance, desk: Path) -> None:
    """Address, user, key file and known hosts are enough, by the workspace's name and by its address."""
    key, known = web.world.accounts["alice"].home / ".ssh" / "id_ed25519", layout_of(web).known_hosts
    only = ["-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    only += ["-o", f"UserKnownHostsFile={known}", "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes"]
    for host in ("workspace-web", web.status("web")["ip"]):
        assert run(web, desk, "ssh", *only, f"dev@{host}", "uname -n").stdout == "web\n"
