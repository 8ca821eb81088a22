"""Runs in the stand, by the distribution's Python: puts the checkout where it is on the machine outside, runs pytest,
says how it ended on the last line, and switches the stand off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOLD = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/hutch/stand/raw")
ENDED = "the stand ended with code"


def main() -> None:
    """Whatever happens, the last line says so."""
    code = 3
    try:
        code = run_tests(json.loads(TOLD.read_text()))
    finally:
        print(f"{ENDED} {code}", flush=True)
        subprocess.run(["systemctl", "--no-block", "poweroff", "--force"], check=False)


def run_tests(told: dict[str, list[str]]) -> int:
    show("checkout", *told["checkout"])
    show("venv", *told["venv"])
    show("python", *told["python"])
    os.makedirs("/srv/cache/images")
    call("mount", "/dev/disk/by-id/virtio-images", "/srv/cache/images")
    call("mount", "-o", "ro", "/dev/disk/by-id/virtio-packages", "/srv/packages")
    (checkout,) = told["checkout"]
    environment = {
        **os.environ,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "HUTCH_STAND": "yes",
        "HUTCH_TEST_CACHE": "/srv/cache",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with open("/proc/uptime") as file:
        print(f"the stand is up: {file.read().split()[0]} s after its kernel", flush=True)
    return subprocess.run(told["command"], cwd=checkout, env=environment, stdin=subprocess.DEVNULL).returncode


def show(disk: str, *places: str) -> None:
    """Mount a disk, and bind it to the places, if any."""
    for place in places:
        if not os.path.ismount(f"/srv/{disk}"):
            call("mount", "-o", "ro", f"/dev/disk/by-id/virtio-{disk}", f"/srv/{disk}")
        Path(place).mkdir(parents=True, exist_ok=True)
        call("mount", "--bind", f"/srv/{disk}", place)


def call(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
