"""A host whose process 1 is systemd, without a kernel of its own: namespaces on this machine's root, under a layer that
goes with them. It is up within a second, where an emulated one (see stand) takes half a minute, and it runs as fast as
the machine does.

    python -m tests.support.native COMMAND...

runs in the namespaces of the host tier: what it needs of hutch (images) is made as that tier makes it. The command runs
as a service of that systemd, once for each boot: where a test has asked for another one, and all went well, systemd
ends, and begins again on the same root.

It has no controllers of cgroup v2 where the machine has none, and never another kernel: tests that need these are
marked `own_kernel`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.host.opening import open_instance
from tests.support.again import NOTES
from tests.support.enclosure import CACHE, ROOT
from tests.support.world import World
from tests.systemd.stand.start import ANOTHER, OWN

SECONDS = 60.0  # until systemd says that it is up
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service"),
    *("fstrim.timer", "man-db.timer", "motd-news.timer", "getty@.service", "serial-getty@.service"),
    *("console-getty.service", "systemd-timesyncd.service", "systemd-networkd-wait-online.service"),
    *("systemd-pstore.service", "systemd-binfmt.service", "systemd-udevd.service", "systemd-udev-trigger.service"),
    *("systemd-modules-load.service", "sys-kernel-config.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "dev-hugepages.mount", "dev-mqueue.mount", "modprobe@.service"),
)
"""What would act on the machine, or takes time where nobody logs in."""
REAL = ("var/lib/hutch", "var/tmp", "srv")
"""Directories of a file system of their own: an overlay has no id-mapped mounts."""
BEGIN = """
mount -t proc proc "$1/proc"
mount --bind "$1/proc/sys" "$1/proc/sys"
mount -o remount,bind,ro "$1/proc/sys"
for own in net user; do
  mount --bind "$1/proc/sys/$own" "$1/proc/sys/$own"
  mount -o remount,bind,rw "$1/proc/sys/$own"
done
mount --bind "$1/run/boot_id" "$1/proc/sys/kernel/random/boot_id"
mount -t sysfs sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
ip link set lo up
cd "$1"
pivot_root . . # not chroot: under one, no process makes a user namespace
umount -l .
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 container=hutch-test \
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
"""
"""What process 1 does, in namespaces of its own, before it is systemd. $1 is its root."""


def main() -> int:
    """Boot as often as tests ask for it, and end with the command's code."""
    command = sys.argv[1:]
    make_images()
    with tempfile.TemporaryDirectory(prefix="hutch-test-", dir="/var/tmp") as name:
        work = Path(name)
        work.chmod(0o755)
        root = make_root(work)
        number, code, another = 1, 0, root / ANOTHER.relative_to("/")
        while (code := boot(root, number, command, another)) == 0 and another.exists():
            another.unlink()
            number += 1
            print("the host boots again", flush=True)
        subprocess.run(["umount", "--recursive", "--lazy", root], check=True)
        subprocess.run(["umount", "--lazy", work / "layer"], check=True)
        return code


def make_images() -> None:
    """Built here, since there is no way from that host to mirrors."""
    (CACHE / "images").mkdir(parents=True, exist_ok=True)
    world = World.build()
    try:
        with open_instance(world, CACHE / "images") as builder:
            for boundary in ("container", "vm"):
                builder.declare(boundary, builder="")
                builder.hutch("up", "--no-start", timeout=900)
    finally:
        world.close()


def make_root(work: Path) -> Path:
    """The machine's root, with a layer over it that holds what all boots change."""
    root, layer = work / "root", work / "layer"
    for directory in (root, layer):
        directory.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", layer)
    for part in ("upper", "work"):
        (layer / part).mkdir()
    mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/work", "overlay", root)
    (root / "etc/fstab").write_text("")
    (root / "etc/hostname").write_text("stand\n")
    for path in ("etc/machine-id", "etc/resolv.conf"):
        (root / path).unlink(missing_ok=True)
    subprocess.run(["systemd-machine-id-setup", f"--root={root}"], check=True, capture_output=True)
    for path in ("etc/.updated", "var/.updated"):
        (root / path).touch()
    (root / "var/log/journal").mkdir(exist_ok=True)
    for unit in MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    mount("--rbind", "/dev", root / "dev")
    for place in REAL:
        own = work / place.replace("/", "-")
        own.mkdir()
        own.chmod((root / place).stat().st_mode & 0o7777 if (root / place).exists() else 0o755)
        show(own, root / place)
    for place in (ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        if place.stat().st_dev != Path("/").stat().st_dev:
            show(place, root / place.relative_to("/"))
    show(CACHE, root / CACHE.resolve().relative_to("/"))
    (root / OWN.relative_to("/")).mkdir()
    return root


def boot(root: Path, number: int, command: Sequence[str], another: Path) -> int:
    """Begin systemd, run the command as its service, end systemd, in order where `another` boot is wanted; the command's
    code."""
    for place in ("run", "tmp"):
        mount("-t", "tmpfs", "-o", "mode=755" if place == "run" else "mode=1777", "tmpfs", root / place)
    (root / "run/boot_id").write_text(f"{uuid.uuid4()}\n")
    if notes := os.environ.get(NOTES):
        show(Path(notes).parent, root / Path(notes).parent.relative_to("/"))
    group = hierarchy() / f"hutch-test-{os.getpid()}"
    group.mkdir()
    apart = ("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
    join = f'echo $$ >{group}/cgroup.procs; exec "$@"'
    init = subprocess.Popen(
        ["sh", "-euc", join, "sh", *apart, "sh", "-euc", BEGIN, "sh", str(root)], stdin=subprocess.DEVNULL
    )
    try:
        inside = enter(init)
        environment = {
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "HUTCH_STAND": str(number),
            "HUTCH_STAND_KERNEL": "shared",
            "HUTCH_TEST_CACHE": str(CACHE),
            "PYTHONDONTWRITEBYTECODE": "1",
            **({NOTES: notes} if notes else {}),
        }
        settings = [f"--setenv={name}={value}" for name, value in environment.items()]
        service = ("systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--working-directory={ROOT}", *settings)
        code = subprocess.run([*inside, *service, "--", *command], stdin=subprocess.DEVNULL).returncode
        if code == 0 and another.exists():
            subprocess.run([*inside, "systemctl", "reboot"], stdin=subprocess.DEVNULL, check=True)
            init.wait(SECONDS)
        return code
    finally:
        init.kill()
        init.wait()
        remove(group)
        for place in ("tmp", "run"):
            subprocess.run(["umount", "--recursive", root / place], check=True)


def enter(init: subprocess.Popen[bytes]) -> list[str]:
    """The command that enters the host, once that is up."""
    deadline = time.monotonic() + SECONDS
    while True:
        children = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
            inside = ["nsenter", "--target", children[0], "--all", "--root", "--wd=/"]
            asked = [*inside, "systemctl", "is-system-running"]
            state = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.strip()
            if state in ("running", "degraded"):
                return inside
        if init.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"systemd does not come up: {init.returncode}")
        time.sleep(0.05)


def hierarchy() -> Path:
    """The mount of cgroup v2."""
    hybrid = Path("/sys/fs/cgroup/unified")
    return hybrid if hybrid.is_dir() else Path("/sys/fs/cgroup")


def remove(group: Path) -> None:
    """A cgroup with all below it, once the kernel has ended what was in it."""
    deadline = time.monotonic() + SECONDS
    while group.exists():
        for directory, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{group} has processes that do not end")
        time.sleep(0.02)


def show(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    mount("--bind", source, target)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    if shutil.which("systemd-run") is None:
        sys.exit("systemd is not installed: `sudo script/setup`")
    raise SystemExit(main())
