"""Root inside a workspace on an Incus server, against hutch and the member: its kept root, its answers, its console."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.incus.conftest import Elsewhere, open_elsewhere
from tests.host.instance import Completed
from tests.support.incus_cluster import Cluster
from tests.support.world import World

pytestmark = pytest.mark.slow

CREDENTIALS = "/etc/hutch/credentials"
ESCAPES = r"\033[2J\033]0;owned\007\033]52;c;b3duZWQ=\007"
KEPT = ("link", "fifo", "mute", "loud")


@pytest.fixture(scope="module")
def kept(world: World, images: Path, cluster: Cluster) -> Iterator[Elsewhere]:
    """Workspaces whose roots are kept, so what a guest made of them meets the next start."""
    with open_elsewhere(world, images, cluster, "kept") as instance:
        instance.declare(**dict.fromkeys(KEPT, 'persist = "all"'))
        instance.up()
        yield instance


def turn(hutch: Elsewhere, name: str, script: str) -> Completed:
    """Run a script as the workspace's root, and start it again. It may fail, in words, and not hang."""
    hutch.inside(name, "sh", "-euc", script, root=True)
    hutch.hutch("stop", name)
    begun = time.monotonic()
    result = hutch.hutch("start", name, check=False)
    assert time.monotonic() - begun < 120.0
    assert is_printable(result)
    return result


def is_printable(result: Completed) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in result.stdout + result.stderr)


@pytest.mark.parametrize("up", ["", "/../../../../../../.."])
def test_credentials_do_not_follow_links_out_of_the_guest(kept: Elsewhere, tmp_path: Path, up: str) -> None:
    """The member's disk is this host's: a directory of ours stands for one of the member's."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(0o755)
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o777)
    for there in (CREDENTIALS, "/etc/hutch"):
        result = turn(kept, "link", f"rm -rf {there}; ln -s {up}{victim} {there}")
        assert list(victim.iterdir()) == []
        assert result.returncode == 0
        assert kept.ssh("link", "hostname").stdout == "link\n"


def test_a_fifo_in_place_of_a_credential_holds_up_nobody(kept: Elsewhere) -> None:
    script = f"rm {CREDENTIALS}/system.hostname; mkfifo {CREDENTIALS}/system.hostname"
    assert turn(kept, "fifo", script).returncode == 0
    assert kept.ssh("fifo", "hostname").stdout == "fifo\n"
    kept.inside(
        "fifo", "sh", "-euc", f"rm {CREDENTIALS}/tmpfiles.extra; mkfifo {CREDENTIALS}/tmpfiles.extra", root=True
    )
    kept.declare(**{**dict.fromkeys(KEPT, 'persist = "all"'), "fifo": 'persist = "all"\nenv = { WHO = "me" }'})
    result = kept.hutch("up", "fifo", check=False)
    assert result.returncode in (0, 1)
    assert is_printable(result)
    kept.hutch("rm", "--force", "--purge", "fifo")


def test_a_guest_that_never_stops_answering_does_not_count_as_running(kept: Elsewhere) -> None:
    result = turn(
        kept,
        "loud",
        "rm /usr/bin/timeout; printf '#!/bin/sh\\nexec yes\\n' >/usr/bin/timeout; chmod +x /usr/bin/timeout",
    )
    assert result.returncode != 0
    assert "said more than" in result.stderr
    assert kept.status("loud")["state"] == "stopped"


def test_what_a_guest_says_is_printable_and_no_leave_to_remove_it(kept: Elsewhere) -> None:
    script = f"""
    printf '{ESCAPES}' >/dev/console
    rm /usr/bin/timeout
    printf '%s\\n' '#!/bin/bash' 'printf "{ESCAPES}" >&2; exit 3' >/usr/bin/timeout
    chmod +x /usr/bin/timeout
    """
    kept.inside("mute", "sh", "-euc", script, root=True)
    assert is_printable(kept.hutch("logs", "mute", check=False))
    refused = kept.hutch("rm", "mute", check=False)
    assert refused.returncode == 1
    assert is_printable(refused)
    assert "mute" in kept.names()
