"""Single files, and what is private: the host's inside, and nothing of it on the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

pytestmark = pytest.mark.vm(slow=True)


@pytest.fixture(scope="module")
def private(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        hers = instance.directory / "hers"
        for name in ("config/sub/deep", "config/.token", "agent.json", "read.conf", "write.conf", "open/write.conf"):
            path = hers / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("from the host\n")
        for path in (hers, *hers.rglob("*")):
            os.chown(path, 1000, 1000)
            path.chmod(0o700 if path.is_dir() else 0o600)
        hers.chmod(0o755)
        for name in ("read.conf", "write.conf"):
            os.rename(hers / name, hers / "config" / name)
        mounts = [
            f'{{ source = "{hers}/config", target = "/home/dev/.config/agent", mode = "private" }}',
            f'{{ source = "{hers}/agent.json", target = "/home/dev/.agent.json", mode = "private" }}',
            f'{{ source = "{hers}/config/read.conf", target = "/home/dev/read.conf", mode = "readonly" }}',
            f'{{ source = "{hers}/config/write.conf", target = "/srv/a b/write.conf", mode = "writable" }}',
            f'{{ source = "{hers}/open", target = "/srv/data", mode = "private" }}',
        ]
        instance.declare(workspace_type, web=f"mounts = [{', '.join(mounts)}]")
        instance.up()
        yield instance


def on_host(instance: Instance, name: str) -> str:
    return (instance.directory / "hers" / name).read_text()


def restart(instance: Instance, *, check: bool = True) -> str:
    return instance.hutch("restart", "web", check=check).stderr


def test_single_files(private: Instance) -> None:
    assert private.ssh("web", "cat ~/read.conf '/srv/a b/write.conf'").stdout == "from the host\n" * 2
    assert private.inside("web", "sh", "-c", "echo x > /home/dev/read.conf", root=True, check=False).returncode != 0
    private.ssh("web", "echo inside >> '/srv/a b/write.conf'")
    assert on_host(private, "config/write.conf") == "from the host\ninside\n"
    found = (private.directory / "hers/config/write.conf").stat()
    assert (found.st_uid, found.st_gid) == (1000, 1000)
    assert private.inside("web", "stat", "-c", "%F %U", "/srv/a b/write.conf").stdout == "regular file dev\n"


def test_what_is_written_in_private_stays_inside(private: Instance) -> None:
    private.ssh(
        "web", "cd ~/.config/agent && cat .token sub/deep && echo mine > .token && echo new > sub/new && rm sub/deep"
    )
    private.ssh(
        "web", "cd ~ && echo mine > .agent.json.tmp && mv .agent.json.tmp .agent.json && echo x > /srv/data/made"
    )
    private.inside(
        "web", "sh", "-c", "echo root > /srv/data/root; chmod 4755 /srv/data/root; chown 0:0 /srv/data/root", root=True
    )
    for name in ("config/.token", "config/sub/deep", "agent.json"):
        assert on_host(private, name) == "from the host\n"
    assert sorted(os.listdir(private.directory / "hers/open")) == ["write.conf"]
    restart(private)
    script = "cd ~/.config/agent && cat .token sub/new ~/.agent.json /srv/data/made /srv/data/write.conf; ls sub"
    assert private.ssh("web", script).stdout == "mine\nnew\nmine\nx\nfrom the host\nnew\n"
    private_layers = private.state / "workspaces/web/private"
    assert private_layers.stat().st_mode & 0o7777 == 0o700


def test_the_host_is_followed_where_nothing_was_written(private: Instance) -> None:
    hers = private.directory / "hers"
    private.hutch("stop", "web")
    (hers / "open/write.conf").write_text("changed\n")
    (hers / "agent.json").write_text("changed\n")
    said = private.hutch("start", "web").stderr
    assert private.ssh("web", "cat /srv/data/write.conf ~/.agent.json").stdout == "changed\nmine\n"
    assert "/home/dev/.agent.json was changed inside and on the host: it keeps its own" in said
    private.ssh("web", "rm ~/.agent.json")
    said = restart(private)
    assert private.ssh("web", "cat ~/.agent.json").stdout == "changed\n"
    assert "keeps its own" not in said


def test_another_user_cannot_use_what_is_made_setuid(private: Instance) -> None:
    """The file is reachable by its owner alone, so no guard is needed, or it is guarded."""
    private.inside(
        "web", "sh", "-c", "cp /usr/bin/id '/srv/a b/write.conf'; chmod 6755 '/srv/a b/write.conf'", root=True
    )
    account = private.world.accounts["bob"]
    path = str(private.directory / "hers/config/write.conf")
    found = subprocess.run(account.command("sh", "-c", f"'{path}' -u"), capture_output=True, text=True, timeout=10)
    assert found.stdout.strip() in ("", "1001")


def test_nothing_is_left_on_the_host(private: Instance) -> None:
    private.hutch("rm", "--purge", "--force", "web")
    assert not (private.state / "workspaces/web").exists()
    mounted = Path("/proc/self/mountinfo").read_text()
    assert f"{private.directory}/hers" not in mounted
