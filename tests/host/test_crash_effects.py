"""`kill -9` of the command line at each of its effects in turn."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.host.golden import assert_as_declared, make_golden
from tests.host.instance import HUTCH, Instance

SPAWNS = "vfork,fork,clone,clone3"
RENAMES = "rename,renameat,renameat2"


@pytest.mark.parametrize(
    ("command", "calls", "step"),
    [("up", SPAWNS, 3), ("up", RENAMES, 1), ("restart", SPAWNS, 2), ("rm", SPAWNS, 2), ("rm", RENAMES, 1)],
    ids=["up-spawns", "up-renames", "restart-spawns", "rm-spawns", "rm-renames"],
)
def test_the_command_line_is_killed_at_every_effect(
    instance: Instance, workspace_type: str, command: str, calls: str, step: int
) -> None:
    """SIGKILL just before its starts of commands, or its replacements of files, one run for each `step` of them."""
    expected = make_golden(instance, workspace_type)
    count, killed = 0, True
    for count in range(1, 200, step):
        if command == "up":
            instance.hutch("rm", "web")
        arguments = ["up"] if command == "up" else [command, "web"]
        killed = kill_before(instance, f"{calls}:signal=SIGKILL:when={count}", calls, *arguments)
        instance.up()
        assert_as_declared(instance, expected)
        if not killed:
            break
    assert not killed
    assert count > 1


def kill_before(instance: Instance, injection: str, calls: str, *arguments: str) -> bool:
    """Run a command that dies by the injection; False when it came to its end before that."""
    strace = ["strace", "--quiet=all", "--output=/dev/null", "-e", f"trace={calls}", "-e", f"inject={injection}"]
    result = subprocess.run(
        [*strace, *HUTCH, *arguments],
        cwd=instance.directory,
        env=instance.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    return result.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
