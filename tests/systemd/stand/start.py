"""Runs in the stand, by the distribution's Python: puts the checkout where it is on the machine outside, runs the
command that it was given, says how that ended on the last line, and switches the stand off. Where a test has asked for
another boot, and all went well, it boots again, and runs the same once more (see conftest).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOLD = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/hutch/stand/raw")
OWN = Path("/var/lib/hutch-stand")  # what is to be known after a reboot
ANOTHER = OWN / "another"  # made by a test that wants another boot
NEXT = OWN / "next"  # the number of the boot that comes; none is expected while this one lasts
ENDED = "the stand ended with code"
CACHE = "/srv/cache"  # of tests, as far as they have one here
MODULES = Path("/etc/modules-load.d/stand.conf")
FILTERS = (
    *("nft_ct", "nft_limit", "nft_connlimit", "nft_log", "nft_masq", "nft_nat", "nft_chain_nat", "nft_meta_bridge"),
    *("nft_reject_inet", "nft_reject_bridge", "nft_fib_inet", "nf_conntrack_bridge", "nfnetlink_log", "veth", "tun"),
)
"""Loaded at their first use otherwise, for which an emulated host takes longer than a command may that uses them."""
KVM = {"svm": "kvm_amd", "vmx": "kvm_intel"}  # loaded by udev where it looks for a host's hardware


def main() -> None:
    """Whatever happens, the last line says so."""
    code, is_over = 3, True
    try:
        OWN.mkdir(exist_ok=True)
        number = int(NEXT.read_text()) if NEXT.exists() else 1
        NEXT.write_text("0")
        if number == 0:
            print("the stand has rebooted although nobody asked for it", flush=True)
            return
        code = run_command(json.loads(TOLD.read_text()), number)
        if code == 0 and ANOTHER.exists():
            ANOTHER.unlink()
            NEXT.write_text(str(number + 1))
            is_over = False
    finally:
        if is_over:
            print(f"{ENDED} {code}", flush=True)
            subprocess.run(["systemctl", "--no-block", "poweroff", "--force"], check=False)
        else:
            print("the stand reboots", flush=True)
            subprocess.run(["systemctl", "--no-block", "reboot"], check=False)


def run_command(told: dict[str, list[str]], number: int) -> int:
    for disk in ("checkout", "venv", "python", "packages"):
        for place in told[disk]:
            show(disk, place, "ro")
    (images,) = told["images"]
    show("images", images, "rw")
    if number == 1:
        load_modules()
    (checkout,) = told["checkout"]
    environment = {
        **os.environ,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "HUTCH_STAND": str(number),
        "HUTCH_TEST_CACHE": CACHE,
        "HUTCH_TEST_NOTES": "/dev/virtio-ports/hutch.failed",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with open("/proc/uptime") as file:
        print(f"the stand is up: {file.read().split()[0]} s after its kernel", flush=True)
    return subprocess.run(told["command"], cwd=checkout, env=environment, stdin=subprocess.DEVNULL).returncode


def load_modules() -> None:
    """In this boot and in those that follow."""
    flags = Path("/proc/cpuinfo").read_text().split()
    MODULES.write_text("\n".join([*FILTERS, *(module for flag, module in KVM.items() if flag in flags)]))
    subprocess.run(["systemctl", "restart", "systemd-modules-load"], check=False)


def show(disk: str, place: str, options: str) -> None:
    """Have a disk mounted there, in this boot and in those that follow."""
    if os.path.ismount(place):
        return
    Path(place).mkdir(parents=True, exist_ok=True)
    with open("/etc/fstab", "a") as file:
        file.write(f"/dev/disk/by-id/virtio-{disk} {place} auto {options} 0 0\n")
    subprocess.run(["mount", place], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
