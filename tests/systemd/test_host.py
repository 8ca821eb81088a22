"""That the stand is the host that these tests are about, and that hutch works there as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.services.units import LASTING, VOLATILE
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.support.world import PUBLIC_NAME
from tests.systemd.conftest import call


@pytest.mark.own_kernel
@pytest.mark.smoke
def test_the_host_is_an_ordinary_one() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert call("systemctl", "is-system-running", "--wait", check=False) in ("running\n", "degraded\n"), call(
        "systemctl", "--failed"
    )
    assert {"cpu", "memory", "pids"} <= set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
    assert call("resolvectl", "status")


def test_a_workspace_runs_and_reaches_the_internet(instance: Instance) -> None:
    instance.declare("container", web="")
    instance.hutch("up", timeout=300)
    assert instance.ssh("web", "uname -n").stdout == "web\n"
    assert instance.inside("web", "curl", "-sS", "--max-time", "20", f"http://{PUBLIC_NAME}/").stdout


def test_where_nobody_may_write_lasting_units_they_are_there_until_it_reboots(instance: Instance) -> None:
    """As on NixOS, whose own configuration says what starts with it."""
    unit = Layout(instance.state, instance.run).unit("web")
    call("mount", "--bind", "-o", "ro", str(LASTING), str(LASTING))
    try:
        instance.declare("container", web="autostart = true")
        instance.hutch("up", timeout=300)
        assert instance.ssh("web", "uname -n").stdout == "web\n"
        assert (VOLATILE / unit).is_file() and not (LASTING / unit).exists()
        assert call("systemctl", "is-enabled", unit) == "enabled-runtime\n"
        planned = json.loads(instance.hutch("plan", "--json").stdout)
        assert [action["action"] for action in planned["actions"]] == ["no change"] and not planned["repairs"]
        instance.hutch("rm", "--purge", "--force", "web", timeout=300)
        assert not (VOLATILE / unit).exists()
    finally:
        call("umount", str(LASTING))


DISK = LASTING / "srv-late.mount"
PLACE = Path("/srv/late")
THERE = "What=/srv/disk\nType=none\nOptions=bind"


def mount_from(what: str) -> None:
    DISK.write_text(f"[Mount]\nWhere={PLACE}\n{what}\n")
    call("systemctl", "daemon-reload")


@pytest.fixture
def disk() -> Iterator[None]:
    """Something that systemd mounts when somebody needs it."""
    Path("/srv/disk").mkdir()
    PLACE.mkdir()
    mount_from(THERE)
    yield
    DISK.unlink()
    call("systemctl", "daemon-reload")
    PLACE.rmdir()
    call("rm", "-r", "/srv/disk")


def is_as_it_was(instance: Instance) -> bool:
    """The home that is kept, in which nothing counts as somebody else's."""
    options = call("findmnt", "-n", "-o", "OPTIONS", f"{PLACE}/web").strip().split(",")
    repairs = json.loads(instance.hutch("plan", "--json").stdout)["repairs"]
    return instance.ssh("web", "cat file").stdout == "kept\n" and {"nosuid", "nodev"} <= set(options) and not repairs


def test_a_home_waits_for_what_it_lies_on(disk: None, instance: Instance) -> None:
    """Whoever starts it, and whether or not the network is there already."""
    layout = Layout(instance.state, instance.run)
    units = layout.unit("web"), layout.unit("other"), layout.network_unit
    instance.declare("container", web=f'home = "{PLACE}/web"', other="")
    instance.hutch("up", timeout=300)
    instance.ssh("web", "echo kept >file")
    assert is_as_it_was(instance)

    call("systemctl", "stop", *units)
    call("systemctl", "stop", DISK.name)
    instance.hutch("start", "other", timeout=300)
    assert list(PLACE.iterdir()) == []  # nothing that would be hidden later
    call("systemctl", "start", units[0])
    assert is_as_it_was(instance)

    instance.hutch("stop", "web", timeout=300)
    call("systemctl", "stop", DISK.name)
    instance.hutch("start", "web", timeout=300)
    assert is_as_it_was(instance)

    instance.hutch("stop", "web", timeout=300)
    call("systemctl", "stop", DISK.name)
    mount_from("What=/srv/unplugged\nType=ext4\nOptions=loop")
    refused = instance.hutch("start", "web", check=False, timeout=300)
    assert refused.returncode == 1
    assert f"{PLACE}/web is not there: it lies on {DISK.name}, which cannot be mounted" in refused.stderr
    assert list(PLACE.iterdir()) == []

    mount_from(THERE)
    call("systemctl", "reset-failed", DISK.name)
    for name in ("web", "other"):
        instance.hutch("rm", "--purge", "--force", name, timeout=300)
    call("systemctl", "stop", DISK.name)
