"""`sudo script/demo`, as somebody who has just cloned hutch types it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.host.residue import differences, observe
from tests.support.enclosure import ROOT
from tests.support.world import World

STATE = Path("/var/lib/hutch-demo")


@pytest.mark.slow  # it builds an image, with the default packages
def test_a_newcomer_tries_hutch_by_sudo(world: World, images: Path) -> None:
    alice = world.accounts["alice"]
    Path("/etc/sudoers.d/alice").write_text("alice ALL=(ALL) NOPASSWD: ALL\n")
    is_ours = not STATE.exists()  # somebody may have tried it on this machine
    STATE.mkdir(exist_ok=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", STATE], check=True, timeout=10)
        (STATE / "images").mkdir()
        subprocess.run(["mount", "--bind", images, STATE / "images"], check=True, timeout=10)
        before = observe()
        shown = subprocess.run(
            alice.command("sudo", "--non-interactive", str(ROOT / "script" / "demo")),
            cwd="/",
            env=alice.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "dev@demo, Linux " in shown.stdout
        assert "\nroot\n" in shown.stdout  # by doas, inside
        assert "demo  container  running" in shown.stdout
        assert not differences(before)
        assert sorted(path.name for path in STATE.iterdir()) == ["ages.json", "images", "lock"]
    finally:
        for mounted in (STATE / "images", STATE):
            subprocess.run(["umount", "--lazy", mounted], timeout=10)
        if is_ours:
            STATE.rmdir()
        Path("/etc/sudoers.d/alice").unlink()
