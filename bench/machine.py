"""What the numbers were taken on: enough to compare, nothing that names the machine or its owner."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

VIRTIOFSD = "/usr/libexec/virtiofsd"


def describe(python: str, system_python: str) -> dict[str, str]:
    kibibytes = int(_field("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0)
    return {
        "processor": _field("/proc/cpuinfo", r"model name\s*:\s*(.+)") or os.uname().machine,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{kibibytes / 2**20:.0f} GiB",
        "kernel": os.uname().release,
        "distribution": _field("/etc/os-release", r'PRETTY_NAME="?([^"\n]+)'),
        "init": "systemd" if has_systemd() else "not systemd",
        "python": _version([python, "--version"]),
        "system python": _version([system_python, "--version"]),
        "systemd-nspawn": _version(["systemd-nspawn", "--version"]),
        "incus": _version(["incus", "--version"]),
        "QEMU": _version(["qemu-system-x86_64", "--version"]).removeprefix("QEMU emulator version "),
        "virtiofsd": _version([VIRTIOFSD, "--version"]).removeprefix("virtiofsd "),
    }


def has_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")


def _field(file: str, pattern: str) -> str:
    try:
        match = re.search(pattern, Path(file).read_text())
    except OSError:
        return ""
    return match[1].strip() if match else ""


def _version(argv: list[str]) -> str:
    try:
        output = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=20).stdout
    except FileNotFoundError:
        return "not installed"
    return output.strip().splitlines()[0].removeprefix("Python ") if output.strip() else ""
