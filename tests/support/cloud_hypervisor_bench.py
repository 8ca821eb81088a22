"""Starts a Launch of cloud-hypervisor's as its supervisor does, with a program that plays the machine: the parts of the
boot that need no guest. Runs in a mount and a network namespace of its own, and prints what was said and how it ended.

    python -m tests.support.cloud_hypervisor_bench DIRECTORY PROGRAM
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hutch.runtime.console import Log
from hutch.runtime.main_process import Main
from hutch.runtime.sources import Source, open_sources
from hutch.runtime.steps import SideBySide, prepare

import hutch
from hutch.backends.cloud_hypervisor import launch
from hutch.backends.launch import Hardware
from hutch.spec.names import Places
from tests.unit.facts import surroundings, workspace

SECONDS = 20.0


def make_launch(directory: Path, program: str) -> dict[str, Any]:
    """A workspace `web` below `directory`, as plain data."""
    places = Places(directory / "state", directory / "run")
    files = {name: directory / name for name in ("kernel", "initrd", "root")}
    key = places.host_key("web")
    key.parent.mkdir(parents=True)
    places.home("web").mkdir()
    for path in (*files.values(), key):
        path.write_text(f"the {path.name}")
    hardware = Hardware(
        **{name: str(path) for name, path in files.items()},
        firmware=None,
        accelerator="kvm",
        tsc_khz=None,
        kvm_gid=4242,
        qemu="/usr/bin/qemu-system-x86_64",
        virtiofsd="",
        library="",
        has_vsock=False,
        cloud_hypervisor=program,
        slowness=1,
    )
    package = str(Path(hutch.__file__).parent)
    host = surroundings(places=places, hardware=hardware, python=sys.executable, package=package)
    declared = workspace(type="vm", disk=1 << 26, home=str(places.home("web")))
    return asdict(replace(launch("web", declared, host), helpers=(), connect=()))


def serve(main: Main, source: Source) -> tuple[list[list[str]], int]:
    """Hear the machine to its end; once it is ready, ask it to end."""
    said: list[list[str]] = []
    deadline = time.monotonic() + SECONDS
    poll = select.poll()
    for descriptor in (main.pidfd, source.fileno()):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            os.kill(main.pid, signal.SIGKILL)
        for descriptor, _ in ready:
            if descriptor == main.pidfd:
                code = main.wait()
                return said + [list(words) for words in source.last_words()], code
            heard = [list(words) for words in source.hear()]
            said += heard
            if ["ready", "vsock"] in heard:
                source.power_off()


def run(directory: Path, program: str) -> None:
    wanted = make_launch(directory, program)
    prepare(wanted).finish(time.monotonic(), SECONDS)
    main = Main(wanted["runtime"], wanted["argv"], wanted["links"])
    console = main.open_console(Log(f"{wanted['runtime']}/machine.log", 1 << 20))
    (source,) = open_sources(main, wanted["library"])
    said, code = serve(main, source)
    console.drain()
    print(json.dumps({"said": said, "code": code, "log": (Path(wanted["runtime"]) / "machine.log").read_text()}))
    source.close()
    main.close()
    SideBySide([wanted["cleanup"]]).finish(time.monotonic(), SECONDS)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
