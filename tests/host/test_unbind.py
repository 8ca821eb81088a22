"""What hutch unmounts is a directory that is mounted over itself, whatever somebody puts in the place of its name."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.host.storage.shares import render_guard
from hutch.spec.programs import own_program
from tests.host.instance import Instance

# Each is a script, in a mount namespace of its own; `share` is guarded, and `victim` is somebody else's mount.
SCENES = {
    "as-it-was": ("", True),
    "twice": ("guard share", True),
    "a-link-in-its-place": ("elsewhere 'mv share moved; ln -s victim share'", False),
    "a-directory-in-its-place": ("elsewhere 'mv share moved; mkdir share'", False),
    "a-mount-on-it": ("mount -t tmpfs another share", False),
    "a-mount-in-its-place": ("umount share; mount -t tmpfs another share", False),
    "not-mounted": ("umount share", False),
}


@pytest.mark.parametrize("scene", SCENES)
def test_what_is_unmounted(scene: str, tmp_path: Path) -> None:
    happens, is_taken = SCENES[scene]
    guard = shlex.join(render_guard("@")).replace("@", '"$PWD/$1"')
    unbind = shlex.join(own_program("hutch.host.storage.unbind", sys.executable))
    script = f"""
        guard() {{ {guard}; }}
        elsewhere() {{ unshare --mount --propagation private -- sh -euc "umount share; $1"; }} # as a guest may
        mkdir share victim
        mount -t tmpfs somebodys victim
        guard share
        {happens}
        cut -d" " -f1 /proc/self/mountinfo >before
        {unbind} "$PWD/share" && echo taken || echo left
        cut -d" " -f1 /proc/self/mountinfo >after
        diff before after | grep -c '^[<>]' || :
    """
    result = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--", "sh", "-euc", script],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.split() == (["taken", "1"] if is_taken else ["left", "0"]), result.stderr


def test_shares_in_one_another_and_a_disk_on_top(instance: Instance) -> None:
    """Guards of directories that lie in each other all go, and an administrator's disk that lies on one stays."""
    outer = instance.directory / "outer"
    inner = outer / "project"
    mounts = f'mounts = [{{ source = "{inner}", target = "/src", create = true }}]'
    instance.declare("container", bob=mounts, evil=f'home = "{outer}"')
    instance.up()
    owner = instance.ssh("evil", "stat -c %U ~; touch ~/mine; echo made").stdout
    assert owner.split() == ["dev", "made"]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev", "disk", inner], check=True, timeout=10)
    try:
        (inner / "precious").touch()
        instance.hutch("rm", "--force", "bob")
        assert (inner / "precious").exists()
    finally:
        subprocess.run(["umount", inner], check=True, timeout=10)
    instance.hutch("rm", "--force", "evil")
    assert str(outer) not in Path("/proc/self/mountinfo").read_text()
