"""What is kept and what is not, and what files made inside are outside."""

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
def files(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    """`web` with mounts, `keep` whose whole root persists, `moved` whose home bob chose."""
    with open_instance(world, images) as instance:
        for name in ("read", "write"):
            source = instance.directory / name
            source.mkdir()
            (source / "hello").write_text("from the host\n")
            os.chown(source, 1000, 1000)
        made = instance.directory / "hers" / "made" / "deep"
        made.parents[1].mkdir()
        os.chown(made.parents[1], 1000, 1000)
        mounts = (
            f'mounts = [{{ source = "{instance.directory}/read", target = "/srv/read", readonly = true }},'
            f' {{ source = "{instance.directory}/write", target = "/srv/with space" }},'
            f' {{ source = "{made}", target = "/srv/made", create = true }}]'
        )
        home = instance.directory / "bobs home"
        instance.declare(
            workspace_type, web=mounts, keep='persist = "all"', moved=f'owner = "bob"\nhome = "{home}"\nuser = "robert"'
        )
        instance.up()
        yield instance


def home(instance: Instance, name: str) -> Path:
    return Path(instance.status(name)["home"])


def is_guarded(directory: Path) -> bool:
    argv = ["findmnt", "--noheadings", "--output", "OPTIONS", "--target", str(directory)]
    options = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.strip().split(",")
    return {"nosuid", "nodev"} <= set(options)


def test_what_is_written_inside_belongs_to_its_owner_outside(files: Instance) -> None:
    files.ssh("web", "echo mine > ~/mine && mkdir -p ~/a/b && echo deep > ~/a/b/c")
    for relative in ("mine", "a", "a/b/c"):
        assert (home(files, "web") / relative).stat().st_uid == 1000


def test_what_the_owner_writes_outside_belongs_to_the_user_inside(files: Instance) -> None:
    account = files.world.accounts["alice"]
    path = home(files, "web") / "from-outside"
    subprocess.run(account.command("sh", "-c", f"echo hello > {path}"), check=True, timeout=10)
    assert files.ssh("web", "stat -c %U ~/from-outside && echo more >> ~/from-outside").stdout == "dev\n"
    assert path.read_text() == "hello\nmore\n"


def test_another_owner_another_home(files: Instance) -> None:
    assert files.ssh("moved", "id -un; id -u; pwd; echo x > ~/file", as_user="bob").stdout.split() == [
        "robert",
        "1001",
        "/home/robert",
    ]
    assert (files.directory / "bobs home" / "file").stat().st_uid == 1001
    assert files.status("moved")["home"] == str(files.directory / "bobs home")
    assert files.ssh("moved", as_user="alice", check=False).returncode == 255


def test_root_inside_makes_nothing_of_roots_outside(files: Instance) -> None:
    """A setuid-root file made inside is neither root's nor honoured outside."""
    script = "cp /usr/bin/id /home/dev/suid && chown root:root /home/dev/suid; chmod 6755 /home/dev/suid; true"
    files.inside("web", "sh", "-c", script, root=True)
    made = home(files, "web") / "suid"
    assert made.stat().st_uid != 0
    assert made.stat().st_gid != 0
    account = files.world.accounts["bob"]
    made.parent.chmod(0o755)
    outside = subprocess.run(account.command(str(made), "-u"), capture_output=True, text=True, timeout=10)
    assert outside.stdout.strip() in ("", "1001")  # refused, or run as who ran it


def test_the_home_is_nosuid_and_nodev_on_the_host(files: Instance) -> None:
    for name in ("web", "keep", "moved"):
        assert is_guarded(home(files, name)), name


@pytest.mark.parametrize("place", ["/home/dev", "/root", "/srv/with space"])
def test_no_device_can_be_made(files: Instance, place: str, workspace_type: str) -> None:
    if workspace_type == "vm" and place == "/root":
        pytest.skip("a machine's own root is its own kernel's affair")
    result = files.inside("web", "mknod", f"{place}/disk", "b", "8", "0", root=True, check=False)
    assert result.returncode != 0
    assert files.inside("web", "test", "-e", f"{place}/disk", root=True, check=False).returncode != 0


def test_mounts(files: Instance) -> None:
    assert files.ssh("web", "cat /srv/read/hello '/srv/with space/hello'").stdout == "from the host\n" * 2
    assert files.ssh("web", "echo x > /srv/read/x", check=False).returncode != 0
    assert files.inside("web", "touch", "/srv/read/x", root=True, check=False).returncode != 0
    files.ssh("web", "echo new > '/srv/with space/new'; echo new > /srv/made/new")
    for name in ("write/new", "hers/made/deep/new"):
        assert (files.directory / name).read_text() == "new\n"
        assert (files.directory / name).stat().st_uid == 1000


def test_what_is_made_below_an_owners_directory_is_the_owners(files: Instance) -> None:
    """As if the owner had made it."""
    assert (files.directory / "hers" / "made").stat().st_uid == 1000


def test_a_readonly_mount_cannot_be_made_writable(files: Instance) -> None:
    files.inside("web", "mount", "-o", "remount,bind,rw", "/srv/read", root=True, check=False)
    assert files.inside("web", "touch", "/srv/read/x", root=True, check=False).returncode != 0
    assert not (files.directory / "read" / "x").exists()


@pytest.mark.vm(slow=True)
def test_the_root_is_ephemeral_unless_all_persists(files: Instance) -> None:
    for name in ("web", "keep"):
        files.inside(name, "sh", "-c", "echo kept > /etc/kept; echo kept > /home/dev/kept", root=True)
        files.hutch("restart", name)
    read = ("cat", "/home/dev/kept")
    assert files.inside("web", *read).stdout == files.inside("keep", *read).stdout == "kept\n"
    assert files.inside("web", "test", "-e", "/etc/kept", check=False).returncode != 0
    assert files.inside("keep", "cat", "/etc/kept").stdout == "kept\n"
    assert files.ssh("keep", "doas id -un").stdout == "root\n"


@pytest.mark.container
def test_a_kept_root_is_out_of_reach_for_other_users(files: Instance) -> None:
    """Its setuid programs are real ones on the host."""
    files.inside("keep", "install", "-m", "4755", "/bin/true", "/usr/local/bin/bait", root=True)
    bait = files.state / "workspaces" / "keep" / "root" / "upper" / "usr" / "local" / "bin" / "bait"
    assert bait.stat().st_mode & 0o7777 == 0o4755
    as_bob = files.world.accounts["bob"].command("sh", "-c", '"$0"', str(bait))
    result = subprocess.run(as_bob, capture_output=True, text=True, timeout=10, cwd="/")
    assert result.returncode == 126
    assert "Permission denied" in result.stderr


def test_workspaces_of_one_image_take_no_room_of_their_own(files: Instance) -> None:
    used = subprocess.run(
        ["du", "--summarize", "--block-size=1K", "--one-file-system", files.state / "workspaces" / "moved"],
        capture_output=True, text=True, timeout=10, check=True,
    ).stdout  # fmt: skip
    assert int(used.split()[0]) <= 1024


@pytest.mark.container
def test_a_guest_range_is_disjoint_from_every_other(files: Instance) -> None:
    bases = set()
    for name in ("web", "keep", "moved"):
        line = files.inside(name, "cat", "/proc/self/uid_map", root=True).stdout.split()
        assert line[0] == "0"
        assert int(line[1]) >= 65536
        bases.add(int(line[1]) // 65536)
    assert len(bases) == 3


@pytest.mark.vm(slow=True)
def test_a_guest_cannot_trick_root_by_links_in_its_home(files: Instance) -> None:
    """The next start follows no link that the guest left where root writes files."""
    bait = files.directory / "bait"
    bait.write_text("untouched\n")
    bait.chmod(0o600)
    owner = bait.stat().st_uid
    script = f"rm -rf ~/.ssh && ln -s {files.directory} ~/.ssh && ln -sf {bait} ~/.profile"
    files.ssh("web", script)
    try:
        files.hutch("restart", "web")
        assert files.inside("web", "true").returncode == 0
        assert bait.read_text() == "untouched\n"
        assert bait.stat().st_uid == owner
        assert files.directory.stat().st_uid == 0
        assert not (files.directory / "authorized_keys").exists()
    finally:
        files.inside("web", "rm", "-f", "/home/dev/.ssh", "/home/dev/.profile", root=True)
        files.hutch("restart", "web")
    files.ssh("web")


@pytest.fixture
def nothing_of_process_1() -> Iterator[None]:
    """Its namespaces cannot be opened, as where it holds a capability that root's commands lack."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0", "nothing", "/proc/1/ns"], check=True, timeout=10)
    yield
    subprocess.run(["umount", "/proc/1/ns"], check=True, timeout=10)


@pytest.mark.vm(slow=True)
def test_directories_are_shared_where_process_1_may_not_be_looked_at(
    nothing_of_process_1: None, instance: Instance, workspace_type: str
) -> None:
    assert subprocess.run(["readlink", "/proc/1/ns/mnt"], timeout=10).returncode == 1
    own, share = instance.directory / "own home", instance.directory / "share"
    share.mkdir()
    os.chown(share, 1000, 1000)
    mounts = f'mounts = [{{ source = "{share}", target = "/srv/share" }}]'
    instance.declare(workspace_type, own=f'home = "{own}"\n{mounts}')
    instance.up()
    instance.ssh("own", "echo mine > ~/mine; echo ours > /srv/share/ours")
    assert (own / "mine").read_text() == "mine\n"
    assert (share / "ours").read_text() == "ours\n"
    assert is_guarded(own)
    instance.hutch("stop", "own")
    subprocess.run(["umount", share], check=True, timeout=10)
    instance.hutch("start", "own")
    assert is_guarded(share)
