"""That the stand is the host that these tests are about, and that hutch works there as it is."""

from __future__ import annotations

from pathlib import Path

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
