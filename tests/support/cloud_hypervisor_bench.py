"""Runs the service of a machine under cloud-hypervisor with a program that plays the machine: the parts of the boot
that need no guest. Runs in a mount and a network namespace of its own, and prints what was said and how it ended.

    python -m tests.support.cloud_hypervisor_bench DIRECTORY PROGRAM HOW

HOW is "stopped" for a machine that is asked to end once it is ready, "ended" for one that does so by itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hutch.backends.cloud_hypervisor import launch
from hutch.backends.launch import Hardware, Launch, Surroundings
from tests.support.service import Service, own_surroundings
from tests.unit.facts import workspace


def make_launch(directory: Path, program: str, host: Surroundings, **keys: Any) -> Launch:
    """A workspace `web` of that hutch, whose machine boots from files in `directory`. Nothing serves its shares, and it
    joins no network."""
    files = {name: directory / name for name in ("kernel", "initrd", "root")}
    key = host.layout.host_key("web")
    key.parent.mkdir(parents=True, exist_ok=True)
    host.layout.home("web").mkdir(exist_ok=True)
    for path in (*files.values(), key):
        path.write_text(f"the {path.name}")
    hardware = Hardware(
        **{name: str(path) for name, path in files.items()},
        firmware=None,
        accelerator="kvm",
        tsc_khz=None,
        kvm_gid=4242,
        hypervisors={
            "qemu": {"program": "/usr/bin/qemu-system-x86_64", "library": ""},
            "cloud-hypervisor": {"program": program},
        },
        virtiofsd="",
        has_vsock=False,
        slowness=1,
    )
    declared = workspace(type="vm", disk=1 << 26, home=str(host.layout.home("web")), **keys)
    made = launch("web", declared, replace(host, hardware=hardware))
    return replace(made, helpers=(), connect=(), network_namespace="")


def run(directory: Path, program: str, how: str) -> None:
    host = own_surroundings(directory)
    service = Service(make_launch(directory, program, host), host.layout)
    try:
        is_ready = service.is_ready()
        ended = service.stop() if how == "stopped" else service.ended()
        status = service.status
        found = {"state": status.state, "reason": status.reason, "log": service.text}
        print(json.dumps({"is_ready": is_ready, "how": ended, **found}))
    finally:
        service.close()


if __name__ == "__main__":
    run(Path(sys.argv[1]), *sys.argv[2:])
