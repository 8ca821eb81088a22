"""A machine under cloud-hypervisor as a service of systemd: started, changed while it runs, and stopped. The machine is
played by a program, since it needs a KVM that runs guests; all around it is as it would be.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.backends.launch import Launch
from hutch.host.services.units import properties
from hutch.runtime import control
from hutch.runtime.observe import observe
from hutch.spec.names import Layout
from tests.support import machine_in_its_jail
from tests.support.cloud_hypervisor_bench import make_launch
from tests.support.service import own_surroundings
from tests.support.world import World
from tests.systemd.conftest import call, open_instance

SECONDS = 400.0
MEMORY = 512 << 20

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="there is no /dev/kvm to hand in")


@pytest.fixture
def layout(world: World) -> Iterator[Layout]:
    """A hutch with a network, which machines join."""
    with open_instance(world) as instance:
        instance.declare("container", other="")
        instance.hutch("up", timeout=SECONDS)
        yield Layout(instance.state, instance.run)


def played(directory: Path, layout: Layout, memory: int, ceiling: int | None = None) -> Launch:
    """A machine that was made with `ceiling` bytes, and is to have `memory`."""
    player = directory / "player"
    player.write_text(f"#!/usr/bin/python3 -I\n{Path(machine_in_its_jail.__file__).read_text()}")
    player.chmod(0o755)
    host = replace(own_surroundings(directory), layout=layout, ceiling=ceiling)
    made = make_launch(directory, str(player), host, memory=memory)
    return replace(made, network_namespace=str(layout.namespace_path))


def await_said(layout: Layout, text: str) -> None:
    end = time.monotonic() + SECONDS
    while text not in (said := control.manager_of(layout).log("web", 100)):
        assert time.monotonic() < end, said
        time.sleep(0.05)


def test_it_is_started_changed_and_stopped(layout: Layout, tmp_path: Path) -> None:
    try:
        launch, said = played(tmp_path, layout, MEMORY), []
        failed = control.start_all(
            layout, ["web"], lambda _: launch, lambda *words: said.append(words), lambda connect: connect()
        )
        assert failed == {}, said
        unit = layout.unit("web")
        assert call("systemctl", "is-active", unit) == "active\n"
        assert observe(layout, "web").state == "running"
        await_said(layout, '"tap": "vm-web"')

        smaller = played(tmp_path, layout, MEMORY // 2, ceiling=MEMORY)
        assert control.renew(layout, smaller) == {}
        await_said(layout, f'{{"desired_balloon": {MEMORY // 2}}}')
        assert call("systemctl", "is-active", unit) == "active\n"

        control.stop_all(layout, ["web"])
        assert observe(layout, "web").state == "stopped"
        assert properties(unit, "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    finally:
        control.stop_all(layout, ["web"])
        control.forget(layout, "web")
        shutil.rmtree(layout.workspace("web"))
        shutil.rmtree(layout.unit_directory("web"), ignore_errors=True)
