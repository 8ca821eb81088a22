"""What root of a workspace can leave in its files: no command of the host's hangs on it, breaks, or is misled."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.host.instance import Instance

# Deeper than any path can tell, more names than anybody keeps, and things that nobody should open.
LITTER = r"""
import os, socket, sys
os.chdir(sys.argv[1])
os.mkdir("litter")
os.chdir("litter")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
for name in (b"new\nline", b"\xff\xfe", b"n" * 255, b"null", b"-rf"):
    open(name, "w").close()
with open("sparse", "w") as file:
    file.truncate(1 << 40)
for target in ("/etc/shadow", "/", "../../..", "loop"):
    os.symlink(target, target.strip("/").replace("/", "-") or "slash")
os.mkdir("closed")
open("closed/file", "w").close()
os.chmod("closed", 0)
open("linked", "w").close()
for number in range(10000):
    os.link("linked", f"link-{number}")
os.mkdir("deep")
os.chdir("deep")
for _ in range(int(sys.argv[2])):
    os.mkdir("d")
    os.chdir("d")
"""


@pytest.mark.slow
def test_no_command_hangs_on_what_a_guest_leaves(shared: Instance, name: str, tmp_path: Path) -> None:
    """Its kept root and its home are full of it: all that works on them ends soon, and takes nothing along."""
    shared.declare("container", **{name: 'persist = "all"'})
    shared.up()
    home = Path(shared.status(name)["home"])
    for place, depth in (("/home/dev", 50_000), ("/opt", 1_000)):
        shared.inside(name, "python3", "-c", LITTER, place, str(depth), root=True)
    begun = time.monotonic()
    for inside, copied in (("litter/deep", False), ("litter/sparse", False), ("litter/linked", True)):
        result = shared.hutch("cp", f"{name}:{inside}", str(tmp_path / "copy"), check=False)
        assert (result.returncode == 0) == copied, (inside, result.stderr)
    assert os.listdir(tmp_path) == ["copy"]
    refused = shared.hutch("cp", str(home / "litter" / "deep"), f"{name}:/tmp/", check=False)
    assert "directories within each other" in refused.stderr
    shared.hutch("status", name)
    shared.declare("vm", **{name: 'persist = "all"'})
    shared.hutch("stop", name)
    shared.hutch("up", "--no-start", timeout=300)  # all of it is handed over, and the kept root goes
    assert shared.status(name)["type"] == "vm"
    assert not (home.parent / "root" / "upper").exists()
    assert (home / "litter" / "fifo").lstat().st_uid == shared.world.accounts["alice"].uid
    assert (home / "litter" / "deep" / "d" / "d").lstat().st_uid == shared.world.accounts["alice"].uid
    shared.hutch("rm", "--purge", "--force", name)
    assert not home.parent.exists()
    assert time.monotonic() - begun < 300


def test_a_pipe_in_a_repository_does_not_hold_up_rm(shared: Instance, name: str) -> None:
    shared.declare("container", **{name: ""})
    shared.up()
    script = "cd && git init -q a && rm a/.git/HEAD && mkfifo a/.git/HEAD && git init -q b && mkfifo b/.gitignore"
    shared.ssh(name, f"{script} && git init -q c && ln -sf /dev/zero c/.git/config")
    begun = time.monotonic()
    refused = shared.hutch("rm", name, check=False)
    assert time.monotonic() - begun < 20
    assert refused.returncode == 1
    for repository in "abc":
        assert f"{repository}: git would wait for ever" in refused.stderr
    shared.hutch("rm", "--force", name)


@pytest.mark.parametrize("place", ["home", "mount"])
def test_setuid_files_do_not_outlive_what_guarded_them(shared: Instance, name: str, place: str) -> None:
    """A directory of the owner's own is nosuid for as long as it is declared. What counted for nothing then must not
    count afterwards either; and what the guest did not make stays as it is."""
    directory = shared.directory / f"own {place}"
    directory.mkdir()
    foreign = directory / "foreign"
    foreign.write_bytes(Path("/bin/id").read_bytes())
    foreign.chmod(0o4755)
    os.chown(directory, 1000, 1000)
    directory.chmod(0o755)
    mount = f'mounts = [{{ source = "{directory}", target = "/srv/own" }}]'
    shared.declare("container", **{name: f'home = "{directory}"' if place == "home" else mount})
    shared.up()
    at = "/home/dev" if place == "home" else "/srv/own"
    script = f"cp /bin/id {at}/mine && chmod 6755 {at}/mine && doas cp /bin/id {at}/roots && doas chmod 6755 {at}/roots"
    shared.ssh(name, script)
    expected = ["mine", "roots"]
    if place == "home":
        shared.hutch("rm", name)
    else:  # it is no longer declared, while the workspace runs, and while a process of its root's is in it
        hold = "cd /srv/own && setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $! >/run/held"
        shared.inside(name, "sh", "-c", hold, root=True)
        for env in ("", 'env = { A = "b" }'):
            shared.declare("container", **{name: env})
            shared.up()
        assert "nosuid" in shared_options(directory)
        late = "cd /proc/$(cat /run/held)/cwd && cp /bin/id late && chown dev late && chmod 6755 late"
        shared.inside(name, "sh", "-c", late, root=True)
        assert (directory / "late").stat().st_mode & 0o7777 == 0o6755
        expected.append("late")
        shared.hutch("stop", name)
        shared.up()
    for made in expected:
        assert (directory / made).stat().st_mode & 0o7777 == 0o755, made
    assert foreign.stat().st_mode & 0o7777 == 0o4755
    assert is_exempt(directory)
    shared.hutch("rm", "--purge", "--force", name)


def test_root_obeys_no_file_of_a_guests(shared: Instance, name: str) -> None:
    """It would share any directory of the host's, in anybody's name."""
    directory, secret = shared.directory / "shared", shared.world.accounts["bob"].home / ".ssh"
    directory.mkdir()
    os.chown(directory, 1000, 1000)
    shared.declare("container", **{name: f'mounts = [{{ source = "{directory}", target = "/srv/own" }}]'})
    shared.up()
    evil = shared.file.read_text().replace(name, "evil").replace(str(directory), str(secret))
    shared.inside(name, "sh", "-c", "cat >/srv/own/hutch.toml", stdin=evil + 'owner = "bob"\n')
    for command in (("up",), ("plan",), ("image", "build")):
        refused = shared.hutch(*command, "--file", str(directory / "hutch.toml"), check=False, env={"SUDO_UID": "1000"})
        assert refused.returncode == 2
        assert f"workspace {name} can write in {directory}" in refused.stderr
    assert "evil" not in shared.names()
    shared.hutch("rm", "--purge", "--force", name)


def test_a_tree_that_cannot_be_disarmed_holds_up_nobody(shared: Instance, name: str) -> None:
    """Its guard stays, and is told of, until it is shared and let go once more; all other commands work meanwhile."""
    directory = shared.directory / "stuck"
    directory.mkdir()
    os.chown(directory, 1000, 1000)
    declared = {name: f'mounts = [{{ source = "{directory}", target = "/srv/own" }}]'}
    shared.declare("container", **declared)
    shared.up()
    shared.ssh(name, "cp /bin/id /srv/own/mine && chmod 4755 /srv/own/mine")
    shared.hutch("stop", name)
    chattr = ["chattr", "+i", str(directory / "mine")]
    if subprocess.run(chattr, capture_output=True, timeout=10, check=False).returncode != 0:
        pytest.skip("no file can be made immutable here")
    try:
        removed = shared.hutch("rm", name)
        assert f"{directory} stays mounted nosuid,nodev over itself" in removed.stderr
        shared.declare("container", **{name: ""})
        again = shared.up()
        assert f"{directory} stays mounted" in again.stderr
        assert any("stays mounted" in text for text in shared.status(name)["warnings"])
        assert not is_exempt(directory)
    finally:
        subprocess.run(["chattr", "-i", directory / "mine"], check=True, timeout=10)
    shared.declare("container", **declared)
    shared.up()
    shared.hutch("rm", "--purge", "--force", name)
    assert is_exempt(directory)
    assert (directory / "mine").stat().st_mode & 0o7777 == 0o755


def is_exempt(path: Path) -> bool:
    """Whether no mount of ours guards a directory any more."""
    return shared_options(path) == ""


def shared_options(path: Path) -> str:
    """The options of the mount at exactly this path; "" where there is none."""
    command = ["findmnt", "--noheadings", "--output", "OPTIONS", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
