"""That the stand is the host that these tests are about, and that hutch works there as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.units import LASTING, VOLATILE
from hutch.spec.names import Places
from tests.host.instance import Instance
from tests.support.world import PUBLIC_NAME
from tests.systemd.conftest import call


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
    unit = Places(instance.state, instance.run).unit("web")
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


@pytest.fixture
def disk() -> Iterator[tuple[str, Path]]:
    """Something that systemd mounts, its unit and its place; whoever needs it says so."""
    content, place, unit = Path("/srv/disk"), Path("/srv/late"), LASTING / "srv-late.mount"
    content.mkdir()
    place.mkdir()
    unit.write_text(f"[Mount]\nWhat={content}\nWhere={place}\nType=none\nOptions=bind\n")
    call("systemctl", "daemon-reload")
    call("systemctl", "start", unit.name)
    yield unit.name, place
    call("systemctl", "stop", unit.name)
    unit.unlink()
    call("systemctl", "daemon-reload")
    place.rmdir()
    call("rm", "-r", str(content))


def test_a_home_waits_for_what_it_lies_on(disk: tuple[str, Path], instance: Instance) -> None:
    mount, place = disk
    places = Places(instance.state, instance.run)
    instance.declare("container", web=f'home = "{place}/web"', other="")
    instance.hutch("up", timeout=300)
    instance.ssh("web", "echo kept >file")
    call("systemctl", "stop", places.unit("web"), places.unit("other"), places.network_unit)
    call("systemctl", "stop", mount)
    refused = instance.hutch("start", "web", check=False)
    assert refused.returncode == 1
    assert f"its home {place}/web is gone" in refused.stderr
    call("systemctl", "start", places.unit("web"))
    assert instance.ssh("web", "cat file").stdout == "kept\n"
    assert {"nosuid", "nodev"} <= set(call("findmnt", "-n", "-o", "OPTIONS", f"{place}/web").strip().split(","))
    assert not json.loads(instance.hutch("plan", "--json").stdout)["repairs"]
    call("systemctl", "stop", places.unit("web"), places.unit("other"), places.network_unit)
    call("systemctl", "stop", mount)
    instance.hutch("start", "other", timeout=300)
    assert list(place.iterdir()) == []  # nothing that would be hidden later
    call("systemctl", "start", mount)
    instance.hutch("rm", "--purge", "--force", "web", timeout=300)
    instance.hutch("rm", "--purge", "--force", "other", timeout=300)
