"""What a container may ask of the kernel that it shares with its host, and what it may if it is to nest others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from errno import EAFNOSUPPORT, ENOSPC, ENOSYS, EPERM
from pathlib import Path

import pytest

from tests.host.conftest import MakeInstance
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.processes import status_of
from tests.support.world import World

ASKING = Path(__file__).with_name("guest_kernel.py").read_text()
KEYS = ("add_key", "request_key", "keyctl")
IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")
OFFERED = ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET")
REFUSED = ("AF_VSOCK", "AF_ALG", "AF_RDS", "AF_TIPC", "socket by i386", "socketcall by i386")
UNWANTED = {16: "SYS_MODULE", 17: "SYS_RAWIO", 24: "SYS_RESOURCE", 25: "SYS_TIME", 34: "SYSLOG", 39: "BPF"}
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")

# Everything that root inside could do to have its say in how many user namespaces there may be.
RAISE = """
echo 100 >/proc/sys/user/max_user_namespaces
mount -o remount,rw /proc/sys; echo 100 >/proc/sys/user/max_user_namespaces
umount -l /proc/sys; echo 100 >/proc/sys/user/max_user_namespaces
mkdir -p /run/proc && mount -t proc proc /run/proc && echo 100 >/run/proc/sys/user/max_user_namespaces
setpriv --inh-caps +sys_resource --ambient-caps +sys_resource sh -c 'echo 100 >/run/proc/sys/user/max_user_namespaces'
unshare --mount --pid --fork --mount-proc sh -c 'echo 100 >/proc/sys/user/max_user_namespaces'
cat /run/proc/sys/user/max_user_namespaces
"""


@pytest.fixture(scope="module")
def pair(world: World, images: Path) -> Iterator[Instance]:
    """One like any other, and one that may nest."""
    with open_instance(world, images) as instance:
        instance.declare("container", web="", nest="nesting = true")
        instance.up()
        yield instance


def asked(instance: Instance, name: str, *, root: bool) -> dict[str, int]:
    answers = json.loads(instance.inside(name, "python3", "-c", ASKING, root=root).stdout)
    assert isinstance(answers, dict)
    return answers


def leader_of(instance: Instance, name: str) -> int:
    status = json.loads((instance.run / "workspaces" / name / "status.json").read_text())
    return int(status["leader"][0])


# System calls.


@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
@pytest.mark.parametrize("name", ["web", "nest"])
def test_keys_rings_and_strange_sockets_are_refused(pair: Instance, name: str, root: bool) -> None:
    answers = asked(pair, name, root=root)
    assert {answers[call] for call in IO_URING} == {ENOSYS}
    assert {answers[call] for call in KEYS if call in answers} <= ({ENOSYS} if name == "nest" else {ENOSYS, EPERM})
    assert {answers[family] for family in REFUSED if family in answers} == {EAFNOSUPPORT}
    offered = {family: answers[family] for family in OFFERED}
    assert offered.pop("AF_PACKET") == (0 if root else EPERM)
    assert set(offered.values()) == {0}


def test_ssh_is_bound_by_the_same(pair: Instance) -> None:
    wanted = "grep -e ^Seccomp -e ^CapBnd /proc/{}/status"
    assert pair.ssh("web", wanted.format("self")).stdout == pair.ssh("web", wanted.format(1)).stdout
    assert "No space left" in pair.ssh("web", "unshare --user true", check=False).stderr


# User namespaces.


@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
def test_nobody_makes_user_namespaces(pair: Instance, root: bool) -> None:
    assert asked(pair, "nest", root=root)["user namespace"] == 0
    assert asked(pair, "web", root=root)["user namespace"] == ENOSPC


def test_root_cannot_allow_itself_user_namespaces(pair: Instance) -> None:
    assert pair.inside("web", "sh", "-c", RAISE, root=True).stdout == "0\n"
    assert asked(pair, "web", root=True)["user namespace"] == ENOSPC


def test_a_reboot_changes_nothing(pair: Instance) -> None:
    def bounds() -> list[str]:
        return [status_of(leader_of(pair, "web"))[key] for key in ("CapBnd", "Seccomp", "Seccomp_filters")]

    before, since = bounds(), pair.status("web")["since"]
    pair.inside("web", "systemctl", "reboot", root=True, check=False)
    deadline = time.monotonic() + 60
    while (now := pair.status("web"))["since"] == since or now["state"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert bounds() == before
    assert asked(pair, "web", root=True)["user namespace"] == ENOSPC


def test_one_that_cannot_be_bound_does_not_run(instance: Instance) -> None:
    """Where the command fails that would have bound it, nothing of the guest's is ever run."""
    real, sham = instance.directory / "nsenter.real", instance.directory / "nsenter"
    shutil.copy("/usr/bin/nsenter", real)
    sham.write_text(f'#!/bin/sh\ncase "$*" in *max_user*) exit 7 ;; esac\nexec {real} "$@"\n')
    sham.chmod(0o755)
    instance.declare("container", web="")
    subprocess.run(["mount", "--bind", sham, "/usr/bin/nsenter"], check=True, timeout=10)
    try:
        failed = instance.hutch("up", check=False)
    finally:
        subprocess.run(["umount", "/usr/bin/nsenter"], check=True, timeout=10)
    assert failed.returncode == 1
    assert "cannot let nobody inside make user namespaces: code 7" in failed.stderr
    assert "systemd" not in (instance.run / "workspaces" / "web" / "machine.log").read_text()
    assert instance.status("web")["state"] == "failed"


# What the kernel counts for the host's root, who made the user namespace.

COUNTED = """
import ctypes, os, signal
libc = ctypes.CDLL(None)
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
def fill(uid):
    says, said = os.pipe()
    if os.fork():
        return int(os.read(says, 16))
    os.setuid(uid)
    count = 0
    while count < 10000 and libc.sigqueue(os.getpid(), 40, ctypes.c_void_p(1)) == 0:
        count += 1
    os.write(said, str(count).encode())
    signal.pause()
try:
    print(sum(map(fill, (0, 1001, 1002))))
    print(*(open(f"/proc/sys/user/{name}").read() for name in sorted(os.listdir("/proc/sys/user"))))
finally:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
"""


@pytest.mark.parametrize("name", ["web", "nest"])
def test_what_is_counted_for_root_is_bounded(pair: Instance, name: str) -> None:
    """Signals that wait, for all users inside together; of inotify, fanotify and namespaces, half of what root may have
    for each of them, and of user namespaces none without nesting."""
    found = [
        int(word) for word in pair.inside(name, "setsid", "-w", "python3", "-c", COUNTED, root=True).stdout.split()
    ]
    most = {path.name: int(path.read_text()) // 2 for path in sorted(Path("/proc/sys/user").iterdir())}
    if name == "web":
        most["max_user_namespaces"] = 0
    assert 0 < found[0] <= 4096
    assert found[1:] == list(most.values())


# What /proc says of it.


def test_posture(pair: Instance) -> None:
    """Root inside is nobody outside, in namespaces of its own, filtered, without what would undo that."""
    leader = leader_of(pair, "web")
    status = status_of(leader)
    (base,) = {*status["Uid"].split(), *status["Gid"].split()}
    assert int(base) >= 0x7000_0000
    assert Path(f"/proc/{leader}/uid_map").read_text().split() == ["0", base, "65536"]
    assert Path(f"/proc/{leader}/gid_map").read_text().split() == ["0", base, "65536"]
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "0")  # doas has to work
    bounding = int(status["CapBnd"], 16)
    assert not [name for number, name in UNWANTED.items() if bounding >> number & 1]
    for kind in NAMESPACES:
        assert os.readlink(f"/proc/{leader}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    group = Path(f"/proc/{leader}/cgroup").read_text()
    assert "@web.service/machine/payload" in group.splitlines()[-1]
    assert pair.inside("web", "cat", "/proc/sys/user/max_user_namespaces").stdout == "0\n"


def test_explain_shows_what_binds_it(pair: Instance) -> None:
    shown = pair.hutch("explain", "web").stdout
    calls = "io_uring_setup,io_uring_enter,io_uring_register,add_key,request_key,keyctl"
    assert f" {calls} AF_UNIX,AF_INET,AF_INET6,AF_NETLINK,AF_PACKET systemd-nspawn " in shown
    assert "/proc/sys/user/max_user_namespaces" in shown
    assert "--drop-capability=CAP_SYS_RESOURCE" in shown
    assert "/proc/sys/user/max_user_namespaces" not in pair.hutch("explain", "nest").stdout


def test_no_mount_has_devices_but_dev(pair: Instance) -> None:
    for name in ("web", "nest"):
        mounts = [line.split() for line in Path(f"/proc/{leader_of(pair, name)}/mountinfo").read_text().splitlines()]
        lax = {fields[4] for fields in mounts if "nodev" not in fields[5].split(",")}
        # The way of `machinectl bind`: the host's root's, read-only; and a file, in which nothing can be made.
        others = {"/run/host/incoming", "/run/systemd/network/50-hutch.network"}
        assert {point for point in lax if not point.startswith("/dev/")} <= {"/dev", *others}


# Devices, and what a guest or an image puts in the place of directories.


def test_root_makes_no_devices(pair: Instance) -> None:
    script = 'for place in /root /dev /tmp /run /home/dev; do mknod "$place/disk" b 254 0 && echo "$place"; done; true'
    assert pair.inside("web", "sh", "-c", script, root=True).stdout == ""


def test_what_is_kept_counts_neither_devices_nor_links(instance: Instance) -> None:
    """A kept root that has got a device, and whose directories lead to the host's: it starts, and they lead nowhere."""
    instance.declare("container", web='persist = "all"')
    instance.up()
    assert asked(instance, "web", root=True)["user namespace"] == ENOSPC
    inside = "rm -rf /opt /mnt /srv; ln -s /../../../../etc /opt; ln -s ../../../../proc/1/root/etc /mnt; "
    inside += "echo marked >/opt/marked"
    instance.inside("web", "sh", "-c", inside, root=True)
    instance.hutch("down")
    upper = instance.state / "workspaces" / "web" / "root" / "upper"
    os.mknod(upper / "null", 0o666 | 0o020000, os.makedev(1, 3))
    (upper / "null").chmod(0o666)
    instance.up()
    refused = instance.inside("web", "cat", "/null", root=True, check=False)
    assert (refused.returncode, "Permission denied" in refused.stderr) == (1, True)
    assert instance.inside("web", "cat", "/etc/marked").stdout == "marked\n"
    assert not Path("/etc/marked").exists()
    instance.hutch("down")
    shutil.rmtree(upper / "dev", ignore_errors=True)
    (upper / "dev").symlink_to("/etc")  # through which nspawn would make its devices on the host
    failed = instance.hutch("up", check=False)
    assert failed.returncode == 1
    assert "cannot trust the kept root: /dev inside is a symbolic link" in failed.stderr
    assert not Path("/etc/null").exists()


LINKS = {
    "dev": "../../../../../../dev",
    "etc": "/etc",
    "home": "/usr",
    "proc": "/proc/1/root/proc",
    "root": "nowhere",
    "tmp": "..",
    "usr": "/usr",
    "var": "etc",
}


def test_an_image_whose_directories_lead_elsewhere_is_refused(make_instance: MakeInstance) -> None:
    instance = make_instance(with_images=False)
    tree = instance.directory / "tree"
    tree.mkdir()
    for place, target in LINKS.items():
        (tree / place).symlink_to(target)
    (tree / "sys").write_text("")
    for said in refusals(instance, tree):
        assert "its top is not made of directories" in said
        assert "/sys is not a directory" in said
        assert [name for name in LINKS if f"/{name} is a symbolic link to '{LINKS[name]}'" in said] == [*LINKS]


def test_an_image_with_a_device_is_refused(make_instance: MakeInstance) -> None:
    instance = make_instance(with_images=False)
    tree = instance.directory / "tree"
    (tree / "usr").mkdir(parents=True)
    os.mknod(tree / "usr" / "disk", 0o666 | 0o060000, os.makedev(254, 0))
    for said in refusals(instance, tree):
        assert "holds device nodes outside /dev" in said
        assert "usr/disk" in said


def refusals(instance: Instance, tree: Path) -> Iterator[str]:
    """What is said of an image that is not to be built: from a directory, and from a tarball of it."""
    tarball = instance.directory / "tree.tar"
    subprocess.run(["tar", "-C", tree, "-cf", tarball, "."], check=True, timeout=10)
    for source in (tree, tarball):
        instance.defaults = f'image = "rootfs:{source}"\npackages = []'
        instance.declare("container", own="")
        failed = instance.hutch("image", "build", check=False)
        assert failed.returncode == 1
        yield failed.stderr


SETTINGS = "[Exec]\\nPrivateUsers=no\\nDropCapability=\\n[Files]\\nBind=/etc:/srv\\n"


@pytest.mark.long
def test_settings_that_an_image_brings_are_not_read(pair: Instance, make_instance: MakeInstance) -> None:
    tree = pair.state / "images" / pair.status("web")["image_id"] / "root"
    instance = make_instance(with_images=False)
    places = "/.nspawn /root.nspawn /own.nspawn /etc/systemd/nspawn/own.nspawn"
    setup = f"mkdir -p /etc/systemd/nspawn; for at in {places}; do printf '{SETTINGS}' >$at; done"
    instance.defaults = f'image = "rootfs:{tree}"\npackages = []\nsetup = """{setup}"""'
    instance.declare("container", own="")
    instance.hutch("up", timeout=300)
    assert Path(f"/proc/{leader_of(instance, 'own')}/uid_map").read_text().split()[1] != "0"
    assert instance.inside("own", "ls", "/srv").stdout == ""
    instance.defaults = f'image = "rootfs:{tree}"\npackages = []\nsetup = "rm -r /home; ln -s /etc /home"'
    instance.declare("container", own="")
    assert "/home is a symbolic link to '/etc'" in instance.hutch("image", "build", check=False, timeout=300).stderr


# Containers in a container.

TINY = """
set -eu
mkdir -p tiny/bin tiny/etc
cp /bin/busybox tiny/bin/
for name in cat id ip mount nslookup sh wget; do ln -s busybox tiny/bin/$name; done
ln -s usr/lib tiny/lib; ln -s usr/lib64 tiny/lib64
tar -C tiny -cf tiny.tar .
"""


# Whoever sets an image up is bound as a container is, whatever its workspaces may.
BOUND = """
[ "$(cat /proc/sys/user/max_user_namespaces)" = 0 ]
if unshare --user true; then exit 1; fi
[ "$(grep Seccomp: /proc/self/status | tr -d '[:space:]')" = Seccomp:2 ]
"""


@pytest.mark.slow
def test_rootless_podman(instance: Instance) -> None:
    """As the login user: its own uids, a /proc and a /sys of its own, a network or none, a firewall, an image built."""
    instance.defaults = f'packages = ["podman", "uidmap", "passt", "busybox-static", "nftables"]\nsetup = """{BOUND}"""'
    instance.declare("container", pods="nesting = true")
    instance.hutch("up", timeout=600)

    def podman(command: str) -> str:
        return instance.ssh("pods", f"podman {command}").stdout

    instance.ssh("pods", TINY)
    podman("import --quiet tiny.tar tiny")
    assert podman("run --rm tiny id").startswith("uid=0")
    mapped = podman("run --rm tiny cat /proc/self/uid_map").split()
    assert mapped == ["0", "1000", "1", "1", "10000", "50001"]
    mounts = podman("run --rm tiny mount")
    assert "proc on /proc type proc (rw,nosuid,nodev,noexec,relatime)" in mounts
    assert podman("run --rm tiny wget -q -O - http://public.example/").startswith("internet")
    interfaces = podman("run --rm --network=none tiny ip -o link").splitlines()
    assert [line.split()[1] for line in interfaces] == ["lo:"]
    rules = "add table inet own; add chain inet own in { type filter hook input priority 0; }; list ruleset"
    shown = podman(f"run --rm --network=none --cap-add=NET_ADMIN -v /usr:/usr:ro tiny /usr/sbin/nft '{rules}'")
    assert "hook input" in shown
    instance.ssh("pods", "printf 'FROM tiny\\nRUN echo made >/made\\n' >Containerfile")
    podman("build --quiet -t made .")
    assert podman("run --rm made cat /made") == "made\n"
    # What it makes is the workspace's own on the host, whoever made it in there.
    home = instance.state / "workspaces" / "pods" / "home"
    writing = "run --rm --user 1000 -v ./shared:/shared:U tiny sh -c 'echo >/shared/file'"
    instance.ssh("pods", f"mkdir shared && podman {writing}")
    assert (home / "shared" / "file").stat().st_uid >= 0x7000_0000


@pytest.mark.long
def test_docker(instance: Instance) -> None:
    instance.defaults = 'packages = ["docker.io", "docker-cli", "iptables", "busybox-static"]'
    instance.declare("container", pods="nesting = true")
    instance.hutch("up", timeout=600)

    def docker(command: str) -> str:
        return instance.inside("pods", "sh", "-c", f"docker {command}", root=True).stdout

    instance.inside("pods", "sh", "-c", TINY, root=True)
    docker("import tiny.tar tiny")
    assert docker("run --rm tiny id").startswith("uid=0")
    assert docker("run --rm tiny wget -q -O - http://public.example/").startswith("internet")
    interfaces = docker("run --rm --network=none tiny ip -o link").splitlines()
    assert [line.split()[1] for line in interfaces] == ["lo:"]
