"""A host whose process 1 is systemd, without a kernel of its own: namespaces on this machine's root, under a layer that
goes with them. It is up within a second, where an emulated one (see stand) takes half a minute, and it runs as fast as
the machine does.

    python -m tests.support.native COMMAND...

runs in the namespaces of the host tier, where what it needs is there (see prepare). The command runs as a service of
that systemd, once for each boot: where a test has asked for another one, and all went well, systemd ends, and begins
again on the same root.

Of the machine it shows the distribution, not what is enabled there. It has no controllers of cgroup v2 where the
machine has none, and never another kernel: tests that need these are marked `own_kernel`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hutch.host.services.cgroup import find_mount
from hutch.host.storage.mountinfo import observe_mountinfo
from tests.support.again import NOTES
from tests.support.enclosure import CACHE, ROOT
from tests.systemd.stand.start import ANOTHER, OWN

ANSWERS_WITHIN = 60.0  # seconds; process 1
BOOTS_WITHIN = 1200.0  # what starts with it, a machine among it, on a busy machine; as long to end
MASKED = (
    *("systemd-udevd.service", "systemd-modules-load.service", "modprobe@.service", "systemd-binfmt.service"),
    *("proc-sys-fs-binfmt_misc.automount", "sys-kernel-config.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount", "dev-hugepages.mount", "dev-mqueue.mount"),
)
"""What acts on the machine, whatever is enabled."""
REAL = ("var/lib/hutch", "var/tmp", "tmp", "srv")
"""Directories on the machine's file system: an overlay has no id-mapped mounts."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "kvm", "net/tun", "vhost-net", "vhost-vsock")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
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
    """Have the host run the command, and end with its code."""
    words = sys.argv[1:]
    if words[0] == "--below":
        return run(Path(words[1]), words[2:])
    if whole := [path for path in ("/etc", "/usr", "/var") if os.stat(path).st_dev != os.stat("/").st_dev]:
        print(f"these tests need {' and '.join(whole)} on the file system of /, which they lay theirs over")
        return 2
    # All mounts are made in a namespace that has ended before the directory is deleted: nothing is found below them.
    signal.signal(signal.SIGINT, lambda *_: None)  # the other process ends in order
    with tempfile.TemporaryDirectory(prefix="hutch-test-", dir="/var/tmp") as work:
        apart = ("unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.support.native")
        return subprocess.run([*apart, "--below", work, *words], stdin=subprocess.DEVNULL).returncode


def run(work: Path, command: Sequence[str]) -> int:
    """Boot as often as tests ask for it; the command's code. All mounts go with this process's namespace."""
    root = make_root(work)
    number, code, another = 1, 0, root / ANOTHER.relative_to("/")
    while (code := boot(root, number, command, another)) == 0 and another.exists():
        another.unlink()
        number += 1
        print("the host boots again", flush=True)
    return code


def make_root(work: Path) -> Path:
    """The machine's root, with a layer over it that holds what all boots change."""
    work.chmod(0o755)
    root, layer = work / "root", work / "layer"
    for directory in (root, layer):
        directory.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", layer)
    for part in ("upper", "work"):
        (layer / part).mkdir()
    mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/work", "overlay", root)
    enable_nothing(root)
    (root / "etc/fstab").write_text("")
    (root / "etc/hostname").write_text("stand\n")
    for path in ("etc/machine-id", "etc/resolv.conf"):
        (root / path).unlink(missing_ok=True)
    subprocess.run(["systemd-machine-id-setup", f"--root={root}"], check=True, capture_output=True)
    for path in ("etc/.updated", "var/.updated"):
        (root / path).touch()
    (root / "var/log/journal").mkdir(exist_ok=True)
    make_devices(root / "dev")
    for place in REAL:
        own = work / place.replace("/", "-")
        own.mkdir()
        own.chmod(0o1777 if place.endswith("tmp") else 0o755)
        show(own, root / place)
    # They may lie on other file systems, or below one of those.
    for shown in sorted({path.resolve() for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix), CACHE)}):
        show(shown, root / shown.relative_to("/"))
    if notes := os.environ.get(NOTES):
        show(Path(notes).parent, root / Path(notes).parent.relative_to("/"))
    (root / OWN.relative_to("/")).mkdir()
    return root


def enable_nothing(root: Path) -> None:
    """Have systemd start what the distribution has it start always, and nothing of the machine's."""
    units = root / "etc/systemd/system"
    shutil.rmtree(units)
    units.mkdir()
    for link in root.glob("etc/rc?.d/*"):
        link.unlink()
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")


def make_devices(target: Path) -> None:
    """Of the machine's devices, those that workspaces need: systemd and its like make sockets and links beside them."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", target)
    for name in DEVICES:
        device = Path("/dev", name)
        if device.exists():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).touch()
            mount("--bind", device, target / name)
    for name, place in LINKS.items():
        (target / name).symlink_to(place)
    for name in ("pts", "shm"):
        (target / name).mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=666,mode=620,gid=5", "devpts", target / "pts")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", target / "shm")


def boot(root: Path, number: int, command: Sequence[str], another: Path) -> int:
    """Begin systemd, run the command as its service, and end systemd: in order where `another` boot is wanted. Returns
    the command's code."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "run")
    (root / "run/boot_id").write_text(f"{uuid.uuid4()}\n")
    group = Path(tempfile.mkdtemp(prefix="hutch-test-", dir=hierarchy()))
    apart = ("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
    begin = (*apart, "sh", "-euc", BEGIN, "sh", str(root))
    init = subprocess.Popen(
        ["sh", "-euc", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh", *begin], stdin=subprocess.DEVNULL
    )
    try:
        inside = enter(init)
        code = subprocess.run([*inside, *service(number), "--", *command], stdin=subprocess.DEVNULL).returncode
        if code == 0 and another.exists():
            subprocess.run([*inside, "systemctl", "reboot"], stdin=subprocess.DEVNULL, check=True, timeout=BOOTS_WITHIN)
            init.wait(BOOTS_WITHIN)
        return code
    finally:
        init.kill()
        init.wait()
        remove(group)
        subprocess.run(["umount", "--recursive", root / "run"], check=True)


def service(number: int) -> list[str]:
    """The beginning of a command that runs the rest as a service, and waits for it."""
    environment = {
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PATH": os.environ["PATH"],
        "HUTCH_STAND": str(number),
        "HUTCH_STAND_KERNEL": "shared",
        "HUTCH_TEST_CACHE": str(CACHE.resolve()),
        "PYTHONDONTWRITEBYTECODE": "1",
        **{name: os.environ[name] for name in (NOTES,) if name in os.environ},
    }
    settings = [f"--setenv={name}={value}" for name, value in environment.items()]
    return ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--working-directory={ROOT}", *settings]


def enter(init: subprocess.Popen[bytes]) -> list[str]:
    """The command that enters the host, once all has started that starts with it."""
    began = time.monotonic()
    while init.poll() is None:
        children = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()
        state = ""
        if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
            inside = ["nsenter", "--target", children[0], "--all", "--root", "--wd=/"]
            asked = [*inside, "systemctl", "is-system-running"]
            found = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            state = found.stdout.strip()
            if state in ("running", "degraded"):
                return inside
        if time.monotonic() - began > (BOOTS_WITHIN if state else ANSWERS_WITHIN):
            raise RuntimeError(f"systemd does not come up: {state}")
        time.sleep(0.05)
    raise RuntimeError(f"systemd has ended with code {init.returncode} before it was up")


def hierarchy() -> str:
    """Where cgroup v2 is mounted."""
    if (found := find_mount(observe_mountinfo())) is None:
        raise RuntimeError("cgroup v2 is not mounted on this machine, and systemd needs it")
    return found


def remove(group: Path) -> None:
    """Remove a cgroup with all below it, once the kernel has ended what was in it."""
    deadline = time.monotonic() + ANSWERS_WITHIN
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
    raise SystemExit(main())
