"""The stand: a whole host with systemd as its process 1, and Docker, ufw, NetworkManager and the like. A machine
that runs a command in this checkout as it is now, and is gone afterwards.

    python -m tests.support.stand CONSOLE PROCESSORS COMMAND...

runs in the namespaces of the host tier, where what it needs is there (see prepare). What the command prints comes out
as it is printed; what the stand's kernel and systemd say is left in the file CONSOLE.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from hutch.backends.qemu import EMULATED
from hutch.guest.boot import MICROVM, emulated_arguments
from hutch.host.hardware.accelerator import Accelerator, observe_accelerator
from hutch.spec.names import Layout
from tests.support import stand_disks
from tests.support.again import NOTES
from tests.support.enclosure import CACHE, IMAGES
from tests.support.prepare import ensure_disks, ensure_images
from tests.support.stand_disks import CHECKOUT, Boot
from tests.support.world import World
from tests.systemd.stand import start

ENDED = b"the stand ended with code "  # says start.py
SECONDS = 5400.0  # for everything that is run there, by a host without KVM and with other things to do
MEMORY = "4G"
CAN_RUN_MACHINES = EMULATED.replace("-svm", "+svm,+npt")  # AMD's, which QEMU emulates: the stand has a KVM of its own


def main() -> int:
    """Boot, and end with the command's code."""
    console, processors, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="hutch-stand-", dir="/var/tmp") as name:
        work = Path(name)
        began = time.monotonic()
        boot, disks = prepare(work, with_packages="--long" in command, alone="--smoke" in command)
        accelerator = observe_accelerator(Layout(CACHE / "stand", work / "run"), boot)
        print(f"the stand's disks are there after {time.monotonic() - began:.1f} s", flush=True)
        return run(boot, disks, accelerator, Path(console), int(processors), command)


def prepare(work: Path, *, with_packages: bool, alone: bool) -> tuple[Boot, dict[str, Path]]:
    """What it boots from, and its disks by their names, the first of which is its root. Only long tests install
    packages of this checkout; smoke tests have its host `alone`."""
    world = World.build(with_mirrors=False)
    try:
        made = ensure_images(world)
    finally:
        world.close()
    boot, disks = ensure_disks(made, alone=alone)
    disks["checkout"] = work / "checkout"
    stand_disks.make_checkout(disks["checkout"])
    if with_packages:
        disks["packages"] = work / "packages"
        stand_disks.make_packages(disks["packages"], work / "built")
    return boot, disks


def run(
    boot: Boot, disks: dict[str, Path], accelerator: Accelerator, console: Path, processors: int, command: list[str]
) -> int:
    """Boot it, pass on what it says, and return the code that it ended with."""
    told = {
        "checkout": [str(CHECKOUT)],
        "venv": [sys.prefix],
        "python": [sys.base_prefix] if "python" in disks else [],
        "images": [f"{start.CACHE}/{IMAGES.relative_to(CACHE)}"],
        "packages": ["/srv/packages"] if "packages" in disks else [],
        "command": command,
    }
    argv = render_machine(boot, disks, accelerator, console, processors, json.dumps(told))
    with ExitStack() as stack:
        began = time.monotonic()
        qemu = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
        stack.callback(qemu.kill)
        timer = threading.Timer(SECONDS, qemu.kill)
        timer.start()
        stack.callback(timer.cancel)
        assert qemu.stdout is not None
        last = b""
        while chunk := os.read(qemu.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            last = (last + chunk)[-len(ENDED) - 8 :]
            if ended := re.search(re.escape(ENDED) + rb"(\d+)\n", last):
                print(f"it ran for {time.monotonic() - began:.1f} s under {accelerator.name}", flush=True)
                return int(ended[1])
    said = console.read_text(errors="replace") if console.exists() else ""
    print(f"the stand ended early after {time.monotonic() - began:.1f} s; its console said:\n{said[-4000:]}")
    return 3


def render_machine(
    boot: Boot, disks: dict[str, Path], accelerator: Accelerator, console: Path, processors: int, told: str
) -> list[str]:
    """QEMU's arguments. What is written to disks outlives a reboot, in a temporary file that nobody sees."""
    is_kvm = accelerator.name == "kvm"
    words = "root=/dev/vda rw console=ttyS0 quiet panic=-1 random.trust_cpu=on net.ifnames=0"
    # There is no secret in it to leak, and without what guards them an emulated processor has less to compute.
    words += " systemd.show_status=0 lsm=landlock,yama,apparmor mitigations=off"
    if accelerator.tsc_khz is not None:
        words += f" {' '.join(emulated_arguments(accelerator.tsc_khz))}"
    argv = [
        *("qemu-system-x86_64", "-M", f"{MICROVM},accel={accelerator.name}", "-m", MEMORY),
        *("-smp", str(processors)),
        *("-cpu", "host" if is_kvm else CAN_RUN_MACHINES),
        *("-nodefaults", "-no-user-config", "-display", "none", "-bios", str(boot.firmware)),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", words),
        *("-serial", f"file:{console}", "-fw_cfg", f"name=opt/hutch/stand,string={told.replace(',', ',,')}"),
        *("-chardev", "file,id=said,path=/proc/self/fd/1", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=said,name=hutch.stand"),
        *("-chardev", f"file,id=failed,path={os.environ.get(NOTES, os.devnull)}"),
        *("-device", "virtserialport,chardev=failed,name=hutch.failed"),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
    ]
    for name, path in disks.items():
        argv += ["-drive", f"if=none,id={name},file={path},format=raw,snapshot=on"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return argv


if __name__ == "__main__":
    raise SystemExit(main())
