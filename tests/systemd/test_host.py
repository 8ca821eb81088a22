"""That the stand is the host that these tests are about, and that hutch works there as it is."""

from __future__ import annotations

import json
from pathlib import Path

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
