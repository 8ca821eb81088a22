"""The command: builds the image, makes a place for it, measures there, prints and writes.

It runs twice: once outside, where the network is, and once inside, where everything is measured: in namespaces of its
own, or on a host with systemd, which is booted for it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench import bare, barevm, byhand, incus, machine, ours, place, report, rows, stock, systemd, table, vms
from bench.measure import BenchError, Samples, run, say

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_PYTHON = "/usr/bin/python3"
TOOLS = {
    "incus": "incus-client",
    "/usr/libexec/incus/incusd": "incus-base",
    "mksquashfs": "squashfs-tools",
    "systemd-nspawn": "systemd-container",
    "ssh": "openssh-client",
    "newuidmap": "uidmap",
    "setfattr": "attr",
    "dnsmasq": "dnsmasq-base",
    SYSTEM_PYTHON: "python3",
}
TOOLS_FOR_VMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    machine.VIRTIOFSD: "virtiofsd",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz": "xz-utils",
    "depmod": "kmod",
    "setpriv": "util-linux",
    "mmdebstrap": "mmdebstrap",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run", description="Measure hutch against what one would use instead. Needs root."
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds; nothing is written")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], choices=rows.names_of_rows(), help="these rows only"
    )
    parser.add_argument("--output", type=Path, help="where to write (default: docs/, after a full run)")
    parser.add_argument("--hutch", type=shlex.split, help="how to call hutch (default: .venv/bin/hutch)")
    parser.add_argument("--images", type=Path, help="an images directory of a hutch to use instead of building one")
    parser.add_argument(
        "--stand", action="store_true", help="on a host with systemd, which is booted for it; takes an hour without KVM"
    )
    parser.add_argument(
        "--stock", type=Path, metavar="DIR", help="where to keep a stock guest that later runs use again"
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stand and not set(options.only) <= set(systemd.ROWS):
        parser.error(f"--stand measures {', '.join(systemd.ROWS)} only")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was begun is taken down on either
    try:
        if options.inside:
            return inside(options)
        if options.stand:
            return on_systemd(options, arguments)
        return outside(options, arguments)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def outside(options: argparse.Namespace, arguments: list[str]) -> int:
    wants_vms = wants(options, *vms.names_of_rows())
    check_tools(TOOLS | TOOLS_FOR_VMS if wants_vms else TOOLS)
    command = options.hutch or ours.find(ROOT)
    work = Path(tempfile.mkdtemp(prefix="hutch-bench-", dir="/var/tmp"))
    work.chmod(0o711)  # containers' users pass through
    try:
        before = place.observe_machine()
        hutch = ours.Hutch(command, work)
        provide_image(hutch, options.images, ("vm",) if wants_vms else ())
        provide_others(options, work)
        python = [sys.executable, "-m", "bench"]
        code = place.enter([*python, *arguments, "--inside", str(work)], work)
        if code:
            return code
        marks = (*hutch.marks(), *incus.MARKS, *bare.MARKS, *byhand.MARKS)
        differences = place.check_machine(before, place.observe_machine(), marks)
        measured: list[table.Row] = pickle.loads((work / "rows").read_bytes())
    finally:
        shutil.rmtree(work)
    for line in differences:
        say(line)
    left = "what the run changed on the machine (interfaces, mounts, namespaces, cgroups, /etc, /run, rules)"
    measured.append(table.Row("left", left, "", Samples((float(len(differences)),)), bound=0))
    return publish(options, measured, describe(command))


def on_systemd(options: argparse.Namespace, arguments: list[str]) -> int:
    """The host is gone afterwards, so nothing needs to be looked at but what was measured."""
    check_tools({})
    with tempfile.TemporaryDirectory(prefix="hutch-bench-", dir="/var/tmp") as work:
        return publish(options, *systemd.measure(arguments, Path(work)))


def wants(options: argparse.Namespace, *names: str) -> bool:
    """Whether one of these rows was asked for."""
    return not options.only or bool(set(names) & set(options.only))


def check_tools(tools: dict[str, str]) -> None:
    if os.geteuid() != 0:
        raise BenchError("containers need root: run it with sudo")
    missing = sorted({package for tool, package in tools.items() if not shutil.which(tool)})
    if missing:
        raise BenchError(f"missing programs; on Debian: apt-get install {' '.join(missing)}")


def provide_image(hutch: ours.Hutch, images: Path | None, machines: tuple[str, ...]) -> None:
    """The image, built (or copied by hard links) before anything is measured: it needs the network."""
    hutch.declare("first", vms=machines)
    if images:
        run(["cp", "-al", str(images), str(hutch.state / "images")])
        if not machines:
            return
    say("building the image (not measured) …")
    hutch("image", "build", timeout=1800)


def provide_others(options: argparse.Namespace, work: Path) -> None:
    """What the virtual machines by hand are made from: it needs the network, too."""
    if wants(options, "vm-start"):
        stock.build(stock_folder(options, work))
    if wants(options, "vm-lab", "vm-read", "vm-write"):
        barevm.fetch_kernel(kernel_folder(work))


def stock_folder(options: argparse.Namespace, work: Path) -> Path:
    return options.stock or work / "stock"


def kernel_folder(work: Path) -> Path:
    return work / "kernel"


def inside(options: argparse.Namespace) -> int:
    work: Path = options.inside
    command = options.hutch or ours.find(ROOT)
    if options.stand:
        hutch = systemd.furnish(command, work)
    else:
        place.furnish(work)
        hutch = ours.Hutch(command, work)
    setting = table.Setting(
        hutch,
        hutch.tree(),
        work,
        ours.interpreter_of(command),
        SYSTEM_PYTHON,
        rounds=3 if options.quick else 7,
        rounds_of_vms=3 if options.quick else 5,
        quick=options.quick,
        stock=stock_folder(options, work),
        kernel=kernel_folder(work),
        only=frozenset(options.only or (systemd.ROWS if options.stand else ())),
    )
    rows.warm(setting)
    measured = rows.measure(setting)
    if options.stand:
        systemd.tell((measured, describe(command)))
    else:
        (work / "rows").write_bytes(pickle.dumps(measured))
    return 0


def describe(command: list[str]) -> dict[str, str]:
    return machine.describe(ours.interpreter_of(command), SYSTEM_PYTHON)


def publish(options: argparse.Namespace, measured: list[table.Row], facts: dict[str, str]) -> int:
    """Print, write unless it was a part only, and return the code that says whether all bounds are met."""
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    print(report.render_table(measured))
    folder = options.output or (None if options.quick or options.only else ROOT / "docs")
    if folder:
        report.write(folder, "systemd" if options.stand else "elsewhere", measured, facts, date)
    return 0 if all(row.passed for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
